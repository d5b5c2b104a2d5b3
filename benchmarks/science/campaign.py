"""Run the parts of a campaign that are missing, one after the other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from benchmarks.matmul import measure_rate
from benchmarks.science.design import (
    LONGEST_H,
    Campaign,
    Design,
    part_seconds,
    read_design,
    smallest_effects,
)
from benchmarks.science.parts import PartFiles, part_of, restore
from benchmarks.science.recipe import STUDY, campaign_config, campaign_trials
from benchmarks.science.sources import Source, make_sources
from sdpo.config import RunConfig
from sdpo.errors import UserError
from sdpo.hooks import Host
from sdpo.identity.model_digest import model_digest, tensor_entries
from sdpo.study.arms import Trial
from sdpo.study.before import check_trials
from sdpo.study.folder import StudyFile, StudyFolder, study_of
from sdpo.study.run_trials import Outcome, let_go, run_trial
from sdpo.system.files import write_json

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A campaign is prepared: what it is, its trials in order, where their parts are kept."""

    campaign: Campaign
    config: RunConfig
    study: StudyFolder
    trials: tuple[Trial, ...]
    parts: PartFiles

    @property
    def missing(self) -> list[str]:
        """Return the trials whose part is not there yet."""
        return [trial.name for trial in self.trials if not self.parts.is_there(trial.name)]


def prepare(
    given: dict[str, object],
    *,
    model: Path,
    data: Sequence[Path],
    results: Path,
    work: Path,
    task_files: Path | None = None,
) -> Prepared:
    """Make the sources and trials of a campaign, and write ``campaign.json`` before anything runs.

    ``given``: settings of the design that were asked for. A campaign that has begun keeps its own.
    ``task_files``: where the suites' tasks are that are not the harness's own.

    Raises:
        UserError: the design is another than that of the results, or model or data are.
    """
    file = results / "campaign.json"
    known = read_design(file)
    design = Design.model_validate((known.model_dump() if known else {}) | given)
    sources = make_sources(data, work / "data", characters=design.characters)
    _check_enough(design, sources)
    if known is None:
        write_json(file, _campaign(design, sources, model).model_dump(mode="json"))
    campaign = Campaign.model_validate_json(file.read_bytes())
    _check_same(campaign, design, sources, model, file)
    config = campaign_config(design, model=model, sources=sources, work=work, task_files=task_files)
    study = study_of(config, kind="compare", name=STUDY)
    return Prepared(
        campaign=campaign,
        config=config,
        study=study,
        trials=tuple(campaign_trials(design, config, study)),
        parts=PartFiles(results),
    )


def _check_enough(design: Design, sources: Sequence[Source]) -> None:
    wanted = design.pairs + design.reserve
    for source in sources:
        if source.pairs < wanted:
            raise UserError(
                f"{source.name} has {source.pairs} pairs of at most {design.characters} "
                f"characters, and {wanted} are wanted ({design.pairs} of a step, {design.reserve} "
                "of the reserve): take fewer (--pairs, --reserve) or longer ones (--characters)"
            )


def _campaign(design: Design, sources: Sequence[Source], model: Path) -> Campaign:
    rate = measure_rate(device="cpu", threads=design.threads)
    weights = {entry.name: prod(entry.shape) for entry in tensor_entries(model)}
    seconds = part_seconds(
        design,
        characters=sum(source.characters for source in sources) / len(sources),
        parameters=sum(weights.values()),
        flops_per_s=rate.cpu,
    )
    if seconds > LONGEST_H * 3600:
        raise UserError(
            f"a part would take about {seconds / 3600:.1f} h on one core, and {LONGEST_H:g} h are "
            "the most: take fewer or shorter pairs (--pairs, --reserve, --characters) or train "
            "adapters (--lora-r 16)"
        )
    return Campaign(
        design=design,
        model=model_digest(model),
        sources={s.name: {"pairs": s.pairs, "digest": s.digest} for s in sources},
        smallest=[
            {"measure": e.measure, "supposed": e.supposed, "effect": round(e.effect, 4)}
            for e in smallest_effects(design)
        ],
        minutes=round(seconds / 60, 1),
    )


def _check_same(
    campaign: Campaign, design: Design, sources: Sequence[Source], model: Path, file: Path
) -> None:
    """Refuse to go on with something else than the results are of.

    Raises:
        UserError: names what differs.
    """
    before, now = campaign.design.model_dump(), design.model_dump()
    differing = [f"{k}: {before[k]} -> {now[k]}" for k in now if now[k] != before[k]]
    if campaign.model != model_digest(model):
        differing.append(f"the weights of {model} are not those that it began with")
    for source in sources:
        if campaign.sources[source.name]["digest"] != source.digest:
            differing.append(f"the pairs of {source.name} are not those that it began with")
    if differing:
        raise UserError(
            f"{file} is of another campaign:\n  "
            + "\n  ".join(differing)
            + "\nundo that, or begin another one with --results FOLDER"
        )


def check_names(prepared: Prepared, only: Sequence[str]) -> None:
    """Refuse names of parts that the campaign has not.

    Raises:
        UserError: one has no part.
    """
    names = [trial.name for trial in prepared.trials]
    if unknown := set(only) - set(names):
        raise UserError(f"no part is named {min(unknown)}: they are {', '.join(names)}")


def run_parts(
    prepared: Prepared, *, most: int, host: Host, say: Say, only: Sequence[str] = ()
) -> list[str]:
    """Run at most ``most`` parts that are missing (0: all), and return the names of those that ran.

    ``only``: these, so that machines may share a campaign; none: all.

    Raises:
        UserError: there is no such part, or one failed; the same call goes on with it.
        Interrupted, KeyboardInterrupt: somebody asked to stop; the same call goes on.
    """
    study, trials, ran = prepared.study, prepared.trials, []
    check_names(prepared, only)
    said = StudyFile(kind="compare", recipe=prepared.config.name)
    with study.held(said, listen=host.listen):
        for trial in trials:
            if prepared.parts.is_there(trial.name):
                restore(prepared.parts, trial.name, study)
        check_trials(study, trials, keeps_models=False)
        for number, trial in enumerate(trials):
            if prepared.parts.is_there(trial.name) or (only and trial.name not in only):
                continue
            if most and len(ran) >= most:
                break
            _run_part(prepared, number, trial, host=host, say=say)
            ran.append(trial.name)
            let_go(study, trials[: number + 1], trials[number + 1 :])
    return ran


def _run_part(prepared: Prepared, number: int, trial: Trial, *, host: Host, say: Say) -> None:
    say(f"{trial.name}: part {number + 1} of {len(prepared.trials)}")
    start, outcome = time.perf_counter(), Outcome()
    before = [t for t in prepared.trials[:number] if prepared.study.run(t.name).run_file.is_file()]
    if not run_trial(
        prepared.study, before, trial, host=host, own=host, wait=False, outcome=outcome
    ):
        raise UserError(f"{trial.name} failed: {outcome.failed[0].why}")
    part, table = part_of(prepared.study.run(trial.name), outcome.results[0])
    prepared.parts.write(trial.name, part, table)
    took = (time.perf_counter() - start) / 60
    size = sum(
        path.stat().st_size
        for path in (prepared.parts.numbers(trial.name), prepared.parts.pairs(trial.name))
    )
    say(f"{trial.name}: {took:.1f} minutes, {size / 1e3:.0f} kB in {prepared.parts.folder}")
