"""A user's own files under every name that this project uses, and whether they are as they were."""

from collections.abc import Iterable, Mapping
from pathlib import Path

KEY, LONG = "0123456789abcdef" * 2, "0123456789abcdef" * 4

OF_EVERY_FOLDER = (".sdpo.json", ".lock")
OF_A_MODEL = (
    *("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "README.md"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"),
    *("chat_template.jinja", "additional_chat_templates/tools.jinja", "adapter_base.json"),
    "lineage.json",
)
NODES = (
    *("data", "tokens", "reserve", "plan", "features", "report", "carried", "gamma-1", "step-0"),
    *("probe-M_1", "kl-M_1", "reference-1", "data-2", "probe-M_1.D_2"),
    *("eval-M_1-mmlu_law-01234567", "answers-M_1-01234567", "win-M_1-M_0-01234567"),
    "held-M_1-01234567",
    "prompts-01234567",
    *("generate-2", "judge-2", "trackers", "merged-2"),
)
STAGES = (
    *("tokenise", "tokenise-D_2", "tokenise-reference-1", "tokenise-reference-2-D_2"),
    *("reference-1", "modules", "objectives", "measure-M_0"),
    *("base", "step-1", "probe-M_1", "probe-M_1.D_2", "kl-M_1", "export-1", "try"),
    *("view", "suites", "evaluate-M_1", "answers-M_1", "judge"),
    *("generate-2", "judge-2", "tokenise-prompts-2", "merged-2"),
    *("held-M_1", "judge-held-M_1", "trackers"),
    "tokenise-prompts",
)
OF_A_RUN = (
    *(*OF_EVERY_FOLDER, "run.yaml", "run.yaml.sha256", "report.html", "promotion.json"),
    "remote.json",
    *("pairs.parquet", "usable.parquet", "plan.parquet", "plan.json", "features.parquet"),
    *("supervised.parquet", "rejected_rows.jsonl", "rejected_supervised_rows.jsonl"),
    *(f"nodes/{node}.json{end}" for node in NODES for end in ("", ".sha256")),
    *(f"logs/{stage}.{end}" for stage in STAGES for end in ("log", "json", "events.jsonl")),
    *("nodes/rejected_data_rows.jsonl", "logs/status.json"),
    *("logs/step-1.node-1.log", "logs/step-1.nodes.json", "logs/slurm-7.log"),
    *(
        "probes/M_1.parquet",
        "probes/M_1.D_2.parquet",
        "probes/M_1.completions.json",
        "probes/M_1.kl.json",
    ),
    *("evaluations/M_1/mmlu_law-01234567.parquet", "evaluations/M_1/answers-01234567.parquet"),
    *("evaluations/M_1/win-M_0-01234567.parquet", "evaluations/M_1/held-01234567.parquet"),
    "evaluations/prompts-01234567.parquet",
    *("carried/pairs.parquet", "carried/plan.parquet", "carried/data.json", "carried/plan.json"),
    *("carried/pairs-2.parquet", "carried/usable-2.parquet"),
    *("carried/rejected_data_rows.jsonl", f"sources/{LONG}.parquet"),
    *("step-1/record.json", "step-1/record.json.sha256", "step-1/gamma.json", "step-1/kl.json"),
    *(f"step-1/model/{name}" for name in OF_A_MODEL),
    *("step-2/prompts.parquet", "step-2/generated.parquet", "step-2/scores.parquet"),
    *("step-2/samples.parquet", "step-2/tokens/prompts.arrow", f"step-2/generating/{KEY}.jsonl"),
    *(f"step-2/generating/{KEY}.json", f"step-2/generating/{KEY}-1.jsonl"),
    *("step-2/generating/verdicts/verdicts.jsonl", ".tmp-mine/prompts.jsonl"),
    *("step-2/generating/verdicts/rows-1.parquet", "step-2/generating/scored/rows-1.parquet"),
    *(".tmp-mine/home", ".tmp-mine/drawn.parquet", ".tmp-mine/drawn.jsonl"),
    *("step-2/pairs.parquet", "step-2/usable.parquet", "step-2/tokens/pairs.arrow"),
    *("step-1/reference.parquet", "step-1/metrics.jsonl", "step-1/budget.json"),
    *("tracking/sdpo/report.html", "tracking/sdpo/events.out.tfevents.1"),
    *("step-1/tracking/tensorboard", "step-1/resume/00000002/state.json"),
    *("step-1/resume/00000002/metrics.jsonl", "step-1/resume/00000002/optimizer.safetensors"),
    *("step-1/resume/00000002/generators-0.json", "step-1/resume/00000002/zero-0.safetensors"),
    *("merged-2/model/config.json", "merged-2/model/model.safetensors"),
    *("guide-1/record.json", ".tmp-mine/notes", f".tmp-sdpo-model-{KEY}/weights"),
)
OF_A_CACHE = (
    *("tokens/my-corpus.arrow", f"tokens/{KEY}.arrow", f"tokens/{KEY}.arrow.sha256"),
    *("tokens/.mine.lock", f"tokens/.{KEY}.lock", "tokens/.tmp-mine", "logps/my-notes/notes"),
    *(f"logps/.{KEY}.lock", f"logps/{KEY}/.tmp-sdpo-claim-{KEY}"),
    *(f"logps/{KEY}/key.json", f"logps/{KEY}/{LONG}.parquet", f"logps/{KEY}/checked-{KEY}.json"),
    *("kl/my-notes", f"kl/{KEY}/key.json", f"kl/{KEY}/kl.parquet", f"kl/.{KEY}.lock"),
    *("evaluations/my-notes", f"evaluations/{KEY}/scores.parquet", f"evaluations/{KEY}/key.json"),
    *(f"evaluations/{KEY}/summary.json", f"evaluations/{KEY}/responses.jsonl"),
    *(f"evaluations/{KEY}/responses-1.jsonl", f"completions/{KEY}/answers-1.jsonl"),
    *(f"evaluations/.{KEY}.lock", f"suites/{KEY}.json", f"suites/{KEY}.json.sha256"),
    *("suites/my-notes",),
    *(f"completions/{KEY}/{name}" for name in ("completions.parquet", "key.json", "answers.jsonl")),
    *(f"win_rates/{KEY}/{name}" for name in ("verdicts.parquet", "key.json")),
    *(f"completions/.{KEY}.lock", f"verdicts/.{KEY}.lock", f"verdicts/{KEY}/verdicts.jsonl"),
    *(f"kl/{KEY}/samples.parquet", f"trials/{KEY}.json", f"trials/{KEY}.json.sha256"),
    *("trials/my-notes", "notes.txt", "demo/mine-v1.jsonl"),
    *(f"demo/tiny-llama-v1/{name}" for name in OF_A_MODEL),
)
OF_A_SERVER = (
    *("processes.json", ".gitignore", "password", "server.log", "worker.log", "deploy.log", "runs"),
    *("prefect/prefect.db", "prefect/profiles.toml"),
)
OF_A_STUDY = (
    *("study.json", "comparison.html", "comparison.json", "best.yaml", "results/mine"),
    *("optuna.journal", "optuna.journal.lock"),
    *(f"results/sdpo.{end}" for end in ("json", "parquet", "scores.parquet")),
)
OF_A_STORE = (
    *("lease/00000001.json", "lease/00000001.beat.json", f"files/{LONG}"),
    "index/00000001-00000001.json",
)
BESIDE_RUNS = ("registry.json", ".registry.lock", ".tiny.retrain.lock", "plan.json")
NAMES = tuple(
    dict.fromkeys((*OF_A_RUN, *OF_A_CACHE, *OF_A_SERVER, *OF_A_STUDY, *OF_A_STORE, *BESIDE_RUNS))
)
"""What this project writes has one of these names, and below a folder of its own one that begins
with them: :mod:`test_foreign_files` compares them with what the code says and with what it does."""
PARENTS = {str(parent) for name in NAMES for parent in Path(name).parents}

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
