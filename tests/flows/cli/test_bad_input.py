"""Mistakes a person makes: one message that says what, where and what to do; and nothing left."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Values
from command_line import Called, Sdpo
from safetensors.numpy import load_file, save_file

GOOD = [
    {"prompt": f"What is {k} and {k}?", "chosen": f"It is {2 * k}, of course.", "rejected": "No."}
    for k in range(20)
]


def lines(rows: list[Values]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mistaken recipe's own files are made."""

    folder: Path
    model: Path

    def data(self, content: str | bytes, name: str = "bad.jsonl") -> Values:
        """A recipe's data group with a good source and this one."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        good = self.folder / "good.jsonl"
        good.write_text(lines(GOOD), encoding="utf-8")
        return {"data": {"sources": [source("good", good), source("bad", path)]}}

    def model_without(self, *patterns: str, name: str = "model") -> Path:
        """A copy of the model folder that lacks some files."""
        target = self.folder / name
        shutil.copytree(self.model, target)
        for pattern in patterns:
            for path in target.glob(pattern):
                path.unlink()
        return target


def source(name: str, path: Path | str) -> Values:
    return {"name": name, "path": str(path)}


@pytest.fixture
def place(tmp_path: Path, demo_files: DemoFiles) -> Place:
    return Place(tmp_path, demo_files.model)


def assert_refused(called: Called, *fragments: str) -> None:
    assert called.code == 2, called.told
    assert called.err.count("error:") == 1, called.err
    assert "Traceback" not in called.out + called.err
    for fragment in fragments:
        assert fragment in " ".join(called.err.split()), called.err


def assert_nothing_is_left(bench: Bench) -> None:
    assert not (bench.runs / "tiny").exists()
    assert not list(bench.folder.rglob(".tmp-*"))


def without_template(place: Place) -> Values:
    model = place.model_without("*.jinja")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = [
        {"chosen": [turns[0], {"role": "assistant", "content": f"{k}"}], "rejected": turns}
        for k in range(8)
    ]
    return {"model": {"name_or_path": str(model)}} | place.data(lines(rows))


def short_positions(place: Place) -> Values:
    model = place.model_without()
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = 24
    (model / "config.json").write_text(json.dumps(config))
    return {"model": {"name_or_path": str(model)}}


def pickled(place: Place) -> Values:
    model = place.model_without("*.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"never read")
    return {"model": {"name_or_path": str(model)}}


def with_code(place: Place) -> Values:
    """A model that wants to run code of its own: it would leave a file behind."""
    model = place.model_without()
    (model / "own.py").write_text(f"open({str(place.folder / 'code_ran')!r}, 'w')\n")
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    }
    (model / "config.json").write_text(json.dumps(config))
    return {"model": {"name_or_path": str(model)}}


def cut_weights(place: Place) -> Values:
    model = place.model_without()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return {"model": {"name_or_path": str(model)}}


def weights_of_nothing(place: Place) -> Values:
    model = place.model_without()
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][:] = np.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return {"model": {"name_or_path": str(model)}}


def lacking_tensor(place: Place) -> Values:
    model = place.model_without()
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return {"model": {"name_or_path": str(model)}}


def untied_head(place: Place) -> Values:
    model = place.model_without()
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": True}
    (model / "config.json").write_text(json.dumps(config))
    return {"model": {"name_or_path": str(model)}}


CASES: dict[str, tuple[Callable[[Place], Values], tuple[str, ...]]] = {
    "missing data file": (
        lambda p: {"data": {"sources": [source("gone", p.folder / "god.jsonl")]}},
        ("no data at", "god.jsonl"),
    ),
    "missing supervised file": (
        lambda p: {
            "supervised": {"enabled": True, "examples": "source", "path": str(p.folder / "x.jsonl")}
        },
        ("no data at", "x.jsonl"),
    ),
    "no data": (lambda p: {"data": {"sources": []}}, ("data.sources is empty",)),
    "two sources of one name": (
        lambda p: {
            "data": {"sources": [source("a", "demo:questions"), source("a", "demo:requests")]}
        },
        ("named `a`",),
    ),
    "malformed line": (
        lambda p: p.data(lines(GOOD[:2]) + '{"prompt": "x", "chosen": \n' + lines(GOOD[2:])),
        ("bad.jsonl", "line 3"),
    ),
    "malformed line in gzip": (
        lambda p: p.data(gzip.compress((lines(GOOD[:1]) + "nonsense\n").encode()), "bad.jsonl.gz"),
        ("bad.jsonl.gz", "line 2"),
    ),
    "not gzip": (lambda p: p.data(b"plain", "bad.jsonl.gz"), ("bad.jsonl.gz",)),
    "not parquet": (lambda p: p.data(b"plain", "bad.parquet"), ("bad.parquet",)),
    "empty file": (lambda p: p.data(""), ("bad",)),
    "no recognised columns": (
        lambda p: p.data(lines([{"frage": "a", "antwort": "b"}] * 3)),
        ("frage", "antwort", "chosen", "rejected", "columns"),
    ),
    "unpaired data": (
        lambda p: p.data(lines([{"prompt": "a", "completion": "b", "label": True}] * 3)),
        ("bad", "unpaired"),
    ),
    "empty after filtering": (
        lambda p: p.data(
            lines([{"prompt": f"p{k}", "chosen": "a", "rejected": "a"} for k in range(3)])
            + lines([{"prompt": "q", "chosen": "", "rejected": "a"}])
        ),
        ("`bad`", "empty after filtering", "4 rows", "3", "1"),
    ),
    "nothing left of a source after tokenisation": (
        lambda p: p.data(
            lines(
                [
                    {"prompt": "why " * 300 + str(k), "chosen": "a", "rejected": "b"}
                    for k in range(4)
                ]
            )
        ),
        ("source `bad`", "none is left (prompt_fills_length 4)", "data.max_length"),
    ),
    "a step without pairs": (
        lambda p: {"partition": {"strategy": "random", "fractions": [0.001, 0.999]}},
        ("step 1 (fraction 0.001) has none of the 72 pairs",),
    ),
    "fractions that do not sum to 1": (
        lambda p: {"partition": {"strategy": "random", "fractions": [0.5, 0.6]}},
        ("partition.fractions", "sum to 1.1, not 1"),
    ),
    "unknown source in a group": (
        lambda p: {"partition": {"groups": [["questions", "request"]]}},
        ("partition.groups", "request", "requests"),
    ),
    "a source in no group": (
        lambda p: {"partition": {"groups": [["questions"]]}},
        ("partition.groups leaves out requests",),
    ),
    "settings for more steps than there are": (
        lambda p: {"steps": [{}, {}, {"beta": 0.2}]},
        ("`steps` has settings for 3 steps, but the partition makes 2",),
    ),
    "unknown key": (
        lambda p: {"training": {"learning_rat": 1e-4}},
        ("training.learning_rat: unknown key; did you mean `learning_rate`?",),
    ),
    "unknown group": (lambda p: {"trainin": {}}, ("trainin: unknown key", "training")),
    "impossible value": (lambda p: {"training": {"beta": -1}}, ("training.beta", "-1")),
    "missing model folder": (
        lambda p: {"model": {"name_or_path": str(p.folder / "gone")}},
        ("model.name_or_path", "no folder at"),
    ),
    "model of the hub without a connection": (
        lambda p: {"model": {"name_or_path": "nobody/nothing"}},
        ("nobody/nothing", "cannot be reached"),
    ),
    "data of the hub without a connection": (
        lambda p: {"data": {"sources": [source("hub", "nobody/nothing")]}},
        ("nobody/nothing", "hub"),
    ),
    "model folder without tokenizer": (
        lambda p: {"model": {"name_or_path": str(p.model_without("tokenizer*"))}},
        ("has no tokenizer",),
    ),
    "model folder without configuration": (
        lambda p: {"model": {"name_or_path": str(p.model_without("config.json"))}},
        ("config.json",),
    ),
    "missing chat template": (
        lambda p: {"model": {"chat_template": str(p.folder / "gone.jinja")}},
        ("model.chat_template", "no file at"),
    ),
    "conversations without a chat template": (without_template, ("bad", "chat template")),
    "sequences longer than the model's positions": (
        short_positions,
        ("24 positions", "data.max_length"),
    ),
    "pickled weights": (pickled, ("pytorch_model.bin", "pickles are never loaded")),
    "weights that are cut off": (cut_weights, ("model.safetensors",)),
    "weights that lack a tensor": (lacking_tensor, ("up_proj", "random")),
    "head beside the embedding it is tied to": (untied_head, ("lm_head.weight", "tie_word")),
    "weights that are no numbers": (weights_of_nothing, ("log-probs of nan",)),
    "model that wants to run its code": (with_code, ("trust_remote_code",)),
    "adapters for modules that are not there": (
        lambda p: {"training": {"lora_r": 2, "lora_target_modules": ["nope"]}},
        ("training.lora_target_modules", "nope"),
    ),
    "moments that only a GPU pages, in a step": (
        lambda p: {"steps": [{}, {"optimizer": "paged_adamw_8bit"}], "launch": {"device": "auto"}},
        ["paged_adamw_8bit", "launch.device is cpu: use adamw_8bit"],
    ),
    "one process asked to be two": (
        lambda p: {"launch": {"processes": 2, "strategy": "single"}},
        ("launch.strategy", "ddp"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_in_one_message_and_leaves_nothing(
    case: str, place: Place, bench: Bench, sdpo: Sdpo
) -> None:
    make, fragments = CASES[case]
    called = sdpo("run", bench.write(make(place)))
    assert_refused(called, *fragments)
    assert_nothing_is_left(bench)
    assert not (place.folder / "code_ran").exists()


@pytest.mark.parametrize("case", CASES)
def test_check_refuses_what_running_would_refuse(
    case: str, place: Place, bench: Bench, sdpo: Sdpo
) -> None:
    make, fragments = CASES[case]
    assert_refused(sdpo("check", bench.write(make(place))), *fragments)
    assert_nothing_is_left(bench)


@pytest.mark.parametrize(
    "case", ["malformed line", "unknown source in a group", "no recognised columns"]
)
def test_partition_refuses_what_running_would_refuse(
    case: str, place: Place, bench: Bench, sdpo: Sdpo
) -> None:
    make, fragments = CASES[case]
    assert_refused(sdpo("partition", bench.write(make(place))), *fragments)
    assert_nothing_is_left(bench)


def test_check_refuses_sequences_longer_than_the_models_positions(
    place: Place, bench: Bench, sdpo: Sdpo
) -> None:
    called = sdpo("check", bench.write(short_positions(place)))
    assert_refused(called, "24 positions", "data.max_length")
    assert_nothing_is_left(bench)


@pytest.mark.parametrize("name", ["a/b", "../up", "/tmp/x", ".hidden", "", "a b"])
def test_a_run_name_that_could_be_a_path_is_refused(bench: Bench, sdpo: Sdpo, name: str) -> None:
    called = sdpo("run", bench.write({"name": name}))
    if name:
        assert_refused(called, f"`{name}` cannot be the name of a run")
    else:
        assert_refused(called, "the run has no name")
    assert not bench.runs.exists()


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("name: [", ("not YAML",)),
        ("- a\n- b\n", ("a recipe is a mapping",)),
        ("training: {beta: 1}\ntraining: {beta: 2}\n", ("line 2", "`training` stands twice")),
        ("training: 3\n", ("training",)),
    ],
)
def test_a_recipe_that_is_none_is_refused(
    tmp_path: Path, sdpo: Sdpo, text: str, fragments: tuple[str, ...]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    assert_refused(sdpo("run", recipe), *fragments)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("training.beta", "write it as group.key=value"),
        ("training.bta=1", "did you mean `beta`?"),
        ("training.beta=much", "training.beta"),
        ("data.sources.nobody.max_pairs=3", "is named `nobody`"),
        ("name.x=3", "`name` is a value, not a group"),
    ],
)
def test_an_override_that_cannot_be_is_refused(
    bench: Bench, sdpo: Sdpo, override: str, fragment: str
) -> None:
    assert_refused(sdpo("run", bench.write(), "--set", override), fragment)
    assert_nothing_is_left(bench)


def test_the_corrected_recipe_runs_under_the_same_name(
    place: Place, bench: Bench, sdpo: Sdpo
) -> None:
    make, fragments = CASES["nothing left of a source after tokenisation"]
    cheap: Values = {"training": {"max_steps": 1}, "probe": {"completions": 0}}
    assert_refused(sdpo("run", bench.write(make(place) | cheap)), *fragments)
    (place.folder / "bad.jsonl").write_text(
        lines([row | {"prompt": row["prompt"] + " Please?"} for row in GOOD]), encoding="utf-8"
    )
    called = sdpo("run", bench.write({"data": place_data(bench, place)} | cheap))
    assert called.code == 0, called.told


def place_data(bench: Bench, place: Place) -> Values:
    names = ("good", "bad")
    return {"sources": [source(name, place.folder / f"{name}.jsonl") for name in names]}


def test_what_lay_in_the_folder_of_a_refused_run_stays(
    place: Place, bench: Bench, sdpo: Sdpo
) -> None:
    note = bench.runs / "tiny" / "notes.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine", encoding="utf-8")
    make, _ = CASES["malformed line"]
    assert sdpo("run", bench.write(make(place))).code == 2
    assert [path.name for path in note.parent.iterdir()] == ["notes.txt"]
    assert note.read_text(encoding="utf-8") == "mine"


def test_a_mistake_in_a_later_step_is_told_before_anything_is_trained(
    bench: Bench, sdpo: Sdpo
) -> None:
    adapters = {"lora_r": 2, "lora_target_modules": ["nope"]}
    called = sdpo("run", bench.write({"steps": [{"max_steps": 1}, adapters]}))
    assert_refused(called, "training.lora_target_modules of step 2", "nope")
    assert_nothing_is_left(bench)


def test_a_mistake_that_only_a_later_steps_model_shows_keeps_the_steps_before(
    bench: Bench, place: Place, sdpo: Sdpo
) -> None:
    damaged = lacking_tensor(place)["model"]["name_or_path"]
    reference = {"reference": "model", "reference_model": damaged}
    recipe = bench.write({"steps": [{"max_steps": 1}, reference]})
    assert_refused(sdpo("check", recipe), "up_proj", "random")
    assert_refused(sdpo("run", recipe), "up_proj", "random")
    assert (bench.runs / "tiny/step-1/record.json").is_file()
    assert not (bench.runs / "tiny/step-2/model").exists()


def test_a_loss_that_is_not_finite_names_the_pairs_and_exits_with_1(
    bench: Bench, sdpo: Sdpo
) -> None:
    changes = {"steps": [{"max_steps": 1}, {"learning_rate": 1e30, "max_grad_norm": 0.0}]}
    called = sdpo("run", bench.write(changes))
    assert called.code == 1
    assert called.err.count("failed:") == 1
    assert "Traceback" not in called.out + called.err
    named = called.err.split("Pairs of the batch: ")[1].split(" (log")[0].replace("\n", "")
    plan = pq.read_table(bench.runs / "tiny/plan.parquet").to_pylist()
    second = {row["pair_id"] for row in plan if row["step"] == 2}
    assert len(named.split(", ")) == 6
    assert set(named.split(", ")) <= second
    run = bench.runs / "tiny"
    assert (run / "step-1/record.json").is_file()
    assert not (run / "step-2/record.json").exists()
    assert not (run / "step-2/model").exists()
    assert not list(bench.folder.rglob(".tmp-*"))
