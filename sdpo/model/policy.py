"""Load a policy, give it adapters, and publish it.

Weights are fp32 from load to publication: at the paper's learning rate a bf16 copy loses nearly all
of a step's change. Adapters are merged before publication, so "M_{t-1}" means one set of tensors.
"""

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from sdpo.config import ModelConfig, TrainingConfig
from sdpo.config.training import Recomputation
from sdpo.errors import ConfigError, ModelError
from sdpo.identity.adapter_folder import (
    FULL,
    base_folder,
    check_precision,
    held_digest,
    is_adapter,
    recorded_base,
)
from sdpo.identity.model_digest import model_digest
from sdpo.identity.model_folder import refusals, tokenizer_files, view_of
from sdpo.identity.tokenizer_digest import given_template
from sdpo.model.adapters import check_adapters, check_names, check_whole
from sdpo.model.handed_on import has_adapters, put_over, shape_of
from sdpo.model.held import hold_base, let_go
from sdpo.model.randomness import own_settings, switch_off
from sdpo.model.recomputation import recompute
from sdpo.model.sequence_scorer import inner_model
from sdpo.model.shard_files import GB
from sdpo.model.shares import in_shares, written

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_NAMED = 3
_ABOUT_KERNELS = re.compile(r"attention implementation|attn_implementation|[Ff]lash ?[Aa]ttention")


def load_policy(
    folder: Path,
    *,
    model: ModelConfig,
    digest: str = "",
    recomputed: Recomputation | None = None,
    warn: Callable[[str], None] = lambda _: None,
    before_held: "Callable[[PreTrainedModel], None]" = lambda _: None,
) -> "PreTrainedModel":
    """Load the causal language model in ``folder``, fp32, without randomness of its own.

    Where the folder holds an adapter, that is base + adapter, of which the adapter alone trains.
    All is loaded from views of exactly the files that are digested. ``digest`` is the model's,
    where it is known which model this must be; the files are digested while the view watches them.
    ``warn`` gets a message on tensors that its architecture has no place for; ``before_held`` the
    exact model, before its layers are held as ``model.base_precision`` says. ``recomputed`` says
    what the blocks compute again in the backward pass, where they do.

    Raises:
        ModelError: it is not a causal language model, has another digest, its weights do not fit
            its configuration, or the folder is one that transformers would understand otherwise.
    """
    if is_adapter(folder):
        policy = _load_adapted(folder, model=model, digest=digest, warn=warn)
    else:
        policy, is_own = _load_weights(folder, model=model, digest=digest, warn=warn)
        before_held(policy)
        policy = hold_base(policy, model.base_precision, unchanged=is_own)
    if recomputed:
        recompute(inner_model(policy), recomputed)
    return policy


def _load_adapted(
    folder: Path, *, model: ModelConfig, digest: str, warn: Callable[[str], None]
) -> "PreTrainedModel":
    precision = model.base_precision
    check_precision(folder, precision)
    with view_of(folder) as view:
        check_digest(folder, digest, precision)
        base = recorded_base(folder).as_held(precision)
        policy, _ = _load_weights(base_folder(folder), model=model, digest=base, warn=warn)
        return put_over(hold_base(policy, precision), folder, view)


def check_digest(folder: Path, digest: str, precision: str = FULL) -> bool:
    """Refuse a folder that does not hold the model of ``digest``, where that is known.

    Returns whether it is the model of the weights as they are in their files, while ``precision``
    is another one: these are weights that were rounded before they were published.
    """
    if not digest:
        return False
    adapted = is_adapter(folder)  # whose digest tells how its base is held
    own = model_digest(folder, precision=precision if adapted else FULL)
    found = own if adapted else held_digest(own, precision)
    if digest not in (own, found):
        raise ModelError(
            f"{folder} is not the model this run was made with: its digest is {found}, not {digest}"
        )
    return digest == own != found


def _load_weights(
    folder: Path, *, model: ModelConfig, digest: str, warn: Callable[[str], None]
) -> "tuple[PreTrainedModel, bool]":
    """Return the model, and whether its weights were published as its layers are held."""
    from transformers import AutoModelForCausalLM

    code = model.trust_remote_code
    with refusals(f"the model in {folder}"), view_of(folder, code=code) as view:
        is_own = check_digest(folder, digest, model.base_precision)
        with known_kernels(model.attention):
            policy, info = AutoModelForCausalLM.from_pretrained(
                view,
                dtype=torch.float32,
                attn_implementation=model.attention,
                trust_remote_code=code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    policy.name_or_path = policy.config.name_or_path = str(folder)
    check_complete(
        folder, policy, missing=info["missing_keys"], unused=info["unexpected_keys"], warn=warn
    )
    _check_tied(folder, policy)
    switch_off(policy)
    return policy, is_own


def check_complete(
    folder: Path,
    policy: "PreTrainedModel",
    *,
    missing: Collection[str],
    unused: Collection[str],
    warn: Callable[[str], None],
) -> None:
    """Refuse weights that lack tensors of the architecture; warn of those it has no place for.

    Raises:
        ModelError: ``missing`` names any.
    """
    if missing:
        named = ", ".join(sorted(missing)[:_MOST_NAMED])
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} tensors of its architecture ({named} "
            "...): they would be random"
        )
    if unused:
        more = ", ..." if len(unused) > _MOST_NAMED else ""
        warn(
            f"{folder}: {len(unused)} tensors of the weights are not loaded, as "
            f"{type(policy).__name__} has no place for them by {folder.name}/config.json, and no "
            f"M_t will have them: {', '.join(sorted(unused)[:_MOST_NAMED])}{more}"
        )


def _check_tied(folder: Path, policy: "PreTrainedModel") -> None:
    """Refuse an output head beside an embedding that the configuration ties it to.

    transformers takes both where they differ; other programs drop the head, and have another model.
    """
    head, embedding = policy.get_output_embeddings(), policy.get_input_embeddings()
    named = getattr(policy, "_tied_weights_keys", None)
    is_said = bool(getattr(policy.config, "tie_word_embeddings", False)) and "lm_head.weight" in (
        named or ()
    )
    weights = [getattr(module, "weight", None) for module in (head, embedding)]
    if is_said and None not in weights and weights[0] is not weights[1]:
        raise ModelError(two_heads(folder))


def two_heads(folder: Path) -> str:
    """Return the refusal of an output head that is not the embedding that it is tied to."""
    return (
        f"{folder} has an output head of its own (lm_head.weight), and its config.json ties it "
        "to the embedding (tie_word_embeddings): set that to false, or take the head out of "
        "the weights"
    )


def empty_policy(folder: Path, *, model: ModelConfig) -> "PreTrainedModel":
    """Return the modules of the model in ``folder``, on the meta device: without values or memory.

    Those of an adapter are over those of its base.

    Raises:
        ModelError: as :func:`load_policy`, but for what only the weights show.
    """
    if is_adapter(folder):
        return shape_of(empty_policy(base_folder(folder), model=model), folder)
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import set_zero3_state

    code = model.trust_remote_code
    with refusals(f"the model in {folder}"), view_of(folder, code=code) as view:
        config = AutoConfig.from_pretrained(view, trust_remote_code=code, local_files_only=True)
        # Else transformers would divide them among the ranks of ZeRO-3, and give them values.
        with torch.device("meta"), set_zero3_state():
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=model.attention, trust_remote_code=code
            )


@contextmanager
def known_kernels(attention: str) -> Iterator[None]:
    """Replace errors on a missing attention kernel of an architecture by this project's message."""
    try:
        yield
    except (ImportError, ValueError) as error:
        said = str(error).partition("\n")[0]
        if attention == "eager" or not _ABOUT_KERNELS.search(said):
            raise
        name = said.partition(" ")[0]
        which = name if name.endswith(("Model", "LM", "Generation")) else "this architecture"
        others = "" if attention == "sdpa" else ", or model.attention: sdpa,"
        raise ModelError(
            f"model.attention: {attention}: {which} has no such kernel here ({said[:200]}). Set "
            f"model.attention: eager{others} which serves with the same results and more memory"
        ) from error


def add_adapters(policy: "PreTrainedModel", training: TrainingConfig) -> "PreTrainedModel":
    """Return ``policy`` with fresh LoRA adapters, whose initial output is zero.

    Raises:
        ConfigError: no module has one of the names, or one is the output head, or one that an
            adapter does not fit (:mod:`sdpo.model.adapters`).
    """
    from peft import LoraConfig, get_peft_model

    names = training.lora_target_modules
    head, embedding = policy.get_output_embeddings(), policy.get_input_embeddings()
    tied = head.weight is embedding.weight
    whole = training.lora_modules_to_save
    check_whole(policy, whole)
    try:
        adapted = get_peft_model(
            policy,
            LoraConfig(
                r=training.lora_r,
                lora_alpha=training.lora_alpha,
                lora_dropout=training.lora_dropout,
                target_modules="all-linear" if names == ["all-linear"] else names,
                use_rslora=training.lora_rslora,
                use_dora=training.lora_dora,
                modules_to_save=whole or None,
                ensure_weight_tying=tied and _is_of_pair(policy, whole),
                task_type="CAUSAL_LM",
            ),
        )
    except (ValueError, NotImplementedError) as error:
        _refuse(training, error)
    # The head's log-probs are computed in chunks, past an adapter's forward.
    scored = [policy.get_output_embeddings(), *([policy.get_input_embeddings()] if tied else [])]
    if any(hasattr(module, "lora_A") for module in scored):
        raise ConfigError(
            f"training.lora_target_modules: {', '.join(names)}: adapters on the output head, or on "
            "an embedding that is tied to it, are not supported; leave it out"
        )
    check_names(adapted, names)
    check_adapters(adapted)
    return adapted


def _refuse(training: TrainingConfig, error: Exception) -> NoReturn:
    """Refuse adapters that PEFT does not make; ``error`` says why."""
    if "ParamWrapper" in str(error):
        name = "lora_dora" if training.lora_dora else "lora_dropout"
        raise ConfigError(
            f"training.{name}: experts that are one tensor have plain adapters, without it "
            f"({error}). Leave it out, or name modules beside the experts in "
            "training.lora_target_modules"
        ) from error
    setting = "lora_dora, lora_target_modules" if training.lora_dora else "lora_target_modules"
    raise ConfigError(f"training.{setting}: {error}") from error


def _is_of_pair(policy: "PreTrainedModel", names: Sequence[str]) -> bool:
    """Return whether one of ``names`` is that of the output head or of the embedding."""
    pair = {id(policy.get_output_embeddings()), id(policy.get_input_embeddings())}
    return any(
        id(module) in pair and any(path == n or path.endswith(f".{n}") for n in names)
        for path, module in policy.named_modules()
    )


def merge_adapters(policy: "PreTrainedModel") -> "PreTrainedModel":
    """Return the model with its adapters merged in fp32, or as it is if it has none.

    A base in another precision is fp32 then, with its rounded values. Where ranks share the
    weights, every rank calls it, and each layer is whole while it is merged.
    """
    let_go(policy)
    if not has_adapters(policy):
        return policy
    if not in_shares(policy):
        return policy.merge_and_unload()
    for layer in list(policy.modules()):
        if hasattr(layer, "lora_A") and hasattr(layer, "merge"):
            with written(layer):
                layer.merge()
    return policy.unload()


def save_policy(
    policy: "PreTrainedModel",
    folder: Path,
    *,
    tokenizer: Path,
    weights: dict[str, torch.Tensor] | None = None,
    chat_template: str = "",
    max_shard_size: float = 50.0,
) -> None:
    """Write ``policy`` into the existing ``folder``: safetensors, with S's tokenizer files.

    The tokenizer's files are copied byte for byte from ``tokenizer``: a re-save would rewrite them.
    A template that the recipe gave in place of the tokenizer's own, or chose among them, is saved
    with the model as its default.
    ``weights`` are given where the policy itself holds only a share of them; none of them where
    they are there. Files have ``max_shard_size`` GB at most, but for a tensor that is larger.
    """
    with own_settings(policy):
        policy.save_pretrained(
            folder,
            state_dict=weights,
            safe_serialization=True,
            max_shard_size=int(max_shard_size * GB),
        )
    copy_tokenizer(tokenizer, folder, chat_template=chat_template)


def copy_tokenizer(source: Path, folder: Path, *, chat_template: str = "") -> None:
    """Copy the tokenizer's files byte for byte; ``chat_template``: see :func:`save_policy`.

    Raises:
        ModelError: one is a link that leads out of ``source``, or is no file.
    """
    for path in tokenizer_files(source):
        copied = folder / path.relative_to(source)
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copied)
    if chat_template:
        own = folder / "chat_template.jinja"
        if Path(chat_template).is_absolute():
            shutil.copyfile(chat_template, own)
        else:
            text = given_template(source, chat_template)
            own.write_text(text, encoding="utf-8", newline="")
