"""promote, rollback and current on the command line."""

import json

from bench import Bench, Outcome
from command_line import Sdpo


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
