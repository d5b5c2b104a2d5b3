"""Describe the objective of a step with its settings, for people."""

from sdpo.config.annotations import OfFormula, markers
from sdpo.config.training import TrainingConfig
from sdpo.errors import PluginError
from sdpo.objectives import objective_facts, settings_of
from sdpo.system.json_values import JsonObject, number_of


def describe(training: JsonObject) -> str:
    """Return the objective with the settings that it reads: ``SimPO, β 2, γ/β 0.5``.

    One of a plug-in that cannot be used here is given by its name.



    ``training`` may be that of an old run's record, which lacks the settings that came later.
    """
    try:
        title, read = (
            objective_facts(str(training["objective"])).title,
            settings_of(training).items(),
        )
    except PluginError:
        return f"{training['objective']} (a plug-in that cannot be used here)"
    values = [f"{_symbol(name)} {value:g}" for name, value in read]
    if "rpo_alpha" in training and (alpha := number_of(training, "rpo_alpha")):
        values.append(f"+ {alpha:g} NLL")
    if weight := training.get("router_aux_loss"):
        values.append(f"+ {weight:g} router loss")
    return ", ".join([title, *values])


def _symbol(name: str) -> str:
    return next(markers(TrainingConfig.model_fields[name], OfFormula)).symbol
