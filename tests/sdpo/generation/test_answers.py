"""Samples of many prompts: their bits depend on their block alone, not on where a round stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo.config.sampler import Sampler
from sdpo.generation import answers
from sdpo.generation.answers import Drawing, draw_answers
from sdpo.generation.sample_log import SampleLog
from sdpo.scoring.sampling import pick

from ..training_helpers.models import tiny_llama

DRAWING = Drawing(
    sampler=Sampler(name="round", temperature=0.8, top_p=0.9),
    seed=7,
    n=3,
    max_new_tokens=6,
    positions=0,
    ends=(2,),
    pad_token_id=0,
    device=torch.device("cpu"),
    micro_batch_tokens=4096,
)
PROMPTS = [(f"{n:032x}", np.arange(3, 6 + n, dtype=np.int32)) for n in range(4)]


def drawn(
    path: Path,
    prompts: list[tuple[str, np.ndarray]],
    *,
    stop_after: int = 99,
    drawing: Drawing = DRAWING,
) -> list[list[int]]:
    def on_prompt(done: int, tokens: int) -> None:
        del tokens
        if done == stop_after:
            raise InterruptedError

    log = SampleLog(path, n=drawing.n)
    draw_answers(tiny_llama(), prompts, drawing=drawing, log=log, on_prompt=on_prompt)
    return [each.ids.tolist() for key, _ in prompts for each in log.done[key]]


def test_an_interrupted_round_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = drawn(tmp_path / "whole.jsonl", PROMPTS)
    assert len(whole) == 12
    assert len({tuple(ids) for ids in whole}) > 9, "samples differ"
    path = tmp_path / "parts.jsonl"
    with pytest.raises(InterruptedError):
        drawn(path, PROMPTS, stop_after=2)
    with path.open("ab") as file:
        file.write(b'{"key": "cut')
    assert len(SampleLog(path, n=DRAWING.n).done) == 2
    assert drawn(path, PROMPTS) == whole
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_block_that_was_interrupted_is_drawn_again_as_it_was(tmp_path: Path, monkeypatch) -> None:
    """Three prompts a block: what is missing of one has the bits that it has beside the others."""
    drawing = replace(DRAWING, together=3)
    drawn_together: list[list[str]] = []
    own = answers.sample

    def noted(policy, prompts, **settings):
        drawn_together.append(sorted({prompt.key[-1] for prompt in prompts}))
        return own(policy, prompts, **settings)

    monkeypatch.setattr(answers, "sample", noted)
    prompts = [(f"{n:032x}", np.arange(3, 5 + n % 4, dtype=np.int32)) for n in range(8)]
    whole = drawn(tmp_path / "whole.jsonl", prompts, drawing=drawing)
    blocks = [["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]
    assert drawn_together == blocks
    path = tmp_path / "parts.jsonl"
    lines = (tmp_path / "whole.jsonl").read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:4]), "utf-8")  # killed in the middle of the second block
    assert drawn(path, prompts, drawing=drawing) == whole
    assert path.read_text("utf-8") == "".join(lines)
    assert drawn_together[3:] == blocks[1:]


def test_a_prompt_alone_has_the_same_samples(tmp_path: Path) -> None:
    whole = drawn(tmp_path / "whole.jsonl", PROMPTS)
    alone = drawn(tmp_path / "alone.jsonl", PROMPTS[2:3])
    assert alone == whole[6:9]


def test_samples_of_another_number_are_drawn_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    drawn(path, PROMPTS)
    assert len(SampleLog(path, n=DRAWING.n).done) == 4
    assert not SampleLog(path, n=DRAWING.n + 1).done


def test_top_p_draws_from_the_likeliest_that_have_the_share() -> None:
    shares = np.array([0.1, 0.5, 0.05, 0.3, 0.05])
    logits = torch.from_numpy(np.log(shares))[None].repeat(1000, 1)
    numbers = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
    found = pick(logits, numbers, Sampler(name="s", top_p=0.7))
    counts = np.bincount(found.numpy(), minlength=5)
    assert counts.tolist() == pytest.approx([0, 625, 0, 375, 0], abs=2)
    assert set(pick(logits, numbers, Sampler(name="s", top_p=0.01)).tolist()) == {1}
