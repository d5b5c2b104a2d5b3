"""A step has pairs of its own, made when the chain has come to it: everything follows them.

The node that makes them is the test's own: twelve pairs whose texts depend on the model before.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench import Bench, Outcome, Values
from forked_stages import forked_stages
from histories import flip, origin, replayed

from sdpo.api.run import Run
from sdpo.chain import run_chain
from sdpo.chain.context import Context
from sdpo.chain.node import Expansion, Part
from sdpo.chain.step import align_step
from sdpo.chain.step_data import make_step_data
from sdpo.chain.step_models import model_of
from sdpo.config import DataConfig, SourceConfig
from sdpo.data.prepare import prepare_pairs
from sdpo.errors import DataError
from sdpo.history.dryrun import NodeLine
from sdpo.history.extend import extend_run
from sdpo.history.gc import collect
from sdpo.history.lineage import lineage_of
from sdpo.history.replay import look, plan_replay
from sdpo.history.verify import verify_run
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import files_of
from sdpo.tokens.token_file import TokenFile

OWN = (2, 3)
MADE = 12


def rows_by(digest: str, step: int) -> list[Values]:
    """Pairs that no other model, and no other step, makes."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Say {n} for {digest[:6]} in round {step}."}],
            "chosen": [{"role": "assistant", "content": f"Here is {n}, {digest[:6]}."}],
            "rejected": [{"role": "assistant", "content": f"No. Not {n}, {digest[6:12]}."}],
        }
        for n in range(MADE)
    ]


def write_pairs(rows: list[Values], out: Path) -> None:
    """``pairs.parquet`` of these rows, as a source of a recipe is read."""
    scratch = out.parent / f"{out.name}.made"
    scratch.mkdir()
    source = scratch / "made.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataConfig(sources=[SourceConfig(name="made", path=str(source))])
    prepared = prepare_pairs(data, default_format="chat", strata=[], out=scratch)
    shutil.move(prepared.path, out)
    shutil.rmtree(scratch)


Write = Callable[[Path, str, int], None]


def own_of(write: Write, rule: str = "") -> Callable[[Context, int, int], Expansion]:
    """A step's parts, after the node that makes what it has of its own by ``write``."""

    def parts_of(context: Context, step: int, pairs: int) -> Expansion:
        def model() -> str:
            return model_of(context, step - 1).digest

        def parts() -> list[Part]:
            made = make_step_data(
                context,
                step,
                inputs=(f"step-{step - 1}",),
                identity=lambda: {"model": model(), "rule": rule},
                write=lambda path: write(path, model(), step),
            )
            return [*([made] if step in OWN else []), align_step(context, step, pairs)]

        return Expansion(expand=parts, foreseen=lambda: (f"step-{step}",))

    return parts_of


def by_model(path: Path, model: str, step: int) -> None:
    write_pairs(rows_by(model, step), path)


@pytest.fixture(autouse=True, scope="module")
def made_by_models() -> Iterator[None]:
    """Every chain of these tests has such steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_chain, "align_step", own_of(by_model))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    return Bench(tmp_path_factory.mktemp("made"), tiny_recipe)


@pytest.fixture(scope="module")
def changes(foreign_model: Path) -> Values:
    """Three steps; the last one's reference is a model that cuts text into other tokens."""
    return {
        "partition": {"strategy": "random", "fractions": [0.4, 0.3, 0.3]},
        "training": {"max_steps": 2},
        "steps": [{}, {}, {"reference": "model", "reference_model": str(foreign_model)}],
        "probe": {"completions": 0, "max_pairs": 8},
    }


@pytest.fixture(scope="module")
def made(place: Bench, changes: Values) -> Outcome:
    return place.run(changes)


def planned_pairs(run: RunFolder, step: int) -> list[str]:
    rows = pq.read_table(run.plan, columns=["pair_id", "step"]).to_pylist()
    return [row["pair_id"] for row in rows if row["step"] == step]


def own_pairs(run: RunFolder, step: int) -> list[str]:
    ids: list[str] = pq.read_table(files_of(run, step).usable)["pair_id"].to_pylist()
    return ids


def entries(run: Outcome, step: int) -> dict[tuple[str, str, bool], Values]:
    return {(e["model"], e["probe"], e["whole"]): e for e in run.json(f"step-{step}/gamma.json")}


def logp(folder: Path, prompt: np.ndarray, completion: np.ndarray) -> float:
    """Sum of log-probs of a completion, by transformers alone, in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(np.concatenate([prompt, completion]), dtype=torch.long)[None]
    with torch.no_grad():
        logps = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
    scored = logps[torch.arange(len(ids[0]) - 1), ids[0, 1:]]
    return float(scored[len(prompt) - 1 :].sum())


@pytest.mark.parametrize("step", OWN)
def test_a_step_trains_on_the_plan_s_pairs_and_then_on_its_own(made: Outcome, step: int) -> None:
    reference = pq.read_table(made.folder / f"step-{step}/reference.parquet")
    wanted = planned_pairs(made.run, step) + own_pairs(made.run, step)
    assert reference["pair_id"].to_pylist() == wanted
    assert made.record(f"step-{step}")["pairs"] == len(wanted) == len(set(wanted))
    assert len(own_pairs(made.run, step)) == MADE
    own = {f"step-{step}/{name}" for name in ("pairs.parquet", "usable.parquet")}
    assert own < made.record(f"data-{step}")["files"].keys()
    assert own.isdisjoint(made.record(f"step-{step}")["files"]), "no outputs of its training"


def test_a_step_with_pairs_of_its_own_starts_where_policy_and_reference_agree(
    made: Outcome,
) -> None:
    assert made.record("step-2")["gate"]["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("step", OWN)
def test_its_rows_are_scored_under_the_reference_with_their_own_tokens(
    made: Outcome, foreign_model: Path, step: int
) -> None:
    reference = pq.read_table(made.folder / f"step-{step}/reference.parquet").to_pylist()
    last = reference[-1]
    if step == 2:
        folder, file = made.run.model(1), files_of(made.run, 2).tokens
    else:
        said = made.record("step-3")["models"]["reference"]["tokens"].split()
        assert len(said) == 3, "the run's pairs, and what steps 2 and 3 have of their own"
        folder = foreign_model
        file = made.folder.parents[1] / "cache" / "tokens" / f"{said[-1]}.arrow"
    tokens = TokenFile.open(file)
    row = tokens.row(tokens.pair_ids.index(last["pair_id"]))
    for side, ids in (("chosen", row.chosen_ids), ("rejected", row.rejected_ids)):
        by_hand = logp(folder, row.prompt_ids, ids)
        assert last[f"reference_{side}_logps"] == pytest.approx(by_hand, abs=2e-4)


def test_gamma_covers_what_a_step_has_of_its_own_under_every_model(made: Outcome) -> None:
    sizes = {n: len(planned_pairs(made.run, n)) + (MADE if n in OWN else 0) for n in (1, 2, 3)}
    for step in OWN:
        found = entries(made, step)
        for model in range(step + 1):
            assert found[f"M_{model}", f"D_{step}", False]["pairs"] == 16, "8 of each"
    assert entries(made, 2)["M_1", "D_2", True]["pairs"] == sizes[2]
    assert not [key for key in entries(made, 2) if key[1] == "D_3" and key[0] == "M_0" and key[2]]
    rows = pq.read_table(made.run.probes / "M_1.D_2.parquet").to_pylist()
    reference = pq.read_table(made.folder / "step-2/reference.parquet").to_pylist()
    by_pair = {row["pair_id"]: row["reference_chosen_logps"] for row in reference}
    assert {row["pair_id"] for row in rows} == set(own_pairs(made.run, 2))
    assert all(row["chosen_logps"] == by_pair[row["pair_id"]] for row in rows)


def test_doing_it_again_does_nothing(made: Outcome, place: Bench, changes: Values) -> None:
    assert {"data-2", "data-3", "probe-M_0.D_2"} <= set(made.result.executed)
    assert place.run(changes).result.executed == ()


def test_the_run_is_whole_and_its_lineage_too(made: Outcome) -> None:
    assert verify_run(made.run).faults == []
    lineage = lineage_of("tiny", runs_dir=made.folder.parent)
    assert lineage.is_whole
    assert len({link.data for link in lineage.links}) == 3


def test_whoever_asks_for_the_size_of_a_step_is_told_both(made: Outcome) -> None:
    told = [step.pairs for step in Run(made.folder).steps]
    assert told == [made.record(f"step-{number}")["pairs"] for number in (1, 2, 3)]


@pytest.mark.parametrize("name", ["pairs.parquet", "usable.parquet", "tokens/pairs.arrow"])
def test_a_change_of_a_step_s_own_file_is_found(
    made: Outcome, place: Bench, tmp_path: Path, name: str
) -> None:
    del made
    run = origin(place.copy_to(tmp_path))
    flip(run.step(2) / name)
    assert f"step-2/{name}" in {fault.file for fault in verify_run(run).faults}


def test_nothing_that_a_step_s_own_pairs_need_is_waste(made: Outcome) -> None:
    with collect(made.folder.parent) as found:
        assert [waste.path for waste in found.waste] == []


def test_a_replay_shares_what_the_step_has_of_its_own_and_is_bitwise_the_same(
    made: Outcome,
) -> None:
    result, again = replayed(made.run, step=2, only=True, name="again")
    assert result.comparison.verdict == "bitwise identical"
    assert "data-2" in again.result.shared
    assert verify_run(again.run).faults == []


def lines(made: Outcome, *overrides: str, step: int) -> dict[str, NodeLine]:
    return {line.node: line for line in look(plan_replay(made.run, step=step, overrides=overrides))}


def test_a_dry_run_tells_that_another_model_makes_other_pairs(made: Outcome) -> None:
    same = lines(made, step=3)
    assert (same["data-2"].action, same["step-2"].action) == ("REUSE", "REUSE")
    assert (same["data-3"].action, same["step-3"].action) == ("REUSE", "RUN")
    other = lines(made, "training.beta=0.3", step=1)
    assert other["step-1"].action == "RUN"
    assert {other[node].action for node in ("data-2", "step-2", "data-3", "step-3")} == {"RUN IF"}


def test_a_chain_that_grows_keeps_it_and_takes_none_of_it_for_new(
    made: Outcome, tmp_path: Path
) -> None:
    known = rows_by(made.record("step-1")["outputs"]["model"], 2)
    other = {"chosen": [{"role": "assistant", "content": "Quite another answer."}]}
    fresh = rows_by("0" * 64, 4)
    new = tmp_path / "new.jsonl"
    rows = [*known[:4], *(row | other for row in known[4:]), *fresh]
    new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with forked_stages():
        grown = extend_run(made.run, [str(new)], name="grown")
    assert grown.new_pairs == len(rows) - 4
    assert grown.chain is not None
    more = Outcome(grown.chain, [])
    assert {"data-2", "data-3", "step-2", "step-3"} <= set(more.result.shared)
    assert own_pairs(more.run, 2) == own_pairs(made.run, 2)
    plan = pq.read_table(more.run.plan, columns=["prompt_key", "step"]).to_pylist()
    trained = set(pq.read_table(files_of(made.run, 2).usable)["prompt_key"].to_pylist())
    assert not [row for row in plan if row["step"] == 0 and row["prompt_key"] in trained]
    assert [row for row in plan if row["step"] == 4 and row["prompt_key"] in trained]
    assert verify_run(more.run).faults == []


@pytest.mark.parametrize(
    ("of_step", "what"),
    [
        (0, "a pair that step 2 has of its own has a reserved prompt"),
        (2, "a pair that step 2 has of its own is in the run's plan of that step too"),
        (None, "step 2 has no pair of its own left"),
    ],
)
def test_pairs_that_cannot_be_a_step_s_own_are_refused(
    made: Outcome,
    place: Bench,
    changes: Values,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_step: int | None,
    what: str,
) -> None:
    plan = pq.read_table(made.run.plan, columns=["step", "token_row"]).to_pylist()
    rows = [row["token_row"] for row in plan if row["step"] == of_step][:1]

    def write(path: Path, _model: str, _step: int) -> None:
        pq.write_table(pq.read_table(made.run.pairs).take(pa.array(rows, pa.int64())), path)

    monkeypatch.setattr(run_chain, "align_step", own_of(write, "another"))
    with pytest.raises(DataError, match=what):
        place.copy_to(tmp_path).run(changes)
