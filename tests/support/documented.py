"""Commands in the documentation, and what it says that they print."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?(sdpo .*)$")


@dataclass(frozen=True, slots=True)
class Documented:
    """A command of a page, without its comment, and the lines below it up to the next one."""

    page: str
    text: str
    printed: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """Its arguments, as a shell gives them; where its output goes is left out."""
        return shlex.split(self.text.partition(" > ")[0])[1:]

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def documented(*pages: str) -> list[Documented]:
    """The commands of these pages, of all without one, in order."""
    wanted = [page for page in PAGES if not pages or page.stem in pages]
    return [command for page in wanted for command in _of(page)]


def _of(page: Path) -> Iterator[Documented]:
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if "sdpo check NAME looks at one" in block:  # what `sdpo recipes` prints
            continue
        text, printed = "", list[str]()
        for line in block.splitlines():
            if found := COMMAND.match(line):
                yield from [Documented(page.name, text, tuple(printed))] * bool(text)
                text, printed = found[1].partition("  #")[0].strip(), []
            else:
                printed.append(line)
        yield from [Documented(page.name, text, tuple(printed))] * bool(text)
