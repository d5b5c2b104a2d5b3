"""What `import sdpo` gives: names, recipes, runs of data sets as objects, numbers, models."""

import html
import inspect
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from bench import Bench, DemoFiles, Outcome, merged
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file

import sdpo
from sdpo.api.progress import NotebookProgress, shown
from sdpo.api.run import Report
from sdpo.config.load import load_recipe as load_from_file
from sdpo.data.readers import read_rows
from sdpo.errors import ConfigError, DataError, RunExistsError, UserError
from sdpo.events import Event, event_of
from sdpo.report import summarise
from sdpo.report.tables import percent

ROOT = Path(__file__).resolve().parents[3]


def quiet(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def finished_run(finished: Outcome) -> sdpo.Run:
    return sdpo.Run(finished.folder)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(str(path))]


def with_objects(bench: Bench, demo_files: DemoFiles, **changes: Any) -> dict[str, Any]:
    """The bench's recipe with objects in the place of its files."""
    sources = [
        {"name": name, "path": Dataset.from_list(rows_of(getattr(demo_files, name)))}
        for name in ("questions", "requests")
    ]
    return bench.values(merged({"data": {"sources": sources}}, changes))


def test_importing_sets_no_variable_and_loads_nothing_heavy() -> None:
    code = (
        "import os, sys; before = dict(os.environ); import sdpo\n"
        "names = {n: getattr(sdpo, n) for n in sdpo.__all__}\n"
        "heavy = {'torch', 'transformers', 'prefect', 'datasets', 'IPython', 'pandas'}\n"
        "print(dict(os.environ) == before, sorted(heavy & set(sys.modules)))"
    )
    kept = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=kept, check=True
    )
    assert done.stdout.strip() == "True []"


def test_importing_alone_loads_no_other_module_of_the_project() -> None:
    code = "import sys, sdpo; print([n for n in sys.modules if n.startswith(('sdpo.', 'pyarrow'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_all_is_what_dir_says_and_what_is_there() -> None:
    assert dir(sdpo) == sorted(sdpo.__all__)
    assert {"load_recipe", "run", "resume", "replay", "Run", "objectives"} <= set(sdpo.__all__)
    assert all(hasattr(sdpo, name) for name in sdpo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        sdpo.trane  # noqa: B018


def public() -> Iterator[tuple[str, Any]]:
    for name in ("load_recipe", "run", "resume", "replay"):
        yield name, getattr(sdpo, name)
    for kind in (sdpo.Run, Report):
        for name, member in vars(kind).items():
            if not name.startswith("_"):
                yield name, member.fget if isinstance(member, property) else member


def test_everything_public_is_documented_and_annotated() -> None:
    assert sdpo.Run.__doc__
    assert sdpo.Recipe.__doc__
    for name, member in public():
        if not inspect.isfunction(member):
            continue
        signature = inspect.signature(member)
        assert member.__doc__, name
        assert signature.return_annotation is not signature.empty, name
        given = [p for p in signature.parameters.values() if p.name != "self"]
        assert all(p.annotation is not p.empty for p in given), name


def test_objectives_are_frozen_facts() -> None:
    simpo = sdpo.objectives.OBJECTIVES["simpo"]
    assert (simpo.title, simpo.paper) == ("SimPO", "2405.14734")
    assert simpo.settings == ("beta", "simpo_gamma_beta_ratio")
    with pytest.raises(AttributeError):
        simpo.paper = "another"  # type: ignore[misc]


def test_a_recipe_is_the_same_from_a_file_text_and_a_mapping(bench: Bench) -> None:
    path = Path(bench.write())
    wanted = load_from_file(path, overrides=["training.beta=0.2"]).model_dump()
    for given in (path, str(path), path.read_text(encoding="utf-8"), bench.values()):
        for overrides in (["training.beta=0.2"], {"training.beta": 0.2}):
            assert sdpo.load_recipe(given, overrides=overrides).model_dump() == wanted


def test_a_recipe_can_be_loaded_again_with_other_settings(bench: Bench) -> None:
    first = sdpo.load_recipe(bench.values())
    again = sdpo.load_recipe(first, overrides={"training.learning_rate": 5e-7, "name": "other"})
    assert (again.training.learning_rate, again.name, first.name) == (5e-7, "other", "tiny")


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        (3, (), "a recipe is a path, YAML text or a mapping, and not a int"),
        ("model: [", (), "the recipe is not YAML"),
        ("- a\n- b", (), "a recipe is a mapping"),
        ("nowhere.yaml", (), "no recipe at"),
        ({"extends": "demo"}, (), "only a recipe that is a file"),
        ({"trainin": {}}, (), "did you mean `training`"),
        ({}, "training.beta=1", "give a list or a mapping"),
        ({}, {"data.sources": object()}, "not JSON serializable"),
        ({"data": {"sources": [{"name": "a", "path": [{"prompt": "x"}]}]}}, (), "a list cannot be"),
        ({"supervised": {"path": {"train": 1}}}, (), r"supervised\.path: a dict cannot be"),
        ({"data": {"sources": [{"path": Dataset.from_list([{"a": 1}])}]}}, (), "needs a name"),
    ],
)
def test_what_is_no_recipe_is_refused_with_a_remedy(recipe: Any, overrides: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sdpo.load_recipe(recipe, overrides=overrides)


def test_steps_say_what_the_plan_and_the_records_say(
    finished_run: sdpo.Run, finished: Outcome
) -> None:
    plan = finished.json("plan.json")["steps"]
    assert [(s.step, s.pairs, s.sources) for s in finished_run.steps] == [
        (entry["step"], entry["pairs"], entry["sources"]) for entry in plan
    ]
    for step in finished_run.steps:
        assert step.is_complete
        assert step.model == finished.record(f"step-{step.step}")["outputs"]["model"]
    assert [(s.objective, s.reference, s.target) for s in finished_run.steps] == [
        ("DPO, β 0.1", "S", "S"),
        ("DPO, β 0.1", "M_1", "M_1"),
    ]


def test_gamma_is_that_of_gamma_json(finished_run: sdpo.Run, finished: Outcome) -> None:
    table = finished_run.gamma()
    found = {(row["model"], row["probe"]): row for row in table.to_pylist()}
    entries = {(int(e["model"][2:]), e["probe"]): e for e in finished.json("step-2/gamma.json")}
    assert found.keys() == entries.keys()
    for key, entry in entries.items():
        row = found[key]
        for name in table.column_names[2:]:
            if not name.startswith("change_from_S"):
                assert row[name] == entry[name], name
        assert row["change_from_S"] == (entry["vs_S"] and entry["vs_S"]["mean"])


def test_the_reserve_is_what_the_report_shows(finished_run: sdpo.Run) -> None:
    rows = [row for row in finished_run.reserve().to_pylist() if row["source"] is None]
    shown_rows = summarise(finished_run.path).tables[2].rows
    assert [row["model"] for row in rows] == [0, 1, 2]
    for row, cells in zip(rows, shown_rows, strict=True):
        assert cells[1] == str(row["pairs"])
        assert cells[2].startswith(percent(row["ranking_accuracy"]))
        assert cells[4] == percent(row["accuracy_vs_S"])
    assert {row["source"] for row in finished_run.reserve().to_pylist()} == {
        None, "questions", "requests",
    }  # fmt: skip


def test_metrics_are_the_lines_of_the_files(finished_run: sdpo.Run, finished: Outcome) -> None:
    table = finished_run.metrics()
    assert isinstance(table, pa.Table)
    lines = [(step, line) for step in (1, 2) for line in finished.metrics(step)]
    for row, (step, line) in zip(table.to_pylist(), lines, strict=True):
        given = {name: value for name, value in row.items() if value is not None}
        assert given == {**line, "step": step, "optimizer_step": line["step"]}
    assert table.to_pandas()["loss"].notna().any()


def test_models_are_those_of_the_records(
    finished_run: sdpo.Run, finished: Outcome, demo_files: DemoFiles
) -> None:
    folders = [demo_files.model, finished.run.model(1), finished.run.model(2)]
    for number, folder in enumerate(folders):
        model = finished_run.model(number)
        assert not model.training
        weights = model.state_dict()
        for name, wanted in load_file(folder / "model.safetensors").items():
            assert torch.equal(weights[name], wanted), name
    with pytest.raises(UserError, match="no complete step 3; complete: 1, 2"):
        finished_run.model(3)


def test_a_model_that_was_changed_is_refused(finished_copy: Bench) -> None:
    run = sdpo.Run("tiny", runs_dir=finished_copy.runs)
    weights = run.path / "step-1" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(UserError, match="is not the model this run was made with"):
        run.model(1)


def test_a_notebook_is_shown_a_table_and_the_report(finished_run: sdpo.Run) -> None:
    page = finished_run._repr_html_()
    assert "2 of 2 steps" in page
    assert "<caption>Reserve</caption>" in page
    assert repr(finished_run).startswith("<Run tiny: 2 of 2 steps")
    report = finished_run.report()
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="" .*</iframe>', report._repr_html_())
    assert frame
    assert html.unescape(frame[1]) == report.path.read_text(encoding="utf-8") == report.html


def test_what_a_run_is_named_after_is_no_html(bench: Bench, demo_files: DemoFiles) -> None:
    evil = "<script>alert(1)</script>"
    show: list[str] = []
    progress = NotebookProgress(show.append, name=evil)
    progress(event_of({"event": "node", "node": evil, "status": "run", "reason": ""}))
    progress(event_of({"event": "warning", "message": evil}))
    progress(event_of({"event": "progress", "phase": evil, "done": 1, "total": 3, "unit": evil}))
    assert len(show) == 3
    assert "<script" not in "".join(show)
    assert '<progress value="1" max="3">' in show[-1]


def test_where_there_is_no_terminal_only_warnings_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shown(None, name="tiny") as listen:
        listen(event_of({"event": "node", "node": "data", "status": "run", "reason": ""}))
        listen(
            event_of({"event": "progress", "phase": "a", "done": 1, "total": 2, "unit": "pairs"})
        )
        listen(event_of({"event": "warning", "message": "[red]look\x1b[2J"}))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip() == "warning: [red]look␛[2J"


def test_a_terminal_has_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown(None, name="tiny") as listen:
        listen(event_of({"event": "node", "node": "step-1", "status": "run", "reason": ""}))
        listen(
            event_of(
                {"event": "progress", "phase": "train", "done": 1, "total": 2, "unit": "steps"}
            )
        )
        time.sleep(0.3)
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"tiny: train .*1/2.*steps", said.err)


@pytest.mark.usefixtures("quick_stages")
def test_a_run_of_objects_is_that_of_files_with_the_same_rows_and_needs_no_object_again(
    bench: Bench, demo_files: DemoFiles, finished: Outcome
) -> None:
    stopped: list[str] = []

    def stop_after_step_1(event: Event) -> None:
        if event["event"] == "node" and event["node"] == "step-2":
            stopped.append(event["node"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        sdpo.run(with_objects(bench, demo_files), listen=stop_after_step_1)
    assert stopped == ["step-2"]
    assert caught.value.__notes__ == [f"go on with: sdpo.resume({str(bench.runs / 'tiny')!r})"]
    halfway = sdpo.Run("tiny", runs_dir=bench.runs)
    assert [step.is_complete for step in halfway.steps] == [True, False]
    with pytest.raises(UserError, match="no report yet"):
        halfway.report()

    run = sdpo.resume("tiny", runs_dir=bench.runs, listen=quiet)
    for step in (1, 2):
        record = json.loads((run.path / f"step-{step}" / "record.json").read_text("utf-8"))
        wanted = finished.record(f"step-{step}")
        assert record["identity"] == wanted["identity"]
        assert record["outputs"] == wanted["outputs"]
    files = sorted((run.path / "sources").iterdir())
    assert sorted(source.path for source in run.config.data.sources) == [str(f) for f in files]
    assert run.comparison() is None

    (bench.folder / "runs").rename(bench.folder / "moved")
    moved = sdpo.resume("tiny", runs_dir=bench.folder / "moved", listen=quiet)
    assert [Path(s.path).is_file() for s in moved.config.data.sources] == [True, True]
    (bench.folder / "moved").rename(bench.folder / "runs")

    again: list[Event] = []
    assert sdpo.run(with_objects(bench, demo_files), listen=again.append).path == run.path
    assert {event["status"] for event in again if event["event"] == "node"} == {"reuse"}

    other = with_objects(bench, demo_files)
    other["data"]["sources"][0]["path"] = other["data"]["sources"][0]["path"].select(range(30))
    with pytest.raises(RunExistsError, match=r"data\.questions"):
        sdpo.run(other, listen=quiet)
    assert sorted((run.path / "sources").iterdir()) == files

    replayed = sdpo.replay(run, 2, {"training.beta": 0.3}, listen=quiet)
    found = replayed.comparison()
    assert found is not None
    assert found.inputs == ("training.beta: 0.1 -> 0.3",)
    assert replayed.config.training_of(2).beta == 0.3
    assert replayed.steps[0].model == run.steps[0].model


def test_the_same_rows_are_the_same_bytes_whatever_object_they_come_in(
    bench: Bench, demo_files: DemoFiles, tmp_path: Path
) -> None:
    from sdpo.api.dataset_rows import rows_written

    rows = [{"prompt": [{"role": "user", "content": f"{i}?"}], "n": i % 7} for i in range(3000)]
    plain = Dataset.from_list(rows)
    plain.save_to_disk(tmp_path / "saved")
    backwards = Dataset.from_list(rows[::-1]).select(range(2999, -1, -1))
    turned = [
        {"n": r["n"], "prompt": [dict(reversed(m.items())) for m in r["prompt"]]} for r in rows
    ]
    objects = {
        "plain": plain,
        "saved": Dataset.load_from_disk(str(tmp_path / "saved")),
        "backwards": backwards,
        "in parts": concatenate_datasets([plain.select(range(10)), plain.select(range(10, 3000))]),
        "turned": Dataset.from_list(turned),
        "large": Dataset(pa.table(plain.data.table.cast(large(plain.data.schema)))),
    }
    config = sdpo.load_recipe(bench.values())
    with rows_written(config, objects):
        files = list((bench.runs / "tiny" / "sources").iterdir())
    assert len(files) == 1
    assert rows_of(files[0]) == turned
    with rows_written(config, {"others": plain.select(range(2999))}):
        assert len(list((bench.runs / "tiny" / "sources").iterdir())) == 2


def large(schema: pa.Schema) -> pa.Schema:
    message = pa.struct([("role", pa.large_string()), ("content", pa.large_string())])
    kinds = {"prompt": pa.large_list(message), "n": pa.int64()}
    return pa.schema([(name, kinds[name]) for name in schema.names])


def test_a_recipe_that_is_refused_leaves_no_rows_behind(
    bench: Bench, demo_files: DemoFiles
) -> None:
    broken = with_objects(bench, demo_files, model={"name_or_path": "./nowhere"})
    with pytest.raises(UserError, match="no folder at"):
        sdpo.run(broken, listen=quiet)
    assert not (bench.runs / "tiny").exists()
    empty = with_objects(bench, demo_files)
    empty["data"]["sources"][1]["path"] = Dataset.from_list([])
    with pytest.raises(DataError, match="data source requests: the data set has no rows"):
        sdpo.run(empty, listen=quiet)
    assert not (bench.runs / "tiny").exists()
    useless = bench.values(
        {"data": {"sources": [{"name": "a", "path": Dataset.from_list([{"x": 1}])}]}}
    )
    with pytest.raises(UserError, match="columns"):
        sdpo.run(useless, listen=quiet)
    assert not (bench.runs / "tiny").exists()


@pytest.mark.filterwarnings("default")  # the libraries of a notebook have their own
def test_a_notebook_shows_progress_and_the_result(finished_copy: Bench, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = f"import sdpo\nsdpo.run({finished_copy.values()!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": ROOT}}).execute()
    shown_html = [output["data"].get("text/html", "") for output in notebook.cells[0].outputs]
    assert any("<div>run tiny: " in page for page in shown_html)
    assert "<caption>Reserve</caption>" in shown_html[-1]


@pytest.mark.usefixtures("quick_stages")
def test_the_example_of_python_in_the_docs_runs(
    bench: Bench, demo_files: DemoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code) == 1
    bench.write(name="recipe.yaml")
    monkeypatch.chdir(bench.folder)
    names: dict[str, Any] = {}
    exec(code[0], names)
    assert names["again"].comparison().verdict == "inputs differ"
    assert names["M_1"].config.model_type == "llama"
