import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from probe_records import record_probes

from sdpo.errors import UserError
from sdpo.report import summarise, write_report
from sdpo.report.findings import Verdict, caveats, direction, verdict
from sdpo.report.load import load_run
from sdpo.report.numbers import measure_run
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import write_json

MakeRun = Callable[..., Path]
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that tags close, and keeps what a reader sees and what a browser would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)


def page(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def verdict_of(run: Path) -> Verdict:
    data = load_run(run)
    return verdict(data, measure_run(data))


def titles(run: Path) -> list[str]:
    data = load_run(run)
    return [caveat.title for caveat in caveats(data, measure_run(data))]


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_json(path, content)


def edit_probes(run: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    for path in (run / "probes").glob("*.parquet"):
        pq.write_table(change(pq.read_table(path)), path)
    record_probes(RunFolder(run))


def with_column(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values))


def edit_record(run: Path, step: int, change: Callable[[Any], None]) -> None:
    folder = RunFolder(run)
    record = folder.read_record(f"step-{step}")
    assert record is not None
    change(record)
    folder.write_record(f"step-{step}", record, files=[])


def test_the_report_has_every_model_probe_and_section(make_run: MakeRun) -> None:
    text = page(make_run()).text
    for name in ("S", "M₁", "M₂", "D₁", "D₂", "reserve of orca", "reserve of ultrafeedback"):
        assert name in text
    for title in (
        "The effect appeared", "3 warnings", "The chain", "Mean γ of every model on every probe",
        "Ranking accuracy on the reserve", "Change of mean γ from S", "Steps", "Reserve", "γ on D1",
        "γ on D2", "Seen or unseen", "Loss", "Reward margin", "Supervised stage",
        "What the models write", "Partitions", "Rejected rows", "Models", "Digests in full",
        "Timings", "Configuration",
    ):  # fmt: skip
        assert title in text, title


def test_the_report_is_one_file_that_fetches_and_runs_nothing(make_run: MakeRun) -> None:
    run = make_run()
    before = {path for path in run.rglob("*") if path.is_file()}
    report = write_report(run)
    assert {path for path in run.rglob("*") if path.is_file()} - before == {report}
    html = report.read_text(encoding="utf-8")
    found = Page(html)
    assert found.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "a", "use"})
    assert {name for name, _ in found.attributes}.isdisjoint(
        {"src", "href", "srcset", "xlink:href"}
    )
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_what_a_model_wrote_is_text_and_nothing_else(make_run: MakeRun) -> None:
    attack = "</p></style></svg><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }}"
    run = make_run(completion=attack)
    edit(
        run / "probes" / "M_0.completions.json",
        lambda items: items[0].update(prompt=attack, source=attack),
    )
    record_probes(RunFolder(run))
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img" not in html
    assert attack in Page(html).text


def test_a_source_name_is_escaped_in_tables_and_figures(make_run: MakeRun) -> None:
    def rename(table: pa.Table) -> pa.Table:
        for name in ("source", "probe"):
            values = [value.replace("orca", "<b>&orca") for value in table[name].to_pylist()]
            table = with_column(table, name, values)
        return table

    run = make_run()
    edit_probes(run, rename)
    html = write_report(run).read_text(encoding="utf-8")
    assert "<b>" not in html
    assert "reserve of <b>&orca" in Page(html).text


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    first = write_report(run).read_bytes()
    assert write_report(run, out=tmp_path / "again.html").read_bytes() == first


def test_the_report_says_that_the_effect_appeared_with_its_numbers(make_run: MakeRun) -> None:
    found = verdict_of(make_run(effect=8.0))
    assert found.tone == "good"
    assert found.headline == (
        "The effect appeared: γ_ref on D_2 rose from S to M_1, and accuracy on the reserve rose."
    )
    assert re.search(r"a change of \+7\.\d+ \[7\.\d+, 8\.\d+\] over 512 pairs", found.sentences[0])


def test_the_report_says_plainly_that_the_effect_did_not_appear(make_run: MakeRun) -> None:
    run = make_run(effect=0.0, seed=3)
    found = verdict_of(run)
    assert found.tone == "bad"
    assert found.headline.startswith(
        "The effect did not appear: γ_ref on D_2 did not change measurably from S to M_1"
    )
    assert "The effect did not appear" in page(run).text


def test_the_report_says_that_gamma_fell(make_run: MakeRun) -> None:
    found = verdict_of(make_run(effect=-8.0))
    assert found.headline == (
        "The effect did not appear: γ_ref on D_2 fell from S to M_1, "
        "and accuracy on the reserve fell."
    )


@pytest.mark.parametrize(
    ("low", "high", "pairs", "said"),
    [
        (0.1, 2.0, 200, "rose"),
        (-2.0, -0.1, 200, "fell"),
        (-1.0, 2.0, 200, "unclear"),
        (0.0, 2.0, 200, "unclear"),
        (0.1, 2.0, 64, "rose"),
        (-1.0, 2.0, 64, "unknown"),
        (0.1, 2.0, 8, "unknown"),
        (None, None, 200, "unknown"),
    ],
)
def test_an_interval_says_no_more_than_its_pairs_can(
    low: float | None, high: float | None, pairs: int, said: str
) -> None:
    assert direction(low, high, pairs=pairs) == said


def test_a_handful_of_pairs_concludes_nothing(make_run: MakeRun) -> None:
    run = make_run(effect=0.0)
    edit_probes(run, lambda t: t.filter(pc.match_substring(t["pair_id"], "-000")))
    assert verdict_of(run).headline == (
        "Nothing can be concluded: the probe of D_2 is too small to tell whether γ_ref rose, "
        "and the reserve is too small to tell whether accuracy rose."
    )


def test_a_reference_that_saw_its_partition_is_no_evidence(make_run: MakeRun) -> None:
    run = make_run(seen=15.0)
    assert "M_1 may have seen D_2 before step 2" in titles(run)
    assert verdict_of(run).headline.startswith("No conclusion: M_1 may have seen D_2")


def test_warnings_name_truncation_overlap_and_small_probes(make_run: MakeRun) -> None:
    found = titles(make_run())
    assert found[0] == "Prompts in common: D_1 and D_2"
    assert re.fullmatch(r"1\d\.\d% of D_2 is truncated", found[1])
    assert found[2:] == ["Small probes"]


def test_prompts_that_were_cut_are_warned_of_with_the_length_that_is_left(
    make_run: MakeRun,
) -> None:
    run = make_run()
    edit(run / "plan.json", lambda plan: plan.update(cut_prompts=1234))
    stored = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    stored["config"]["data"]["max_prompt_length"] = 512
    RunFolder(run).write_run(stored)
    assert any(re.fullmatch(r"Prompts of 1\s234 pairs are cut", title) for title in titles(run))
    assert "They keep their last 512 tokens" in page(run).text


def test_a_healthy_run_has_no_warnings(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdpo.report.findings.SMALL_PROBE", 20)
    monkeypatch.setattr("sdpo.report.findings.TRUNCATED_SHARE", 0.5)
    run = make_run()
    edit(run / "plan.json", lambda plan: plan.update(overlap=[]))
    assert titles(run) == []
    assert "warning" not in page(run).text


def test_a_gate_passed_narrowly_is_warned_of(make_run: MakeRun) -> None:
    run = make_run()
    edit_record(run, 2, lambda record: record["gate"].update(max_abs_difference_nats=9e-4))
    assert "Step 2 passed its gate narrowly" in titles(run)


def test_a_step_that_started_from_another_model_is_warned_of(make_run: MakeRun) -> None:
    run = make_run()
    edit_record(run, 2, lambda record: record["inputs"].update(reference="0" * 64))
    assert "Step 2 did not start from step 1" in titles(run)


def test_a_reserved_prompt_in_a_partition_is_warned_of(make_run: MakeRun) -> None:
    def share_a_prompt(table: pa.Table) -> pa.Table:
        keys = table["prompt_key"].to_pylist()
        shared = ["D_1-p0003" if key == "reserve:orca-p0001" else key for key in keys]
        return with_column(table, "prompt_key", shared)

    run = make_run()
    assert "D_1 has reserved prompts" not in titles(run)
    edit_probes(run, share_a_prompt)
    assert "D_1 has reserved prompts" in titles(run)


def test_a_run_without_a_reserve_says_that_nothing_tells_of_unseen_prompts(
    make_run: MakeRun,
) -> None:
    run = make_run()
    edit_probes(run, lambda t: t.filter(pc.invert(pc.starts_with(t["probe"], "reserve:"))))
    assert verdict_of(run).sentences[-1].startswith("There is no reserve")
    text = page(run).text
    assert "Ranking accuracy on the reserve" not in text
    assert "Change of mean γ from S" in text


def test_a_run_of_one_step_has_a_verdict_on_the_reserve_alone(make_run: MakeRun) -> None:
    run = make_run(done=1, effect=8.0)
    edit(run / "plan.json", lambda plan: plan.update(steps=plan["steps"][:1], overlap=[]))
    edit_probes(run, lambda t: t.filter(pc.not_equal(t["probe"], "D_2")))
    assert verdict_of(run).headline == "From S to M_1, accuracy on the reserve rose."
    assert "D₂" not in page(run).text


def test_an_unfinished_run_gives_a_report_of_what_exists(make_run: MakeRun) -> None:
    run = make_run(done=1)
    text = page(run).text
    assert "Unfinished: 1 of 2 steps are complete." in text
    assert "not made yet" in text
    assert "M₂" not in text
    assert verdict_of(run).headline.startswith("Half of the effect: γ_ref on D_2 rose")


def test_a_run_with_only_its_first_model_says_that_nothing_can_be_compared(
    make_run: MakeRun,
) -> None:
    run = make_run(done=0)
    found = verdict_of(run)
    assert found.headline == "Unfinished: 0 of 2 steps are complete."
    assert found.sentences == ("Nothing can be compared yet.",)
    assert "Change of mean γ" not in page(run).text


def test_a_run_without_a_plan_gives_a_report(make_run: MakeRun) -> None:
    run = make_run(done=0, supervised=False)
    (run / "plan.json").unlink()
    for path in (*(run / "probes").iterdir(), *(run / "nodes").glob("probe-*")):
        path.unlink()
    text = page(run).text
    assert "the data is not partitioned yet" in text
    assert "equal_sides" in text, "what was rejected is known already"


def test_a_line_that_is_still_being_written_is_left_out(make_run: MakeRun) -> None:
    run = make_run()
    path = run / "step-2" / "metrics.jsonl"
    complete = load_run(run).metrics[2]
    with path.open("a", encoding="utf-8") as metrics:
        metrics.write('{"step": 45, "los')
    assert load_run(run).metrics[2] == complete


def test_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        write_report(tmp_path / "absent")


def test_the_summary_gives_the_numbers_of_the_gamma_view(make_run: MakeRun) -> None:
    run = make_run()
    steps, training, reserve = summarise(run).tables
    numbers = measure_run(load_run(run))
    assert [row[0] for row in steps.rows] == ["1", "2"]
    assert [row[0] for row in reserve.rows] == ["S", "M_1", "M_2"]
    assert all(len(row) == len(t.columns) for t in (steps, training, reserve) for row in t.rows)
    mean = numbers.references[2].mean
    assert steps.rows[1][5].startswith(f"{mean:.2f}".replace("-", "−"))
    assert numbers.references[2].pairs == 700, "the reference is measured on D_2 whole"
    accuracy = numbers.reserve[2].ranking_accuracy
    assert reserve.rows[2][2].startswith(f"{100 * accuracy:.1f}%")
    assert numbers.reserve[2].pairs == 48 + 220


def test_a_step_may_have_a_beta_of_its_own(make_run: MakeRun) -> None:
    run = make_run()
    edit_record(run, 2, lambda record: record["training"].update(beta=0.5))
    *_, reserve = summarise(run).tables
    change = measure_run(load_run(run)).reserve[2].vs_previous.mean
    assert reserve.rows[2][-1] == f"{0.5 * change:+.3f}"


def column(run: Path, title: str, name: str) -> list[str]:
    (table,) = (table for table in summarise(run).tables if table.title == title)
    return [row[table.columns.index(name)] for row in table.rows]


def say_models(record: Any, *, choice: str, reference: str, target: str) -> None:
    record["training"].update(reference=choice, target="base" if target == "M_0" else "previous")
    record["models"] = {
        "reference": {"choice": choice, "name": reference},
        "target": {"choice": "base" if target == "M_0" else "previous", "name": target},
    }
    record["gate"].update(excess_loss=-0.25, expected_loss=0.693147, compared="reference")


def write_reference(run: Path, step: int, *, gamma: float, foreign: bool = False) -> None:
    """``reference.parquet`` of a step whose reference has the same gamma on every pair."""
    probe = pq.read_table(run / "probes" / f"M_{step - 1}.parquet")
    rows = probe.filter(pc.equal(probe["probe"], f"D_{step}"))
    counts = [pa.nulls(len(rows), pa.int32())] * 2
    if not foreign:
        counts = [rows["chosen_tokens"], rows["rejected_tokens"]]
    table = pa.table(
        {
            **{name: rows[name] for name in ("pair_id", "prompt_key", "source", "complete")},
            "reference_chosen_logps": pa.array([gamma - 9.0] * len(rows), pa.float32()),
            "reference_rejected_logps": pa.array([-9.0] * len(rows), pa.float32()),
            "chosen_tokens": counts[0],
            "rejected_tokens": counts[1],
        }
    )
    pq.write_table(table, run / f"step-{step}" / "reference.parquet")


def test_every_step_says_its_objective_reference_and_target(make_run: MakeRun) -> None:
    run = make_run()
    assert column(run, "Steps", "Objective") == ["DPO, β 0.1"] * 2
    assert column(run, "Steps", "Reference") == column(run, "Steps", "Target") == ["S", "M_1"]
    assert "guide-2" not in page(run).text
    edit_record(run, 2, lambda r: say_models(r, choice="guided", reference="guide-2", target="M_0"))
    write_reference(run, 2, gamma=1.5)
    assert column(run, "Steps", "Reference") == ["S", "guide-2"]
    assert column(run, "Steps", "Target") == ["S", "S"]
    assert "from S, against guide-2" in page(run).text


def test_gamma_ref_is_that_of_the_reference_which_the_step_trained_with(make_run: MakeRun) -> None:
    run = make_run()
    edit_record(run, 2, lambda r: say_models(r, choice="model", reference="big", target="M_1"))
    write_reference(run, 2, gamma=1.5, foreign=True)
    entry = measure_run(load_run(run)).references[2]
    assert entry.mean == entry.mean_low == entry.mean_high == 1.5
    assert (entry.pairs, entry.ranking_accuracy) == (700, 1.0)
    assert entry.per_token_mean is None, "its tokens are not the policy's"
    base = measure_run(load_run(run)).entries[0, "D_2"]
    assert entry.vs_S.mean == pytest.approx(1.5 - base.mean)
    assert column(run, "Steps", "Mean γ_ref on D_t")[1] == "1.50 [1.50, 1.50]"


def test_the_margin_is_counted_from_the_reference(make_run: MakeRun) -> None:
    run = make_run()
    numbers = measure_run(load_run(run))
    edit_record(run, 2, lambda r: say_models(r, choice="base", reference="M_0", target="M_1"))
    write_reference(run, 2, gamma=0.0)
    expected = 0.1 * numbers.reserve[2].vs_S.mean
    assert column(run, "Reserve", "Implied margin")[2] == f"{expected:+.3f}"
    edit_record(run, 2, lambda r: say_models(r, choice="model", reference="big", target="M_1"))
    assert column(run, "Reserve", "Implied margin")[2] == "–"


def test_a_reference_that_is_no_better_than_s_is_warned_of(make_run: MakeRun) -> None:
    run = make_run()
    assert "The reference of step 2 is no better than S" not in titles(run)
    edit_record(run, 2, lambda r: say_models(r, choice="previous", reference="M_1", target="M_0"))
    edit_record(run, 2, lambda r: r["inputs"].update(target=load_run(run).records[0].model))
    assert "The reference of step 2 is no better than S" in titles(run)
    assert "Step 2 did not start from step 1" not in titles(run), "the recipe says so"


def test_kl_is_shown_where_it_was_measured(make_run: MakeRun) -> None:
    run = make_run()
    assert column(run, "Steps", "KL from S") == ["–", "–"]
    assert "Exact per position" not in page(run).text

    def estimate(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.5, "high": mean + 0.5}

    entries = [
        {
            "model": "M_2", "against": against, "sampler": sampler, "prompts": 64,
            "sequences": 64, "tokens": 640, "unfinished_share": 0.125,
            "per_sequence": {name: estimate(kl) for name in ("kl", "k1", "k3")},
            "per_token": {name: estimate(kl / 10) for name in ("kl", "k1", "k3")},
        }
        for against, sampler, kl in (("M_1", "exact", 2.0), ("M_0", "exact", 3.25),
                                     ("M_0", "paper", 3.5))
    ]  # fmt: skip
    write_json(run / "step-2" / "kl.json", entries)
    assert column(run, "Steps", "KL from previous") == ["–", "2.000 [1.500, 2.500]"]
    assert column(run, "Steps", "KL from S") == ["–", "3.250 [2.750, 3.750]"]
    text = page(run).text
    for shown in ("Exact per position", "T = 0.9, top-k 40", "M2 from S", "12.5%"):
        assert shown in text, shown


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, sdpo.report; print({'torch', 'transformers', 'matplotlib'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
