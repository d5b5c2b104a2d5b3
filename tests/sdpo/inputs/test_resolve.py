import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file

from sdpo.config import LaunchConfig, RunConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError, DataError, ModelError
from sdpo.identity.canonical import digest_of
from sdpo.identity.model_digest import model_digest
from sdpo.identity.tokenizer_digest import given_template
from sdpo.inputs.devices import idle_hint, precision_hint, resolve_launch, resolve_precision
from sdpo.inputs.locate import is_path
from sdpo.inputs.resolve import cache_dir, resolve
from sdpo.system import machine

PAIR = '{"prompt": "p", "chosen": "c", "rejected": "r"}\n'
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str = PAIR) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def configure(save_model, write, tmp_path):
    """A recipe in which everything is there, with groups replaced."""
    model, data = save_model(), write("pairs.jsonl")

    def configure(**groups) -> RunConfig:
        base = {
            "name": "trial",
            "model": {"name_or_path": str(model)},
            "data": {"sources": [{"path": data}]},
            "store": {"runs_dir": str(tmp_path / "runs")},
        }
        return make_config(base | groups)

    return configure


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub is not asked, and nothing of it is on this machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def cpu_only(monkeypatch):
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: ())


def gpus(monkeypatch, *capabilities: tuple[int, int]) -> None:
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: capabilities)


def test_everything_is_looked_up_and_nothing_left_to_chance(configure, save_model, cpu_only):
    resolved = resolve(configure())
    config = resolved.config
    assert resolved.model == save_model().absolute()
    assert Path(config.model.name_or_path).is_absolute()
    assert [source.name for source in config.data.sources] == ["pairs"]
    assert config.launch.device == "cpu"
    assert config.launch.strategy == "single"
    assert config.launch.threads >= 1
    assert config.training.precision == "fp32"
    assert sorted(resolved.inputs) == ["data.pairs", "model", "tokenizer"]
    assert resolved.inputs["model"] == model_digest(resolved.model)
    assert not resolved.has_template


def test_a_resolved_recipe_resolves_to_itself(configure):
    resolved = resolve(configure())
    again = resolve(make_config(yaml.safe_load(yaml.safe_dump(resolved.config.model_dump()))))
    assert again == resolved


def test_relative_paths_are_those_of_the_working_folder(configure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = resolve(
        configure(model={"name_or_path": "model"}, data={"sources": [{"path": "pairs.jsonl"}]})
    )
    assert here.inputs == resolve(configure()).inputs
    assert here.config.data.sources[0].path == str(tmp_path / "pairs.jsonl")


def test_an_empty_model_name_is_refused(configure):
    with pytest.raises(ModelError, match=r"model\.name_or_path is empty"):
        resolve(configure(model={}))


@pytest.mark.parametrize("name", ["/absent/model", "./absent", "a/b/c", "~/absent-model-folder"])
def test_a_model_folder_that_is_missing_is_refused_with_its_whole_path(configure, name):
    with pytest.raises(ModelError, match=r"no folder at /.*(absent|a/b/c)"):
        resolve(configure(model={"name_or_path": name}))


def test_a_folder_that_holds_no_model_is_refused(configure, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        resolve(configure(model={"name_or_path": str(tmp_path / "empty")}))


def test_a_model_folder_without_tokenizer_is_refused_with_what_to_do(configure, save_model):
    folder = save_model("bare", with_tokenizer=False)
    with pytest.raises(ModelError, match=r"bare has no tokenizer .*save_pretrained"):
        resolve(configure(model={"name_or_path": str(folder)}))


@pytest.mark.parametrize("name", ["org/model", "gpt-of-tomorrow"])
def test_a_hub_model_that_is_not_here_while_offline_is_one_clear_message(configure, offline, name):
    with pytest.raises(ModelError) as caught:
        resolve(configure(model={"name_or_path": name}))
    message = str(caught.value)
    assert "\n" not in message
    assert f"{name} is not a local folder ({Path(name).absolute()})" in message
    assert "the hub cannot be reached" in message


def test_a_hub_model_in_the_local_cache_is_used_while_offline(configure, offline, tmp_path):
    repository = offline / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tmp_path / "model", repository / "snapshots" / COMMIT)
    resolved = resolve(configure(model={"name_or_path": "org/model"}))
    assert resolved.model == repository / "snapshots" / COMMIT
    assert resolved.inputs == resolve(configure()).inputs


def adapter_of(name: str, folder: Path, tokenizer: Path) -> Path:
    """An adapter as peft saves it, whose base is called so."""
    config = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": name, "revision": None}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"lora_A": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    shutil.copy(tokenizer / "tokenizer.json", folder)
    return folder


def test_the_base_of_an_adapter_is_a_folder_or_a_model_of_the_hub(configure, offline, tmp_path):
    repository = offline / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tmp_path / "model", repository / "snapshots" / COMMIT)
    digests = []
    for index, name in enumerate(("org/model", str(tmp_path / "model"), "../model")):
        folder = adapter_of(name, tmp_path / f"adapter-{index}", tmp_path / "model")
        resolved = resolve(configure(model={"name_or_path": str(folder)}))
        assert resolved.model == folder
        digests.append(resolved.inputs["model"])
    assert len(set(digests)) == 1, "one base by its content"
    assert digests[0] != resolve(configure()).inputs["model"]


def test_a_base_that_is_neither_here_nor_to_be_had_is_one_clear_message(
    configure, offline, tmp_path
):
    folder = adapter_of("org/other", tmp_path / "adapter", tmp_path / "model")
    with pytest.raises(ModelError, match=r"base_model_name_or_path of .*org/other is not a local"):
        resolve(configure(model={"name_or_path": str(folder)}))


def test_a_hub_that_does_not_answer_is_one_clear_message(configure, offline, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        resolve(configure(model={"name_or_path": "org/model"}))
    with pytest.raises(DataError, match=r"org/data: no file at .* the hub"):
        resolve(configure(data={"sources": [{"path": "org/data"}]}))


@pytest.mark.parametrize("path", ["org/data", "org/data-2.5", "data"])
def test_hub_data_that_are_not_here_while_offline_are_one_clear_message(configure, offline, path):
    with pytest.raises(DataError) as caught:
        resolve(configure(data={"sources": [{"path": path}]}))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"data source {path}: no file at {Path(path).absolute()}")
    assert "not in the local hub cache" in message


def test_hub_data_in_the_local_cache_are_known_by_their_commit(configure, offline):
    def inputs(commit: str) -> str:
        (references / "main").write_text(commit)
        resolved = resolve(configure(data={"sources": [{"path": "org/data-2.5"}]}))
        (source,) = resolved.config.data.sources
        assert (source.name, source.path, source.revision) == ("data-2.5", "org/data-2.5", commit)
        return resolved.inputs["data.data-2.5"]

    references = offline / "datasets--org--data-2.5" / "refs"
    references.mkdir(parents=True)
    assert inputs(COMMIT) == inputs(COMMIT)
    assert inputs(COMMIT) != inputs(COMMIT[::-1])


def test_prompts_of_the_hub_are_known_by_their_commit(configure, offline):
    generate = {"prompts": "org/asked", "prompts_revision": "main", "judge": {"rule": "length"}}
    sources = [*configure().data.model_dump()["sources"], {"name": "round", "generate": generate}]
    with pytest.raises(DataError, match=r"org/asked: no file at .*not in the local hub cache"):
        resolve(configure(data={"sources": sources}))
    references = offline / "datasets--org--asked" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text(COMMIT)
    resolved = resolve(configure(data={"sources": sources}))
    found = resolved.config.data.generated[0].generate
    assert (found.prompts, found.prompts_revision) == ("org/asked", COMMIT)
    assert resolved.inputs["prompts.round"] == digest_of(["org/asked", COMMIT])


def test_a_source_that_is_missing_names_a_similar_file(configure, write, tmp_path):
    write("orca_train.jsonl")
    with pytest.raises(DataError, match=r"no data at .*orca_trian\.jsonl: did you mean orca_train"):
        resolve(configure(data={"sources": [{"path": str(tmp_path / "orca_trian.jsonl")}]}))


def test_a_missing_data_file_is_not_looked_for_on_the_hub(configure, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"no data at {tmp_path}/absent\.jsonl"):
        resolve(configure(data={"sources": [{"path": "absent.jsonl"}]}))


@pytest.mark.parametrize(
    ("sources", "error", "message"),
    [
        ([], DataError, r"data\.sources is empty"),
        ([{"name": "a"}], DataError, "data source `a` has no path"),
        ([{}], DataError, r"has no path"),
    ],
)
def test_a_run_without_data_is_refused(configure, sources, error, message):
    with pytest.raises(error, match=message):
        resolve(configure(data={"sources": sources}))


def test_two_sources_of_one_name_are_refused_with_what_to_do(configure, write):
    paths = [write("a/train.jsonl"), write("b/train.jsonl")]
    with pytest.raises(ConfigError, match=r"two data sources are named `train`: .*name"):
        resolve(configure(data={"sources": [{"path": path} for path in paths]}))
    named = [{"path": path, "name": name} for path, name in zip(paths, "ab", strict=True)]
    inputs = resolve(configure(data={"sources": named})).inputs
    assert inputs["data.a"] == inputs["data.b"]


def test_data_are_known_by_their_bytes(configure, write):
    def digest(path: str) -> str:
        resolved = resolve(configure(data={"sources": [{"path": path, "name": "s"}]}))
        return resolved.inputs["data.s"]

    assert digest(write("a.jsonl")) == digest(write("deep/b.jsonl"))
    assert digest(write("a.jsonl")) != digest(write("c.jsonl", PAIR * 2))
    write("folder/one.jsonl")
    before = digest(str(Path(write("folder/two.jsonl")).parent))
    assert digest(str(Path(write("folder/two.jsonl", PAIR * 2)).parent)) != before


def test_the_supervised_source_is_looked_up_only_where_it_is_used(configure, write):
    settings = {"examples": "source", "path": "/absent/sft.jsonl"}
    assert "data.supervised" not in resolve(configure(supervised=settings)).inputs
    with pytest.raises(DataError, match=r"no data at /absent/sft\.jsonl"):
        resolve(configure(supervised=settings | {"enabled": True}))
    settings |= {"enabled": True, "path": write("sft.jsonl", '{"prompt": "", "completion": ""}')}
    assert "data.supervised" in resolve(configure(supervised=settings)).inputs


def test_a_chat_template_of_the_recipe_counts_as_the_tokenizers(configure, write, tmp_path):
    own = resolve(configure())
    template = write("mine.jinja", "{{ messages }}")
    model = {"name_or_path": str(tmp_path / "model"), "chat_template": template}
    given = resolve(configure(model=model))
    assert (own.has_template, given.has_template) == (False, True)
    assert given.inputs["tokenizer"] != own.inputs["tokenizer"]
    assert given.inputs["model"] == own.inputs["model"]
    before = given.inputs["tokenizer"]
    write("mine.jinja", "{{ messages }}!")
    assert resolve(configure(model=model)).inputs["tokenizer"] != before


@pytest.mark.parametrize("form", ["list", "folder"])
def test_a_chat_template_may_be_one_of_the_tokenizers_own_by_name(configure, tmp_path, form):
    folder, texts = tmp_path / "model", {"default": "{{ messages }}", "rag": "{{ messages }}!"}
    if form == "list":
        path = folder / "tokenizer_config.json"
        listed = [{"name": name, "template": text} for name, text in texts.items()]
        config = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(config | {"chat_template": listed}))
    else:
        (folder / "additional_chat_templates").mkdir()
        (folder / "chat_template.jinja").write_text(texts["default"])
        (folder / "additional_chat_templates" / "rag.jinja").write_text(texts["rag"])
    model = {"name_or_path": str(folder)}
    own, named = (
        resolve(configure(model=model)),
        resolve(configure(model=model | {"chat_template": "rag"})),
    )
    assert named.config.model.chat_template == "rag"
    assert given_template(folder, "rag") == texts["rag"]
    assert named.inputs["tokenizer"] != own.inputs["tokenizer"]
    with pytest.raises(ModelError, match=r"no template of that name \(it has default, rag\)"):
        resolve(configure(model=model | {"chat_template": "tool_use"}))


def test_a_chat_template_that_is_missing_is_refused(configure, tmp_path):
    model = {"name_or_path": str(tmp_path / "model"), "chat_template": "/absent.jinja"}
    with pytest.raises(ModelError, match=r"model\.chat_template: no file at /absent\.jinja"):
        resolve(configure(model=model))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", False),
        ("name", False),
        ("org/name-2.5", False),
        ("./name", True),
        ("../org/name", True),
        ("/org", True),
        ("~/org", True),
        ("a/b/c", True),
        ("with space", True),
        ("org/", True),
    ],
)
def test_what_is_meant_as_a_path(name, expected):
    assert is_path(name) is expected


def test_caches_stand_beside_the_runs_unless_the_recipe_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cache_dir(RunConfig()) == tmp_path / "cache"
    elsewhere = make_config({"store": {"runs_dir": "/data/sdpo/runs"}})
    assert cache_dir(elsewhere) == Path("/data/sdpo/cache")
    set_apart = make_config({"store": {"runs_dir": "/data/runs", "cache_dir": "mine"}})
    assert cache_dir(set_apart) == tmp_path / "mine"


def test_on_a_machine_without_gpus_the_cpu_is_used(cpu_only):
    launch = resolve_launch(LaunchConfig())
    assert (launch.device, launch.strategy, launch.processes) == ("cpu", "single", 1)
    assert launch.threads == machine.cores()
    assert resolve_precision("auto", launch) == "fp32"


def test_several_processes_share_the_cores(cpu_only, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    launch = resolve_launch(LaunchConfig(processes=3))
    assert (launch.strategy, launch.threads) == ("ddp", 2)
    assert resolve_launch(LaunchConfig(processes=16)).threads == 1
    assert resolve_launch(LaunchConfig(threads=5)).threads == 5
    moved = LaunchConfig(processes=2, strategy="deepspeed_zero2", offload="optimizer")
    with pytest.raises(ConfigError, match="whose memory is the machine's: set `none`"):
        resolve_launch(moved)


@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_on_a_gpu_precision_is_what_it_can_do(monkeypatch, capability, precision):
    gpus(monkeypatch, capability)
    launch = resolve_launch(LaunchConfig())
    assert launch.device == "cuda"
    assert resolve_precision("auto", launch) == precision
    assert resolve_precision("fp32", launch) == "fp32"


def test_bf16_is_refused_on_a_gpu_without_it_and_possible_on_a_cpu(monkeypatch):
    gpus(monkeypatch, (7, 5))
    with pytest.raises(ConfigError, match="bf16, which this GPU does not have"):
        resolve_precision("bf16", resolve_launch(LaunchConfig()))
    assert resolve_precision("bf16", resolve_launch(LaunchConfig(device="cpu"))) == "bf16"


def test_gpus_that_a_run_leaves_idle_are_named_with_what_uses_them(monkeypatch, cpu_only):
    assert idle_hint(resolve_launch(LaunchConfig())) == ""
    gpus(monkeypatch, (9, 0))
    assert idle_hint(resolve_launch(LaunchConfig())) == ""
    gpus(monkeypatch, *[(9, 0)] * 4)
    assert idle_hint(resolve_launch(LaunchConfig(processes=4))) == ""
    hint = idle_hint(resolve_launch(LaunchConfig()))
    assert "has 4 CUDA devices, and launch.processes is 1" in hint
    assert "launch.processes: 4 uses all" in hint
    assert idle_hint(resolve_launch(LaunchConfig(device="cpu"))) == ""


def test_more_processes_than_gpus_are_refused(monkeypatch):
    gpus(monkeypatch, (8, 0), (8, 0))
    assert resolve_launch(LaunchConfig(processes=2)).device == "cuda"
    with pytest.raises(ConfigError, match="processes is 3, but this machine has 2 CUDA devices"):
        resolve_launch(LaunchConfig(processes=3))
    gpus(monkeypatch)
    with pytest.raises(ConfigError, match="this machine has no CUDA device"):
        resolve_launch(LaunchConfig(device="cuda"))


def test_resolving_loads_neither_torch_nor_transformers(configure, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(configure().model_dump()))
    program = (
        "import json, sys; from sdpo.config import RunConfig; from sdpo.inputs.resolve import "
        "resolve; "
        "resolve(RunConfig.model_validate_json(open(sys.argv[1]).read())); "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_the_machine_has_is_asked_without_torch():
    assert machine.cores() >= 1
    versions = machine.versions()
    assert versions["torch"] != "absent"
    assert versions["sdpo"] != "absent"
    assert all(len(capability) == 2 for capability in machine.cuda_capabilities())


@pytest.mark.parametrize(
    ("flags", "precision", "said"),
    [
        ("fpu amx_bf16 amx_tile", "auto", "would train faster"),
        ("fpu amx_bf16 amx_tile", "bf16", ""),
        ("fpu avx512_bf16", "auto", ""),
        ("fpu avx512_bf16", "bf16", "trains no faster"),
        ("fpu amx_bf16", "fp32", ""),
    ],
)
def test_what_bf16_means_on_a_cpu_is_said(tmp_path, monkeypatch, flags, precision, said):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: a CPU\nflags\t\t: {flags}\n")
    found = machine.multiplies_bf16(cpuinfo)
    assert found == ("amx_bf16" in flags)
    assert not machine.multiplies_bf16(tmp_path / "nothing")
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: found)
    hint = precision_hint(precision, LaunchConfig(device="cpu"))
    assert said in hint
    assert bool(hint) == bool(said)
    assert not precision_hint(precision, LaunchConfig(device="cuda"))
