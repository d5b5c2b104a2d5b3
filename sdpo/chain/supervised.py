"""Step 0: the base model fine-tuned into S, or S as an extended run has it."""

from sdpo.chain.context import Context
from sdpo.chain.start_stage import train_node
from sdpo.chain.step_models import NamedModel
from sdpo.chain.tokens import tokens_path
from sdpo.config import SupervisedConfig, TrainingConfig
from sdpo.config.annotations import InTraining, marked
from sdpo.errors import UserError
from sdpo.identity.canonical import digest_of
from sdpo.identity.payloads import supervised_identity
from sdpo.store.origin import Carried
from sdpo.store.run_folder import Record
from sdpo.system.files import file_digest


def supervised_step(context: Context) -> Record:
    """Step 0: fine-tune the base model into S."""
    if context.carried:
        return _carried_supervised(context, context.carried)
    config, supervised = context.config, context.config.supervised
    training = _supervised_training(context)
    if supervised.examples == "source":
        content = tokens_path(context, "supervised").stem
    else:
        content = tokens_path(context).stem
    inputs = {
        "base": context.resolved.inputs["model"],
        "tokenizer": context.resolved.inputs["tokenizer"],
        "examples": content,
        "reserve": file_digest(context.run.usable),
    }
    identity = supervised_identity(
        supervised, training, launch=config.launch, model=config.model, inputs=inputs
    )
    record = context.done("step-0", identity)
    if record is None:
        base = NamedModel(
            name="base",
            folder=context.resolved.model,
            digest=context.resolved.inputs["model"],
        )
        record = train_node(
            context,
            node="step-0",
            step=0,
            task="supervised",
            training=training,
            start=base,
            identity=identity,
            inputs=inputs,
        )
    context.settle("step-0", record)
    return record


def _carried_supervised(context: Context, carried: Carried) -> Record:
    """S as the run that this one extends made it: from that run's data, whatever was added."""
    for run in (context.run, *context.origins):
        there = None if run.is_damaged("step-0") else run.read_record("step-0")
        if there and digest_of(there["identity"]) == carried.supervised:
            record = context.done("step-0", there["identity"])
            if record:
                context.settle("step-0", record)
                return record
    raise UserError(
        f"S of this run is that of run {carried.run}, which has none any more that verifies: see "
        f"`sdpo verify {carried.run}`, and make its step 0 again there"
    )


def _supervised_training(context: Context) -> TrainingConfig:
    """The supervised stage's own settings; the rest as in ``training``."""
    supervised = context.config.supervised
    own = marked(SupervisedConfig, InTraining)
    return context.config.training.model_copy(
        update={name: getattr(supervised, name) for name in own}
    )
