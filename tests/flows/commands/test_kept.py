"""Runs in a store, by the command line."""

from pathlib import Path

from bench import Bench
from command_line import Sdpo


def test_a_run_is_kept_verified_received_and_resumed_elsewhere(
    finished_copy: Bench, sdpo: Sdpo, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/store"
    there, here = finished_copy.runs, tmp_path / "elsewhere" / "runs"
    done = sdpo("run", finished_copy.write({"store": {"remote": url}}))
    assert done.code == 0
    assert f"{url}/tiny has the run as it is here" in done.told

    verified = sdpo("verify", "tiny", "--remote", "--runs-dir", there)
    assert verified.code == 0, verified.told
    assert "by its size only: step-1/model/model.safetensors" in verified.told
    deep = sdpo("verify", f"{url}/tiny", "--remote", "--deep", "--runs-dir", there)
    assert deep.code == 0
    assert "downloaded and hashed: step-1/model/model.safetensors" in deep.told

    pulled = sdpo("pull", url, "tiny", "--runs-dir", here)
    assert pulled.code == 0
    assert "steps 1, 2 complete" in pulled.told
    resumed = sdpo("resume", f"{url}/tiny", "--runs-dir", here)
    assert resumed.code == 0
    assert "step-2 is done" in resumed.told
    assert sdpo("verify", "tiny", "--runs-dir", here).code == 0

    objects = sorted((tmp_path / "store" / "tiny" / "files").iterdir())
    largest = max(objects, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert sdpo("verify", "tiny", "--remote", "--runs-dir", there).code == 0, "its size is right"
    flipped = sdpo("verify", "tiny", "--remote", "--deep", "--runs-dir", there)
    assert flipped.code == 1
    assert "was changed there" in flipped.told
    largest.unlink()
    missing = sdpo("verify", "tiny", "--remote", "--runs-dir", there)
    assert missing.code == 1
    assert "is missing there" in missing.told


def test_what_cannot_be_is_refused_in_words(bench: Bench, sdpo: Sdpo, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    for command, why in (
        (("pull", url, "tiny"), f"no run tiny is kept at {url}"),
        (("pull", f"{url}/../tiny", "x/y"), "cannot be opened|no run|cannot be the name"),
        (("pull", "s3://key:secret@bucket/tiny"), "may name no user, password, key or option"),
        (("resume", "s3:///tiny"), "names a store and no run|is no URL"),
        (("verify", "tiny", "--deep"), "give both"),
        (("verify", "tiny", "--remote", "--runs-dir", bench.runs), "no run at"),
        (("run", bench.write({"store": {"remote": "nowhere"}})), "is no URL of a store"),
        (
            ("run", bench.write({"store": {"remote": f"file://{bench.runs}"}}, name="b.yaml")),
            "name another folder",
        ),
    ):
        refused = sdpo(*command)
        assert refused.code == 2, (command, refused.told)
        assert any(part in refused.told for part in why.split("|")), refused.told
        assert "secret" not in refused.told
        assert "Traceback" not in refused.told
    assert not (bench.runs / "tiny").exists()
