"""Define how a step trains, and how single steps differ."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from sdpo.config.annotations import (
    BY_CONTENT,
    NO_UNIT,
    SHARE,
    NotIdentity,
    OfFormula,
    ReadIf,
    Unit,
    marked,
    markers_of,
)
from sdpo.config.choices import OneOf
from sdpo.config.group import Group
from sdpo.config.precision import short_name
from sdpo.config.reference_choice import ReferenceChoice, TargetChoice
from sdpo.objectives import objective_facts, objective_names, other_name


def _known_objective(name: object) -> object:
    if not isinstance(name, str):
        return name
    if here := other_name(name):
        raise ValueError(f"what others call `{name}` is `{here}` here")
    for setting in objective_facts(name).settings:
        if setting not in marked(TrainingConfig, OfFormula):
            raise ValueError(
                f"the formula of `{name}` reads `{setting}`, which is no setting of objectives "
                f"({', '.join(marked(TrainingConfig, OfFormula))})"
            )
    return name


def _known_precision(given: object) -> object:
    name = short_name(given)
    if name == "fp16":
        raise ValueError(
            "fp16 is refused: it ends at 65504, below the start value 1 / (4 beta^2) of "
            "IPO, SPPO and Cal-DPO at the betas in use, and its gradients vanish at the learning "
            "rates in use. Set bf16, or fp32"
        )
    return name


Schedule = Literal["linear", "cosine", "cosine_with_min_lr", "constant"]
"""These are transformers' names of schedules; each begins with a linear warmup."""
OF_COSINE_WITH_MIN_LR = ReadIf(
    settings=("lr_schedule",), equal_to="cosine_with_min_lr", otherwise=" on lr_schedule {value}"
)
Recomputation = Literal["blocks", "selective"]
_IF_RECOMPUTED = ReadIf(
    settings=("gradient_checkpointing",),
    equal_to=True,
    otherwise=": gradient_checkpointing is off",
)
IN_SHARES = ReadIf(
    settings=("warmup_steps",), equal_to=0, otherwise=": warmup_steps is {value}, and says it"
)

Objective = Annotated[str, BeforeValidator(_known_objective), OneOf(objective_names)]
Precision = Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(_known_precision)]

_OF_PAIRS = NotIdentity("the supervised stage has a loss of its own", of=("supervised",))
_BY_DIGEST = NotIdentity("the digest of the model bears identity, not the word", of=("step",))
_RESUMED = NotIdentity("what a resume goes on from is exact: it changes no result")
Optimizer = Literal["adamw", "rmsprop", "adamw_8bit", "paged_adamw_8bit"]
IN_8_BITS = ("adamw_8bit", "paged_adamw_8bit")
"""These optimizers keep their two moments in a byte each, by blocks (arXiv 2110.02861)."""
_BYTES = 2 + 2 * 4 / 256
MOMENT_BYTES: Mapping[Optimizer, float] = MappingProxyType(
    {"adamw": 8, "rmsprop": 4, "adamw_8bit": _BYTES, "paged_adamw_8bit": _BYTES}
)
"""An optimizer keeps so many bytes for each weight that trains; two of 8 bits have a scale
a block of 256."""
_OF_ADAMW = ReadIf(
    settings=("optimizer",), equal_to=("adamw", *IN_8_BITS), otherwise=" on optimizer {value}"
)
_OF_LORA = ReadIf(settings=("lora_r",), otherwise=" because lora_r is 0")
_WITH_STATES = ReadIf(
    settings=("checkpoint_minutes", "checkpoint_every"),
    otherwise=" because no resume states are asked for",
)


class TrainingConfig(Group):
    """These settings say how one step trains. Any of them may differ by step: see `steps`."""

    objective: Annotated[Objective, _OF_PAIRS] = Field(
        "dpo",
        description="Objective; its formula and paper are in sdpo/objectives/losses.py. `ipo` "
        "averages over tokens as TRL does, `ipo_sum` sums as arXiv 2502.01237 does.",
    )
    beta: Annotated[float, Unit(NO_UNIT), OfFormula("β")] = Field(
        0.1,
        gt=0,
        description="Temperature: strength of the reference where there is one; tau of IPO. What "
        "is best differs between objectives by orders of magnitude.",
    )
    label_smoothing: Annotated[float, Unit(SHARE), OfFormula("label smoothing")] = Field(
        0.1, ge=0, lt=0.5, description="Share of labels taken to be flipped (`cdpo`, `robust`)."
    )
    exo_epsilon: Annotated[float, Unit(SHARE), OfFormula("ε")] = Field(
        1e-3,
        gt=0,
        lt=0.5,
        description="Probability of the rejected side in EXO's target (`exo`); TRL's "
        "label_smoothing for exo_pair.",
    )
    cal_dpo_c: Annotated[float, Unit(NO_UNIT), OfFormula("c")] = Field(
        1.0,
        title="Cal-DPO weight",
        gt=0,
        description="Weight of the calibration term (`cal_dpo`): 1 in arXiv 2502.01237, 0.5 in the "
        "authors' code.",
    )
    simpo_gamma_beta_ratio: Annotated[float, Unit(NO_UNIT), OfFormula("γ/β")] = Field(
        0.5,
        title="SimPO margin over beta",
        ge=0,
        description="Target margin per token over beta (`simpo`): SimPO's gamma_beta_ratio; TRL's "
        "simpo_gamma is beta times this.",
    )
    preference_weight: Annotated[float, Unit(NO_UNIT), OfFormula("λ")] = Field(
        1.0,
        gt=0,
        description="Lambda, the weight of the preference term beside the NLL "
        "(`orpo_one_stage`, `asft_one_stage`); `beta` of TRL's ORPOTrainer.",
    )
    rpo_alpha: Annotated[float, Unit(NO_UNIT), _OF_PAIRS] = Field(
        0.0,
        title="RPO alpha",
        ge=0,
        description="Weight of the chosen side's negative log-likelihood per token, added to the "
        "objective (RPO, arXiv 2404.19733, eq. 1); 0: not added.",
    )
    router_aux_loss: Annotated[float, Unit(NO_UNIT), _OF_PAIRS] = Field(
        0.0,
        title="Router auxiliary loss",
        ge=0,
        description="Weight of a mixture of experts' load-balancing loss, of the whole global "
        "batch (TRL's router_aux_loss_coef, which takes it of every micro-batch); 0: not added.",
    )
    reference: Annotated[ReferenceChoice, _BY_DIGEST] = Field(
        "previous",
        description="Model that the policy is compared with. `previous`: the step before's, as in "
        "sDPO; `base`: S at every step; `model`: the one of `reference_model`; `guided`: trained "
        "first, on the step's own data, from the target (Pre-DPO); `merged`: the average of "
        "M_0..M_{t-1} (arXiv 2605.23398); `none`: for objectives without.",
    )
    reference_model: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "",
        description="Folder or hub name of the reference, where `reference` is `model`. With "
        "another tokenizer, only for objectives on summed log-probs.",
    )
    reference_revision: Annotated[str, NotIdentity(BY_CONTENT)] = Field(
        "", description="Branch, tag or commit of a hub `reference_model`."
    )
    target: Annotated[TargetChoice, _BY_DIGEST] = Field(
        "previous",
        description="Model that training starts from: `previous`, or `base` for S at every step.",
    )
    learning_rate: Annotated[float, Unit(NO_UNIT)] = Field(
        5e-7, gt=0, description="Peak learning rate."
    )
    optimizer: Optimizer = Field(
        "adamw",
        description="Optimizer. `adamw_8bit` keeps its moments in a byte each instead of four "
        "(bitsandbytes, extra `quantisation`); `paged_adamw_8bit` moves them to the host where a "
        "GPU is full.",
    )
    adam_beta1: Annotated[float, Unit(SHARE), _OF_ADAMW] = Field(
        0.9, ge=0, lt=1, description="AdamW: decay of the first moment."
    )
    adam_beta2: Annotated[float, Unit(SHARE), _OF_ADAMW] = Field(
        0.999, ge=0, lt=1, description="AdamW: decay of the second moment."
    )
    adam_epsilon: Annotated[float, Unit(NO_UNIT)] = Field(
        1e-8, gt=0, description="AdamW and RMSprop: epsilon."
    )
    weight_decay: Annotated[float, Unit(NO_UNIT)] = Field(
        0.0, ge=0, description="Weight decay, not applied to biases and norms."
    )
    lr_schedule: Schedule = Field(
        "linear", title="Learning rate schedule", description="Learning rate after the warmup."
    )
    min_lr_rate: Annotated[float, Unit(SHARE), OF_COSINE_WITH_MIN_LR] = Field(
        0.1,
        title="Lowest learning rate",
        ge=0,
        lt=1,
        description="Share of the peak at which `cosine_with_min_lr` ends.",
    )
    warmup_ratio: Annotated[float, Unit(SHARE), IN_SHARES] = Field(
        0.1, ge=0, lt=1, description="Share of the optimizer steps with linear warmup."
    )
    warmup_steps: Annotated[int, Unit("optimizer steps")] = Field(
        0, ge=0, description="Optimizer steps with linear warmup; 0: by `warmup_ratio`."
    )
    max_grad_norm: Annotated[float, Unit(NO_UNIT)] = Field(
        1.0,
        title="Maximum gradient norm",
        ge=0,
        description="Gradient norm clipped to this; 0: off.",
    )
    batch_size: Annotated[int, Unit("pairs")] = Field(
        32, ge=1, description="Pairs per optimizer step, over all processes."
    )
    micro_batch_tokens: Annotated[int, Unit("tokens")] = Field(
        0,
        title="Micro-batch",
        ge=0,
        description="Tokens (padding included) in one forward, of which a small model has up to "
        "four at a time on a CPU; 0: chosen by the device. Does not change the loss beyond "
        "rounding.",
    )
    layout: Literal["auto", "shared", "packed", "padded"] = Field(
        "auto",
        description="Tokens of a pair in a forward: `shared` computes the prompt once for both "
        "sides, `packed` puts sequences in one row without padding, `padded` is the plain form; "
        "`auto`: what the attention kernel allows. Changes nothing but the last bits.",
    )
    epochs: Annotated[int, Unit("passes")] = Field(
        1, ge=1, description="Passes over the partition."
    )
    max_steps: Annotated[int, Unit("optimizer steps")] = Field(
        0, ge=0, description="Optimizer steps at most; 0: as `epochs` says."
    )
    seed: Annotated[int, Unit(NO_UNIT)] = Field(
        42, ge=0, description="Seed of the order of pairs, and of LoRA and dropout."
    )
    precision: Precision = Field(
        "auto",
        description="Arithmetic: bf16 is autocast over fp32 weights; `auto`: bf16 on a GPU that "
        "has it, else fp32. Weights are always kept and published in fp32.",
    )
    checkpoint_minutes: Annotated[float, Unit("minutes"), _RESUMED] = Field(
        10.0,
        title="Time between resume states",
        ge=0,
        description="Minutes between resume states of a step that trains, at least (saving takes "
        "5% of the time at most); 0: by `checkpoint_every` alone.",
    )
    checkpoint_every: Annotated[int, Unit("optimizer steps"), _RESUMED] = Field(
        0,
        title="Optimizer steps between resume states",
        ge=0,
        description="Optimizer steps between resume states; 0: by `checkpoint_minutes` alone.",
    )
    checkpoints_kept: Annotated[int, Unit("states"), _RESUMED, _WITH_STATES] = Field(
        1,
        title="Resume states kept",
        ge=1,
        description="Resume states kept while a step trains; none is left after it.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    recomputation: Annotated[Recomputation, _IF_RECOMPUTED] = Field(
        "blocks",
        description="What gradient checkpointing computes again: `blocks`, all of a decoder block, "
        "of which its input is kept; `selective`, what is cheap: results of matrix products and "
        "of attention are kept as well.",
    )
    compile: bool = Field(
        False,
        description="Train the decoder blocks through torch.compile and report what it gained; "
        "takes a compiler, and up to minutes at the start of every step.",
    )
    lora_r: Annotated[int, Unit(NO_UNIT)] = Field(
        0, title="LoRA rank", ge=0, description="Rank of LoRA adapters; 0: full fine-tuning."
    )
    lora_alpha: Annotated[int, Unit(NO_UNIT), _OF_LORA] = Field(
        16, ge=1, description="LoRA scale: alpha / r."
    )
    lora_dropout: Annotated[float, Unit(SHARE), _OF_LORA] = Field(
        0.0, ge=0, lt=1, description="Dropout before the adapters."
    )
    lora_target_modules: Annotated[list[str], _OF_LORA] = Field(
        ["all-linear"], description="Module names that get adapters, or `all-linear`."
    )
    lora_rslora: Annotated[bool, _OF_LORA] = Field(
        False, title="rsLoRA", description="Scale alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."
    )
    lora_dora: Annotated[bool, _OF_LORA] = Field(
        False,
        title="DoRA",
        description="Train the lengths of the weights' columns beside the adapters (DoRA, arXiv "
        "2402.09353).",
    )
    lora_modules_to_save: Annotated[list[str], _OF_LORA] = Field(
        [],
        title="Modules trained whole beside LoRA",
        description="Names of modules of which all weights train beside the adapters (`lm_head`, "
        "`embed_tokens`); a head that is tied to the embedding stays tied.",
    )
    lora_handoff: Annotated[Literal["merge", "continue"], _OF_LORA] = Field(
        "merge",
        title="LoRA handoff",
        description="What a step hands on: `merge`: one set of weights, adapters merged; "
        "`continue`: the adapter itself, over a base that stays as it is.",
    )

    @property
    def recomputed(self) -> Recomputation | None:
        """Return what blocks compute again in the backward pass; None: they keep everything."""
        return self.recomputation if self.gradient_checkpointing else None

    @property
    def hands_on(self) -> bool:
        """Return whether a step publishes its adapter, and the next one goes on with it."""
        return bool(self.lora_r) and self.lora_handoff == "continue"


def _step_overrides() -> type[Group]:
    fields: dict[str, Any] = {}
    for name, field in TrainingConfig.model_fields.items():
        said = markers_of(field)
        annotation: Any = field.annotation
        if bounds := [each for each in field.metadata if each not in said]:
            annotation = Annotated[annotation, *bounds]
        annotation = annotation | None
        if said:  # of the setting itself, not of one of its two forms
            annotation = Annotated[annotation, *said]
        description = f"{field.description} Empty: as in `training`."
        fields[name] = (annotation, Field(None, title=field.title, description=description))
    return create_model(
        "StepConfig",
        __base__=Group,
        __doc__="Training settings of one step that differ from `training`.",
        **fields,
    )


StepConfig = _step_overrides()
