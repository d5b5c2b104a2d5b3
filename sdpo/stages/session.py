"""Hold the model of a stage: loaded once, scored, trained, published."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sdpo.config import TrainingConfig
from sdpo.config.automatic import lane_count, resolve_layout, training_lanes
from sdpo.events import EventWriter
from sdpo.identity.adapter_folder import FULL, base_folder
from sdpo.model.by_length import changes_itself
from sdpo.model.compared import was_compared
from sdpo.model.fully_sharded import load_in_shares
from sdpo.model.handed_on import check_form, has_adapters
from sdpo.model.held import hold_base
from sdpo.model.policy import (
    add_adapters,
    empty_policy,
    load_policy,
    merge_adapters,
)
from sdpo.model.prepare import prepare, unreached
from sdpo.model.published_tensors import reads_as_it_is
from sdpo.model.randomness import draws_at_random
from sdpo.model.routers import check_routers
from sdpo.model.sequence_scorer import SequenceScorer, inner_model
from sdpo.model.share import share_of
from sdpo.model.shares import whole
from sdpo.processes.stage_specs import StepSpec
from sdpo.scoring.score_rows import Scorer
from sdpo.stages.accelerators import make_accelerator, waiting_group
from sdpo.stages.extension_locks import free_extension_locks
from sdpo.stages.publish_shares import publish_shares
from sdpo.stages.rounding import probe_of, round_again
from sdpo.stages.save_model import save_handed_on, save_whole
from sdpo.stages.training_state import Held
from sdpo.store.records import Rounding
from sdpo.system.out_of_memory import short_memory_named
from sdpo.tokens.load import load_tokenizer
from sdpo.training.optimizer import make_optimizer
from sdpo.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TO_LOAD = "take a device that has 4 bytes for each of its weights free, or a smaller model"
_TO_SAVE = (
    "each of its weights takes 4 bytes of the machine's memory there, and of the device's where "
    "adapters are merged: free some and run again. Set training.checkpoint_every, and it goes on "
    "from its last saved state"
)
_PARTED: list[torch.distributed.ProcessGroup | None] = []
"""Groups of processes that have parted are kept here: to free one may take for ever."""


@dataclass(slots=True, kw_only=True)
class Session:
    """A session holds M_{t-1} in memory while it becomes M_t.

    ``published_digest`` is that of M_t once :meth:`publish` was called, empty before. ``waiting``
    is the process group in which ranks wait for one that works alone, None with one process.
    ``unreached`` are the parameters that no loss reaches, once a trainer was asked for.
    ``rounding`` says what holding the base in another precision changed, where that was measured.
    ``rounded_again`` says the same of merged weights, once they were published.
    ``shares`` is the scorer of a policy that FSDP2 holds, else None.
    """

    spec: StepSpec
    accelerator: "Accelerator"
    policy: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    shares: SequenceScorer | None = None
    waiting: torch.distributed.ProcessGroup | None = None
    rounding: Rounding | None = None
    published_digest: str = field(default="", init=False)
    rounded_again: Rounding | None = field(default=None, init=False)
    unreached: list[str] = field(default_factory=list, init=False)
    _sharded: "tuple[SequenceScorer, torch.optim.Optimizer] | None" = field(
        default=None, init=False
    )

    @property
    def pad_token_id(self) -> int:
        """Return the padding token; any id will do, since padding is masked by position."""
        token = self.tokenizer.pad_token_id
        return 0 if token is None else int(token)

    @property
    def device(self) -> torch.device:
        """Return the device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def layout(self) -> str:
        """Return the layout of tokens, for scoring and training alike."""
        return resolve_layout(self.spec.training.layout, attention=self.spec.model.attention)

    def pad(self) -> None:
        """Take the plain layout from here on."""
        training = self.spec.training.model_copy(update={"layout": "padded"})
        self.spec = self.spec.model_copy(update={"training": training})

    @property
    def is_sharded(self) -> bool:
        """Return whether DeepSpeed or FSDP2 holds the weights: it scores as well as trains."""
        return self.spec.launch.by_engine

    @property
    def held(self) -> Held:
        """Return how the ranks hold the weights and the optimizer's states."""
        if self.shares is not None:
            return "rows"
        return "zero" if self.is_sharded else "whole"

    def scorer(self) -> Scorer:
        """Return the policy as it is now, ready to score; without gradient synchronisation."""
        if self.is_sharded:
            module, _ = self.engine()
        else:
            scorer = SequenceScorer(self.policy)
            module = self.accelerator.prepare_model(scorer, evaluation_mode=True)
        return Scorer(
            accelerator=self.accelerator,
            module=module,
            pad_token_id=self.pad_token_id,
            micro_batch_tokens=self.spec.training.micro_batch_tokens,
            layout=self.layout,
            lanes=self._lanes(),
            in_step=self.is_sharded,
        )

    def _lanes(self) -> int:
        if changes_itself(self.policy):
            return 1
        return lane_count(
            sum(parameter.numel() for parameter in self.policy.parameters()),
            threads=torch.get_num_threads(),
            device=self.device.type,
            processes=self.accelerator.num_processes,
        )

    def trainer(self, training: TrainingConfig) -> Trainer:
        """Return the policy ready to train, with adapters where the settings ask for them."""
        torch.manual_seed(training.seed)
        if self.is_sharded:
            model, optimizer = self.engine()
        else:
            self.policy = self._with_adapters(training)
            scorer = SequenceScorer(self.policy)
            optimizer = make_optimizer(scorer, training)
            ddp = self.accelerator.ddp_handler
            if ddp is not None or training.lora_r:
                with self.arithmetic():
                    self.unreached = unreached(scorer, device=self.device)
            if ddp is not None:
                ddp.find_unused_parameters = bool(self.unreached)
            model, optimizer = self.accelerator.prepare(scorer, optimizer)
        lanes = 1 if draws_at_random(self.policy) else training_lanes(training, self._lanes())
        return Trainer(
            accelerator=self.accelerator,
            scorer=model,
            optimizer=optimizer,
            training=training,
            pad_token_id=self.pad_token_id,
            layout=self.layout,
            lanes=lanes,
        )

    def _with_adapters(self, training: TrainingConfig) -> "PreTrainedModel":
        """Return the policy with what the step trains: the adapter that was handed on, a fresh one,
        or all weights.
        """
        policy = self.policy
        if has_adapters(policy) and training.hands_on:
            base = base_folder(self.spec.input_model)
            check_form(policy, add_adapters(empty_policy(base, model=self.spec.model), training))
            return policy
        if self.shares is not None:  # what trains was put over the base when that was loaded
            return policy
        if has_adapters(policy):
            policy = merge_adapters(policy).requires_grad_(True)
        return add_adapters(policy, training) if training.lora_r else policy

    def publish(self) -> str:
        """Publish the policy as this step's model and return its digest.

        Adapters are merged, or published themselves where the step hands them on.
        """
        with short_memory_named(f"saving the model of {self.spec.name}", remedy=_TO_SAVE):
            digest = self._saved()
        self.wait()
        self.published_digest = share_of(self.accelerator).of_first(digest)
        if self.spec.model.base_precision != FULL and not has_adapters(self.policy):
            hold_base(self.policy, self.spec.model.base_precision, unchanged=True)
        if self.shares is not None:
            self.engine()[1].state.clear()  # M_t is measured next
        elif not self.is_sharded:
            self.accelerator.free_memory()
        return self.published_digest

    def _saved(self) -> str:
        """Write the model, and return its digest, empty on all ranks but one."""
        if self.spec.training.hands_on:
            self.reshard()
            return save_handed_on(self.policy, spec=self.spec, accelerator=self.accelerator)
        self._merge()
        if self.spec.launch.shares_weights and reads_as_it_is(self.policy):
            self.reshard()
            return publish_shares(
                self.policy,
                self.spec.folder / "model",
                spec=self.spec,
                accelerator=self.accelerator,
            )
        weights = self._gathered() if self.is_sharded else None
        return save_whole(
            self.policy, spec=self.spec, accelerator=self.accelerator, weights=weights
        )

    def _merge(self) -> None:
        """Merge adapters, where there are any, also in the module that ranks compute with."""
        if not has_adapters(self.policy):
            return
        self.reshard()
        self.policy = merge_adapters(self.policy)
        if self.spec.model.base_precision != FULL:
            main = self.accelerator.is_main_process
            self.rounded_again = round_again(self.policy, self.spec, measures=main)
        if self.is_sharded:
            self.accelerator.unwrap_model(self.engine()[0]).model = self.policy

    def reshard(self) -> None:
        """Let every weight be a share again, where FSDP2 has kept one whole after a forward."""
        if self.shares is not None:
            self.shares.reshard()  # type: ignore[operator]

    def wait(self) -> None:
        """Wait for the other ranks, hours if need be: one of them may be saving a large model."""
        if self.waiting is not None:
            torch.distributed.barrier(group=self.waiting)

    def close(self) -> None:
        """Wait for the other processes, then part from them: one that just ends aborts the rest.

        The groups themselves are kept: see :func:`sdpo.stages.__main__._end`.
        """
        self.wait()
        if self.waiting is not None:
            _PARTED.extend([self.waiting, torch.distributed.group.WORLD])
        self.accelerator.state.destroy_process_group()

    def engine(self) -> tuple[SequenceScorer, torch.optim.Optimizer]:
        """Return the module that ranks compute with together, and its optimizer, made once.

        DeepSpeed's take the weights over.
        """
        if self._sharded is None:
            torch.manual_seed(self.spec.training.seed)
            self.policy = self._with_adapters(self.spec.training)
        if self._sharded is None and self.shares is not None:
            self.reshard()
            optimizer = make_optimizer(self.shares, self.spec.training)
            self._sharded = self.shares, self.accelerator.prepare_optimizer(optimizer)
        if self._sharded is None:
            scorer = SequenceScorer(self.policy)
            optimizer = make_optimizer(scorer, self.spec.training)
            self._sharded = self.accelerator.prepare(scorer, optimizer)
            self.check_head(scorer)
            self.check_routers(scorer)
        return self._sharded

    def check_head(self, scorer: SequenceScorer) -> None:
        """Refuse a head whose log-probs are not the model's own."""
        vocabulary = self.policy.config.get_text_config().vocab_size
        with self.arithmetic():
            scorer.check_head(vocabulary=vocabulary, device=self.device)

    def check_routers(self, scorer: SequenceScorer) -> None:
        """Refuse a routers' loss that is not the model's own, where the policy is trained by it.

        A reference needs no routers.
        """
        if self.spec.training.router_aux_loss and "score_as_reference" not in self.spec.phases:
            with self.arithmetic():
                check_routers(scorer, self.policy, device=self.device)

    def arithmetic(self) -> torch.autocast:
        """Return the precision in which the stage computes, for calls past the accelerator."""
        bf16 = self.spec.training.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def _gathered(self) -> dict[str, torch.Tensor]:
        """Return the whole fp32 weights, gathered from all ranks, under the model's own names."""
        engine, _ = self.engine()
        weights = self.accelerator.get_state_dict(engine) or {}
        named = {name.removeprefix("model."): value for name, value in weights.items()}
        tied = getattr(self.policy, "all_tied_weights_keys", None) or {}
        return {name: value for name, value in named.items() if tied.get(name) not in named}


def open_session(spec: StepSpec, events: EventWriter) -> Session:
    """Load the input model on this process's device.

    Raises:
        ModelError: the model is not the one the run was told of, or cannot be used.
    """
    events.phase("load", detail=f"{spec.input_name} from {spec.input_model}")
    torch.set_num_threads(spec.launch.threads)
    if spec.launch.zero_stage:
        free_extension_locks(warn=events.warning)
    accelerator = make_accelerator(spec)
    with short_memory_named(f"loading {spec.input_name}", remedy=_TO_LOAD):
        policy, shares, rounding = _loaded(spec, accelerator, events)
    tokenizer = load_tokenizer(spec.base, code=spec.model.trust_remote_code)
    session = Session(
        spec=spec,
        accelerator=accelerator,
        policy=policy,
        tokenizer=tokenizer,
        shares=shares,
        waiting=waiting_group(accelerator),
        rounding=rounding,
    )
    if rounding:
        events.note(
            f"the base is held in {rounding.precision}: on {rounding.pairs} reserved pairs its "
            f"log-probs are {rounding.nats_per_token:.3g} nats a token from those of fp32, a "
            f"completion's at most {rounding.largest_nats:.3g}, a pair's margin "
            f"{rounding.gamma_nats:.3g} on average"
        )
    if spec.launch.zero_stage:  # DeepSpeed's model can only be asked through its engine
        return session
    scorer = shares or SequenceScorer(policy)
    with session.arithmetic():
        prepare(policy, device=accelerator.device, scorer=shares)
    inner = inner_model(policy)
    if not was_compared(inner):
        events.note(
            f"{type(inner).__name__} is no architecture whose optimisations were compared: "
            "its own code alone is used, with the same results and more time"
        )
    with whole(scorer):
        session.check_routers(scorer.eval())
    return session


def _loaded(
    spec: StepSpec, accelerator: "Accelerator", events: EventWriter
) -> "tuple[PreTrainedModel, SequenceScorer | None, Rounding | None]":
    """Return the input model, its scorer where FSDP2 holds it, and what holding its base in another
    precision changed."""
    digest = spec.input_digest if accelerator.is_main_process else ""
    recomputed = spec.training.recomputed if spec.trains else None
    if spec.launch.strategy == "fsdp2":
        shares = load_in_shares(
            spec.input_model,
            model=spec.model,
            device=accelerator.device,
            bf16=spec.training.precision == "bf16",
            offload=spec.launch.offload == "all",
            digest=digest,
            recomputed=recomputed,
            fresh=spec.training if spec.trains and spec.training.lora_r else None,
            merges=bool(spec.trains) and not spec.training.hands_on,
            warn=events.warning,
        )
        return shares.model, shares, None
    held = spec.model.base_precision != FULL
    rounds = spec.trains and held and spec.input_model == spec.base
    probe = probe_of(spec) if rounds and accelerator.is_main_process else None
    policy = load_policy(
        spec.input_model,
        model=spec.model,
        digest=digest,
        recomputed=recomputed,
        warn=events.warning,
        before_held=probe.see if probe else lambda _: None,
    )
    rounding = probe.compare(policy) if probe else None
    return policy.to(accelerator.device), None, rounding
