"""A judge behind an address: real HTTP on loopback, and everything that can go wrong with it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import Answer, JudgeServer, both, judge_server, prefers_longer

from sdpo.config.judging import JudgeConfig
from sdpo.data.schema import Message
from sdpo.errors import UserError
from sdpo.evaluation.endpoint import Endpoint
from sdpo.evaluation.judging import Answered, Comparison, Verdict, make_judge
from sdpo.inputs.judges import locate_judge
from sdpo.system.permissions import JUDGE_ENDPOINTS

PROMPT = (Message("user", "Why?"),)
Ask = Callable[..., Endpoint]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """A judge at a server, with settings."""

    def made(
        server: JudgeServer, label: str = "run", warn: Any = pytest.fail, **settings: Any
    ) -> Endpoint:
        monkeypatch.setenv(JUDGE_ENDPOINTS, server.url)
        values = {"endpoint": server.url, "model": "m", "max_tokens_total": 10**6} | settings
        config = JudgeConfig.model_validate(values)
        located = locate_judge(config, where="here", cache=tmp_path)
        kept = tmp_path / "kept" / located.key
        judge = make_judge(located, device="cpu", kept=kept, label=label, warn=warn)
        assert isinstance(judge, Endpoint)
        return judge

    return made


def compared(*pairs: tuple[str, str]) -> list[Comparison]:
    return [Comparison(f"{n:032x}", PROMPT, a, b) for n, (a, b) in enumerate(pairs)]


def lines(judge: Endpoint) -> list[dict[str, Any]]:
    return [json.loads(line) for line in judge.file.path.read_text("utf-8").splitlines()]


def test_both_orders_are_asked_and_every_word_is_kept(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDPO_JUDGE_KEY", "sk-one")
    heard: list[int] = []
    with judge_server() as server:
        judge = ask(server)
        found = judge.verdicts(
            compared(("long answer", "short"), ("a", "bc"), ("ab", "cd"), ("same", "same")),
            on_done=heard.append,
        )
    assert found == [Verdict(1, 1), Verdict(0, 0), Verdict(0.5, 0.5), Verdict(0.5, 0.5)]
    assert len(server.requests) == 6, "equal answers tie and cost nothing"
    assert set(server.keys) == {"Bearer sk-one"}
    assert {(r["model"], r["temperature"], r["max_tokens"]) for r in server.requests} == {
        ("m", 0, 16)
    }
    kept = lines(judge)
    assert sorted(line["verdict"] for line in kept) == ["A", "A", "B", "B", "tie", "tie"]
    assert {(line["tokens"], line["model"]) for line in kept} == {(100, "served-name")}
    assert "sk-one" not in judge.file.path.read_text("utf-8")
    assert heard[-1] == 3


def test_a_judge_that_always_takes_the_first_wins_and_loses_everything(ask: Ask) -> None:
    with judge_server(lambda message: " **A** ") as server:
        found = ask(server).verdicts(compared(("x", "y")))
    assert found == [Verdict(1, 0)]
    assert found[0].value == 0.5


def test_what_was_asked_is_not_asked_again_and_a_line_cut_short_is_left_out(ask: Ask) -> None:
    pairs = compared(("long answer", "short"), ("a", "bc"))
    with judge_server() as server:
        first = ask(server)
        found = first.verdicts(pairs)
        with first.file.path.open("a", encoding="utf-8") as file:
            file.write('{"key": "cut sho')
        assert ask(server).verdicts(pairs) == found
        assert len(server.requests) == 4
        # The same text the other way round is known as well.
        (turned,) = ask(server).verdicts(compared(("short", "long answer")))
        assert turned == Verdict(0, 0)
        assert len(server.requests) == 4
        assert len(lines(first)) == 4


def test_a_judge_that_compares_gives_scores_by_what_an_answer_wins(ask: Ask) -> None:
    asked = [Answered("k", PROMPT, ("abc", "ab", "a")), Answered("l", PROMPT, ("alone",))]
    with judge_server() as server:
        scores = ask(server).scores(asked)
    assert scores[0] == [1.0, 0.5, 0.0]
    assert math.isnan(scores[1][0]), "nothing to compare with: no number"
    assert len(server.requests) == 6


def test_a_text_in_an_answer_does_not_take_the_place_of_the_other(ask: Ask) -> None:
    seen: list[tuple[str, str]] = []

    def says(message: str) -> str:
        seen.append(both(message))
        return "tie"

    with judge_server(says) as server:
        ask(server).verdicts(compared(("{answer_b}", "{prompt}")))
    assert sorted(seen) == [("{answer_b}", "{prompt}"), ("{prompt}", "{answer_b}")]


def test_a_judge_that_thinks_first_is_heard_to_the_end(ask: Ask) -> None:
    with judge_server(lambda message: "<think>A? no, B.</think>\n\nb.") as server:
        assert ask(server).verdicts(compared(("x", "y"))) == [Verdict(0, 1)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("I like both answers, A and B.", "I like both"),
        (Answer("<think>Let me", ended="length"), "<think>Let me"),
    ],
)
def test_nonsense_is_asked_for_once_more_and_then_told_with_nothing_lost(
    ask: Ask, answer: str | Answer, said: str
) -> None:
    with judge_server(lambda message: answer) as server:
        judge = ask(server)
        for _ in range(2):  # the second time from what is kept
            with pytest.raises(UserError, match=rf"no verdict on 1 of 1 .*{said}.*prompt_file"):
                judge.verdicts(compared(("x", "y")))
            assert len(server.requests) == len(lines(judge)) == 4


def error(
    message: str, code: str | int | None, kind: str | None = None, param: str | None = None
) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


REFUSALS = {
    "by the model": Answer("", refusal="I cannot help with that"),
    "by a filter of what it writes": Answer("", ended="content_filter"),
    "by a filter of what it reads": Answer(
        status=400, body=error("The response was filtered due to the prompt", "content_filter")
    ),
    "by a policy": Answer(
        status=400,
        body=error("Invalid prompt: it was flagged", "invalid_prompt", "invalid"),
    ),
    "by a guard that forbids": Answer(
        status=403, body=error("Content blocked: keyword", "403", "guardrail")
    ),
    "by a gateway": Answer(status=446, body='{"error": {"message": "a guardrail failed"}}'),
    "for want of room": Answer(
        status=400,
        body=error("This model's maximum context length is 2048 tokens", 400, "BadRequestError"),
    ),
}


@pytest.mark.parametrize("answer", REFUSALS.values(), ids=REFUSALS)
def test_a_text_that_is_refused_has_no_verdict_and_ends_nothing(ask: Ask, answer: Answer) -> None:
    def says(message: str) -> str | Answer:
        return answer if "odd" in message else prefers_longer(message)

    pairs = [("odd", "one"), *(("x" * n, "y") for n in range(2, 12))]
    with judge_server(says) as server:
        judge = ask(server)
        for _ in range(2):  # the second time from what is kept
            found = judge.verdicts(compared(*pairs))
            assert found == [Verdict(None, None), *([Verdict(1, 1)] * 10)]
            assert len(server.requests) == 2 * 10 + 4, "a refusal is asked for once more"
    assert [line["verdict"] for line in lines(judge) if line["refused"]] == [None] * 4


@pytest.mark.parametrize("answer", REFUSALS.values(), ids=REFUSALS)
def test_a_judge_that_refuses_much_is_told_in_one_message_with_its_words(
    ask: Ask, answer: Answer
) -> None:
    with judge_server(lambda message: answer) as server:
        judge = ask(server)
        with pytest.raises(UserError, match=r"no verdict on 2 of 2 .*refused 2 of them, .*judge"):
            judge.verdicts(compared(("x", "y"), ("u", "v")))
    kept = lines(judge)
    assert len(kept) == 8, "nothing that it said is lost"
    assert all(line["text"] and line["refused"] for line in kept)


def test_an_error_that_is_of_every_request_ends_the_judging_at_once(ask: Ask) -> None:
    unsupported = error("Unsupported parameter: 'max_tokens'", "unsupported_parameter")
    told = r"answers 400, it does not take the request.*max_tokens"
    with (
        judge_server(lambda message: Answer(status=400, body=unsupported)) as server,
        pytest.raises(UserError, match=told),
    ):
        ask(server, parallel=1).verdicts(compared(("x", "y"), ("u", "v")))
    assert len(server.requests) == 1


def test_a_model_that_thinks_is_asked_by_the_names_that_it_takes(ask: Ask) -> None:
    """As OpenAI's newer ones answer: neither ``max_tokens`` nor a temperature of 0."""

    def says(message: str) -> str | Answer:
        body = server.requests[-1]
        for name, code in (("max_tokens", "parameter"), ("temperature", "value")):
            if name in body:
                told = error(f"'{name}' is not supported", f"unsupported_{code}", param=name)
                return Answer(status=400, body=told)
        return prefers_longer(message)

    warned: list[str] = []
    with judge_server(says) as server:
        judge = ask(server, warn=warned.append, parallel=1, answer_tokens=99)
        assert judge.verdicts(compared(("xx", "y"), ("u", "vv"))) == [Verdict(1, 1), Verdict(0, 0)]
    assert len(server.requests) == 2 + 4, "each refusal is met once"
    assert {body["max_completion_tokens"] for body in server.requests[2:]} == {99}
    assert not any("temperature" in body for body in server.requests[2:])
    (line,) = warned
    assert "its verdicts are drawn" in line
    assert len(lines(judge)) == 4, "no refusal of a name is a verdict"


def test_a_server_that_takes_neither_name_is_told_in_its_words(ask: Ask) -> None:
    def says(message: str) -> Answer:
        (name,) = server.requests[-1].keys() & {"max_tokens", "max_completion_tokens"}
        told = error(f"Unsupported parameter: '{name}'", "unsupported_parameter", param=name)
        return Answer(status=400, body=told)

    with (
        judge_server(says) as server,
        pytest.raises(UserError, match=r"answers 400, .*'max_completion_tokens'"),
    ):
        ask(server, parallel=1).verdicts(compared(("x", "y")))
    assert len(server.requests) == 2


def test_few_comparisons_without_a_verdict_are_left_out(ask: Ask) -> None:
    def says(message: str) -> str:
        return "hm" if "odd" in message else prefers_longer(message)

    pairs = [("odd", "one"), *(("x" * n, "y") for n in range(2, 12))]
    with judge_server(says) as server:
        found = ask(server).verdicts(compared(*pairs))
    assert found[0] == Verdict(None, None)
    assert found[0].value is None
    assert found[1:] == [Verdict(1, 1)] * 10


def test_a_busy_server_is_asked_again_when_it_says_so(ask: Ask) -> None:
    turns = iter([429, 503])

    def says(message: str) -> str | Answer:
        status = next(turns, 200)
        busy = Answer(status=status, headers={"retry-after": "0"}, body="busy")
        return busy if status != 200 else prefers_longer(message)

    with judge_server(says) as server:
        assert ask(server, parallel=1).verdicts(compared(("ab", "c"))) == [Verdict(1, 1)]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("answer", "settings", "message"),
    [
        (Answer(wait_s=1), {"timeout_s": 0.1, "retries": 0}, r"asked 1 times: .*no answer within"),
        (Answer(status=503, body="full"), {"retries": 0}, r"answers 503 \(full\)"),
        (Answer(status=401, body="bad sk-two"), {}, r"401, the key in SDPO_JUDGE_KEY.*bad \*\*\*"),
        (Answer(status=404, body="no"), {}, "404, it does not know the model m"),
        (Answer(status=302, headers={"location": "http://evil"}), {}, "302, it leads elsewhere"),
        (Answer(body="<html>"), {}, "does not speak the protocol.*<html>"),
        (Answer(body='{"choices": []}'), {}, "does not speak the protocol"),
        (Answer(body="[" * 50_000), {}, "does not speak the protocol"),
    ],
)
def test_a_server_that_does_not_serve_is_told_in_one_message_and_what_it_said_is_kept(
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("SDPO_JUDGE_KEY", "sk-two")

    def says(text: str) -> str | Answer:
        return answer if "second" in text else prefers_longer(text)

    with judge_server(says) as server:
        judge = ask(server, parallel=1, **settings)
        with pytest.raises(UserError, match=message) as told:
            judge.verdicts(compared(("first one", "x"), ("second", "y")))
        assert "sk-two" not in str(told.value)
        assert [line["verdict"] for line in lines(judge)] == ["A", "B"]
        server.says = prefers_longer
        found = ask(server).verdicts(compared(("first one", "x"), ("second", "y")))
    assert found == [Verdict(1, 1), Verdict(1, 1)]


def test_a_server_that_is_not_there_is_told(ask: Ask) -> None:
    with judge_server() as server:
        pass
    with pytest.raises(UserError, match="cannot be reached"):
        ask(server, retries=0).verdicts(compared(("x", "yz")))


def test_a_ceiling_that_cannot_suffice_is_told_before_anything_is_sent(ask: Ask) -> None:
    with judge_server() as server:
        judge = ask(server, max_tokens_total=300)
        with pytest.raises(UserError, match=r"4 verdicts of m at .* Nothing was sent"):
            judge.verdicts(compared(("x", "yz"), ("u", "vw")))
    assert server.requests == []


def test_the_ceiling_is_kept_and_raised_it_goes_on_from_there(ask: Ask) -> None:
    pairs = compared(*(("x" * n, "y") for n in range(2, 8)))
    with judge_server() as server:
        server.tokens = 400
        judge = ask(server, max_tokens_total=3500)
        with pytest.raises(UserError, match=r"ceiling is reached: (\d+) of max_tokens_total 3500"):
            judge.verdicts(pairs)
        spent = judge.file.spent("run")
        assert 0 < spent == 400 * len(server.requests) <= 3500
        asked = len(server.requests)
        other = ask(server, label="another run", max_tokens_total=100_000)
        assert other.verdicts(pairs) == [Verdict(1, 1)] * 6
        assert len(server.requests) == 12
        assert other.file.spent("another run") == 400 * (12 - asked)


def test_requests_are_begun_no_faster_than_told(ask: Ask) -> None:
    with judge_server() as server:
        ask(server, requests_per_minute=600).verdicts(compared(("x", "yz"), ("u", "vw")))
    apart = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    assert len(apart) == 3
    assert server.times[-1] - server.times[0] > 0.25
