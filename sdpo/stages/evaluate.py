"""Score a model on tasks of lm-evaluation-harness, with one load of it.

A task is published when it is scored; of one that is not, the answers so far are kept. Each process
of the launch answers the requests of its share of the documents.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from sdpo.errors import Fault
from sdpo.evaluation.policy import Policy, Responses
from sdpo.evaluation.score import requests_of, score_task
from sdpo.evaluation.tasks import load_tasks
from sdpo.events import EventWriter, WorkEvent
from sdpo.identity.tokenizer_digest import given_template
from sdpo.model.policy import load_policy
from sdpo.model.sequence_scorer import inner_model
from sdpo.model.share import Share, join
from sdpo.processes.judging_specs import EvaluateSpec, TaskToDo
from sdpo.processes.stage_results import EvaluateResult
from sdpo.stages.timings import Timings
from sdpo.store.evaluations import SCORES, SUMMARY, evaluation_fault, finish
from sdpo.system.files import publish_file, write_text
from sdpo.system.out_of_memory import short_memory_named
from sdpo.tokens.load import load_tokenizer

_TO_LOAD = (
    "an evaluation takes 4 bytes for each weight, and the logits of evaluation.batch_size requests"
)


def run(spec: EvaluateSpec, events: EventWriter) -> EvaluateResult:
    """Publish what the model scores on every task that is not there yet."""
    share, device = join(spec.launch)
    timings, name = Timings(), spec.policy.name
    with timings.of("find tasks"):
        events.phase("find tasks", detail=", ".join(spec.asked.names))
        loaded = load_tasks(spec.asked)
    facts = {found.name: found for found in loaded.suites.tasks}
    for todo in spec.tasks:
        if facts.get(todo.facts.name) != todo.facts:
            raise Fault(f"the task {todo.facts.name} was changed meanwhile: call it again")
    with timings.of("load"):
        lm = _load(spec, share, device, events)
    work = {
        _phase(todo, name): todo.facts.documents * (1 + todo.facts.shots) for todo in spec.tasks
    }
    events.emit(WorkEvent(phases=work))
    for todo in spec.tasks:
        if share.of_first(bool(evaluation_fault(todo.out))):
            with timings.of(todo.facts.name):
                _score(spec, lm, loaded.tasks[todo.facts.name], todo, events)
        share.wait()
    return EvaluateResult(timings_s=timings.rounded())


def _phase(todo: TaskToDo, model: str) -> str:
    return f"{todo.facts.name} of {model}"


def _load(spec: EvaluateSpec, share: Share, device: torch.device, events: EventWriter) -> Policy:
    named = spec.policy
    events.phase("load", detail=f"{named.name} from {named.folder}")
    with short_memory_named(f"loading {named.name}", remedy=_TO_LOAD):
        policy = load_policy(named.folder, model=spec.model, digest=named.digest).to(device)
    tokenizer = load_tokenizer(spec.base, code=spec.model.trust_remote_code)
    if given := spec.model.chat_template:
        is_file = Path(given).is_absolute()
        text = Path(given).read_text(encoding="utf-8") if is_file else ""
        tokenizer.chat_template = text or given_template(spec.base, given)
    autocast = torch.bfloat16 if spec.bf16 else None
    return Policy(
        inner_model(policy).requires_grad_(False),  # adapters stand in its modules
        tokenizer,
        batch_size=spec.asked.batch_size,
        autocast=autocast,
        share=share,
    )


def _score(spec: EvaluateSpec, lm: Policy, task: Any, todo: TaskToDo, events: EventWriter) -> None:
    phase, total = _phase(todo, spec.policy.name), [0]

    def progress(done: int) -> None:
        total[0] = total[0] or requests_of(task)
        events.progress(phase, done, total[0], unit="requests", note=lm.share.told)

    todo.out.mkdir(parents=True, exist_ok=True)
    events.phase(phase)
    lm.begin(Responses(todo.out, progress, share=lm.share))
    table, summary = score_task(
        lm, task, limit=spec.asked.limit, chat_template=spec.asked.chat_template
    )
    if summary.truncated:
        events.warning(
            f"{todo.facts.name}: {summary.truncated} of {summary.requests} requests, of "
            f"{summary.documents_truncated} documents, are longer than the {lm.max_length} tokens "
            f"of {spec.policy.name}'s context: their beginning is cut off, and their scores are "
            "not those of the task"
        )
    if not lm.share.is_first:
        return
    with publish_file(todo.out / SCORES) as temporary:
        pq.write_table(table, temporary)
    write_text(todo.out / SUMMARY, summary.model_dump_json(indent=1))
    finish(todo.out, todo.identity)
