"""Judges that a recipe names: what is refused before anything is asked, and what bears identity."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from sdpo.config.judging import JudgeConfig
from sdpo.errors import ConfigError, ModelError
from sdpo.inputs.judges import locate_judge
from sdpo.system.permissions import JUDGE_ENDPOINTS, may_ask

URL = "https://judges.example/v1"
ENDPOINT = {"endpoint": URL, "model": "m", "max_tokens_total": 1000}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "length", "endpoint": URL}, "rule and endpoint are given: leave one"),
        ({"endpoint": URL}, "needs the name of the model"),
        ({"endpoint": URL, "model": "m"}, "max_tokens_total"),
        ({"rule": "lenght"}, "did you mean `length`"),
        ({"rule": "os:system"}, "is not known"),
        ({"key": "secret"}, "Extra inputs"),
    ],
)
def test_a_judge_that_is_none_is_refused_with_what_is_missing(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises((ValidationError, ValueError), match=message):
        JudgeConfig.model_validate(values)


@pytest.mark.parametrize(
    ("given", "asked", "may"),
    [
        ("", URL, False),
        (URL, URL, True),
        (URL, f"{URL}/", True),
        (f"http://localhost:8000 {URL}", URL, True),
        ("https://judges.example", URL, True),
        ("https://judges.example:443/", URL, True),
        ("https://JUDGES.example/v1", URL, True),
        (URL, "http://judges.example/v1", False),
        (URL, "https://judges.example:8443/v1", False),
        (URL, "https://judges.example/v1x", False),
        (URL, "https://judges.example", False),
        (URL, "https://judges.example.evil/v1", False),
        (URL, "https://judges.example@evil.example/v1", False),
        (URL, "https://evil.example/v1#https://judges.example/v1", False),
        (URL, "https://judges.example/v1/../admin", False),
        (URL, "https://judges.example/v1/%2e%2e/admin", False),
        (URL, "https://judges.example\\@evil.example/v1", False),
        ("file:///etc", "file:///etc/passwd", False),
        (URL, "https://judges.example:x/v1", False),
    ],
)
def test_an_address_is_asked_only_where_the_machine_s_owner_permits_it(
    given: str, asked: str, may: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(JUDGE_ENDPOINTS, given)
    assert may_ask(asked) is may
    judge = JudgeConfig.model_validate(ENDPOINT | {"endpoint": asked})
    if may:
        assert locate_judge(judge, where="here", cache=tmp_path).config.endpoint == URL
    else:
        with pytest.raises(ConfigError, match=rf"here\.endpoint: .*{JUDGE_ENDPOINTS}="):
            locate_judge(judge, where="here", cache=tmp_path)


def test_what_changes_a_verdict_bears_identity_and_how_it_is_asked_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(JUDGE_ENDPOINTS, "https://judges.example")
    own = tmp_path / "own.txt"
    own.write_text("{prompt} {answer_a} {answer_b}?", encoding="utf-8")

    def identity(**changes: object) -> dict[str, object]:
        judge = JudgeConfig.model_validate(ENDPOINT | changes)
        return dict(locate_judge(judge, where="here", cache=tmp_path).identity)

    plain = identity()
    for same in ({"parallel": 1}, {"timeout_s": 1}, {"retries": 0}, {"max_tokens_total": 9}):
        assert identity(**same) == plain
    for other in (
        {"model": "n"},
        {"answer_tokens": 64},
        {"prompt_file": str(own)},
        {"endpoint": f"{URL}/x"},
    ):
        assert identity(**other) != plain


def test_a_text_of_one_s_own_shows_the_judge_what_it_judges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(JUDGE_ENDPOINTS, URL)
    own = tmp_path / "own.txt"
    own.write_text("{prompt} {answer_a}?", encoding="utf-8")
    judge = JudgeConfig.model_validate(ENDPOINT | {"prompt_file": str(own)})
    with pytest.raises(ConfigError, match=r"own\.txt has no \{answer_b\}"):
        locate_judge(judge, where="here", cache=tmp_path)
    judge = JudgeConfig.model_validate(ENDPOINT | {"prompt_file": str(tmp_path / "owm.txt")})
    with pytest.raises(ConfigError, match=r"no file at .*did you mean own\.txt"):
        locate_judge(judge, where="here", cache=tmp_path)


def test_a_reward_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    judge = JudgeConfig(reward_model=str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"here\.reward_model: no folder at"):
        locate_judge(judge, where="here", cache=tmp_path)
    with pytest.raises(ConfigError, match="here names no judge"):
        locate_judge(JudgeConfig(), where="here", cache=tmp_path)
