"""What `sdpo check` and `sdpo run` say of processes that cannot do what they are to do."""

import importlib.util
from pathlib import Path

import pytest
from bench import Bench, Values
from command_line import Called, Sdpo
from transformers import AutoTokenizer

from benchmarks.small_models import small_model

COMMANDS = ["check", "run"]


def launch(strategy: str, **more: object) -> Values:
    return {"launch": {"strategy": strategy, "processes": 2, "device": "cpu", **more}}


def refused(called: Called, bench: Bench, *said: str) -> None:
    """A mistake of the user's that is told before anything is computed."""
    assert called.code == 2, called.told
    assert all(part in called.told for part in said), called.told
    assert not list(bench.runs.glob("tiny/step-*"))


@pytest.fixture
def mixture(bench: Bench, tmp_path: Path) -> Values:
    """A mixture whose files have a tensor of each expert, and whose modules have all in one."""
    tokenizer = AutoTokenizer.from_pretrained(bench.recipe["model"]["name_or_path"])
    small_model("mixtral", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "mixture")
    tokenizer.save_pretrained(tmp_path / "mixture")
    return {"model": {"name_or_path": str(tmp_path / "mixture")}}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mixture_with_other_tensors_in_its_files_is_refused_where_ranks_read_their_rows(
    bench: Bench, mixture: Values, sdpo: Sdpo, command: str
) -> None:
    called = sdpo(command, bench.write(mixture | launch("fsdp2")))
    refused(
        called,
        bench,
        "MixtralForCausalLM has other tensors in its files than in its modules",
        "set launch.strategy to ddp or deepspeed_zero3",
    )


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_zero3"])
def test_what_that_refusal_advises_is_not_refused(
    bench: Bench, mixture: Values, sdpo: Sdpo, strategy: str
) -> None:
    called = sdpo("check", bench.write(mixture | launch(strategy)))
    assert called.code == 0, called.told


@pytest.mark.parametrize("command", COMMANDS)
def test_deepspeed_that_is_not_installed_is_named_with_how_to_get_it(
    bench: Bench, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    own = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name == "deepspeed" else own(name),
    )
    for strategy in ("deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"):
        called = sdpo(command, bench.write(launch(strategy)))
        refused(called, bench, "wants deepspeed, which is not installed: pip install deepspeed (")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("strategy", "offload", "device", "said"),
    [
        ("fsdp2", "all", "cpu", "launch.device is cpu, whose memory is the machine's: set `none`"),
        ("fsdp2", "optimizer", "cuda", "moves weights, gradients and the optimizer's states"),
        ("deepspeed_zero2", "all", "cuda", "computes with whole weights: set `optimizer`"),
        ("ddp", "optimizer", "cuda", "Set launch.strategy to deepspeed_zero1, deepspeed_zero2"),
    ],
)
def test_an_offload_without_what_it_needs_is_refused_with_what_to_set(
    bench: Bench, sdpo: Sdpo, command: str, strategy: str, offload: str, device: str, said: str
) -> None:
    written = bench.write(launch(strategy, offload=offload, device=device))
    refused(sdpo(command, written), bench, f"launch.offload is `{offload}`", said)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("strategy", ["fsdp2", *(f"deepspeed_zero{stage}" for stage in (1, 2, 3))])
@pytest.mark.parametrize("trains", [{}, {"lora_r": 2}, {"lora_r": 2, "lora_handoff": "continue"}])
def test_blocks_of_shared_weights_are_not_compiled_with_adapters_or_without(
    bench: Bench, sdpo: Sdpo, command: str, strategy: str, trains: Values
) -> None:
    called = sdpo(
        command, bench.write(launch(strategy) | {"training": {"compile": True, **trains}})
    )
    kind = strategy.partition("_")[0]
    said = f"training.compile with launch.strategy {kind} is not supported"
    refused(called, bench, said, "use `ddp`")


@pytest.mark.parametrize("trains", [{}, {"lora_r": 2}])
def test_what_that_refusal_advises_may_be_compiled(
    bench: Bench, sdpo: Sdpo, trains: Values
) -> None:
    called = sdpo("check", bench.write(launch("ddp") | {"training": {"compile": True, **trains}}))
    assert called.code == 0, called.told


def test_a_batch_smaller_than_the_processes_is_said_to_leave_some_of_them_waiting(
    bench: Bench, sdpo: Sdpo
) -> None:
    changes = launch("ddp", processes=3) | {"training": {"batch_size": 2}}
    called = sdpo("check", bench.write(changes))
    assert called.code == 0, called.told
    assert "launch.processes 3 trains no faster than 2: an optimizer step has" in called.told
