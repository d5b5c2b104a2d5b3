"""What docs/plugins.md says of a package of plug-ins, followed to the letter."""

import json
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Values
from command_line import Called, caller
from packages import on_path

from sdpo.config.load import make_config
from sdpo.plugins.installed import every, find
from sdpo.store.run_folder import RunFolder

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLUGINS = ("objective `half_dpo`", "partition strategy `halves`", "data layout `quiz`")


def files() -> Mapping[str, str]:
    """The files that docs/plugins.md shows, by the name in their first line."""
    return dict(BLOCK.findall((ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Package:
    """The example, written and installed."""

    source: Path
    site: Path
    first: str
    """What a child process runs first."""


def write_package(folder: Path) -> Path:
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def pip_install(*arguments: object) -> None:
    """With what is installed already, and without a network."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package's source and the folder that it was installed to; tests only read both."""
    place = tmp_path_factory.mktemp("plugins")
    source = write_package(place / "source")
    pip_install("--target", place / "site", source)
    return source, place / "site"


@pytest.fixture
def package(installed: tuple[Path, Path], tmp_path: Path) -> Iterator[Package]:
    source, made = installed
    here = shutil.copytree(made, tmp_path / "site")
    with on_path(here) as first:
        yield Package(source, here, first)


@pytest.fixture
def recipe(bench: Bench, package: Package, tmp_path: Path) -> str:
    """A recipe that names all three, as a file."""
    rows = [
        {"ask": f"What is {n} and {n}?", "right": f"It is {2 * n}.", "wrong": f"It is {2 * n + 1}."}
        for n in range(24)
    ]
    rows.append({"ask": "Which?", "right": "This.", "wrong": "This."})
    data = tmp_path / "quiz.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: Values = {
        "data": {
            "sources": [{"name": "quiz", "path": str(data), "layout": "quiz"}],
            "reserve": {"min_pairs": 2},
        },
        "partition": {"strategy": "halves"},
        "training": {"objective": "half_dpo", "max_steps": 1},
    }
    return bench.write(values)


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str], package: Package) -> Any:
    """``sdpo(...)`` whose stages see the package."""
    call = caller(capsys)

    def called(*arguments: object) -> Called:
        return call(*arguments, first=package.first)

    return called


def test_each_is_about_ten_lines() -> None:
    assert files().keys() == {
        "pyproject.toml",
        *(f"sdpo_example/{name}.py" for name in ("__init__", "objective", "strategy", "layout")),
    }
    for name, text in files().items():
        assert len([line for line in text.splitlines() if line.strip()]) <= 16, name


def test_they_are_listed_and_nothing_of_them_is_executed(package: Package, sdpo: Any) -> None:
    told = sdpo("plugins").told
    for plugin in every():
        assert plugin.called.startswith(PLUGINS)
        assert plugin.name in told
        assert plugin.digest()[:16] in told
    assert told.count("sdpo-example 0.1") == 3
    assert not {name for name in sys.modules if name.startswith("sdpo_example")}


def test_check_run_and_replay_work_until_a_byte_changes(
    recipe: str, sdpo: Any, bench: Bench, package: Package
) -> None:
    checked = sdpo("check", recipe)
    assert checked.code == 0, checked.told
    assert all(text in checked.told for text in ("Half DPO, β 0.1", "not_a_pair", "What is"))
    made = sdpo("run", recipe)
    assert made.code == 0, made.told
    run = RunFolder(bench.runs / "tiny")
    digest = {plugin.input: plugin.digest() for plugin in every()}
    assert set(digest) == {
        *("plugin.objectives.half_dpo", "plugin.strategies.halves", "plugin.layouts.quiz")
    }
    check_identities(run, digest)
    first = json.loads((run.step(1) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["loss"] == pytest.approx(0.34657359, abs=1e-5)  # ln 2 / 2: policy is reference
    assert sdpo("verify", "tiny", "--runs-dir", bench.runs).code == 0
    assert sdpo("run", recipe).code == 0

    replay = ("replay", "tiny", "--step", "2", "--runs-dir", bench.runs)
    dry = sdpo(*replay, "--dry-run", "--set", "training.beta=0.3")
    assert "training.beta: 0.1 -> 0.3" in dry.told
    again = sdpo(*replay, "--name", "again")
    assert again.code == 0, again.told
    (package.site / "sdpo_example" / "notes.txt").write_text("a byte", encoding="utf-8")
    for command in (("replay", "tiny", "--step", "2"), ("resume", "tiny")):
        refused = sdpo(*command, "--runs-dir", bench.runs)
        assert refused.code == 2, refused.told
        assert "of sdpo-example 0.1 is not what run tiny was made with" in refused.told
        assert "Traceback" not in refused.told
    refused = sdpo("run", recipe)
    assert refused.code == 2
    assert "is not what run tiny was made with" in refused.told
    check_missing(package, sdpo, bench)


def check_missing(package: Package, sdpo: Any, bench: Bench) -> None:
    """A run whose package is gone says which it was, and is still listed."""
    shutil.rmtree(package.site / "sdpo_example-0.1.dist-info")
    with on_path(package.site):
        refused = sdpo("replay", "tiny", "--step", "2", "--runs-dir", bench.runs)
        assert refused.code == 2
        assert "of sdpo-example 0.1, which is not installed here: install it" in refused.told
        assert "half_dpo (a plug-in that" in sdpo("status", "tiny", "--runs-dir", bench.runs).told
        assert sdpo("status", "--runs-dir", bench.runs).code == 0


def check_identities(run: RunFolder, digest: Mapping[str, str]) -> None:
    """Each has the digest in the identity of what it decides, and the run has all three."""
    content = run.read_run().as_json()
    assert digest.items() <= content["inputs"].items()
    assert content["plugins"] == dict.fromkeys(digest, "sdpo-example 0.1")
    for node, key in (
        ("step-1", "plugin.objectives.half_dpo"),
        ("plan", "plugin.strategies.halves"),
        ("data", "plugin.layouts.quiz"),
    ):
        record = run.read_record(node)
        assert record is not None
        identity = record["identity"]
        assert (identity if node == "plan" else identity["inputs"])[key] == digest[key]
        assert not any(other in json.dumps(identity) for other in digest if other != key)


def test_a_run_whose_package_is_gone_says_which(
    recipe: str, sdpo: Any, bench: Bench, package: Package
) -> None:
    assert sdpo("partition", recipe).code == 0
    with_it = sdpo("check", recipe)
    assert with_it.code == 0, with_it.told
    shutil.rmtree(package.site / "sdpo_example-0.1.dist-info")
    with on_path(package.site):
        refused = sdpo("check", recipe)
    assert refused.code == 2
    assert "`half_dpo` is not known" in refused.told
    assert "`sdpo plugins` lists" in refused.told


def test_what_fails_in_them_is_refused_by_check_in_their_name(
    recipe: str, sdpo: Any, package: Package
) -> None:
    for module, old, new, message in (
        ("objective", "return softplus(", "return 1 / 0 * softplus(", "objective `half_dpo` fails"),
        ("objective", ") / 2", ").sum() / 2", "gives [] where a loss of each of 3 pairs was due"),
        ("objective", "from torch", "import gone\nfrom torch", "cannot be imported"),
        ("strategy", "pairs.ids", "pairs.gone", "strategy `halves` of sdpo-example 0.1 fails"),
        ("layout", 'row["ask"]', 'row["question"]', "layout `quiz` of sdpo-example 0.1 fails"),
        ("layout", '"prompt":', '"ask":', "gives ask, chosen, rejected for this row"),
    ):
        path = package.site / "sdpo_example" / f"{module}.py"
        right = path.read_text(encoding="utf-8")
        path.write_text(right.replace(old, new), encoding="utf-8")
        with on_path(package.site):
            refused = sdpo("check", recipe)
        path.write_text(right, encoding="utf-8")
        assert refused.code == 2, (message, refused.told)
        assert message in refused.told, refused.told
        assert "Traceback" not in refused.told


def test_an_editable_install_is_digested_where_its_source_is(tmp_path: Path) -> None:
    source = write_package(tmp_path / "source")
    pip_install("--prefix", tmp_path / "prefix", "--editable", source)
    (about,) = tmp_path.glob("prefix/**/sdpo_example-0.1.dist-info")
    folder = about.parent
    before, finders = list(sys.path), list(sys.meta_path)
    try:
        with on_path(folder):
            site.addsitedir(str(folder))
            plugin = find("objectives", "half_dpo")
            assert plugin is not None
            assert not plugin.fault
            first = plugin.digest()
            (source / "sdpo_example" / "strategy.py").write_text("# another", encoding="utf-8")
            assert plugin.digest() != first
            assert "sdpo_example" not in sys.modules
            assert make_config({"training": {"objective": "half_dpo"}}).training
    finally:
        sys.path[:], sys.meta_path[:] = before, finders
