"""The recipe: one schema for the YAML file, the flow's parameters and ``--set`` overrides.

This module owns the fields, their defaults and the checks that need nothing but the recipe itself.
Reading files and resolving hub names is :mod:`sdpo.recipe`; what the values do is said by the
modules that use them. Defaults are the sDPO paper's recipe (arXiv 2403.19270, which follows
Zephyr: 2310.16944) wherever the paper has one.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)

from sdpo.objectives import OBJECTIVE_SETTINGS, OBJECTIVES, ObjectiveName, other_name
from sdpo.reference_rules import (
    ReferenceChoice,
    TargetChoice,
    impossible_references,
    references_without_effect,
)

Strategy = Literal[
    "natural", "stratified", "random", "single", "score_gap", "reference_margin", "length"
]
LaunchStrategy = Literal["auto", "single", "ddp", "deepspeed_zero2", "deepspeed_zero3"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _known_objective(name: object) -> object:
    if isinstance(name, str) and (here := other_name(name)):
        raise ValueError(f"what others call `{name}` is `{here}` here")
    return name


def _known_precision(name: object) -> object:
    if name in ("fp16", "float16"):
        raise ValueError(
            "fp16 is refused: it ends at 65504, below the start value 1 / (4 beta^2) of "
            "IPO, SPPO and Cal-DPO at the betas in use, and its gradients vanish at the learning "
            "rates in use. Set bf16, or fp32"
        )
    return name


Objective = Annotated[ObjectiveName, BeforeValidator(_known_objective)]
Precision = Annotated[Literal["auto", "fp32", "bf16"], BeforeValidator(_known_precision)]


class Group(BaseModel):
    """A group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Group):
    """The base model: M_0 where there is no supervised stage."""

    name_or_path: str = Field(
        "",
        description="Folder of a model with its tokenizer, a Hugging Face hub name, or "
        "`demo:tiny-llama` for the tiny random model of the demo.",
    )
    revision: str = Field(
        "", description="Branch, tag or commit of a hub model; empty: its default branch."
    )
    chat_template: str = Field(
        "",
        description="Path of a Jinja chat template to use instead of the tokenizer's own; "
        "empty: the tokenizer's.",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernel, for scoring and training alike."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless you trust it."
    )


class ColumnsConfig(Group):
    """Where a source keeps its fields, as dotted paths; empty: recognised by itself."""

    prompt: str = Field("", description="Column of the prompt (text or messages).")
    chosen: str = Field("", description="Column of the preferred answer (text or messages).")
    rejected: str = Field("", description="Column of the other answer (text or messages).")
    system: str = Field("", description="Column of the system message.")
    chosen_score: str = Field("", description="Column of the chosen answer's score.")
    rejected_score: str = Field("", description="Column of the rejected answer's score.")


class SourceConfig(Group):
    """One source of preference pairs."""

    name: str = Field("", description="Name of the source; empty: the file's or data set's name.")
    path: str = Field(
        "",
        description="JSON, JSONL (also .gz), CSV, Parquet or Arrow file, a folder saved by "
        "`datasets`, a hub name, or `demo:<name>` for data that the demo generates.",
    )
    revision: str = Field("", description="Branch, tag or commit of a hub data set.")
    subset: str = Field("", description="Configuration name of a hub data set.")
    split: str = Field("train", description="Split of a hub data set or saved folder.")
    format: Literal["auto", "chat", "text"] = Field(
        "auto",
        description="`chat`: through the chat template; `text`: prompt and prompt + completion "
        "encoded as they are; `auto`: chat where the tokenizer has a template.",
    )
    columns: ColumnsConfig = Field(
        ColumnsConfig(), description="Where the fields are, if they are not found by themselves."
    )
    max_pairs: int = Field(
        0, ge=0, description="Use at most this many pairs, drawn by the data seed; 0: all."
    )


class ReserveConfig(Group):
    """Pairs set aside before anything is trained: the fixed probe of every model.

    Per source the pairs with the smallest prompt hashes, until
    max(fraction, min(min_pairs, max_fraction)) of them are set aside.
    """

    fraction: float = Field(0.03, ge=0, lt=1, description="Share of each source, at least.")
    min_pairs: int = Field(64, ge=0, description="Pairs of each source wanted, at least.")
    max_fraction: float = Field(
        0.10, ge=0, lt=1, description="Share of a source that `min_pairs` may take, at most."
    )
    key: str = Field("sdpo", description="Key of the hash that chooses the reserved prompts.")


class DataConfig(Group):
    """Preference data and how it becomes tokens."""

    sources: list[SourceConfig] = Field(
        [], description="Sources of preference pairs, in order; the first one keeps a duplicate."
    )
    reserve: ReserveConfig = Field(ReserveConfig(), description="Pairs that are never trained on.")
    max_length: int = Field(
        1024, ge=8, description="Tokens of prompt + completion that are kept, from the start."
    )
    seed: int = Field(42, ge=0, description="Seed of `max_pairs` and `limit`.")
    limit: int = Field(0, ge=0, description="Pairs per source for a smoke run; 0: all.")


class SupervisedColumnsConfig(Group):
    """Where supervised data keeps its fields, as dotted paths; empty: recognised by itself."""

    messages: str = Field("", description="Column of a whole dialogue; its last turn is trained.")
    prompt: str = Field("", description="Column of the prompt (text or messages).")
    completion: str = Field("", description="Column of the answer (text or messages).")
    system: str = Field("", description="Column of the system message.")


class SupervisedConfig(Group):
    """Supervised fine-tuning before the first step; its output is S = M_0."""

    enabled: bool = Field(False, description="Run the supervised stage (step 0).")
    examples: Literal["chosen", "source"] = Field(
        "chosen", description="Train on the chosen sides of all sources, or on `path`."
    )
    path: str = Field(
        "",
        description="File, folder or hub name with `messages`, or `prompt` and `completion`; "
        "or `demo:<name>`. Used when `examples` is `source`.",
    )
    revision: str = Field("", description="Branch, tag or commit of a hub data set.")
    subset: str = Field("", description="Configuration name of a hub data set.")
    split: str = Field("train", description="Split of a hub data set or saved folder.")
    format: Literal["auto", "chat", "text"] = Field(
        "auto", description="As for a preference source."
    )
    columns: SupervisedColumnsConfig = Field(
        SupervisedColumnsConfig(),
        description="Where the fields of `path` are, if they are not found by themselves.",
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="Share of the examples to train on, drawn by the seed."
    )
    learning_rate: float = Field(6e-6, gt=0, description="Peak learning rate.")
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Learning rate after the warmup."
    )
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps with warmup.")
    batch_size: int = Field(32, ge=1, description="Examples per optimizer step, all processes.")
    epochs: int = Field(1, ge=1, description="Passes over the examples.")
    max_steps: int = Field(0, ge=0, description="Optimizer steps at most; 0: as `epochs` says.")

    @property
    def from_source(self) -> bool:
        """Whether the stage runs on data of its own."""
        return self.enabled and self.examples == "source"


class PartitionConfig(Group):
    """Which pair goes to which step."""

    strategy: Strategy = Field(
        "natural",
        description="`natural`: one source per step; `stratified`: fractions within strata; "
        "`random`: fractions of everything (the control); `single`: all in one step (plain DPO); "
        "curricula cut at quantiles: `score_gap` (rating difference), `reference_margin` (gamma "
        "under M_0), `length` (tokens).",
    )
    order: Literal["given", "easy_first", "hard_first"] = Field(
        "given",
        description="Order of steps. `natural`: as the sources stand in the recipe, or by the "
        "share of pairs with gamma_S > 0, largest first (sDPO v2) or last. Curricula: large gap, "
        "large margin or short pairs first (`given`, `easy_first`), or last.",
    )
    groups: list[list[str]] = Field(
        [], description="Natural steps made of several sources, by name; empty: one source each."
    )
    fractions: list[float] = Field(
        [0.1667, 0.8333],
        description="Share of the pairs per step, for `stratified`, `random` and the curricula; "
        "sums to 1.",
    )
    strata: list[str] = Field(
        ["source"],
        description="Columns whose values are spread evenly over the steps (`stratified`): "
        "`source`, or a dotted path of the data.",
    )
    per_token: bool = Field(
        False, description="`reference_margin`: gamma per token, not summed over the completion."
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of the draw.")


class TrainingConfig(Group):
    """How one step trains. Any of these may differ by step: see `steps`."""

    objective: Objective = Field(
        "dpo",
        description="Objective; its formula and paper are in sdpo/objectives/losses.py. `ipo` "
        "averages over tokens as TRL does, `ipo_sum` sums as arXiv 2502.01237 does.",
    )
    beta: float = Field(
        0.1,
        gt=0,
        description="Temperature: strength of the reference where there is one; tau of IPO. What "
        "is best differs between objectives by orders of magnitude.",
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=0.5, description="Share of labels taken to be flipped (`cdpo`, `robust`)."
    )
    exo_epsilon: float = Field(
        1e-3,
        gt=0,
        lt=0.5,
        description="Probability of the rejected side in EXO's target (`exo`); TRL's "
        "label_smoothing for exo_pair.",
    )
    cal_dpo_c: float = Field(
        1.0,
        gt=0,
        description="Weight of the calibration term (`cal_dpo`): 1 in arXiv 2502.01237, 0.5 in the "
        "authors' code.",
    )
    simpo_gamma_beta_ratio: float = Field(
        0.5,
        ge=0,
        description="Target margin per token over beta (`simpo`): SimPO's gamma_beta_ratio; TRL's "
        "simpo_gamma is beta times this.",
    )
    preference_weight: float = Field(
        1.0,
        gt=0,
        description="Lambda, the weight of the preference term beside the NLL "
        "(`orpo_one_stage`, `asft_one_stage`); `beta` of TRL's ORPOTrainer.",
    )
    reference: ReferenceChoice = Field(
        "previous",
        description="Model that the policy is compared with. `previous`: the step before's, as in "
        "sDPO; `base`: S at every step; `model`: the one of `reference_model`; `guided`: trained "
        "first, on the step's own data, from the target (Pre-DPO); `none`: for objectives without.",
    )
    reference_model: str = Field(
        "",
        description="Folder or hub name of the reference, where `reference` is `model`. With "
        "another tokenizer, only for objectives on summed log-probs.",
    )
    reference_revision: str = Field(
        "", description="Branch, tag or commit of a hub `reference_model`."
    )
    target: TargetChoice = Field(
        "previous",
        description="Model that training starts from: `previous`, or `base` for S at every step.",
    )
    learning_rate: float = Field(5e-7, gt=0, description="Peak learning rate.")
    optimizer: Literal["adamw", "rmsprop"] = Field("adamw", description="Optimizer.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: decay of the second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW and RMSprop: epsilon.")
    weight_decay: float = Field(
        0.0, ge=0, description="Weight decay, not applied to biases and norms."
    )
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Learning rate after the warmup."
    )
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Share of the optimizer steps with linear warmup."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient norm clipped to this; 0: off.")
    batch_size: int = Field(32, ge=1, description="Pairs per optimizer step, over all processes.")
    micro_batch_tokens: int = Field(
        0,
        ge=0,
        description="Tokens (padding included) in one forward of one process; 0: chosen by the "
        "device. Does not change the loss beyond rounding.",
    )
    layout: Literal["auto", "shared", "packed", "padded"] = Field(
        "auto",
        description="Tokens of a pair in a forward: `shared` computes the prompt once for both "
        "sides, `packed` puts sequences in one row without padding, `padded` is the plain form; "
        "`auto`: what the attention kernel allows. Changes nothing but the last bits.",
    )
    epochs: int = Field(1, ge=1, description="Passes over the partition.")
    max_steps: int = Field(0, ge=0, description="Optimizer steps at most; 0: as `epochs` says.")
    seed: int = Field(42, ge=0, description="Seed of the order of pairs, and of LoRA and dropout.")
    precision: Precision = Field(
        "auto",
        description="Arithmetic: bf16 is autocast over fp32 weights; `auto`: bf16 on a GPU that "
        "has it, else fp32. Weights are always kept and published in fp32.",
    )
    checkpoint_minutes: float = Field(
        10.0,
        ge=0,
        description="Minutes between resume states of a step that trains, at least (saving takes "
        "5% of the time at most); 0: by `checkpoint_every` alone.",
    )
    checkpoint_every: int = Field(
        0,
        ge=0,
        description="Optimizer steps between resume states; 0: by `checkpoint_minutes` alone.",
    )
    checkpoints_kept: int = Field(
        1, ge=1, description="Resume states kept while a step trains; none is left after it."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    lora_r: int = Field(0, ge=0, description="Rank of LoRA adapters; 0: full fine-tuning.")
    lora_alpha: int = Field(16, ge=1, description="LoRA scale: alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters.")
    lora_target_modules: list[str] = Field(
        ["all-linear"], description="Module names that get adapters, or `all-linear`."
    )


def _step_overrides() -> type[Group]:
    fields: dict[str, Any] = {}
    for name, field in TrainingConfig.model_fields.items():
        annotation: Any = field.annotation
        if field.metadata:
            annotation = Annotated[annotation, *field.metadata]
        description = f"{field.description} Empty: as in `training`."
        fields[name] = (annotation | None, Field(None, description=description))
    return create_model(
        "StepConfig",
        __base__=Group,
        __doc__="Training settings of one step that differ from `training`.",
        **fields,
    )


StepConfig = _step_overrides()


class EvaluationConfig(Group):
    """Evaluation on the reserve while a step trains."""

    every: int = Field(
        0, ge=0, description="Optimizer steps between evaluations; 0: only at the end of a step."
    )


class ProbeConfig(Group):
    """What is measured of every model M_0..M_T."""

    max_pairs: int = Field(
        512, ge=1, description="Pairs of each partition on which every model is measured."
    )
    bootstrap_resamples: int = Field(
        2000, ge=100, description="Resamples of the prompt-clustered bootstrap intervals."
    )
    completions: int = Field(
        5,
        ge=0,
        description="Reserved prompts that every model completes, greedily, for the report.",
    )
    completion_tokens: int = Field(96, ge=1, description="Tokens of such a completion, at most.")
    kl_prompts: int = Field(
        0,
        ge=0,
        description="Reserved prompts on which KL(M_t||M_{t-1}) and KL(M_t||S) are measured after "
        "every step; 0: not at all. Holds two models at a time, 8 bytes per parameter.",
    )
    kl_samples: int = Field(1, ge=1, description="Completions sampled of each of these prompts.")
    kl_tokens: int = Field(256, ge=1, description="Tokens of such a completion, at most.")
    kl_paper_mode: bool = Field(
        False,
        description="Measure beside it what arXiv 2502.01237 plots: temperature 0.9, top-k 40, "
        "mean log-ratio per token.",
    )
    seed: int = Field(
        42, ge=0, description="Seed of the probe's sample, of the KL samples and of the bootstrap."
    )


class LaunchConfig(Group):
    """Processes and devices of the stages."""

    processes: int = Field(1, ge=1, description="Processes (one per device) of a training stage.")
    strategy: LaunchStrategy = Field(
        "auto",
        description="How processes share the work; `auto`: single for one process, else ddp.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the stages.")
    threads: int = Field(
        0, ge=0, description="CPU threads of each process; 0: cores divided by processes."
    )


class StoreConfig(Group):
    """Where runs and caches are kept. Never part of a result's identity."""

    runs_dir: str = Field("runs", description="Folder of the runs.")
    cache_dir: str = Field("", description="Folder of the caches; empty: `cache` beside the runs.")


class TrackingConfig(Group):
    """Where metrics go besides the run's own `metrics.jsonl`."""

    tools: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        [], description="Trackers that accelerate feeds; each must be installed."
    )
    project: str = Field("sdpo", description="Project name for the trackers.")


class RunConfig(Group):
    """A whole run, from preference data to M_T."""

    name: str = Field("", description="Name of the run; empty: the recipe's file name.")
    model: ModelConfig = Field(ModelConfig(), description="Base model and tokenizer.")
    data: DataConfig = Field(DataConfig(), description="Preference data.")
    supervised: SupervisedConfig = Field(
        SupervisedConfig(), description="Supervised stage before step 1."
    )
    partition: PartitionConfig = Field(PartitionConfig(), description="Pairs to steps.")
    training: TrainingConfig = Field(TrainingConfig(), description="Preference training.")
    steps: list[StepConfig] = Field(  # type: ignore[valid-type]
        [], description="Per step, in order: training settings that differ from `training`."
    )
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Evaluation.")
    probe: ProbeConfig = Field(ProbeConfig(), description="Measurements of every model.")
    launch: LaunchConfig = Field(LaunchConfig(), description="Processes and devices.")
    store: StoreConfig = Field(StoreConfig(), description="Folders.")
    tracking: TrackingConfig = Field(TrackingConfig(), description="Metric trackers.")

    def training_of(self, step: int) -> TrainingConfig:
        """Training settings of step ``step`` (from 1), overrides applied."""
        if step > len(self.steps):
            return self.training
        overrides = self.steps[step - 1].model_dump(exclude_none=True)  # type: ignore[attr-defined]
        return TrainingConfig.model_validate(self.training.model_dump() | overrides)

    @model_validator(mode="after")
    def _possible(self) -> "RunConfig":
        for problem in _impossible(self):
            raise ValueError(problem)
        return self


def _impossible(config: RunConfig) -> list[str]:
    """Combinations that can be refused from the recipe alone, each with what to do."""
    problems: list[str] = []
    reserve, partition = config.data.reserve, config.partition
    if reserve.fraction > reserve.max_fraction:
        problems.append(
            f"data.reserve.fraction ({reserve.fraction}) is above data.reserve.max_fraction "
            f"({reserve.max_fraction}): raise the latter or lower the former"
        )
    if partition.strategy not in ("natural", "single"):
        total = sum(partition.fractions)
        if not partition.fractions or min(partition.fractions) <= 0:
            problems.append("partition.fractions must be positive numbers, one per step")
        elif abs(total - 1) > 1e-6:
            problems.append(f"partition.fractions sum to {total:g}, not 1: {partition.fractions}")
    launch = config.launch
    if launch.strategy == "single" and launch.processes > 1:
        problems.append(
            f"launch.strategy is `single` with launch.processes {launch.processes}: use `ddp`"
        )
    for number, step in enumerate(config.steps, start=1):
        if getattr(step, "precision", None) not in (None, config.training.precision):
            problems.append(
                f"steps.{number - 1}.precision differs from training.precision: all models of a "
                "run are compared, so they are measured in one arithmetic"
            )
    if launch.strategy.startswith("deepspeed") and launch.processes == 1:
        problems.append(
            f"launch.strategy {launch.strategy} shares weights among processes, and "
            "launch.processes is 1: use `single`"
        )
    problems += impossible_references(trainings_of(config))
    sharded = launch.strategy.startswith("deepspeed")
    trainings = [config.training, *(config.training_of(i + 1) for i in range(len(config.steps)))]
    if sharded and any(training.lora_r for training in trainings):
        problems.append(
            "training.lora_r with launch.strategy deepspeed is not supported: adapters are small, "
            "use `ddp`"
        )
    return [*problems, *_impossible_layouts(config), *_impossible_supervised(config.supervised)]


def _impossible_layouts(config: RunConfig) -> list[str]:
    kernel = config.model.attention
    return [
        f"{name}.layout {training.layout} cannot be computed with model.attention {kernel}: use "
        "sdpa, or leave the layout to `auto`"
        for name, training in _trainings(config).items()
        if training.layout in _NO_LAYOUT.get(kernel, ())
    ]


_NO_LAYOUT = {"eager": ("shared", "packed"), "flash_attention_2": ("shared",)}


def _trainings(config: RunConfig) -> dict[str, TrainingConfig]:
    return {"training": config.training} | {
        f"steps.{index}": config.training_of(index + 1) for index in range(len(config.steps))
    }


def _impossible_supervised(supervised: SupervisedConfig) -> list[str]:
    problems: list[str] = []
    if supervised.from_source and not supervised.path:
        problems.append(
            "supervised.examples is `source` but supervised.path is empty: name the data, or set "
            "supervised.examples to `chosen`"
        )
    if supervised.enabled and supervised.path and supervised.examples == "chosen":
        problems.append(
            "supervised.path is set but supervised.examples is `chosen`: set it to `source` to "
            "train on that data, or leave the path empty"
        )
    columns = supervised.columns
    if columns.messages and (columns.prompt or columns.completion):
        problems.append(
            "supervised.columns has `messages` beside `prompt` or `completion`: a dialogue has its "
            "prompt within; set one or the others"
        )
    if bool(columns.prompt) != bool(columns.completion):
        problems.append("supervised.columns.prompt and .completion are set together or not at all")
    return problems


def trainings_of(config: RunConfig) -> dict[str, TrainingConfig]:
    """The training settings of the recipe and of each step that differs, by where they stand."""
    return {"training": config.training} | {
        f"steps.{index}": config.training_of(index + 1) for index in range(len(config.steps))
    }


def unread_settings(training: TrainingConfig) -> dict[str, str]:
    """Settings of a step that nothing reads because of its other settings, each with why."""
    read = OBJECTIVES[training.objective].settings
    why = {
        name: f"on objective {training.objective}"
        for name in OBJECTIVE_SETTINGS
        if name not in read
    }
    if training.optimizer != "adamw":
        why |= dict.fromkeys(("adam_beta1", "adam_beta2"), f"on optimizer {training.optimizer}")
    if not training.lora_r:
        lora = [name for name in TrainingConfig.model_fields if name.startswith("lora_")]
        why |= {name: "because lora_r is 0" for name in lora if name != "lora_r"}
    if not (training.checkpoint_minutes or training.checkpoint_every):
        why["checkpoints_kept"] = "because no resume states are asked for"
    return why


def settings_without_effect(config: RunConfig) -> list[str]:
    """Settings that were given and that nothing will read, each with why.

    A setting of ``training`` has an effect where a step that takes it over reads it.
    """
    lines: list[str] = []
    training, steps = config.training, config.steps
    overrides = [step.model_dump(exclude_none=True) for step in steps]  # type: ignore[attr-defined]
    unread = [unread_settings(config.training_of(index + 1)) for index in range(len(steps))]
    both = list(zip(overrides, unread, strict=True))
    for name, why in unread_settings(training).items():
        given = getattr(training, name) != TrainingConfig.model_fields[name].default
        read_later = any(name not in own and name not in step for own, step in both)
        if given and not read_later:
            lines.append(f"training.{name} has no effect {why}")
    for index, (own, step) in enumerate(both):
        for name in sorted(own.keys() & step.keys()):
            lines.append(f"steps.{index}.{name} has no effect {step[name]}")
    if not config.probe.kl_prompts:
        lines += [
            f"probe.{name} has no effect: probe.kl_prompts is 0"
            for name in ("kl_samples", "kl_tokens", "kl_paper_mode")
            if getattr(config.probe, name) != ProbeConfig.model_fields[name].default
        ]
    lines += references_without_effect(trainings_of(config))
    supervised, default = config.supervised, SupervisedConfig()
    if not supervised.enabled and supervised != default:
        lines.append("`supervised` has no effect: supervised.enabled is false")
    elif not supervised.from_source:
        reading = ("revision", "subset", "split", "format", "columns")
        lines += [
            f"supervised.{name} has no effect: supervised.examples is `chosen`"
            for name in reading
            if getattr(supervised, name) != getattr(default, name)
        ]
    return lines


STRATEGIES: tuple[str, ...] = get_args(Strategy)
