"""What is shown of suites: scores of tasks, groups and suites, and paired differences."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scored import write_scores

from sdpo.errors import IntegrityError
from sdpo.report import summarise, write_report
from sdpo.report.evaluations import evaluation_tables, load_evaluations
from sdpo.report.tracked import tracked_scalars
from sdpo.store.evaluations import GroupFacts, SuiteFacts
from sdpo.store.model_card import _model_index
from sdpo.store.run_folder import RunFolder
from sdpo.store.run_status import read_status

MakeRun = Callable[..., Path]
GROUP = GroupFacts(name="mmlu", tasks=["law", "art"], metric="acc", weighted=True)
SUITE = SuiteFacts(name="h4", members=["mmlu", "quiz"])


def values(seed: int, count: int) -> list[float]:
    drawn = np.random.default_rng(seed).random(count) > 0.5
    return [float(value) for value in drawn]


@pytest.fixture
def judged(make_run: MakeRun) -> RunFolder:
    """A run of which S, M_1 and M_2 were judged on three tasks of different sizes."""
    run = RunFolder(make_run())
    for model in range(3):
        of_suite = {"groups": [GROUP], "suites": [SUITE]}
        write_scores(run, model, "law", values(10 + model, 30), shots=5, **of_suite)
        write_scores(run, model, "art", values(20 + model, 90), shots=5, **of_suite)
        write_scores(run, model, "quiz", values(30 + model, 40), metric="acc_norm", **of_suite)
    return run


def test_a_group_is_weighted_by_documents_and_a_suite_is_the_mean_of_its_members(
    judged: RunFolder,
) -> None:
    lines = {line.name: line for line in load_evaluations(judged)}
    assert list(lines) == ["h4", "mmlu", "quiz"], "what is in a group has no line of its own"
    for model in range(3):
        law, art, quiz = (
            np.mean(values(seed + model, count)) for seed, count in ((10, 30), (20, 90), (30, 40))
        )
        mmlu = (30 * law + 90 * art) / 120
        assert lines["mmlu"].scores[model].value == pytest.approx(mmlu)
        assert lines["quiz"].scores[model].value == pytest.approx(quiz)
        assert lines["h4"].scores[model].value == pytest.approx((mmlu + quiz) / 2)
    assert (lines["h4"].metric, lines["quiz"].metric) == ("mean", "acc_norm")
    assert lines["h4"].shots == "0 to 5"


def test_differences_are_those_of_the_documents_from_the_model_before_and_from_s(
    judged: RunFolder,
) -> None:
    (line,) = (line for line in load_evaluations(judged) if line.name == "h4")
    s, first, second = line.scores
    assert s.change is None
    assert s.from_start is None
    for score, before, found in (
        (first, s, first.change),
        (second, first, second.change),
        (second, s, second.from_start),
    ):
        assert found is not None
        assert found.documents == 160
        assert found.change.mean == pytest.approx(score.value - before.value)
        assert found.change.low < found.change.mean < found.change.high


def test_a_document_with_another_prompt_is_not_compared_and_is_counted(make_run: MakeRun) -> None:
    run = RunFolder(make_run())
    write_scores(run, 0, "quiz", [0.0] * 40)
    write_scores(run, 1, "quiz", [1.0] * 40, prompts={0: "another", 7: "another"})
    (line,) = load_evaluations(run)
    found = line.scores[1].change
    assert found is not None
    assert (found.documents, found.alone) == (38, 4)
    (table,) = evaluation_tables([line])
    assert "4 documents apart" in table.rows[1][table.columns.index("From S")]


def test_few_documents_give_no_interval_and_what_was_cut_is_said(make_run: MakeRun) -> None:
    run = RunFolder(make_run())
    for model in range(2):
        write_scores(run, model, "quiz", values(model, 9), truncated=4)
    (table,) = summarise(run.path).evaluations
    row = dict(zip(table.columns, table.rows[1], strict=True))
    assert "(too few to tell)" in row["From S"]
    assert (row["Documents"], row["Cut"]) == ("9", "4")
    assert "How the models are judged" in write_report(run.path).read_text(encoding="utf-8")


def test_scores_that_were_changed_are_not_shown(judged: RunFolder) -> None:
    path = judged.evaluations / "M_1" / "quiz-01234567.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(IntegrityError, match="not what the run wrote"):
        load_evaluations(judged)


def test_the_card_has_the_scores_in_the_hubs_own_format(judged: RunFolder) -> None:
    index = _model_index(judged, 2, "walk-M_2")
    card = ModelCard(f"---\nlibrary_name: transformers\n{index}---\n\n# M_2\n")
    results = {result.dataset_name: result for result in card.data.eval_results}
    assert sorted(results) == ["art", "law", "quiz"]
    assert results["quiz"].metric_type == "acc_norm"
    assert results["quiz"].metric_value == pytest.approx(np.mean(values(32, 40)))
    assert _model_index(judged, 7, "nobody") == ""


def test_the_status_counts_the_tasks_of_each_model(judged: RunFolder) -> None:
    assert read_status(judged).evaluated == {"M_0": 3, "M_1": 3, "M_2": 3}


def test_trackers_get_every_score_with_its_differences(judged: RunFolder) -> None:
    told = tracked_scalars(judged.path)
    for line in load_evaluations(judged):
        for score in line.scores:
            place = f"eval/{line.name}/{line.metric}"
            assert told[score.model][place] == score.value
            if score.from_start:
                change = score.from_start.change
                assert told[score.model][f"{place}_change_from_S"] == change.mean
                assert told[score.model][f"{place}_change_from_S_low"] == change.low
    assert "eval/h4/mean_change_from_S" not in told[0]


def test_a_task_that_was_asked_in_two_ways_has_two_names_in_trackers(judged: RunFolder) -> None:
    write_scores(judged, 0, "quiz", values(70, 40), metric="acc_norm", limit=5)
    lines = [line for line in load_evaluations(judged) if line.name == "quiz"]
    told = {n: v for n, v in tracked_scalars(judged.path)[0].items() if n.startswith("eval/quiz")}
    assert sorted(told.values()) == sorted(line.scores[0].value for line in lines)
    assert len(told) == 2
