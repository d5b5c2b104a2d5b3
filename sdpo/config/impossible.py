"""Find combinations of settings that are refused from the recipe alone, each with what to do.

There is one function per group or pair of groups, so that none needs the whole recipe. What needs
files, models or the hub to be refused is :mod:`sdpo.inputs.resolve`; references are
:mod:`sdpo.config.reference_choice`.
"""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from sdpo.config.data import ColumnsConfig, DataConfig, ReserveConfig
from sdpo.config.impossible_nodes import impossible_nodes
from sdpo.config.partition import PartitionConfig
from sdpo.config.running import LaunchConfig
from sdpo.config.strategies import strategy_uses
from sdpo.config.supervised import SupervisedConfig
from sdpo.config.training import IN_8_BITS, TrainingConfig
from sdpo.objectives import objective_facts

_STORE = re.compile(r"[a-z][a-z0-9+.-]*://\S+")
_NO_LAYOUT = {"eager": ("shared", "packed"), "flash_attention_2": ("shared",)}


def impossible_reserve(reserve: ReserveConfig) -> list[str]:
    """Name shares that contradict each other, or a count."""
    shares = [
        f"data.reserve.{name}"
        for name in ("fraction", "min_pairs", "max_fraction")
        if getattr(reserve, name) != ReserveConfig.model_fields[name].default
    ]
    if reserve.pairs and shares:
        return [
            f"data.reserve.pairs ({reserve.pairs}) is the size of the reserve as a count, and "
            f"{', '.join(shares)} {'say' if len(shares) > 1 else 'says'} it as a share: set one "
            "or the other"
        ]
    if reserve.fraction <= reserve.max_fraction:
        return []
    return [
        f"data.reserve.fraction ({reserve.fraction}) is above data.reserve.max_fraction "
        f"({reserve.max_fraction}): raise the latter or lower the former"
    ]


def impossible_sources(data: DataConfig) -> list[str]:
    """Name sources that say twice where the parts of a pair are."""
    return [
        f"data.sources.{index} has both `layout` and `columns`: the reader of layout "
        f"`{source.layout}` knows where the parts of a pair are. Leave out one of them"
        for index, source in enumerate(data.sources)
        if source.layout and source.columns != ColumnsConfig()
    ]


def impossible_lengths(data: DataConfig) -> list[str]:
    """Name prompt lengths that leave no room for an answer."""
    if data.max_prompt_length < data.max_length:
        return []
    return [
        f"data.max_prompt_length ({data.max_prompt_length}) leaves no room for an answer within "
        f"data.max_length ({data.max_length}), which is of prompt + completion: lower the former "
        "or raise the latter"
    ]


def impossible_lists(data: DataConfig) -> list[str]:
    """Name sources that say twice where their answers are, or what ranks them."""
    problems = []
    for index, source in enumerate(data.sources):
        columns, where = source.columns, f"data.sources.{index}"
        sides = [n for n in ("chosen", "rejected", "winner", "chosen_score") if getattr(columns, n)]
        if columns.answers and sides:
            problems.append(
                f"{where}.columns has `answers`, a list of which pairs are made, and `{sides[0]}`, "
                "which says where a side is: leave out one of them"
            )
        named = [name for name in ("scores", "ranks") if getattr(columns, name)]
        if len(named) > 1:
            problems.append(
                f"{where}.columns has `scores` and `ranks`: leave out the one by which answers are "
                "not to be ranked"
            )
        elif named and source.ranked_by not in ("auto", named[0]):
            problems.append(
                f"{where}.ranked_by is `{source.ranked_by}`, and `columns.{named[0]}` is set: "
                "leave out one of them"
            )
    return problems


def impossible_partition(partition: PartitionConfig) -> list[str]:
    """Name fractions that are no fractions, where the strategy reads them."""
    if "fractions" not in strategy_uses(partition.strategy):
        return []
    if not partition.fractions or min(partition.fractions) <= 0:
        return ["partition.fractions must be positive numbers, one per step"]
    total = sum(partition.fractions)
    if abs(total - 1) > 1e-6:
        return [f"partition.fractions sum to {total:g}, not 1: {partition.fractions}"]
    return []


def impossible_launch(launch: LaunchConfig, trainings: Mapping[str, TrainingConfig]) -> list[str]:
    """Name processes that the strategy, or what they train, cannot use."""
    strategy = launch.strategy
    problems = impossible_nodes(launch)
    if strategy == "single" and launch.processes > 1:
        problems.append(
            f"launch.strategy is `single` with launch.processes {launch.processes}: use `ddp`"
        )
    if launch.by_engine and launch.processes == 1:
        problems.append(
            f"launch.strategy {strategy} shares weights among processes, and "
            "launch.processes is 1: use `single`"
        )
    problems += _impossible_adapters(launch, trainings)
    problems += [
        f"{where}.recomputation selective with launch.strategy deepspeed_zero3 is not supported: "
        "DeepSpeed gathers weights within a block, and not alike when it computes again. Set "
        "recomputation: blocks, or launch.strategy: fsdp2"
        for where, training in trainings.items()
        if launch.zero_stage == 3 and training.recomputed == "selective"
    ]
    if launch.by_engine and any(training.compile for training in trainings.values()):
        problems.append(
            f"training.compile with launch.strategy {_kind(launch)} is not supported: its hooks "
            "gather the weights between the blocks' parts; use `ddp`"
        )
    for where, training in trainings.items():
        if training.optimizer not in IN_8_BITS:
            continue
        what = f"{where}.optimizer {training.optimizer}"
        if launch.by_engine:
            problems.append(
                f"{what} with launch.strategy {_kind(launch)} is not supported: the moments are "
                "shared among the processes there, which makes them small; use `adamw`, or `ddp`"
            )
        elif problem := impossible_paging(training.optimizer, launch):
            problems.append(problem)
    if offload := impossible_offload(launch):
        problems.append(offload)
    return problems


def _impossible_adapters(
    launch: LaunchConfig, trainings: Mapping[str, TrainingConfig]
) -> list[str]:
    """Name adapters whose form the strategy cannot keep exact."""
    return [
        f"{where}.lora_dora with launch.strategy fsdp2 and precision bf16 is not supported: FSDP2 "
        "computes with bf16 copies of magnitudes and weights alike, so that fresh adapters would "
        "already change the model. Set precision: fp32, leave out lora_dora, or use `ddp`"
        for where, training in trainings.items()
        if launch.strategy == "fsdp2"
        and training.lora_r
        and training.lora_dora
        and training.precision == "bf16"
    ]


def impossible_held_shares(precision: str, launch: LaunchConfig) -> list[str]:
    """Name a base in fewer bits that the processes would have to share."""
    if precision == "fp32" or not launch.shares_weights:
        return []
    return [
        f"model.base_precision {precision} with launch.strategy {launch.strategy} is not "
        "supported: weights are divided among the processes as they are read, and a layer is "
        "rounded from its whole weight. A base in fewer bits is small: use `ddp`"
    ]


_OF_THE_FORM = (
    *("lora_handoff", "lora_r", "lora_alpha", "lora_target_modules", "lora_rslora", "lora_dora"),
    "lora_modules_to_save",
)


def impossible_handoff(trainings: Mapping[str, TrainingConfig]) -> list[str]:
    """Name steps that would have another form of adapter than the one that is handed on."""
    if not any(training.hands_on for training in trainings.values()):
        return []
    common = trainings["training"]
    return [
        f"{where}.{name} ({getattr(training, name)}) differs from training.{name} "
        f"({getattr(common, name)}), and with lora_handoff: continue the adapter itself goes from "
        "step to step, so it keeps its form: set it alike everywhere, or lora_handoff: merge"
        for where, training in trainings.items()
        for name in _OF_THE_FORM
        if getattr(training, name) != getattr(common, name)
    ]


def impossible_base(precision: str, trainings: Mapping[str, TrainingConfig]) -> list[str]:
    """Name steps that a base of another precision cannot serve: it never trains."""
    if precision == "fp32":
        return []
    problems = []
    for where, training in trainings.items():
        what = f"model.base_precision {precision}"
        if not training.lora_r:
            problems.append(
                f"{what} is of a base under adapters, and {where}.lora_r is 0, so that all weights "
                "train: set lora_r, or model.base_precision: fp32"
            )
        elif training.compile:
            problems.append(f"{what} with {where}.compile is not supported: leave out one of them")
    return problems


def _kind(launch: LaunchConfig) -> str:
    return "deepspeed" if launch.zero_stage else launch.strategy


_OFFLOADS = {
    "fsdp2": ("all",),
    "deepspeed_zero1": ("optimizer",),
    "deepspeed_zero2": ("optimizer",),
    "deepspeed_zero3": ("optimizer", "all"),
}
_NO_OFFLOAD = {
    "fsdp2": "FSDP2 moves weights, gradients and the optimizer's states together: set `all`",
    "deepspeed_zero1": "each process computes with whole weights: set `optimizer`",
    "deepspeed_zero2": "each process computes with whole weights: set `optimizer`",
}


def impossible_paging(optimizer: str, launch: LaunchConfig) -> str:
    """Return why an optimizer's moments cannot be paged; empty where they can, or are not to be.

    On a CPU it is known once the device is.
    """
    if optimizer != "paged_adamw_8bit" or launch.device != "cpu":
        return ""
    return (
        "training.optimizer paged_adamw_8bit moves moments from a GPU to the host, and "
        "launch.device is cpu: use adamw_8bit"
    )


def impossible_offload(launch: LaunchConfig) -> str:
    """Return why ``launch.offload`` is not possible; empty where it is, or there is none.

    On a CPU it is known once the device is.
    """
    if launch.offload == "none":
        return ""
    where = f"launch.offload is `{launch.offload}`"
    if launch.device == "cpu":
        return f"{where}, and launch.device is cpu, whose memory is the machine's: set `none`"
    if launch.offload in _OFFLOADS.get(launch.strategy, ()):
        return ""
    why = _NO_OFFLOAD.get(
        launch.strategy,
        "nothing is moved under it. Set launch.strategy to deepspeed_zero1, deepspeed_zero2, "
        "deepspeed_zero3 or fsdp2, or launch.offload to `none`",
    )
    return f"{where} with launch.strategy {launch.strategy}: {why}"


def impossible_precision(trainings: Mapping[str, TrainingConfig]) -> list[str]:
    """Name steps whose arithmetic differs from the run's."""
    common = trainings["training"].precision
    return [
        f"{where}.precision differs from training.precision: all models of a run are compared, "
        "so they are measured in one arithmetic"
        for where, training in trainings.items()
        if training.precision != common
    ]


def impossible_layouts(attention: str, trainings: Mapping[str, TrainingConfig]) -> list[str]:
    """Name layouts that the attention kernel cannot compute."""
    return [
        f"{where}.layout {training.layout} cannot be computed with model.attention {attention}: "
        "use sdpa, or leave the layout to `auto`"
        for where, training in trainings.items()
        if training.layout in _NO_LAYOUT.get(attention, ())
    ]


def impossible_nll(trainings: Mapping[str, TrainingConfig]) -> list[str]:
    """Name steps that add the NLL to an objective that has it."""
    return [
        f"{where}.rpo_alpha adds the negative log-likelihood of the chosen side to objective "
        f"{training.objective}, which has it: leave rpo_alpha at 0"
        for where, training in trainings.items()
        if training.rpo_alpha and objective_facts(training.objective).has_nll
    ]


def impossible_routers(trainings: Mapping[str, TrainingConfig]) -> list[str]:
    """Name steps whose routers' outputs cannot be seen."""
    return [
        f"{where}.router_aux_loss with {where}.compile is not supported: what routers choose is "
        "not seen through compiled blocks. Leave out one of them"
        for where, training in trainings.items()
        if training.router_aux_loss and training.compile
    ]


def impossible_supervised(supervised: SupervisedConfig) -> list[str]:
    """Name supervised data that is given twice, by half or not at all."""
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


def impossible_remote(url: str) -> list[str]:
    """Return why ``url`` cannot be a store of runs; what may be a secret in it is not repeated."""
    if not url:
        return []
    shown = re.sub(r"[?#].*", "?...", re.sub(r"//[^/@]*@", "//...@", url))
    if not _STORE.fullmatch(url) or "::" in url:
        return [
            f"store.remote `{shown}` is no URL of a store: write s3://bucket/prefix or, for a "
            "folder, file:///path"
        ]
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        return [
            f"store.remote `{shown}`: a URL is recorded in run.yaml, so it may name no user, "
            "password, key or option. Give credentials where the library of the store looks for "
            "them, as in AWS_PROFILE or ~/.aws/credentials"
        ]
    if not (parts.netloc + parts.path).strip("/"):
        return [f"store.remote `{shown}` names no bucket or folder: write s3://bucket/prefix"]
    return []
