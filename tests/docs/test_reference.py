"""The reference of the site is made from the code, and says what the code says."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from docs.site import commands, errors, files, parts, python, settings
from docs.site.__main__ import NAV, collect, nav
from docs.site.markdown import escaped, table
from sdpo.config.load import make_config
from sdpo.errors import UserError
from sdpo.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]
PRINTED = re.compile(r"^(?:error|failed): (.*(?:\n  .*)*)", re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(tmp_path_factory.mktemp("site")).parent


def rows(page: str) -> dict[str, list[str]]:
    """The rows of a page's tables by their first cell, without its ticks."""
    body = re.sub(r"^\|.*\n\| ---.*$", "", page, flags=re.MULTILINE)
    lines = [line for line in body.splitlines() if line.startswith("| `")]
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def test_every_setting_has_a_row_with_its_default_and_a_text() -> None:
    golden = json.loads((ROOT / "tests" / "golden" / "defaults.json").read_text())
    (version,) = golden["TRAINER_VERSION"].values()
    shown = rows(settings.page())
    assert set(shown) == set(settings.settings())
    for name, default in version.items():
        setting = re.sub(r"\.0\b", ".N", name)
        if setting.startswith("steps.N."):
            assert setting.replace("steps.N", "training") in shown, name
            continue
        if setting not in shown and isinstance(default, list):  # the list of groups itself
            assert any(other.startswith(f"{setting}.N.") for other in shown), name
            continue
        _, told, text = shown[setting]
        assert text, name
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert float(told.strip("`")) == default, name


def test_every_command_has_its_help() -> None:
    page = commands.page()
    sections = re.findall(r"^## (sdpo[^\n]*)\n\n```\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    named = dict(sections)
    assert {"sdpo run", "sdpo check", "sdpo server up", "sdpo replay"} <= named.keys()
    for name, shown in named.items():
        assert f"Usage: {name}" in shown
    assert "--limit" in named["sdpo run"]


def test_every_objective_and_strategy_has_a_row() -> None:
    shown = rows(parts.objectives())
    assert shown.keys() == OBJECTIVES.keys()
    assert shown["simpo"][2] == "`training.beta`, `training.simpo_gamma_beta_ratio`"
    assert shown["simpo"][3] == "no"
    assert {"natural", "stratified", "random", "single"} <= rows(parts.strategies()).keys()


@pytest.mark.parametrize("setting", ["gradient_accumulation_steps", "pref_beta", "rl", "deepspeed"])
def test_what_is_said_of_a_setting_elsewhere_is_what_a_recipe_is_answered(setting: str) -> None:
    with pytest.raises(UserError) as refused:
        make_config({"training": {setting: 1}})
    assert str(refused.value).endswith(f"unknown key; {rows(parts.others())[setting][0]}")


def templates() -> list[re.Pattern[str]]:
    """What the code can say: every text of it with some words, any value where one is put in."""
    found = []
    for package in errors.PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                    text = errors.text_of(node)
                    if len(text.replace(errors.LEFT_OUT, "")) >= 12:
                        found.append(re.compile(".*".join(map(re.escape, text.split("…"))), re.S))
    return found


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    page = "".join(
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("troubleshooting", "migrate")
    )
    said, known = PRINTED.findall(page), templates()
    assert len(said) > 15
    for message in said:
        assert any(each.search(message) for each in known), message


def test_a_refusal_is_found_on_the_page_of_errors() -> None:
    with pytest.raises(UserError) as refused:
        make_config({"training": {"betta": 1}})
    told = [m.text for m in errors.messages() if m.error == "ConfigError"]
    assert any(
        re.fullmatch(
            ".*".join(map(re.escape, text.split(errors.LEFT_OUT))), str(refused.value), re.S
        )
        for text in told
    )
    assert {kind.__name__ for kind in errors.classes()} <= set(rows(errors.page()))


def test_paths_and_records_are_those_of_the_code() -> None:
    shown = rows(files.files())
    assert {"runs/NAME/pairs.parquet", "runs/NAME/step-1/model", "runs/NAME/run.yaml"} <= set(shown)
    assert all(text[0] for text in shown.values())
    page = files.record_page()
    assert "### StepRecord" in page
    assert "`max_abs_difference_nats`" in page


def test_names_of_the_python_api_are_where_the_page_looks_for_them() -> None:
    found = list(python.documented())
    assert "sdpo.api.running.replay" in found
    for name in found:
        module = ROOT.joinpath(*name.split("."))
        path = module.with_suffix(".py") if module.with_suffix(".py").exists() else None
        path = path or module.parent.with_suffix(".py")
        defined = ast.parse(path.read_text(encoding="utf-8")).body
        assert path.stem == module.name or module.name in {getattr(n, "name", "") for n in defined}


def test_every_page_is_in_the_navigation_once_and_links_lead_somewhere(site: Path) -> None:
    config = yaml.safe_load((site / "mkdocs.yml").read_text())
    pages = {str(path.relative_to(site / "pages")) for path in site.glob("pages/**/*.md")}
    listed = [page for part in config["nav"] for names in part.values() for page in names]
    assert sorted(listed) == sorted(pages)
    assert {"reference/settings.md", "changelog.md", "quickstart.md"} <= pages
    for page in pages:
        text = (site / "pages" / page).read_text(encoding="utf-8")
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text):
            assert ((site / "pages" / page).parent / link).exists(), (page, link)


def test_a_page_that_nobody_listed_comes_under_more(tmp_path: Path) -> None:
    known = next(iter(NAV["Start"]))
    for name in (known, "surprise.md"):
        (tmp_path / name).write_text("# A page\n")
    assert nav(tmp_path)[-1] == {"More": ["surprise.md"]}
    assert nav(tmp_path)[0] == {"Start": [known]}


def test_a_bar_in_a_cell_and_a_tag_in_a_text_stay_text() -> None:
    assert table(("a",), [("x | y",)]).splitlines()[-1] == "| x \\| y |"
    assert escaped("`<b>` of <name> by :func:`run`") == "`<b>` of &lt;name> by `run`"
