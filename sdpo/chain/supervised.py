"""Make step 0: fine-tune the base model into S, or take S as an extended run has it."""

from typing import NoReturn

from sdpo.chain.context import Context
from sdpo.chain.node import Errand, Expansion, Find, Identity, Node
from sdpo.chain.start_stage import Told, train_node
from sdpo.chain.tokens import tokens_path
from sdpo.config import SupervisedConfig, TrainingConfig
from sdpo.config.annotations import InTraining, marked
from sdpo.errors import UserError
from sdpo.identity.canonical import digest_of
from sdpo.identity.payloads import Payload, supervised_identity
from sdpo.model_names import NamedModel
from sdpo.store.run_file import Carried
from sdpo.system.files import file_digest


def supervised_step(context: Context) -> Expansion:
    """Return step 0, which fine-tunes the base model into S, or takes S from the extended run."""
    made = _carried_supervised(context, context.carried) if context.carried else _trained(context)
    tidy = Errand(do=lambda: context.settle("step-0"))
    return Expansion(
        title="step 0: supervised", expand=lambda: [made, tidy], foreseen=lambda: ("step-0",)
    )


def _trained(context: Context) -> Node:
    config, supervised = context.config, context.config.supervised
    training = _supervised_training(context)

    def inputs() -> dict[str, str]:
        kind = "supervised" if supervised.examples == "source" else "pairs"
        return {
            "base": context.resolved.inputs["model"],
            "tokenizer": context.resolved.inputs["tokenizer"],
            "examples": tokens_path(context, kind).stem,
            "reserve": file_digest(context.run.usable),
        }

    def identity() -> Payload:
        return supervised_identity(
            supervised, training, launch=config.launch, model=config.model, inputs=inputs()
        )

    def make(_find: Find) -> None:
        base = NamedModel(
            name="base",
            folder=context.resolved.model,
            digest=context.resolved.inputs["model"],
        )
        train_node(
            context,
            node="step-0",
            step=0,
            phases=("supervised",),
            training=training,
            start=base,
            told=Told(identity=identity(), inputs=inputs()),
        )

    return Node(name="step-0", inputs=("reserve", "tokens"), identity=identity, make=make)


def _carried_supervised(context: Context, carried: Carried) -> Node:
    """Return the node of S as the run that this one extends made it, from that run's data."""

    def identity() -> Identity:
        for run in (context.run, *context.origins):
            there = None if run.is_damaged("step-0") else run.find("step-0")
            if there and digest_of(there.identity) == carried.supervised:
                return there.identity
        _refuse_lost(carried)

    def make(_find: Find) -> None:
        _refuse_lost(carried)

    return Node(name="step-0", identity=identity, make=make)


def _refuse_lost(carried: Carried) -> NoReturn:
    """Refuse to go on without S, which the run that this one extends has lost."""
    raise UserError(
        f"S of this run is that of run {carried.run}, which has none any more that verifies: see "
        f"`sdpo verify {carried.run}`, and make its step 0 again there"
    )


def _supervised_training(context: Context) -> TrainingConfig:
    """Return the supervised stage's own settings; the rest are those of ``training``."""
    supervised = context.config.supervised
    own = marked(SupervisedConfig, InTraining)
    return context.config.training.model_copy(
        update={name: getattr(supervised, name) for name in own}
    )
