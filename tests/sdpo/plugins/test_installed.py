"""Plug-ins are found, told and digested without executing anything of theirs."""

import json
import os
import py_compile
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import caller
from packages import on_path, write_distribution, write_files
from prefect.utilities.callables import parameter_schema

from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError, PluginError
from sdpo.objectives import objective_facts, objective_names
from sdpo.objectives.losses import loss_of
from sdpo.plugins.installed import Plugin, find, forget, installed

HALF = """
    from sdpo.objectives import objective

    raise RuntimeError("executed")

    @objective(title="Half DPO", paper="2305.18290", form="pairwise", constant_at_reference=True)
    def half(logps, *, beta, label_smoothing):
        return logps.margins() * beta
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder of installed distributions."""
    folder = tmp_path / "site"
    folder.mkdir()
    with on_path(folder):
        yield folder


def add(
    site: Path, *files: str, source: str = HALF, name: str = "sdpo-half", **points: str
) -> None:
    """A distribution of the package ``half_package`` with an objective."""
    write_distribution(
        site,
        "sdpo-half",
        {
            "half_package/__init__.py": "raise RuntimeError('executed')",
            "half_package/loss.py": source,
            **dict.fromkeys(files, "x"),
        },
        {"sdpo.objectives": points or {"half": "half_package.loss:half"}},
    )
    forget()


def one() -> Plugin:
    (plugin,) = installed("objectives")
    return plugin


def test_facts_are_read_without_executing_the_package_or_its_parents(site: Path) -> None:
    add(site)
    assert (one().distribution, one().version, one().fault) == ("sdpo-half", "1.0", "")
    facts = objective_facts("half")
    assert (facts.title, facts.settings) == ("Half DPO", ("beta", "label_smoothing"))
    assert facts.constant_at_reference
    assert "half_package" not in sys.modules
    assert objective_names()[-1] == "half"


def test_a_recipe_names_it_and_warns_of_settings_that_it_does_not_read(site: Path) -> None:
    add(site)
    config = make_config({"training": {"objective": "half"}, "steps": [{"objective": "half"}]})
    assert config.training.objective == "half"
    assert "half_package" not in sys.modules


def test_it_is_in_the_schema_and_in_prefects_form(site: Path) -> None:
    from flows.align_full import align_full

    add(site)
    schema = RunConfig.model_json_schema()["$defs"]
    assert schema["TrainingConfig"]["properties"]["objective"]["enum"][-1] == "half"
    assert schema["StepConfig"]["properties"]["objective"]["enum"][-1] == "half"
    form = json.dumps(parameter_schema(align_full).model_dump_for_openapi())
    assert '"half"' in form


def test_it_is_listed_with_its_distribution(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(site)
    told = caller(capsys)("plugins").told
    assert all(word in told for word in ("Half DPO", "sdpo-half 1.0", one().digest()[:16]))


def test_a_listing_of_none_says_so(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no installed package has plug-ins" in caller(capsys)("plugins").told


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def half(logps): ...", r"states no `objective\(\.\.\.\)` of `half`"),
        ("def half(:", "its source cannot be read"),
        (HALF.replace('"pairwise"', "FORM"), "its fact `form` is no literal"),
        (HALF.replace('"pairwise"', '"sideways"'), "its fact `form`: Input should be 'pairwise'"),
        (HALF.replace("paper=", "papers="), "its fact `paper"),
        (HALF.replace("True", '"yes"'), "its fact `constant_at_reference`"),
    ],
)
def test_one_that_states_no_usable_facts_is_named_and_the_rest_stands(
    site: Path, source: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add(site, source=source)
    with pytest.raises(PluginError, match=rf"objective `half` of sdpo-half 1\.0 .*{fault}"):
        objective_facts("half")
    with pytest.raises(ConfigError, match="objective `half` of sdpo-half 1"):
        make_config({"training": {"objective": "half"}})
    assert make_config({"training": {"objective": "dpo"}}).training.objective == "dpo"
    assert "sdpo-half 1.0" in caller(capsys)("plugins").told
    RunConfig.model_json_schema()


def test_a_module_that_is_not_there_is_a_fault(site: Path) -> None:
    add(site, half="half_package.gone:half")
    assert "there is no module half_package.gone" in one().fault
    add(site, half="gone_package.loss:half")
    assert "there is no module gone_package" in one().fault


def test_a_formula_that_reads_what_is_no_setting_of_objectives_is_refused(site: Path) -> None:
    add(site, source=HALF.replace("label_smoothing", "learning_rate"))
    with pytest.raises(ConfigError, match="reads `learning_rate`, which is no setting of obj"):
        make_config({"training": {"objective": "half"}})


def test_a_name_that_two_distributions_have_belongs_to_neither(site: Path) -> None:
    add(site)
    write_distribution(
        site,
        "sdpo-other",
        {"other_package.py": HALF},
        {"sdpo.objectives": {"half": "other_package:half"}},
    )
    forget()
    with pytest.raises(PluginError, match="sdpo-half and sdpo-other both have one"):
        objective_facts("half")


def test_a_name_of_this_project_stays_its_own(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(site, dpo="half_package.loss:half")
    assert objective_facts("dpo").title == "DPO"
    assert "is called `dpo`, which is taken" in caller(capsys)("plugins").told


def test_one_that_fails_to_import_is_named_with_the_reason(site: Path) -> None:
    add(site)
    with pytest.raises(PluginError, match=r"of sdpo-half 1\.0 cannot be imported.*executed"):
        loss_of("half")
    assert loss_of("dpo")


def test_one_that_is_not_installed_is_told_where_to_look() -> None:
    assert find("objectives", "half") is None
    with pytest.raises(ConfigError, match=r"objective: `half` is not known .*`sdpo plugins`"):
        make_config({"training": {"objective": "half"}})


def test_the_digest_is_over_all_files_of_the_package(site: Path) -> None:
    add(site, "half_package/data/table.bin")
    first = one().digest()
    assert one().digest() == first
    for change in (
        {"half_package/data/table.bin": "y"},
        {"half_package/more/new.txt": ""},
        {"half_package/__init__.py": "# another"},
    ):
        write_files(site, change)
        assert one().digest() != first, change
        first = one().digest()
    (site / "half_package" / "more" / "new.txt").rename(site / "half_package" / "more" / "old.txt")
    assert one().digest() != first


def test_what_python_caches_is_not_in_the_digest_and_what_a_link_leads_to_is(
    site: Path, tmp_path: Path
) -> None:
    add(site)
    first = one().digest()
    write_files(site / "half_package" / "__pycache__", {"loss.cpython-311.pyc": "x"})
    assert one().digest() == first
    write_files(tmp_path / "elsewhere", {"part.py": "a = 1"})
    (site / "half_package" / "part").symlink_to(tmp_path / "elsewhere")
    (site / "half_package" / "part" / "up").symlink_to(tmp_path / "elsewhere")
    linked = one().digest()
    assert linked != first
    write_files(tmp_path / "elsewhere", {"part.py": "a = 2"})
    assert one().digest() != linked


def test_other_packages_of_the_distribution_count_and_other_distributions_do_not(
    site: Path,
) -> None:
    add(site, "half_helpers/__init__.py")
    first = one().digest()
    write_distribution(site, "stranger", {"stranger/__init__.py": ""}, {})
    forget()
    assert one().digest() == first
    write_files(site, {"half_helpers/__init__.py": "b = 1"})
    assert one().digest() != first


def test_a_package_within_a_shared_namespace_is_digested_without_its_neighbours(
    site: Path,
) -> None:
    write_distribution(
        site,
        "sdpo-half",
        {"shared/half/__init__.py": HALF},
        {"sdpo.objectives": {"half": "shared.half:half"}},
    )
    forget()
    assert one().fault == ""
    first = one().digest()
    write_files(site, {"shared/other/__init__.py": ""})
    assert one().digest() == first
    write_files(site, {"shared/half/data.txt": ""})
    assert one().digest() != first


def test_a_package_that_changed_after_it_was_imported_is_refused(site: Path) -> None:
    add(site, source=HALF.replace('raise RuntimeError("executed")', ""))
    write_files(site, {"half_package/__init__.py": ""})
    assert loss_of("half").__name__ == "half"
    write_files(site, {"half_package/new.py": ""})
    with pytest.raises(PluginError, match="has changed since this process imported it"):
        loss_of("half")


@pytest.mark.parametrize("mode", ["TIMESTAMP", "UNCHECKED_HASH"])
def test_what_is_executed_is_the_source_whatever_is_cached_of_it(site: Path, mode: str) -> None:
    loss = """
        from sdpo.objectives import objective

        @objective(title="Half DPO", paper="2305.18290", form="pairwise")
        def half(logps, *, beta):
            from half_package.factor import FACTOR
            from half_helpers import SUMMAND

            return beta * FACTOR + SUMMAND
    """
    helpers = {"half_helpers.py": "SUMMAND = 5", "half_package/factor.py": "FACTOR = 3"}
    write_distribution(
        site,
        "sdpo-half",
        {"half_package/__init__.py": "", "half_package/loss.py": loss, **helpers},
        {"sdpo.objectives": {"half": "half_package.loss:half"}},
    )
    forget()
    stale = {
        "half_package/loss.py": "* FACTOR",
        "half_package/factor.py": "3",
        "half_helpers.py": "5",
    }
    for name, part in stale.items():
        path = site / name
        text, time = path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
        path.write_text(text.replace(part, "7".rjust(len(part), "-")), encoding="utf-8")
        os.utime(path, ns=(time, time))
        py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode[mode])
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(time, time))
    formula: Any = loss_of("half")
    assert formula(None, beta=2) == 2 * 3 + 5


def test_plugins_are_listed_without_torch(site: Path) -> None:
    add(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from flows.cli.app import run_app; "
        "run_app(['plugins']); print('torch' in sys.modules, 'half_package' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Half DPO" in done.stdout
    assert done.stdout.split()[-2:] == ["False", "False"]
