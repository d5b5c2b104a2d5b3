"""What a recipe would take of devices that are not here, against bytes that were measured."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Bench
from command_line import Sdpo
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.shapes import SHAPES
from flows.commands.hardware import Choice, advice, choices, hardware_of, recommended
from flows.commands.memory import estimate_memory
from sdpo.config import LaunchConfig, RunConfig, TrainingConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs"
MB = 1e6
LIBRARIES_MB = 330
"""A process's own libraries: docs/strategies.md."""
LLAMAS: dict[str, tuple[dict[str, Any], int]] = {
    "8B": ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}, 8030261248),
    "70B": (
        {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80},
        70553706496,
    ),
}
"""Llama 3.1: what config.json says, and the number of its weights."""


def recipe(**training: Any) -> RunConfig:
    return make_config(
        {
            "name": "planned",
            "model": {"name_or_path": "x", "base_precision": training.pop("base", "fp32")},
            "data": {"sources": [{"path": "x"}], "max_length": 2048},
            "training": {"gradient_checkpointing": True, **training},
        }
    )


def planned(devices: str, size: str, config: RunConfig, *, nodes: int = 1) -> list[Choice]:
    shape, parameters = LLAMAS[size]
    words = 128256
    return choices(
        hardware_of(devices, nodes=nodes),
        config,
        shape | {"vocab_size": words, "tie_word_embeddings": False},
        parameters=parameters,
        held=parameters - 2 * words * shape["hidden_size"],
    )


def test_weights_gradients_and_states_are_the_bytes_of_the_tensors_themselves() -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    weights = list(model.parameters())
    states = [s for state in optimizer.state.values() for s in state.values() if s.numel() > 1]

    def held(tensors: list[torch.Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    def estimate(strategy: str, processes: int) -> Any:
        return estimate_memory(
            config.to_dict(),
            parameters=sum(p.numel() for p in weights),
            training=TrainingConfig(precision="fp32"),
            launch=LaunchConfig(device="cuda", processes=processes, strategy=strategy, threads=1),
        )

    sizes = (held(weights), held([p.grad for p in weights if p.grad is not None]), held(states))
    shared = {
        "ddp": (1, 1, 1),
        "deepspeed_zero1": (1, 1, 2),
        "deepspeed_zero2": (1, 2, 2),
        "deepspeed_zero3": (2, 2, 2),
        "fsdp2": (2, 2, 2),
    }
    for strategy, parts in shared.items():
        found = estimate(strategy, 2)
        told = (found.weights_bytes, found.gradients_bytes, found.optimizer_bytes)
        assert told == tuple(size // part for size, part in zip(sizes, parts, strict=True)), (
            strategy
        )


def test_the_memory_of_a_process_is_what_was_measured_of_it_as_far_as_the_page_says() -> None:
    """The table of docs/strategies.md: the most anonymous memory until the only optimizer step.

    Then activations are gone: what is counted is what stays.
    """
    page = (DOCS / "strategies.md").read_text(encoding="utf-8")
    shape, said = SHAPES["0.2B"], dict[str, str]()
    config = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }
    for processes, strategy in ((1, "single"), (2, "fsdp2")):
        row = re.search(rf"^\| {processes}, `{strategy}` \|(.*)\|$", page, re.MULTILINE)
        assert row is not None
        share, _, measured, _ = (int(cell.split()[0]) for cell in row[1].split("|"))
        found = estimate_memory(
            config,
            parameters=round(share * processes * MB / 4),
            training=TrainingConfig(precision="fp32"),
            launch=LaunchConfig(device="cpu", processes=processes, strategy=strategy, threads=1),
        )
        counted = found.total_bytes - (found.activations_bytes or 0) - found.head_bytes
        by = (counted / MB + LIBRARIES_MB) / measured - 1
        said[strategy] = f"{abs(by):.0%} {'more' if by > 0 else 'less'}"
    told = (DOCS / "hardware.md").read_text(encoding="utf-8")
    assert f"{said['single']} than one process took" in told
    assert f"{said['fsdp2']} than each of two under `fsdp2`" in told


def test_what_waits_in_the_machines_memory_is_not_on_the_device() -> None:
    by = {(c.trains, c.strategy, c.offload): c for c in planned("8xH100", "70B", recipe())}
    whole = by["all weights", "fsdp2", "none"]
    away = by["all weights", "fsdp2", "all"]
    assert away.host_bytes == pytest.approx(16 * LLAMAS["70B"][1], rel=1e-6)
    assert whole.fixed_bytes - away.fixed_bytes == pytest.approx(away.host_bytes / 8, rel=1e-6)


def test_two_nodes_share_as_one_machine_with_all_their_devices_does_and_say_what_they_send() -> (
    None
):
    config = recipe()
    two = {(c.trains, c.strategy, c.offload): c for c in planned("8xH100", "70B", config, nodes=2)}
    one = {(c.trains, c.strategy, c.offload): c for c in planned("16xH100", "70B", config)}
    assert two.keys() == one.keys()
    for key, choice in two.items():
        assert choice.fixed_bytes == one[key].fixed_bytes, key
        assert choice.host_bytes == one[key].host_bytes // 2, key
        assert one[key].sent_bytes is None
    weights, words = LLAMAS["70B"][1], 2 * 128256 * 8192
    # Of two nodes each sends half of what is gathered twice in bf16, and of the fp32 gradients.
    assert two["all weights", "fsdp2", "none"].sent_bytes == 2 * weights - words + 2 * weights
    assert two["all weights", "deepspeed_zero2", "optimizer"].sent_bytes == 6 * weights
    hardware = hardware_of("8xH100", nodes=2)
    said = advice(hardware, list(two.values()), config, flops=1e21)
    assert said.startswith("2 nodes of 8xH100: launch.processes=16 launch.strategy=fsdp2")
    assert "launch.nodes=2" in said
    assert "the network is not counted: each node sends 260.88 GiB" in said


def test_every_choice_is_one_that_a_run_would_take() -> None:
    found = planned("8xH100", "8B", recipe())
    for base in ("bf16", "nf4"):
        held = {c.strategy for c in found if c.trains == f"adapters over {base}"}
        assert held == {"ddp", "deepspeed_zero1", "deepspeed_zero2"}, "none shares the base"
    assert "fsdp2" in {c.strategy for c in found if c.trains == "adapters over fp32"}
    assert ("fsdp2", "optimizer") not in {(c.strategy, c.offload) for c in found}
    assert {c.strategy for c in planned("1xH100", "8B", recipe())} == {"single"}


def test_the_fastest_choice_that_fits_is_recommended_and_a_recipe_that_does_not_fit_is_told() -> (
    None
):
    def best(devices: str, size: str, config: RunConfig) -> tuple[str, str] | None:
        found = recommended(planned(devices, size, config), config)
        return found and (found.strategy, found.offload)

    qlora = recipe(lora_r=16, lora_handoff="continue", base="nf4")
    assert best("8xH100", "8B", recipe()) == ("deepspeed_zero2", "none")
    assert best("1xH200", "70B", qlora) == ("single", "none")
    assert best("8xH100", "70B", recipe()) == ("fsdp2", "all")
    assert best("1xL4", "70B", qlora) is None
    config = recipe()
    said = advice(hardware_of("1xH100"), planned("1xH100", "8B", config), config, flops=1e18)
    assert "what the recipe trains does not fit; adapters over fp32 would fit (single)" in said


def test_hours_say_whether_the_speed_was_measured() -> None:
    config = recipe(lora_r=16)
    said = {
        name: advice(hardware_of(name), planned(name, "8B", config), config, flops=400e12 * 3600)
        for name in ("1xH200", "1xH100")
    }
    assert "roughly 1 h 00 min (765 TFLOP/s of bf16 products measured on one" in said["1xH200"]
    assert "as its maker published, not measured" in said["1xH100"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("8xH10", "did you mean H100"),
        ("0xH100", "write a number from 1 to 16 and a device"),
        ("64xH100", "those of one machine"),
        ("", "--nodes says how many machines have what --hardware names"),
        ("8x", "write a number from 1 to 16 and a device"),
        ("abacus", "known are B200, H200"),
    ],
)
def test_a_device_that_is_not_known_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        hardware_of(text)
    assert str(hardware_of("h100")) == "1xH100"


def test_check_shows_what_devices_would_take_that_are_not_here(bench: Bench, sdpo: Sdpo) -> None:
    done = sdpo("check", bench.write(), "--hardware", "2xH100")
    assert done.code == 0, done.told
    assert "What 2xH100 would take, of each device's 79 GiB" in done.told
    assert "hardware: 2xH100: launch.processes=2 launch.strategy=ddp; roughly" in done.told
    assert sdpo("check", bench.write(), "--hardware", "2xH10").code == 2
    assert sdpo("check", bench.write(), "--nodes", "2").code == 2


def test_the_plans_of_the_page_are_those_that_the_formulas_give() -> None:
    page = (DOCS / "hardware.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (8B|70B) \| (all|QLoRA) \| (?:(\d+) nodes of )?(\S+) \| `(\w+)`"
        r"(?:, offload `(\w+)`)? \| ([\d.]+) \|"
        r" ([\d,]+) \|$",
        page,
        re.MULTILINE,
    )
    assert len(rows) >= 6
    for size, trains, nodes, devices, strategy, offload, fixed, hours in rows:
        hardware = hardware_of(devices, nodes=int(nodes or 1))
        config = (
            recipe(lora_r=16, lora_handoff="continue", base="nf4")
            if trains == "QLoRA"
            else recipe()
        )
        best = recommended(planned(devices, size, config, nodes=hardware.nodes), config)
        assert best is not None
        assert (best.strategy, best.offload) == (strategy, offload or "none"), (size, devices)
        assert f"{best.fixed_bytes / 2**30:.1f}" == fixed
        # 1e8 pairs of 600 tokens: scored once (2 operations a weight), trained once (three times).
        flops = 2 * LLAMAS[size][1] * 1e8 * 600 * (1 + 3)
        told = flops / (hardware.device.useful_flops * hardware.all) / 3600
        assert f"{told:,.0f}" == hours
