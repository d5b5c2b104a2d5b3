"""Collect the pages of the site in a folder: ``python -m docs.site FOLDER``."""

import argparse
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from docs.site import commands, errors, files, notebooks, parts, settings
from docs.site import python as python_api

ROOT = Path(__file__).resolve().parents[2]
BESIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the project's folder that are pages of the site, under these names."""

GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/settings.md": settings.page,
    "reference/commands.md": commands.page,
    "reference/objectives.md": parts.objectives,
    "reference/strategies.md": parts.strategies,
    "reference/files.md": files.files,
    "reference/records.md": files.record_page,
    "reference/python.md": python_api.page,
    "reference/errors.md": errors.page,
    "reference/elsewhere.md": parts.others,
}

NAV: Mapping[str, tuple[str, ...]] = {
    "Start": ("index.md", "quickstart.md", "concepts.md", "troubleshooting.md", "limits.md"),
    "Data": ("data.md", "migrate.md", "from-trl.md"),
    "How to": (
        *("objectives.md", "references.md", "ablations.md", "curricula.md", "on-policy.md"),
        *("recipes.md", "compare.md", "adapters.md", "strategies.md", "hardware.md"),
        *("browser.md", "retraining.md", "containers.md", "kubernetes.md", "nodes.md"),
        *("remote.md", "running.md"),
        *("replay.md", "evaluation.md", "kl.md", "tracking.md", "push.md", "python.md"),
        "plugins.md",
    ),
    "Notebooks": ("notebooks/demo.md", "notebooks/objective.md"),
    "Reference": (*GENERATED, "files.md"),
    "About": (
        *("architecture.md", "architectures.md", "benchmarks.md", "results.md"),
        *BESIDE.values(),
    ),
}
"""Pages by part of the site; those that are not there are left out, others come under "More"."""


def collect(folder: Path) -> Path:
    """Write pages and configuration into ``folder``, and return the configuration's path."""
    pages = folder / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    (pages / "reference").mkdir(parents=True)
    for page in sorted((ROOT / "docs").glob("*.md")):
        _write(pages / page.name, page.read_text(encoding="utf-8"))
    for name, target in BESIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        _write(pages / target, text.replace("](docs/", "]("))
    (pages / "notebooks").mkdir()
    for notebook in sorted(notebooks.FOLDER.glob("*.ipynb")):
        _write(pages / "notebooks" / f"{notebook.stem}.md", notebooks.page(notebook))
    for name, page_of in GENERATED.items():
        _write(pages / name, page_of())
    with (pages / "index.md").open("a", encoding="utf-8") as index:
        index.write("\n## Reference\n\n" + "".join(_listed(pages, name) for name in GENERATED))
    shutil.copytree(ROOT / "docs" / "images", pages / "images")
    return _configure(folder, pages)


def nav(pages: Path) -> list[dict[str, list[str]]]:
    """Return the navigation over the pages that are there: every one of them is in it."""
    there = {str(path.relative_to(pages)) for path in pages.rglob("*.md")}
    known = {name for names in NAV.values() for name in names}
    found = [{part: [n for n in names if n in there]} for part, names in NAV.items()]
    more = sorted(there - known)
    return [*found, {"More": more}] if more else found


def _write(path: Path, text: str) -> None:
    """Write a page; links to files of the project's folder and to notebooks lead to their pages."""
    text = re.sub(r"(\]\(notebooks/\w+)\.ipynb\)", r"\1.md)", text)
    for name, target in BESIDE.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}", f"]({target}", text)
    path.write_text(text, encoding="utf-8")


def _listed(pages: Path, name: str) -> str:
    title = (pages / name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    return f"- [{title}]({name})\n"


def _configure(folder: Path, pages: Path) -> Path:
    config = yaml.safe_load((Path(__file__).with_name("mkdocs.yml")).read_text(encoding="utf-8"))
    python = next(p for p in config["plugins"] if "mkdocstrings" in p)["mkdocstrings"]["handlers"][
        "python"
    ]
    python["paths"] = [os.fspath(ROOT)]
    python["options"]["extensions"] = [os.fspath(Path(__file__).with_name("roles.py"))]
    target = folder / "mkdocs.yml"
    content = {**config, "docs_dir": pages.name, "site_dir": "site", "nav": nav(pages)}
    target.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.site", description=__doc__)
    parser.add_argument("folder", type=Path)
    print(collect(parser.parse_args().folder))
