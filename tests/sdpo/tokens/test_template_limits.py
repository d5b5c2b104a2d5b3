"""A chat template is a program: it ends, and it fits."""

import resource
import signal
import time
from datetime import UTC, datetime

import pytest

from sdpo.errors import DataError, ModelError
from sdpo.system.limits import bounded
from sdpo.tokens import render as module
from sdpo.tokens.template import Encoder

CLOCK = datetime(2024, 1, 1, tzinfo=UTC)
GOOD = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"


def encoder(tokenizer, template: str) -> Encoder:
    tokenizer.chat_template = template
    return Encoder(tokenizer, clock=CLOCK)


LOOP = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
MEMORY = "{{ 'x' * 20000000000 }}"
GROWING = "{% for i in range(90000) %}{{ 'x' * 1000000 }}{% endfor %}"
LONG = "{{ 'x' * 5000000 }}"
HOSTILE = {"loop": LOOP, "memory": MEMORY, "growing": GROWING, "long": LONG}
SAID = "has computed for|wants more than|prints 500"


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_does_not_end_is_refused(tokenizer, monkeypatch, part):
    monkeypatch.setattr(module, "_TEMPLATE_S", 0.5)
    start = time.process_time()
    with pytest.raises(ModelError, match=rf"the chat template of .* ({SAID})"):
        encoder(tokenizer, GOOD + part)
    assert time.process_time() - start < 10


def test_a_template_that_does_not_end_for_one_row_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_TEMPLATE_S", 0.5)
    part = "{% if messages[0]['content'] == 'w9' %}" + LOOP + "{% endif %}"
    good = encoder(tokenizer, GOOD + part)
    rows = [
        {
            "row": 1,
            "format": "chat",
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": "w5"}],
        }
        for prompt in ("w4", "w9")
    ]
    assert len(good.encode(rows[:1], ["chosen"]).prompt) == 1
    with pytest.raises(ModelError, match="has computed for"):
        good.encode(rows, ["chosen"])


FAILING = ["1 / 0", "'a' + 1", "messages[9]['x'] + 1", "[][5] + 1", "1 +"]


@pytest.mark.parametrize("part", FAILING)
def test_a_template_that_fails_is_refused_in_one_message(tokenizer, part):
    with pytest.raises((ModelError, DataError), match="cannot print a question and its answer"):
        encoder(tokenizer, GOOD + "{{ " + part + " }}")


def test_nothing_of_a_limit_is_left_behind():
    before = (
        signal.getsignal(signal.SIGPROF),
        signal.getitimer(signal.ITIMER_PROF),
        resource.getrlimit(resource.RLIMIT_AS),
    )
    with bounded("it", seconds=5, size_bytes=10**9):
        assert resource.getrlimit(resource.RLIMIT_AS) != before[2]
    with (
        pytest.raises(ModelError, match="it wants more than 1 GB"),
        bounded("it", seconds=5, size_bytes=10**9),
    ):
        bytearray(10**11)
    assert before == (
        signal.getsignal(signal.SIGPROF),
        signal.getitimer(signal.ITIMER_PROF),
        resource.getrlimit(resource.RLIMIT_AS),
    )
