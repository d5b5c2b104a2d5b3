"""Average the models before a step: a reference that no single step has made.

The reference of step t is (M_0 + ... + M_{t-1}) / t, weight by weight (the control of arXiv
2605.23398). It is a node of its own with a digest of its own, so that its log-probs have rows of
their own in the cache, and a step whose models are the same finds it again.
"""

from sdpo.chain.context import Context
from sdpo.chain.node import Find, Identity, Made, Node, Part
from sdpo.chain.step_models import model_of
from sdpo.processes.disk_space import check_space, weights_need
from sdpo.processes.stage_results import MergeResult
from sdpo.processes.stage_specs import MergeSpec
from sdpo.store.records import MergedOutputs, merged_node

MERGE_VERSION = 1
"""This version is raised when the same models become another average."""


def merged(context: Context, step: int) -> list[Part]:
    """Return the node that averages M_0..M_{step-1}; none for step 1, where that is M_0."""
    if step == 1:
        return []
    node = merged_node(step)
    folder = context.run.path / node / "model"

    def identity() -> Identity:
        return {
            "merge_version": MERGE_VERSION,
            "models": [model_of(context, number).digest for number in range(step)],
            "tokenizer": context.resolved.inputs["tokenizer"],
        }

    def make(_find: Find) -> Made:
        models = [model_of(context, number) for number in range(step)]
        check_space(
            [weights_need(models[0].folder, run=context.run.path)], used_bytes={}, what=node
        )
        spec = MergeSpec(
            name=node,
            run=context.run.path,
            model=context.config.model,
            launch=context.config.launch,
            models=models,
            base=context.resolved.model,
            out=folder,
        )
        found = context.stage(spec).read(MergeResult)
        outputs = MergedOutputs(model=found.model, of=[model.name for model in models])
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return Made(outputs.model_dump(mode="json"), files)

    inputs = tuple(f"step-{number}" for number in range(step))
    return [Node(name=node, inputs=inputs, identity=identity, make=make)]
