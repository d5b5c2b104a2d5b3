"""Tell how much work a stage has to do, so that whoever watches can say how much of it is left."""

from sdpo.model_names import ModelName
from sdpo.processes.stage_specs import StepSpec
from sdpo.scoring.probes import probe_rows
from sdpo.store.step_data import own_probe

_TRAINED = 3
"""A training step costs about as much as three forwards: the backward pass counts as two."""


def expected_work(spec: StepSpec) -> dict[str, int]:
    """Return the phases of a step that trains, in order, with their cost in pairs times forwards.

    Rows that are in the cache cost nothing: then a phase is over sooner than this says.
    """
    if spec.trains != "preference" or spec.plan is None:
        return {}
    pairs, reserve = (len(spec.planned.rows_of(number)) for number in (spec.step, 0))
    epochs: float = spec.training.epochs
    if spec.training.max_steps:
        epochs = min(epochs, spec.training.max_steps * spec.training.batch_size / max(pairs, 1))
    phases = {f"score D_{spec.step}": pairs}
    if "measure" in spec.before:
        phases[f"measure {spec.input_name}"] = _probed(spec, ModelName.of(spec.input_name).step)
    if "measure_own" in spec.before:
        model = ModelName.of(spec.input_name).step
        own = spec.planned.own_table(spec.step)
        rows = probe_rows(own, step=model, next_whole=model + 1 in spec.references)
        phases[f"measure {own_probe(model, spec.step)}"] = len(rows.token_rows)
    phases |= {"score the reserve": reserve, "train": round(_TRAINED * epochs * pairs)}
    if "measure" in spec.after:
        phases[f"measure M_{spec.step}"] = _probed(spec, spec.step)
    return phases


def _probed(spec: StepSpec, model: int) -> int:
    plan = spec.planned.up_to(model).table()
    rows = probe_rows(plan, step=model, next_whole=model + 1 in spec.references)
    return len(rows.token_rows)
