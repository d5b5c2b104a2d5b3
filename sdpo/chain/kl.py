"""How far each model has moved: KL(M_t||M_{t-1}) and KL(M_t||S) on reserved prompts.

A measurement like a probe: beside the records, keyed by what it depends on, made again at any time
and shared by runs through the cache. The numbers per sequence come from :mod:`sdpo.stages.kl`; this
module owns the node, the intervals and ``step-<t>/kl.json``.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sdpo.chain.data import tokens_path
from sdpo.chain.open_run import Context, run_once
from sdpo.chain.step_models import model_of
from sdpo.config import TrainingConfig
from sdpo.config.sampler import EXACT, PAPER
from sdpo.data.reserved_prompts import reserved_rows
from sdpo.errors import Fault
from sdpo.identity.payloads import scoring_identity
from sdpo.processes.stage_specs import KlSpec, NamedFolder
from sdpo.stats.gamma import Entry, bootstrap_means
from sdpo.system.files import digest_of, file_digest, publish_file, read_json, write_json
from sdpo.system.locks import hold
from sdpo.tokens.token_file import TokenFile

KL_VERSION = 1
"""Raised when a change of this project's code changes the samples or the numbers."""

ESTIMATORS = ("kl", "k1", "k3")
_FILES = ("kl.parquet", "samples.parquet")
_KEY = "key.json"
"""Written last: what a cached measurement depends on, and the digests of its files."""


def measure_kl(context: Context, step: int, training: TrainingConfig) -> None:
    """Measure M_step, where the recipe asks for it, and write ``kl.json`` beside ``gamma.json``."""
    probe = context.config.probe
    if not probe.kl_prompts:
        return
    plan = pq.read_table(context.run.plan)
    rows = reserved_rows(plan, count=probe.kl_prompts)
    if not rows:
        context.listen(
            {
                "event": "warning",
                "message": "probe.kl_prompts has no effect: there is no reserve to take prompts of",
            }
        )
        return
    spec, identity = _spec(context, step, training, rows)
    node = f"kl-M_{step}"
    targets = [context.run.probes / f"M_{step}.{name}" for name in _FILES]
    view = context.run.step(step) / "kl.json"
    options: dict[str, Any] = {"resamples": probe.bootstrap_resamples, "seed": probe.seed}

    def make() -> tuple[dict[str, Any], list[Path]]:
        _ensure_cached(context, spec, identity)
        for name, target in zip(_FILES, targets, strict=True):
            with publish_file(target) as temporary:
                shutil.copyfile(spec.out / name, temporary)
        write_json(view, kl_view(pq.read_table(targets[0]), model=spec.policy.name, **options))
        return {"cached": spec.out.name}, [*targets, view]

    run_once(context, node, identity | options, make)


def _ensure_cached(context: Context, spec: KlSpec, identity: dict[str, Any]) -> None:
    """See to it that the samples and their KL are in the cache, and whole."""
    if not cached_fault(spec.out):
        return
    # Another run may be measuring the same: then this one waits and finds it.
    lock = spec.out.with_name(f".{spec.out.name}.lock")
    what = f"the measurement {spec.out.name}"
    with hold(lock, what=what, wait=True, listen=context.listen) as handle:
        if fault := cached_fault(spec.out):
            if spec.out.exists():
                message = f"{spec.out} in the cache is damaged, {fault}: it is measured again"
                context.listen({"event": "warning", "message": message})
            shutil.rmtree(spec.out, ignore_errors=True)
            context.stage(spec, handle)
            files = {name: file_digest(spec.out / name) for name in _FILES}
            write_json(spec.out / _KEY, {"identity": identity, "files": files})
        lock.unlink(missing_ok=True)


def cached_fault(folder: Path) -> str:
    """What is wrong with a cached measurement; empty: nothing."""
    if not (folder / _KEY).is_file():
        return "not cached"
    try:
        content = read_json(folder / _KEY)
        if digest_of(content["identity"])[:32] != folder.name:
            return f"{_KEY} was changed"
        for name, digest in content["files"].items():
            if file_digest(folder / name) != digest:
                return f"{name} was changed"
    except (Fault, OSError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return ""


def _spec(
    context: Context, step: int, training: TrainingConfig, rows: list[dict[str, Any]]
) -> tuple[KlSpec, dict[str, Any]]:
    """What the stage is told, and what its result depends on."""
    config, probe = context.config, context.config.probe
    numbers = dict.fromkeys((step - 1, 0))  # once where they are the same
    policy, *others = (model_of(context, number) for number in (step, *numbers))
    launch = config.launch.model_copy(update={"processes": 1, "strategy": "single"})
    tokens = TokenFile.open(tokens_path(context))
    plain = training.model_copy(update={"layout": "padded"})  # as it is measured here
    samplers = [EXACT, PAPER] if probe.kl_paper_mode else [EXACT]
    identity = {
        "kl_version": KL_VERSION,
        "scoring": scoring_identity(
            policy.digest, training=plain, launch=launch, model=config.model
        ),
        "against": {other.name: other.digest for other in others},
        "prompts": digest_of(
            [[row["prompt_key"], tokens.row(row["token_row"]).prompt_ids.tolist()] for row in rows]
        ),
        "tokenizer": context.resolved.inputs["tokenizer"],
        "samplers": samplers,
        "samples": probe.kl_samples,
        "tokens": probe.kl_tokens,
        "seed": probe.seed,
    }
    spec = KlSpec(
        name=f"kl-M_{step}",
        run=context.run.path,
        model=config.model,
        launch=launch,
        policy=NamedFolder(name=policy.name, folder=policy.folder, digest=policy.digest),
        others=[NamedFolder(name=o.name, folder=o.folder, digest=o.digest) for o in others],
        base=context.resolved.model,
        tokens=tokens.path,
        plan=context.run.plan,
        training=training,
        probe=probe,
        samplers=samplers,
        out=context.cache / "kl" / digest_of(identity)[:32],
    )
    return spec, identity


def kl_view(table: pa.Table, *, model: str, resamples: int, seed: int) -> list[Entry]:
    """The entries of ``kl.json``: one for every model compared with and way of sampling.

    ``per_sequence`` are means of the sums over a completion, ``per_token`` sums over all tokens
    divided by their number; both with 95% intervals that resample prompts. ``unfinished_share`` of
    the completions were cut at the limit: their KL is that of the beginning alone.
    """
    entries = []
    samplers, againsts = table["sampler"].to_pylist(), table["against"].to_pylist()
    for sampler, against in dict.fromkeys(zip(samplers, againsts, strict=True)):
        mask = [(s, a) == (sampler, against) for s, a in zip(samplers, againsts, strict=True)]
        rows = table.filter(pa.array(mask))
        entries.append(
            {
                "model": model,
                "against": against,
                "sampler": sampler,
                **_statistics(rows, resamples=resamples, seed=seed),
            }
        )
    return entries


def _statistics(rows: pa.Table, *, resamples: int, seed: int) -> Entry:
    prompts = np.asarray(rows["prompt_key"].to_pylist(), dtype=np.str_)
    tokens = rows["tokens"].to_numpy().astype(np.float64)
    values = np.stack([*(rows[name].to_numpy() for name in ESTIMATORS), tokens], axis=1)
    drawn = bootstrap_means(values, prompts, resamples=resamples, seed=seed)
    finished = rows["finished"].to_numpy(zero_copy_only=False)
    means = values.mean(axis=0)
    per_sequence, per_token = {}, {}
    for column, name in enumerate(ESTIMATORS):
        sums = None if drawn is None else drawn[:, column]
        ratios = None if drawn is None else drawn[:, column] / drawn[:, -1]
        per_sequence[name] = _estimate(means[column], sums)
        per_token[name] = _estimate(means[column] / means[-1] if means[-1] else None, ratios)
    return {
        "prompts": len(np.unique(prompts)),
        "sequences": rows.num_rows,
        "tokens": int(tokens.sum()),
        "unfinished_share": float(1 - finished.mean()),
        "per_sequence": per_sequence,
        "per_token": per_token,
    }


def _estimate(mean: float | None, drawn: NDArray[np.float64] | None) -> Entry:
    """Mean with a 95% percentile interval; None where one prompt alone says nothing of it."""
    if mean is None or drawn is None or not np.isfinite(drawn).all():
        return {"mean": None if mean is None else float(mean), "low": None, "high": None}
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high)}
