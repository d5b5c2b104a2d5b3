"""Rules that judge answers by themselves."""

from pathlib import Path

import pytest
from packages import on_path, write_distribution

from sdpo.config.judging import JudgeConfig
from sdpo.errors import PluginError
from sdpo.inputs.judges import locate_judge
from sdpo.judges import OWN, rule_names, rule_of

ASKED = [{"role": "user", "content": "What do the penguins like eating?"}]
SOURCE = """
from sdpo.judges import rule

@rule(description="by its commas")
def commas(prompt, answer):
    return {"nan": float("nan"), "no": "no number"}.get(answer, answer.count(","))
"""


def test_on_topic_is_the_share_of_topic_words_times_the_share_that_does_not_repeat() -> None:
    score = rule_of("on_topic")
    # The topic: what, penguins, like, eating.
    assert score(ASKED, "Penguins like fish.") == pytest.approx(2 / 4)
    assert score(ASKED, "Penguins like penguins.") == pytest.approx(2 / 4 * 2 / 3)
    assert score(ASKED, "") == 0
    turns = [*ASKED, {"role": "assistant", "content": "Fish."}, {"role": "user", "content": "Why?"}]
    assert score(turns, "Penguins") == 0, "the last turn has no word of four letters"


def test_asks_back_wants_a_question_of_three_words_at_the_end() -> None:
    score = rule_of("asks_back")
    assert score(ASKED, "Fish. Shall I go on?") == 1
    assert score(ASKED, "Fish, fish. Shall I go on?") == pytest.approx(5 / 6)
    assert score(ASKED, "Shall I go on? Fish.") == score(ASKED, "Fish?") == score(ASKED, "") == 0


@pytest.mark.parametrize("name", ["on_topic", "asks_back"])
def test_length_alone_does_not_satisfy_a_rule_but_that_of_length(name: str) -> None:
    good = "Penguins like eating fish. What else shall I tell?"
    score = rule_of(name)
    assert score(ASKED, good) > score(ASKED, good * 3)
    assert score(ASKED, "bla bli blu ble blo " * 30) < 0.01
    longer = rule_of("length")
    assert longer(ASKED, good * 3) > longer(ASKED, good)


def test_a_rule_of_a_package_is_found_by_name_and_known_by_the_package_s_digest(
    tmp_path: Path,
) -> None:
    site = tmp_path / "site"
    write_distribution(
        site, "judging", {"judging.py": SOURCE}, {"sdpo.judges": {"commas": "judging:commas"}}
    )
    with on_path(site):
        assert rule_names() == [*OWN, "commas"]
        located = locate_judge(JudgeConfig(rule="commas"), where="here", cache=tmp_path)
        first = located.identity
        score = rule_of("commas")
        assert score(ASKED, "a, b, c") == 2
        with pytest.raises(PluginError, match=r"commas.* of judging 1\.0 gives nan for the answer"):
            score(ASKED, "nan")
        with pytest.raises(PluginError, match="fails on the answer 'no': ValueError"):
            score(ASKED, "no")
        source = site / "judging.py"
        source.write_text(source.read_text(encoding="utf-8") + "\n# other\n", encoding="utf-8")
        assert locate_judge(JudgeConfig(rule="commas"), where="h", cache=tmp_path).identity != first


def test_a_rule_is_a_name_and_never_a_place_in_code() -> None:
    for name in ("os:system", "sdpo.judges.rules:length", "on_topik"):
        with pytest.raises(PluginError, match="is not known"):
            rule_of(name)
