"""Let a judge score the samples of a round: a rule, a reward model, or an endpoint.

Each process of the launch scores the samples of its share of the prompts.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.data.pairs_file import messages_from_row
from sdpo.evaluation.judging import Answered, make_judge
from sdpo.events import EventWriter
from sdpo.model.share import join
from sdpo.processes.judging_specs import ScoreSpec
from sdpo.processes.stage_results import ScoresResult
from sdpo.stages.shared_rows import publish_together
from sdpo.stages.timings import Timings


def run(spec: ScoreSpec, events: EventWriter) -> ScoresResult:
    """Publish the table ``spec.out``: ``prompt_key``, ``sample`` and ``score`` of each sample.

    A score is NaN where the judge gave no verdict.
    """
    share, device = join(spec.launch)
    timings = Timings()
    prompts = pq.read_table(spec.prompts, columns=["prompt_key", "prompt"]).to_pylist()
    turns = {row["prompt_key"]: messages_from_row(row["prompt"]) for row in prompts}
    table = pq.read_table(spec.samples, columns=["prompt_key", "sample", "text"])
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(table["prompt_key"].to_pylist()):  # by prompt, then by number
        rows_of.setdefault(key, []).append(row)
    mine = {key: rows for at, (key, rows) in enumerate(rows_of.items()) if share.has(at)}
    texts = table["text"].to_pylist()
    asked = [
        Answered(key, turns[key], tuple(texts[row] for row in rows)) for key, rows in mine.items()
    ]
    at = [row for rows in mine.values() for row in rows]

    def progress(done: int) -> None:
        phase = f"judge: {spec.judge.title}"
        events.progress(phase, done, len(at), unit="samples", note=share.told)

    with timings.of("load"):
        judge = make_judge(
            spec.judge, device=str(device), kept=spec.kept, label=spec.run.name, warn=events.warning
        )
    with timings.of("score"):
        scores = [score for of in judge.scores(asked, on_done=progress) for score in of]
    scored = table.take(pa.array(at, pa.int64())).select(["prompt_key", "sample"])
    scored = scored.append_column("score", pa.array(scores, pa.float64()))
    publish_together(share, scored, at, folder=spec.kept, out=spec.out)
    return ScoresResult(timings_s=timings.rounded())
