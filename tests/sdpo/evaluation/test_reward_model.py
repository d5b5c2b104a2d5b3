"""Reward models: the reward that transformers gives by hand, and folders that are none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from sdpo.config.judging import JudgeConfig
from sdpo.data.schema import Message
from sdpo.errors import ModelError
from sdpo.evaluation.judging import Answered, Comparison, Judge, Verdict, make_judge
from sdpo.inputs.judges import locate_judge

TEMPLATE = "{% for m in messages %}{{ '<s> ' + m.role + ' ' + m.content + ' </s> ' }}{% endfor %}"
ASKED = [
    Answered("0" * 32, (Message("user", "w5 w6 w7"),), ("w8 w9", "w10", "w8 w9 w11 w12")),
    Answered("1" * 32, (Message("system", "w4"), Message("user", "w20")), ("w21 w22",)),
    Answered("2" * 32, (Message("text", "w30 w31"),), ("w32",)),
]
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "num_labels": 1,
}
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Save:
    """``save(template=..., **config)``: the folder of a tiny reward model."""

    def made(template: str = TEMPLATE, **config: Any) -> Path:
        folder = tmp_path / "reward"
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = LlamaForSequenceClassification(LlamaConfig(**(SMALL | config)))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if template:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        return folder

    return made


def judge_in(folder: Path) -> Judge:
    located = locate_judge(JudgeConfig(reward_model=str(folder)), where="here", cache=folder)
    return make_judge(located, device="cpu", kept=folder / "kept", label="run", warn=pytest.fail)


def by_hand(folder: Path) -> list[list[float]]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for each in ASKED:
        rewards = []
        for answer in each.answers:
            turns = [
                {"role": "user" if t.role == "text" else t.role, "content": t.content}
                for t in each.prompt
            ]
            turns.append({"role": "assistant", "content": answer})
            ids = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")
            with torch.no_grad():
                rewards.append(model(**ids).logits[0, 0].item())
        found.append(rewards)
    return found


def test_rewards_are_those_of_transformers_by_hand_whatever_is_judged_beside(save: Save) -> None:
    folder = save()
    judge, heard = judge_in(folder), list[int]()
    scores = judge.scores(ASKED, on_done=heard.append)
    assert scores == by_hand(folder)
    assert len({reward for each in scores for reward in each}) == 5
    assert judge.scores(ASKED[1:2]) == scores[1:2], "bit for bit, alone"
    assert heard == [1, 2, 3, 4, 5]


def test_of_two_answers_the_one_with_more_reward_wins(save: Save) -> None:
    judge = judge_in(save())
    first, second = ASKED[0].answers[:2]
    rewards = judge.scores(ASKED[:1])[0]
    won = float(rewards[0] > rewards[1])
    pairs = [("0", first, second), ("0", second, first), ("0", first, first)]
    found = judge.verdicts([Comparison(k, ASKED[0].prompt, a, b) for k, a, b in pairs])
    assert found == [Verdict(won, won), Verdict(1 - won, 1 - won), Verdict(0.5, 0.5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": ""}, "has no chat template"),
        ({"num_labels": 2}, "classifier with 2 outputs"),
        ({"vocab_size": 20}, r"gives the token \d+, and the reward model knows 20 tokens"),
        ({"max_position_embeddings": 4}, "and the reward model in .* reads 4"),
        ({"template": "{{ raise_exception('no system') }}"}, "cannot read prompt 0+: .*no system"),
    ],
)
def test_a_reward_model_that_cannot_serve_is_refused_by_name(
    save: Save, settings: dict[str, Any], message: str
) -> None:
    folder = save(**settings)
    with pytest.raises(ModelError, match=message):
        judge_in(folder).scores(ASKED)


def test_a_language_model_is_no_reward_model(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_model()
    with pytest.raises(ModelError, match="is no reward model but LlamaForCausalLM"):
        judge_in(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"lack score\.weight: its scores would be random"):
        judge_in(folder)
