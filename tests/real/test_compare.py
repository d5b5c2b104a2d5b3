"""Three arms over real preference data with a tiny real model, killed again and again.

The data lies in the folder ``shared`` beside the project; without it these tests are skipped.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sdpo.store.logp_cache import rows_by_run
from sdpo.store.run_folder import RunFolder

PROJECT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("orca_ultrafeedback.yaml")
BASE = PROJECT / ".." / "shared" / "models" / "base-2m"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not BASE.is_dir(),
        reason="needs the folder `shared` with models and data beside the project",
    ),
]

SETTINGS = (
    *("data.limit=48", "data.max_length=192", "training.batch_size=8", "training.max_steps=3"),
    *("launch.threads=1", "probe.completions=0", "data.reserve.pairs=12"),
)
KILLS = 10
ARMS = ("sdpo", "dpo", "stratified")


def started(folder: Path) -> "subprocess.Popen[bytes]":
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "flows.cli.app", "compare", str(RECIPE), *options]
    command += ["--arms", ",".join(ARMS), "--runs-dir", str(folder / "runs")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True
        )


def found(folder: Path) -> Any:
    """What the comparison says, but for the time that it took."""
    path = folder / "runs" / "orca_ultrafeedback-compare" / "comparison.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    for line in said["arms"]:
        del line["seconds"]
    return said


def rows_by_arm(folder: Path) -> dict[str, set[tuple[str, bytes]]]:
    """The rows that were scored for every arm: the key of the model, and the row's digest."""
    study = folder / "runs" / "orca_ultrafeedback-compare"
    marks = {RunFolder(path).mark: path.name for path in study.iterdir() if path.name in ARMS}
    rows: dict[str, set[tuple[str, bytes]]] = {name: set() for name in ARMS}
    (cache,) = folder.glob("**/logps")
    for part in cache.glob("*/[!.]*.parquet"):
        count, mark = rows_by_run(part)
        digests = {(part.parent.name, each) for each in row_digests(part)}
        assert len(digests) == count
        assert not rows[marks[mark]] & digests, "no row is scored twice"
        rows[marks[mark]] |= digests
    return rows


def row_digests(part: Path) -> list[bytes]:
    digests: list[bytes] = pq.read_table(part)["row_digest"].to_pylist()
    return digests


def test_arms_share_what_is_scored_and_ten_kills_change_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    start = time.monotonic()
    assert started(whole).wait() == 0, (whole / "log").read_text()
    took_s = time.monotonic() - start
    scored = rows_by_arm(whole)
    assert all(scored[name] for name in ARMS)
    assert not scored["dpo"] & scored["sdpo"], "the second arm scores no row that the first had"
    assert not scored["stratified"] & (scored["sdpo"] | scored["dpo"])
    arms = {line["arm"]: line["rows_scored"] for line in found(whole)["arms"]}
    assert arms == {name: len(scored[name]) for name in ARMS}
    moments = random.Random(0)
    for _ in range(KILLS):
        process = started(killed)
        try:
            process.wait(timeout=moments.uniform(1.0, 0.6 * took_s))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert started(killed).wait() == 0, (killed / "log").read_text()
    assert found(killed) == found(whole)
