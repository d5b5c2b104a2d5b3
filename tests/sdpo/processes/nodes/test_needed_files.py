"""What a stage has written is what changed of its run, but for logs and what is hidden."""

import os
from pathlib import Path

from sdpo.processes.nodes.needed_files import look_of, written_since


def test_what_was_written_is_told_with_its_content(tmp_path: Path) -> None:
    for name in ("step-1/metrics.jsonl", "logs/status.json", "pairs.parquet", ".lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before")
    before = look_of(tmp_path)
    assert written_since(before, tmp_path) == []
    for name in ("step-1/metrics.jsonl", "step-1/record.json", "logs/status.json", ".lock"):
        (tmp_path / name).write_text("after")
    (tmp_path / ".tmp-model").mkdir()
    (tmp_path / ".tmp-model" / "weights").write_text("half")
    same = tmp_path / "pairs.parquet"
    os.utime(same, ns=(1, 1))
    found = written_since(before, tmp_path)
    assert [file.path.name for file in found] == ["pairs.parquet", "metrics.jsonl", "record.json"]
    assert {file.size for file in found} == {5, 6}
