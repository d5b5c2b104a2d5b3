"""Who may import whom, and what the process that a person starts must never load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from bench import Bench, Outcome
from importlinter import api
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "sdpo", "partitions")
RUN_APP = "import sys; from flows.cli.app import run_app; print(run_app(sys.argv[1:]))"
HEAVY = "{'torch', 'transformers', 'prefect', 'matplotlib'}"
SAY_HEAVY = f"import sys; print(sorted({HEAVY} & set(sys.modules)))"
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


def top_level_imports(path: Path) -> set[str]:
    """Modules of this project that are imported when ``path`` is."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else node.module for name in inner}
    return found & NAMES.keys()


def python(code: str, *arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_contracts_of_the_layers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = api.read_configuration(str(ROOT / "pyproject.toml"))
    assert {contract["name"] for contract in settings["contracts_options"]} == {
        "flows -> sdpo -> partitions",
        "the engine knows no Prefect",
        "partitions are decided without a model",
        "the engine's floors: a room imports what is below it",
        "commands over flows over what Prefect's UI and a terminal show",
        "strategies over draws over pairs",
        "the process that runs the chain loads no model's code",
        "torch and transformers are the stages'",
        "the command line knows no Prefect",
    }
    assert lint_imports(no_cache=True, no_logo=True) == EXIT_STATUS_SUCCESS


def test_no_modules_import_each_other_in_a_circle() -> None:
    imports = {name: top_level_imports(path) for name, path in NAMES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(imports[name] - {name}):
                visit(other, (*trail, name))
            done.add(name)

    for name in imports:
        visit(name, ())
    assert len(done) == len(NAMES) > 60


@pytest.mark.parametrize(
    "module",
    ["flows.cli.app", "flows.commands.run", "flows.commands.check", "sdpo.chain.run_chain"],
)
def test_the_parent_process_loads_neither_torch_nor_transformers_nor_prefect(module: str) -> None:
    done = python(f"import {module}; {SAY_HEAVY}")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_whole_partition_call_loads_neither_torch_nor_transformers(bench: Bench) -> None:
    done = python(f"{RUN_APP}; {SAY_HEAVY}", "partition", bench.write())
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stderr


def test_a_whole_second_run_loads_neither_torch_nor_transformers(
    finished_copy: Bench, finished: Outcome
) -> None:
    assert finished.folder.is_dir()
    done = python(f"{RUN_APP}; {SAY_HEAVY}", "run", finished_copy.write())
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stderr


def test_the_engine_imports_where_prefect_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['prefect'] = None\n"
        "import importlib\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        if error.name not in ('lm_eval',): raise  # of the extra `eval`\n"
        "from flows.cli import app as cli; print(cli.run_app(['--version']))"
    )
    engine = [name for name in NAMES if not name.startswith("flows")]
    done = python(code, *engine)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0"


def test_every_package_is_named_in_the_distribution() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = set(settings["tool"]["setuptools"]["packages"])
    assert named == {name_of(path) for path in MODULES if path.name == "__init__.py"}


def test_every_module_says_what_it_owns() -> None:
    silent = [n for n, p in NAMES.items() if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not silent


def test_arrow_takes_its_memory_from_the_process_and_keeps_none_of_what_was_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL")
    done = python(
        "import flows.cli.app, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    )
    assert done.stdout.strip() == "system", done.stderr
