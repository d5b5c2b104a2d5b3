"""A version comes from the tag, and is one wherever there is none."""

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
BUILD = runpy.run_path(str(ROOT / "setup.py"))
FALLBACK = Version(BUILD["FALLBACK"])
Git = Callable[..., None]


def version_of(folder: Path) -> Version:
    return Version(BUILD["version_of"](folder))


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDPO_VERSION", raising=False)


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """A repository with one commit, which git's own settings on this machine do not reach."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")

    def call(*words: str) -> None:
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    call("init", "--quiet")
    call("commit", "--quiet", "--allow-empty", "--message", "first")
    return call


def test_a_tagged_commit_has_the_version_of_its_tag(git: Git, tmp_path: Path) -> None:
    git("tag", "v0.2.0")
    assert version_of(tmp_path) == Version("0.2.0")


def test_what_follows_a_tag_is_the_development_of_the_next_version(
    git: Git, tmp_path: Path
) -> None:
    git("tag", "v0.2.0")
    for _ in range(3):
        git("commit", "--quiet", "--allow-empty", "--message", "more")
    found = version_of(tmp_path)
    assert Version("0.2.0") < found < Version("0.2.1")
    assert (found.dev, str(found.local)[0]) == (3, "g")


def test_changed_files_are_not_the_tagged_version(git: Git, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--quiet", "--message", "a")
    git("tag", "v0.2.0rc1")
    assert version_of(tmp_path) == Version("0.2.0rc1")
    (tmp_path / "a").write_text("2")
    found = version_of(tmp_path)
    assert found.dev == 0
    assert str(found.local).endswith(".dirty")
    assert found.release == (0, 2, 0)


def test_other_tags_are_no_versions(git: Git, tmp_path: Path) -> None:
    git("tag", "verified")
    assert version_of(tmp_path) == FALLBACK


def test_a_clone_without_tags_has_the_fallback(git: Git, tmp_path: Path) -> None:
    git("tag", "v3.0.0")
    git("clone", "--quiet", "--no-tags", f"file://{tmp_path}", str(tmp_path / "clone"))
    assert version_of(tmp_path / "clone") == FALLBACK
    assert version_of(tmp_path) == Version("3.0.0")


def test_an_archive_within_another_repository_is_not_taken_for_it(git: Git, tmp_path: Path) -> None:
    git("tag", "v3.0.0")
    (tmp_path / "archive").mkdir()
    assert version_of(tmp_path / "archive") == FALLBACK


def test_an_sdist_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: sdpo\nVersion: 0.3.0\n")
    assert version_of(tmp_path) == Version("0.3.0")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("v0.2.0", "0.2.0"),
        ("0.2.0rc1", "0.2.0rc1"),
        ("v0.2.0-4-gabcdef1", "0.2.1.dev4+gabcdef1"),
        *((str(said), str(said)) for said in (FALLBACK, "0.2.1.dev4+gabcdef1.dirty")),
    ],
)
def test_a_version_can_be_given(
    given: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDPO_VERSION", given)
    assert version_of(tmp_path) == Version(found)


def test_what_is_given_and_is_no_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDPO_VERSION", "main")
    with pytest.raises(SystemExit, match=r"SDPO_VERSION=main is no version"):
        version_of(tmp_path)


def test_the_changelog_has_the_release_that_the_fallback_leads_to() -> None:
    assert f"\n## {FALLBACK.base_version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
