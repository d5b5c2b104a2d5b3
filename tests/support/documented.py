"""Commands in the documentation, and what it says that they print."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?(sdpo .*)$")
INLINE = re.compile(r"`((?:sdpo|make|python -m benchmarks\.\w+)(?: [^`]*)?)`")
OTHERS = ("make", "pip", "python", "docker", "kubectl", "hf", "cp", "mkdir", "printf", "openssl")
"""Pages call these programs besides ``sdpo``."""


@dataclass(frozen=True, slots=True)
class Documented:
    """A command of a page, without its comment, and the lines below it up to the next one."""

    page: str
    text: str
    printed: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Its arguments, as a shell gives them; where its output goes is left out."""
        return shlex.split(re.split(r" [>|] ", self.text)[0])[1:]

    @property
    def target(self) -> str:
        """The file that its output goes to; empty where that is shown."""
        found = re.search(r" > (\S+)$", self.text)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def documented(*pages: str) -> list[Documented]:
    """The commands of these pages, of all without one, in order."""
    wanted = [page for page in PAGES if not pages or page.stem in pages]
    return [command for page in wanted for command in _of(page)]


def inline_commands() -> list[Documented]:
    """Commands that stand within sentences."""
    return [
        Documented(page.name, " ".join(found.split()))
        for page in PAGES
        for found in INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        if "…" not in found
    ]


def other_commands() -> list[Documented]:
    """Commands of blocks that call another program than ``sdpo``; what goes on in the next line is
    joined."""
    return [
        Documented(page.name, line.removeprefix("$ ").partition("  #")[0].strip())
        for page in PAGES
        for kind, block in BLOCK.findall(page.read_text(encoding="utf-8"))
        if kind in ("", "bash", "console")
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if line.startswith("$ ") == (kind == "console")
        if line.removeprefix("$ ").split(" ")[0] in OTHERS
    ]


def yaml_blocks() -> list[tuple[str, str]]:
    """Each YAML block with the name of its page."""
    return [
        (page.name, text)
        for page in PAGES
        for kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))
        if kind == "yaml"
    ]


def _of(page: Path) -> Iterator[Documented]:
    for _, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if "sdpo check NAME looks at one" in block:  # what `sdpo recipes` prints
            continue
        text, printed = "", list[str]()
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if found := COMMAND.match(line):
                yield from [Documented(page.name, text, tuple(printed))] * bool(text)
                text, printed = found[1].partition("  #")[0].strip(), []
            else:
                printed.append(line)
        yield from [Documented(page.name, text, tuple(printed))] * bool(text)
