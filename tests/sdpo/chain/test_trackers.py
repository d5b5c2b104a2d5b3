"""Trackers get what the chain measured: gamma, probes, evaluations, the report.

Each tool is read back with its own reader, from where it writes without a server. What it has is
compared with ``gamma.json`` and ``metrics.jsonl``, which are written by other code.
"""

import json
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Outcome, Values
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sdpo.history.replay import look, plan_replay
from sdpo.report.tracked import tracked_scalars
from sdpo.store.run_folder import RunFolder

Curve = dict[int, float]


def told_of_gamma(run: Outcome, probe: str, name: str = "mean") -> Curve:
    """Numbers of M_0, M_1, ... as the last step's ``gamma.json`` has them, of samples."""
    rows = [row for row in run.json("step-2/gamma.json") if row["probe"] == probe]
    latest = {row["model"]: row[name] for row in rows}  # the sample comes after the whole
    return {int(model.removeprefix("M_")): value for model, value in latest.items()}


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, finished_bench: Bench, finished: Outcome
) -> Outcome:
    """The finished run, which is told to a tracker afterwards."""
    assert finished.folder.is_dir()
    bench = finished_bench.copy_to(tmp_path_factory.mktemp("told"))
    return bench.run({"tracking": {"tools": ["tensorboard"]}})


def tensorboard_of(folder: Path) -> EventAccumulator:
    (events,) = folder.glob("events.out.tfevents.*")
    return EventAccumulator(str(events)).Reload()


def test_a_finished_run_that_names_a_tracker_is_told_and_nothing_is_done_again(
    told: Outcome,
) -> None:
    assert told.result.executed == ("trackers",)


def test_the_tracker_has_gamma_of_every_model_on_every_probe(told: Outcome) -> None:
    log = tensorboard_of(told.folder / "tracking" / "sdpo")
    for probe, place in {
        "D_1": "D_1",
        "D_2": "D_2",
        "reserve:questions": "reserve/questions",
        "reserve:requests": "reserve/requests",
    }.items():
        for name in ("mean", "ranking_accuracy", "sd", "pairs"):
            shown = {s.step: s.value for s in log.Scalars(f"gamma/{place}/{name}")}
            assert shown == pytest.approx(told_of_gamma(told, probe, name), rel=1e-6), place
    assert [s.step for s in log.Scalars("gamma/reserve/mean")] == [0, 1, 2]
    assert [s.step for s in log.Scalars("gamma/D_1/change_from_S")] == [1, 2]


def test_the_tracker_has_gamma_ref_of_every_step(told: Outcome) -> None:
    log = tensorboard_of(told.folder / "tracking" / "sdpo")
    for step in (1, 2):
        (shown,) = log.Scalars(f"gamma_ref/D_{step}/mean")
        wanted = (f"M_{step - 1}", f"D_{step}")
        (named, *_) = (
            row["mean"]
            for row in told.json("step-2/gamma.json")
            if (row["model"], row["probe"]) == wanted
        )
        assert (shown.step, shown.value) == (step, pytest.approx(named, rel=1e-6))


def test_the_tracker_has_the_report_in_short_and_whole(told: Outcome) -> None:
    folder = told.folder / "tracking" / "sdpo"
    assert (folder / "report.html").read_bytes() == told.run.report.read_bytes()
    log = tensorboard_of(folder)
    (text,) = log.Tensors("report/text_summary")
    words = text.tensor_proto.string_val[0].decode()
    assert "### Reserve" in words
    assert "| M_2 |" in words


def test_what_was_told_once_is_told_again_only_where_something_is_new(
    told: Outcome, finished_bench: Bench
) -> None:
    bench = Bench(told.folder.parents[1], finished_bench.recipe)
    same = {"tracking": {"tools": ["tensorboard"]}}
    assert bench.run(same).result.executed == ()
    numbers_alone = bench.run({"tracking": {"tools": ["tensorboard"], "report": False}})
    assert numbers_alone.result.executed == ("trackers",)
    folder = told.folder / "tracking" / "sdpo"
    assert not (folder / "report.html").exists()
    assert tensorboard_of(folder).Scalars("gamma/reserve/mean")
    assert bench.run(same).result.executed == ("trackers",)


@pytest.mark.parametrize("report", [True, False], ids=["finished", "without its report"])
def test_a_dry_run_says_that_trackers_would_be_told(
    told: Outcome, tmp_path: Path, report: bool
) -> None:
    run = RunFolder(tmp_path / "runs" / "tiny")
    shutil.copytree(told.folder, run.path)
    shutil.copytree(told.folder.parents[1] / "cache", tmp_path / "cache")
    if not report:
        run.report.unlink()
    replay = plan_replay(run, step=2, overrides=("tracking.tools=[tensorboard]",))
    assert look(replay)[-1].node == "trackers"


def test_names_are_of_letters_that_every_tracker_takes(told: Outcome) -> None:
    for scalars in tracked_scalars(told.folder).values():
        assert all(set(name) <= NAMES for name in scalars), scalars


NAMES = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-/")


# --- the other tools, each as it keeps things where there is no server

TOOLS = ("wandb", "mlflow", "trackio")
needs_the_tools = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_spec(tool) is None for tool in TOOLS), reason="the extra `tracking` is missing"
    ),
    pytest.mark.filterwarnings("ignore"),  # of their own
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trackers")


@pytest.fixture(scope="module")
def everywhere(places: Path, tiny_recipe: Values) -> Outcome:
    """A run that is told to all of them from its first optimizer step on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(places))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{places}/mlflow.db")
        patch.setenv("TRACKIO_DIR", str(places / "trackio"))
        patch.chdir(places)
        return Bench(places, tiny_recipe).run({"tracking": {"tools": list(TOOLS)}})


def check_curves(run: Outcome, curves: dict[str, dict[str, Curve]]) -> None:
    """Compare what a tool has, by run and name, with the files of the chain."""
    assert set(curves) == {"tiny/step-1", "tiny/step-2", "tiny"}
    for step in (1, 2):
        loss = {line["step"]: line["loss"] for line in run.metrics(step) if "loss" in line}
        assert curves[f"tiny/step-{step}"]["loss"] == pytest.approx(loss)
        assert "eval_loss" in curves[f"tiny/step-{step}"]
    measured = curves["tiny"]
    for probe in ("D_1", "D_2"):
        gamma = told_of_gamma(run, probe)
        assert measured[f"gamma/{probe}/mean"] == pytest.approx(gamma), probe
    assert set(measured) == {n for told in tracked_scalars(run.folder).values() for n in told}


class TestWandb:
    pytestmark = needs_the_tools

    def test_it_has_curves_gamma_and_report(self, everywhere: Outcome, places: Path) -> None:
        curves, artifacts, groups = wandb_runs(places / "wandb")
        check_curves(everywhere, curves)
        assert artifacts == {"tiny": ["report.html"]}
        assert groups == {"tiny"}


class TestMlflow:
    pytestmark = needs_the_tools

    def test_it_has_curves_gamma_and_report(self, everywhere: Outcome, places: Path) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{places}/mlflow.db")
        experiment = client.get_experiment_by_name("sdpo")
        assert experiment is not None
        curves: dict[str, dict[str, Curve]] = {}
        for run in client.search_runs([experiment.experiment_id]):
            curves[run.info.run_name] = {
                name: {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
                for name in run.data.metrics
            }
            if run.info.run_name == "tiny":
                page = client.download_artifacts(run.info.run_id, "report.html", str(places))
                assert Path(page).read_bytes() == everywhere.run.report.read_bytes()
                assert "### Reserve" in run.data.tags["mlflow.note.content"]
        check_curves(everywhere, curves)


class TestTrackio:
    pytestmark = needs_the_tools

    def test_it_has_curves_gamma_and_report(self, everywhere: Outcome, places: Path) -> None:
        with sqlite3.connect(places / "trackio" / "sdpo.db") as database:
            rows = database.execute("select run_name, step, metrics from metrics").fetchall()
            artifacts = database.execute("select name, type from artifacts").fetchall()
            (manifest,) = database.execute("select manifest from artifact_versions").fetchone()
        curves: dict[str, dict[str, Curve]] = {}
        for run, step, metrics in rows:
            for name, value in json.loads(metrics).items():
                if isinstance(value, int | float):
                    curves.setdefault(run, {}).setdefault(name, {})[step] = value
        check_curves(everywhere, curves)
        assert artifacts == [("report-tiny", "report")]
        assert [entry["path"] for entry in json.loads(manifest)] == ["report.html"]


def wandb_runs(folder: Path) -> tuple[dict[str, dict[str, Curve]], dict[str, list[str]], set[str]]:
    """Curves and artifacts' files by run, and the groups, of a folder of runs that are offline."""
    curves: dict[str, dict[str, Curve]] = {}
    artifacts, groups = dict[str, list[str]](), set[str]()
    for path in folder.glob("offline-run-*/run-*.wandb"):
        name = ""
        for record in wandb_records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    name = record.run.display_name
                    groups.add(record.run.run_group)
                case "history":
                    for item in record.history.item:
                        key = item.key or ".".join(item.nested_key)
                        if not key.startswith("_"):
                            curve = curves.setdefault(name, {}).setdefault(key, {})
                            curve[record.history.step.num] = json.loads(item.value_json)
                case "artifact":
                    entries = record.artifact.manifest.contents
                    artifacts[name] = [entry.path for entry in entries]
    return curves, artifacts, groups


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of wandb's file: LevelDB's log format, after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:  # the rest of a block is empty where no header fits
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
