"""promote, rollback and current on the command line."""

import json

from bench import Bench, Outcome
from command_line import Sdpo
from histories import write_new_pairs


def test_promote_current_and_rollback_by_hand(
    finished_copy: Bench, finished: Outcome, sdpo: Sdpo
) -> None:
    runs = ("--runs-dir", finished_copy.runs)
    assert "nothing was promoted yet: sdpo promote RUN" in sdpo("current", *runs).out
    called = sdpo("promote", "tiny/step-1", "--reason", "a start", *runs)
    assert called.code == 0, called.told
    digest = finished.record("step-1")["outputs"]["model"][:16]
    assert f"tiny is at version 1: M_1 of run tiny, digest {digest}" in called.out
    assert "version 2: M_2 of run tiny" in sdpo("promote", "tiny", *runs).out
    shown = sdpo("current", "tiny", *runs)
    assert "a start" in shown.out
    assert "promoted by hand" in shown.out
    path = sdpo("current", "tiny", "--path", *runs).out.strip()
    assert path == str(finished_copy.runs / "tiny" / "step-2" / "model")
    assert "version 1: M_1" in sdpo("rollback", "tiny", "--reason", "worse", *runs).out
    found = json.loads(sdpo("current", "--json", *runs).out)["tiny"]
    assert found["current"] == 1
    assert [version["step"] for version in found["versions"]] == [1, 2]
    assert [move["why"] for move in found["moves"]] == ["a start", "promoted by hand", "worse"]
    assert sdpo("verify", "tiny", *runs).code == 0
    assert sdpo("status", *runs).code == 0


def test_what_cannot_be_promoted_or_rolled_back_is_told(finished_copy: Bench, sdpo: Sdpo) -> None:
    runs = ("--runs-dir", finished_copy.runs)
    for arguments, told in (
        (("promote", "nothing"), "no run at"),
        (("promote", "tiny/step-7"), "no complete step 7"),
        (("promote", "tiny", "--name", "a/b"), "cannot be the name"),
        (("current", "nobody"), "nothing was promoted as nobody yet: promote a finished run"),
        (("rollback", "nobody"), "nothing was promoted as nobody yet"),
    ):
        called = sdpo(*arguments, *runs)
        assert called.code == 2, called.told
        assert told in called.err
        assert "Traceback" not in called.told
    assert not (finished_copy.runs / "registry.json").exists()


def test_retrain_on_the_command_line(finished_copy: Bench, sdpo: Sdpo) -> None:
    news = write_new_pairs(finished_copy.folder / "new.jsonl", *range(20))
    quick = ("--set", "training.max_steps=1", "--set", "training.warmup_ratio=0")
    options = ("--source", news, *quick, "--runs-dir", finished_copy.runs)
    called = sdpo("retrain", "tiny", *options)
    assert called.code == 2
    assert "`sdpo promote tiny` makes it the first one" in called.err
    assert sdpo("promote", "tiny", "--runs-dir", finished_copy.runs).code == 0
    gate = ("--gate", "gamma_change_min_nats=-1000")
    held = sdpo("retrain", "tiny", *options, *gate)
    assert held.code == 1, held.told
    assert "Gate: on the reserve, against S" in held.out
    assert "reserved pairs are too few to tell, 200 are needed" in held.told
    assert "tiny is at version 1: M_2 of run tiny" in held.out
    few = ("--gate", "when_too_few=estimate", "--gate", "margin_tolerance_nats=1000")
    taken = sdpo("retrain", "tiny", *options, *gate, *few, "--gate", "accuracy_tolerance=1")
    assert taken.code == 0, taken.told
    assert "promoted: gate: by estimates alone" in taken.told
    assert "tiny is at version 2: M_3 of run tiny-3-" in taken.out
    again = sdpo("retrain", "tiny", *options)
    assert again.code == 0
    assert "nothing new for tiny, which is at version 2" in again.out
    for given, told in (("min_pair=3", "did you mean `min_pairs`?"), ("min_pairs=x", "min_pairs")):
        wrong = sdpo("retrain", "tiny", *options, "--gate", given)
        assert wrong.code == 2
        assert told in wrong.err
