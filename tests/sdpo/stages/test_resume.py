"""A step that dies and goes on publishes what it would have published: bit for bit."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from sdpo.config import EvaluationConfig, TrackingConfig, TrainingConfig
from sdpo.errors import Interrupted
from sdpo.events import Event, EventWriter
from sdpo.stages import step as stage
from sdpo.store.budget import Budget
from sdpo.store.resume_states import find_state, states_folder
from sdpo.system import interrupts
from sdpo.system.files import read_json

from ..training_helpers.models import ShortOfMemory, accelerator
from ..training_helpers.runs import PreparedRun, prepare_run

PAIRS = {0: 5, 1: 19, 2: 6}
TRAINING = TrainingConfig(
    beta=0.2,
    learning_rate=1e-3,
    batch_size=4,
    seed=3,
    epochs=2,
    precision="fp32",
    checkpoint_every=3,
)
"""Ten optimizer steps in two epochs, states after 3, 6 and 9."""
LORA = TRAINING.model_copy(update={"lora_r": 4, "lora_dropout": 0.3, "learning_rate": 1e-2})
RMSPROP = TRAINING.model_copy(update={"optimizer": "rmsprop"})
BYTES = TRAINING.model_copy(update={"optimizer": "adamw_8bit"})
EVALUATION = EvaluationConfig(every=2)
TOTAL = 10

# Newer releases of transformers rename it; peft and the oldest one allowed here have the old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)


class Died(Exception):
    """In place of the end of a process."""


class Events(EventWriter):
    """Keeps what a stage says, and ends it during optimizer step ``dies_at``."""

    def __init__(self, dies_at: int = 0) -> None:
        super().__init__(None)
        self.dies_at = dies_at
        self.all: list[Event] = []

    def emit(self, event: Event) -> None:
        """Keep one event."""
        self.all.append(event)

    def progress(self, phase: str, done: int, total: int, **said: str) -> None:
        """Metrics of the step are written by now, its evaluation and its state are not."""
        super().progress(phase, done, total, **said)
        if phase == "train" and done == self.dies_at:
            raise Died

    def of(self, event: str) -> list[Event]:
        """Events of a kind."""
        return [kept for kept in self.all if kept["event"] == event]

    @property
    def warnings(self) -> list[str]:
        """What was warned of."""
        return [str(event["message"]) for event in self.of("warning")]


def run_step(run: PreparedRun, training: TrainingConfig = TRAINING, /, **fields) -> Events:
    """Step 1 in this process, to its end or to its death."""
    events = Events(fields.pop("dies_at", 0))
    accelerator()  # the state that an earlier attempt left behind is gone
    fields = {"evaluation": EVALUATION, "measure_input": True, "measure_output": True} | fields
    spec = run.spec(1, training, **fields)
    if events.dies_at:
        with pytest.raises(Died):
            stage.run(spec, events)
    else:
        stage.run(spec, events)
    return events


def copy_of(run: PreparedRun, folder: Path) -> PreparedRun:
    """The same data below ``folder``, nothing done yet."""
    return prepare_run(folder, pairs=PAIRS, model=run.model)


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory) -> dict[str, PreparedRun]:
    """Runs of one step that nothing interrupted."""
    runs = {}
    for name, training in {"full": TRAINING, "lora": LORA, "rmsprop": RMSPROP}.items():
        first = next(iter(runs.values()), None)
        folder = tmp_path_factory.mktemp(name)
        runs[name] = copy_of(first, folder) if first else prepare_run(folder, pairs=PAIRS)
        assert not run_step(runs[name], training).of("resume")
    return runs


@pytest.fixture
def fresh(whole_runs, tmp_path) -> PreparedRun:
    return copy_of(whole_runs["full"], tmp_path)


def assert_same_step(run: PreparedRun, whole: PreparedRun) -> None:
    """The same model and the same metrics, those of the evaluation included."""
    assert run.record(1)["outputs"] == whole.record(1)["outputs"]
    assert run.record(1)["inputs"] == whole.record(1)["inputs"]
    assert run.metrics(1) == whole.metrics(1)
    assert not states_folder(run.folder.step(1)).exists()
    assert not any("resume" in name for name in run.record(1)["files"])


@pytest.mark.parametrize("dies_at", [1, 4, 6, 9, 10])
def test_a_step_that_died_goes_on_and_gives_the_same_model_and_metrics(whole_runs, fresh, dies_at):
    run_step(fresh, dies_at=dies_at)
    saved = (dies_at - 1) // 3 * 3
    events = run_step(fresh)
    assert [event["optimizer_step"] for event in events.of("resume")] == [saved] * bool(saved)
    trained = [event["done"] for event in events.of("progress") if event["phase"] == "train"]
    assert trained[-1] == TOTAL
    assert_same_step(fresh, whole_runs["full"])


@pytest.mark.parametrize(("name", "training"), [("lora", LORA), ("rmsprop", RMSPROP)])
def test_adapters_dropout_and_every_optimizer_go_on_exactly(whole_runs, fresh, name, training):
    run_step(fresh, training, dies_at=5)
    run_step(fresh, training, dies_at=8)
    events = run_step(fresh, training)
    assert events.of("resume")[0]["optimizer_step"] == 6
    assert_same_step(fresh, whole_runs[name])
    assert fresh.record(1)["resumed_at"] == [3, 6]


def test_moments_in_8_bits_go_on_exactly_and_make_a_smaller_state(whole_runs, fresh, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    whole = copy_of(whole_runs["full"], tmp_path / "whole")
    assert not run_step(whole, BYTES).of("resume")
    run_step(fresh, BYTES, dies_at=5)
    state, _ = find_state(fresh.folder.step(1), key={})
    assert state is not None
    sizes = {path.name: path.stat().st_size for path in state.folder.iterdir()}
    assert sizes["optimizer.safetensors"] < sizes["model.safetensors"]
    events = run_step(fresh, BYTES)
    assert events.of("resume")[0]["optimizer_step"] == 3
    assert_same_step(fresh, whole)


def test_a_state_with_adapters_holds_the_adapters_alone(fresh):
    from safetensors import safe_open

    run_step(fresh, LORA, dies_at=5)
    state, _ = find_state(fresh.folder.step(1), key={})
    assert state is not None
    with safe_open(state.folder / "model.safetensors", "pt") as file:
        parameters = [name for name in file.keys() if name.startswith("parameter.")]  # noqa: SIM118
    assert parameters
    assert all("lora_" in name for name in parameters)


def test_a_supervised_stage_goes_on_exactly(whole_runs, tmp_path):
    runs = [copy_of(whole_runs["full"], tmp_path / name) for name in ("whole", "broken")]
    fields = {"task": "supervised", "measure_input": False, "measure_output": False}
    run_step(runs[0], **fields)
    run_step(runs[1], dies_at=5, **fields)
    run_step(runs[1], **fields)
    assert_same_step(runs[1], runs[0])


def test_the_reference_and_the_gate_are_those_of_before_and_nothing_is_scored_again(
    whole_runs, fresh
):
    run_step(fresh, dies_at=5)
    shutil.rmtree(fresh.cache)
    events = run_step(fresh, measure_input=False)
    phases = {event["phase"] for event in events.of("progress")}
    assert "score D_1" not in phases, "the values in reference.parquet stand"
    record, whole = fresh.record(1), whole_runs["full"].record(1)
    assert record["gate"] == whole["gate"]
    assert record["scored_rows"] == whole["scored_rows"] == {"computed": 19, "cached": 0}
    assert_same_step(fresh, whole_runs["full"])


def test_a_lost_reference_is_measured_under_the_input_model_and_never_the_half_trained_one(
    whole_runs, fresh
):
    run_step(fresh, dies_at=8)
    shutil.rmtree(fresh.cache)
    (fresh.folder.step(1) / "reference.parquet").unlink()
    events = run_step(fresh)
    assert events.of("resume")[0]["optimizer_step"] == 6, "the same values come out"
    assert_same_step(fresh, whole_runs["full"])


def test_another_recipe_does_not_go_on_from_the_state_and_says_so(fresh, whole_runs):
    run_step(fresh, dies_at=5)
    other = TRAINING.model_copy(update={"beta": 0.3})
    events = run_step(fresh, other)
    assert not events.of("resume")
    assert any("belongs to something else: its identity" in line for line in events.warnings)
    assert fresh.record(1)["outputs"] != whole_runs["full"].record(1)["outputs"]


def test_settings_of_the_states_themselves_may_change_between_attempts(whole_runs, fresh):
    run_step(fresh, dies_at=5)
    every = TRAINING.model_copy(update={"checkpoint_every": 1, "checkpoints_kept": 2})
    assert run_step(fresh, every).of("resume")
    assert_same_step(fresh, whole_runs["full"])


FILES = (
    *("state.json", "model.safetensors", "optimizer.safetensors", "generators-0.json"),
    "metrics.jsonl",
)


def damage(path: Path, how: str) -> None:
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def two_states(whole_runs, tmp_path_factory) -> Path:
    """A step's folder with states after 3 and 6."""
    run = copy_of(whole_runs["full"], tmp_path_factory.mktemp("two states"))
    run_step(run, TRAINING.model_copy(update={"checkpoints_kept": 2}), dies_at=8)
    return run.folder.step(1)


@pytest.mark.parametrize("how", ["changed", "cut", "removed"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_state_is_noticed_and_the_one_before_it_takes_its_place(
    two_states, tmp_path, name, how
):
    step = tmp_path / "step-1"
    shutil.copytree(two_states, step)
    folder = states_folder(step)
    damage(folder / "00000006" / name, how)
    state, faults = find_state(step, key={})
    assert state is not None
    assert state.optimizer_step == 3
    assert [fault for fault in faults if name in fault], faults
    assert not (folder / "00000006").exists()


def test_a_step_whose_states_are_all_damaged_starts_again_with_a_word(whole_runs, fresh):
    run_step(fresh, dies_at=8)
    folder = states_folder(fresh.folder.step(1))
    assert [path.name for path in folder.iterdir()] == ["00000006"], "one is kept"
    damage(folder / "00000006" / "model.safetensors", "changed")
    events = run_step(fresh)
    assert not events.of("resume")
    assert [line for line in events.warnings if "step-1 goes on from its beginning" in line]
    assert_same_step(fresh, whole_runs["full"])


def test_states_come_by_minutes_too_and_none_where_none_is_asked_for(fresh):
    by_time = TRAINING.model_copy(update={"checkpoint_every": 0, "checkpoint_minutes": 1e-9})
    none = TRAINING.model_copy(update={"checkpoint_every": 0, "checkpoint_minutes": 0.0})
    assert run_step(fresh, by_time).of("checkpoint")
    (fresh.folder.step(1) / "record.json").unlink()
    assert not run_step(fresh, none).of("checkpoint")


def test_a_budget_that_was_lowered_is_taken_over_by_resume_and_replay(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr("sdpo.stages.session.SequenceScorer", ShortOfMemory)
    monkeypatch.setattr(ShortOfMemory, "limit", 180)
    events = run_step(fresh, dies_at=5)
    warnings = [line for line in events.warnings if "ran out of memory" in line]
    lowered = read_json(fresh.folder.step(1) / "budget.json")["reductions"]
    assert warnings[-1].endswith(f"have {lowered[-1]['micro_batch_tokens']} tokens")
    monkeypatch.setattr(ShortOfMemory, "limit", 10**9)  # as if others had left the device
    run_step(fresh)
    assert fresh.record(1)["budget"]["reductions"] == lowered
    replayed = copy_of(fresh, tmp_path / "replay")
    run_step(replayed, budget=Budget.model_validate(fresh.record(1)["budget"]))
    assert_same_step(replayed, fresh)


def test_tensorboard_drops_the_points_that_are_logged_a_second_time(fresh):
    tracking = TrackingConfig(tools=["tensorboard"])
    run_step(fresh, dies_at=8, tracking=tracking)
    run_step(fresh, tracking=tracking)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next((fresh.folder.step(1) / "tracking").rglob("events*")).parent
    read = EventAccumulator(str(folder))
    read.Reload()
    assert [point.step for point in read.Scalars("loss")] == list(range(1, TOTAL + 1))


def test_a_state_that_cannot_be_written_is_told_and_training_goes_on(whole_runs, fresh):
    step = fresh.folder.step(1)
    step.mkdir(parents=True)
    states_folder(step).write_text("a file where the folder should be")
    events = run_step(fresh)
    assert [line for line in events.warnings if "could not be saved" in line]
    states_folder(step).unlink(missing_ok=True)
    assert fresh.record(1)["outputs"] == whole_runs["full"].record(1)["outputs"]


class Asked(Events):
    """Asks the process to stop while optimizer step 5 ends."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def progress(self, phase: str, done: int, total: int, **said: str) -> None:
        """The signal comes before the boundary."""
        super().progress(phase, done, total, **said)
        if phase == "train" and done == 5:
            signal.raise_signal(self.number)


@pytest.fixture
def heeded(monkeypatch):
    """Signals as a stage has them; gives a function that forgets the one that came."""

    def forget() -> None:
        monkeypatch.setattr(interrupts, "_request", interrupts._Request())

    forget()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    interrupts.listen()
    yield forget
    signal.alarm(0)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_met_at_the_next_boundary_with_a_state(
    whole_runs, fresh, heeded, number
):
    events = Asked(number)
    accelerator()
    with pytest.raises(Interrupted, match="after optimizer step 5"):
        stage.run(fresh.spec(1, TRAINING, evaluation=EVALUATION, measure_input=True), events)
    assert interrupts.exit_code() == 128 + number
    assert 0 < signal.alarm(0) <= 12, "it would be killed if it did not end"
    assert events.of("checkpoint")[-1]["optimizer_step"] == 5
    heeded()
    assert run_step(fresh).of("resume")[0]["optimizer_step"] == 5
    assert_same_step(fresh, whole_runs["full"])


def test_a_request_that_cannot_be_met_in_time_leaves_the_last_state_as_it_is(
    whole_runs, fresh, monkeypatch, heeded
):
    run_step(fresh, dies_at=5)
    monkeypatch.setattr("sdpo.stages.resume_states._BYTES_PER_S", 1.0)
    by_time = TRAINING.model_copy(update={"checkpoint_every": 0})
    events = Asked(signal.SIGTERM)
    accelerator()
    with pytest.raises(SystemExit) as ending:
        stage.run(fresh.spec(1, by_time, evaluation=EVALUATION, measure_input=True), events)
    assert ending.value.code == 143
    assert not events.of("checkpoint")
    heeded()
    assert run_step(fresh).of("resume")[0]["optimizer_step"] == 3
    assert_same_step(fresh, whole_runs["full"])


def test_scoring_that_was_cut_off_keeps_the_parts_that_were_published(fresh, monkeypatch):
    monkeypatch.setattr("sdpo.scoring.score_rows._PART_ROWS", 4)

    class CutOff(Events):
        def progress(self, phase, done, total, **said):
            if phase == "score D_1" and done > total / 2:
                raise Died

    accelerator()
    with pytest.raises(Died):
        stage.run(fresh.spec(1, TRAINING), CutOff())
    run_step(fresh)
    scored = fresh.record(1)["scored_rows"]
    assert scored["cached"] >= 4
    assert scored["cached"] % 4 == 0
    assert scored["cached"] + scored["computed"] == 19


def test_metrics_that_were_lost_come_back_from_the_state(whole_runs, fresh):
    run_step(fresh, dies_at=8)
    (fresh.folder.step(1) / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    run_step(fresh)
    assert_same_step(fresh, whole_runs["full"])
