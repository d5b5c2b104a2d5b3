"""A model goes to the hub whole, with a card in the hub's own form, and to nobody unasked."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from bench import Bench, Outcome
from command_line import Called, Sdpo
from hub_stand_in import TOKEN, StandIn, hub_stand_in
from huggingface_hub import ModelCard

from sdpo.identity.model_digest import model_digest

# huggingface_hub 2.4 hands files to httpx as `data`, which httpx calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub, and a login to it."""
    with hub_stand_in() as stand_in:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stand_in.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield stand_in


def pushed(sdpo: Sdpo, bench: Bench, *words: object) -> Called:
    called = sdpo("push", "tiny", *words, "--runs-dir", bench.runs)
    assert TOKEN not in called.told
    assert "Traceback" not in called.told
    return called


def test_a_model_is_private_whole_and_its_card_is_the_hubs(
    finished: Outcome, finished_bench: Bench, hub: StandIn, sdpo: Sdpo, tmp_path: Path
) -> None:
    told = pushed(sdpo, finished_bench, "mine/tiny", "--base-model", "org/base", "--license", "mit")
    assert told.code == 0, told.told
    assert "mine/tiny, private" in told.told
    (name, repository), *others = hub.repositories.items()
    assert (name, repository.private, others) == ("mine/tiny", True, [])
    assert repository.commits == ["M_2 of run tiny"]
    for file, content in repository.files.items():
        (tmp_path / file).write_bytes(content)
    lineage = json.loads((tmp_path / "lineage.json").read_text())
    assert model_digest(tmp_path) == lineage["export"]["model"]
    assert len(repository.files["model.safetensors"]) > 2**16  # several parts of Git LFS
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.base_model_relation) == ("org/base", "finetune")
    assert (data.license, data.pipeline_tag) == ("mit", "text-generation")
    assert {"stepwise-dpo", "sdpo", "dpo"} <= set(data.tags)
    (result,) = data.eval_results
    gamma = finished.json("step-2/gamma.json")
    reserve = [row for row in gamma if row["model"] == "M_2" and "reserve" in row["probe"]]
    pairs = sum(row["pairs"] for row in reserve)
    right = sum(row["pairs"] * row["ranking_accuracy"] for row in reserve)
    assert result.metric_value == pytest.approx(right / pairs)
    assert str(finished_bench.folder) not in "".join(
        content.decode(errors="replace") for content in repository.files.values()
    )
    # The copy is what it says it is, with the run at hand and without.
    for runs in (finished_bench.runs, tmp_path / "none"):
        assert sdpo("verify", tmp_path, "--runs-dir", runs).code == 0
    (tmp_path / "README.md").write_text("Quite another model.")
    assert sdpo("verify", tmp_path, "--runs-dir", finished_bench.runs).code == 1


def test_a_dry_run_writes_what_would_go_and_asks_nobody(
    finished: Outcome, finished_bench: Bench, sdpo: Sdpo, tmp_path: Path, hub: StandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("HF_TOKEN")
    folder = tmp_path / "would-go"
    told = pushed(sdpo, finished_bench, "mine/tiny", "--step", "1", "--dry-run", folder)
    assert told.code == 0, told.told
    assert finished.folder.is_dir()
    assert "the card names no licence: --license" in told.told
    assert "the card names no base model: --base-model" in told.told
    card = (folder / "README.md").read_text()
    assert "M_1" in card
    assert "| M_2 |" not in card
    assert hub.asked == []
    again = pushed(sdpo, finished_bench, "mine/tiny", "--dry-run", folder)
    assert (again.code, "exists already" in again.told) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no/such/name",), "cannot name a model on the hub"),
        (("mine/tiny", "--base-model", "../model"), "cannot name a model on the hub"),
        (("mine/tiny", "--step", "7"), "no complete step 7"),
        (("mine/tiny", "--adapter"), "is weights, not an adapter"),
        (("theirs/tiny",), "the hub refused theirs/tiny (HTTP 403): log in"),
        (("mine/public",), "is there and public: say --public"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_uploaded(
    finished: Outcome, finished_bench: Bench, hub: StandIn, sdpo: Sdpo, words: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    if "mine/public" in words:
        huggingface_hub.HfApi().create_repo("mine/public", private=False)
    told = pushed(sdpo, finished_bench, *words)
    assert finished.folder.is_dir()
    assert told.code == 2
    assert message in told.told
    assert not any(repository.files for repository in hub.repositories.values())


def test_without_a_login_or_with_a_wrong_one_it_says_how_to_get_one(
    finished: Outcome, finished_bench: Bench, hub: StandIn, sdpo: Sdpo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert finished.folder.is_dir()
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    wrong = pushed(sdpo, finished_bench, "mine/tiny")
    assert (wrong.code, "HTTP 401" in wrong.told, "hf_another" in wrong.told) == (2, True, False)
    monkeypatch.delenv("HF_TOKEN")
    none = pushed(sdpo, finished_bench, "mine/tiny")
    assert (none.code, "nobody is logged in" in none.told) == (2, True)
    assert hub.repositories == {}


def test_a_hub_that_fails_is_no_fault_of_the_users(
    finished: Outcome, finished_bench: Bench, hub: StandIn, sdpo: Sdpo
) -> None:
    assert finished.folder.is_dir()
    hub.failing = "/commit/"
    told = pushed(sdpo, finished_bench, "mine/tiny")
    assert (told.code, "push again" in told.told) == (1, True)
    assert hub.repositories["mine/tiny"].files == {}
