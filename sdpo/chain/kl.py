"""Measure how far each model has moved: KL(M_t||M_{t-1}) and KL(M_t||S) on reserved prompts.

Like a probe, a measurement is kept beside the records and keyed by what it depends on; it can be
made again at any time, and runs share it through the cache. The numbers per sequence come from
:mod:`sdpo.stages.kl`, the intervals from :mod:`sdpo.stats.kl`; this module owns the node and
``step-<t>/kl.json``.
"""

import shutil

import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.node import Expansion, Find, Identity, Made, Node
from sdpo.chain.step_models import model_of
from sdpo.chain.tokens import tokens_path
from sdpo.config import TrainingConfig
from sdpo.config.sampler import EXACT, PAPER
from sdpo.data.reserved_prompts import ReservedRow, reserved_rows
from sdpo.events import WarningEvent
from sdpo.identity.canonical import digest_of
from sdpo.identity.payloads import Payload, changed_settings
from sdpo.identity.scoring import scoring_identity
from sdpo.processes.stage_specs import KlSpec
from sdpo.stats.kl import kl_view
from sdpo.store.kl_cache import KEY_FILE, KL_FILES, cached_fault
from sdpo.system.files import file_digest, publish_file, write_json
from sdpo.system.locks import hold
from sdpo.tokens.token_file import TokenFile

KL_VERSION = 1
"""This version is raised when a change of the project's code changes the samples or the numbers."""


def measure_kl(context: Context, step: int, training: TrainingConfig) -> Expansion:
    """Return the node that measures M_step and writes ``kl.json``, if the recipe asks for it."""
    return Expansion(expand=lambda: _nodes(context, step, training))


def _nodes(context: Context, step: int, training: TrainingConfig) -> list[Node]:
    probe = context.config.probe
    if not probe.kl_prompts:
        return []
    plan = pq.read_table(context.run.plan)
    rows = reserved_rows(plan, count=probe.kl_prompts)
    if not rows:
        context.listen(
            WarningEvent(
                message="probe.kl_prompts has no effect: there is no reserve to take prompts of"
            )
        )
        return []
    targets = [context.run.probes / f"M_{step}.{name}" for name in KL_FILES]
    view = context.run.step(step) / "kl.json"
    options = {"resamples": probe.bootstrap_resamples, "seed": probe.seed}

    def identity() -> Identity:
        return _spec(context, step, training, rows)[1] | options

    def make(_find: Find) -> Made:
        spec, measured = _spec(context, step, training, rows)
        _ensure_cached(context, spec, measured)
        for name, target in zip(KL_FILES, targets, strict=True):
            with publish_file(target) as temporary:
                shutil.copyfile(spec.out / name, temporary)
        found = kl_view(pq.read_table(targets[0]), model=spec.policy.name, **options)
        write_json(view, [row.as_json() for row in found])
        return Made({"cached": spec.out.name}, [*targets, view])

    models = tuple(f"step-{number}" for number in (step, step - 1, 0))
    return [
        Node(
            name=f"kl-M_{step}",
            inputs=("plan", "tokens", *models),
            identity=identity,
            make=make,
            is_view=True,
        )
    ]


def _ensure_cached(context: Context, spec: KlSpec, identity: Identity) -> None:
    """Make sure that the samples and their KL are in the cache, and whole."""
    if not cached_fault(spec.out):
        return
    # Another run may be measuring the same: then this one waits and finds it.
    lock = spec.out.with_name(f".{spec.out.name}.lock")
    what = f"the measurement {spec.out.name}"
    with hold(lock, what=what, wait=True, listen=context.listen) as handle:
        if fault := cached_fault(spec.out):
            if spec.out.exists():
                message = f"{spec.out} in the cache is damaged, {fault}: it is measured again"
                context.listen(WarningEvent(message=message))
            shutil.rmtree(spec.out, ignore_errors=True)
            context.stage(spec, handle)
            files = {name: file_digest(spec.out / name) for name in KL_FILES}
            write_json(spec.out / KEY_FILE, {"identity": identity, "files": files})
        lock.unlink(missing_ok=True)


def _spec(
    context: Context, step: int, training: TrainingConfig, rows: list[ReservedRow]
) -> tuple[KlSpec, Payload]:
    """Return what the stage is told, and the identity that its result depends on."""
    config, probe = context.config, context.config.probe
    numbers = dict.fromkeys((step - 1, 0))  # once where they are the same
    policy, *others = (model_of(context, number) for number in (step, *numbers))
    launch = config.launch.alone
    tokens = TokenFile.open(tokens_path(context))
    plain = training.model_copy(update={"layout": "padded"})  # as it is measured here
    samplers = [EXACT, PAPER] if probe.kl_paper_mode else [EXACT]
    identity: Payload = {
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
        **changed_settings(probe, "kl"),
    }
    spec = KlSpec(
        name=f"kl-M_{step}",
        run=context.run.path,
        model=config.model,
        launch=launch,
        policy=policy,
        others=others,
        base=context.resolved.model,
        tokens=tokens.path,
        plan=context.run.plan,
        training=training,
        probe=probe,
        samplers=samplers,
        out=context.cache / "kl" / digest_of(identity)[:32],
    )
    return spec, identity
