"""Let a judge score the samples of a round: a rule, a reward model, or an endpoint."""

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.data.pairs_file import messages_from_row
from sdpo.evaluation.judging import Answered, make_judge
from sdpo.events import EventWriter
from sdpo.processes.judging_specs import ScoreSpec
from sdpo.processes.stage_results import ScoresResult
from sdpo.stages.timings import Timings
from sdpo.system.files import publish_file


def run(spec: ScoreSpec, events: EventWriter) -> ScoresResult:
    """Publish the table ``spec.out``: ``prompt_key``, ``sample`` and ``score`` of each sample.

    A score is NaN where the judge gave no verdict.
    """
    timings = Timings()
    prompts = pq.read_table(spec.prompts, columns=["prompt_key", "prompt"]).to_pylist()
    turns = {row["prompt_key"]: messages_from_row(row["prompt"]) for row in prompts}
    table = pq.read_table(spec.samples, columns=["prompt_key", "sample", "text"])
    texts: dict[str, list[str]] = {}
    for row in table.to_pylist():  # by prompt, then by number
        texts.setdefault(row["prompt_key"], []).append(row["text"])
    asked = [Answered(key, turns[key], tuple(answers)) for key, answers in texts.items()]

    def progress(done: int) -> None:
        events.progress(f"judge: {spec.judge.title}", done, table.num_rows, unit="samples")

    with timings.of("load"):
        judge = make_judge(
            spec.judge, device=spec.launch.device, kept=spec.kept, label=spec.run.name
        )
    with timings.of("score"):
        scores = [score for of in judge.scores(asked, on_done=progress) for score in of]
    columns = {
        "prompt_key": table["prompt_key"],
        "sample": table["sample"],
        "score": pa.array(scores, pa.float64()),
    }
    with publish_file(spec.out) as temporary:
        pq.write_table(pa.table(columns), temporary)
    return ScoresResult(timings_s=timings.rounded())
