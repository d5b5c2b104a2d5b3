"""A user's own files under every name that this project uses, and whether they are as they were."""

from collections.abc import Iterable, Mapping
from pathlib import Path

KEY, LONG = "0123456789abcdef" * 2, "0123456789abcdef" * 4

OF_A_RUN = (
    *(".sdpo.json", ".lock", "run.yaml", "run.yaml.sha256", "report.html", "promotion.json"),
    *("pairs.parquet", "usable.parquet", "plan.parquet", "plan.json", "features.parquet"),
    *("supervised.parquet", "rejected_rows.jsonl", "rejected_supervised_rows.jsonl"),
    *("nodes/data.json", "nodes/data.json.sha256", "nodes/rejected_data_rows.jsonl"),
    *("logs/step-1.log", "logs/tokenise.json", "logs/status.json"),
    *("probes/M_1.parquet", "carried/pairs.parquet"),
    *("step-1/record.json", "step-1/record.json.sha256", "step-1/gamma.json"),
    *("step-1/model/config.json", "step-1/model/model.safetensors", "step-1/reference.parquet"),
    *("step-1/metrics.jsonl", "step-1/budget.json", "step-1/resume/00000002/state.json"),
    *("guide-1/record.json", ".tmp-mine/notes", f".tmp-sdpo-model-{KEY}/weights"),
)
OF_A_CACHE = (
    *("tokens/my-corpus.arrow", f"tokens/{KEY}.arrow", f"tokens/{KEY}.arrow.sha256"),
    *("tokens/.mine.lock", f"tokens/.{KEY}.lock", "tokens/.tmp-mine", "logps/my-notes/notes"),
    *(f"logps/{KEY}/key.json", f"logps/{KEY}/{LONG}.parquet", f"logps/{KEY}/checked-{KEY}.json"),
    *("kl/my-notes", f"kl/{KEY}/key.json", f"kl/{KEY}/kl.parquet", f"kl/.{KEY}.lock"),
    *(f"trials/{KEY}.json", "trials/my-notes", "notes.txt"),
    *("demo/tiny-llama-v1/config.json", "demo/mine-v1.jsonl"),
)
OF_A_SERVER = (
    *("processes.json", ".gitignore", "server.log", "worker.log", "deploy.log"),
    *("prefect/prefect.db", "prefect/profiles.toml"),
)
BESIDE_RUNS = ("registry.json", ".registry.lock", ".tiny.retrain.lock", "plan.json")
NAMES = tuple(dict.fromkeys((*OF_A_RUN, *OF_A_CACHE, *OF_A_SERVER, *BESIDE_RUNS)))

CONTENTS = (
    *(b"mine\n", b"{}", b"[1, 2]", b"name: mine\nversions: {}\n", b"*\n# mine\n"),
    *(b"PAR1 mine PAR1", b"ARROW1\0\0 mine", b'{"made_by": "me", "kind": "run"}\n', b"\xff\xfe\0"),
)

State = Mapping[Path, tuple[bytes, int]]


def fill(folder: Path, names: Iterable[str] = NAMES, *, first: int = 0) -> State:
    """Write files of these names, whose contents are ``CONTENTS`` in turn from ``first`` on."""
    paths = [folder / name for name in names]
    for number, path in enumerate(paths, start=first):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENTS[number % len(CONTENTS)])
    return state_of(paths)


def state_of(paths: Iterable[Path]) -> State:
    """Bytes and mode of files."""
    return {path: (path.read_bytes(), path.stat().st_mode) for path in paths}


def below(folder: Path) -> set[Path]:
    """Everything below a folder."""
    return set(folder.rglob("*"))
