"""Names of suites and tasks: where they are found, and which are refused with what was meant."""

from pathlib import Path

import pytest

from sdpo.config.load import make_config
from sdpo.errors import ConfigError
from sdpo.evaluation.task_names import TaskFiles, check_known
from sdpo.system.permissions import TASK_FOLDERS, may_use_tasks_of


def test_names_are_found_by_a_look_at_the_lines_of_files(tmp_path: Path) -> None:
    for name, text in (
        ("law/law.yaml", "task: law_exam  # with a remark\ntag:\n  - exams\n  - all\n"),
        ("art/art.yaml", "tag: exams\ntask: 'art_exam'\ndescription: 'task: no_name'\n"),
        ("all.yaml", "group: every_exam\ntask:\n  - law_exam\n"),
        ("art/_template_yaml", "task: no_yaml_file\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = TaskFiles.in_folder(tmp_path)
    assert found.names == ["all", "art_exam", "every_exam", "exams", "law_exam"]
    assert found.tags["exams"] == {"law_exam", "art_exam"}
    assert found.files["every_exam"] == tmp_path / "all.yaml"


def test_a_name_that_no_task_has_is_told_with_the_nearest() -> None:
    check_known(["mmlu"], ["mmlu", "truthfulqa_mc2"])
    with pytest.raises(ConfigError, match=r"`truthful_qa_mc2`.*did you mean truthfulqa_mc2\?"):
        check_known(["truthful_qa_mc2"], ["mmlu", "truthfulqa_mc2"])


@pytest.mark.parametrize("name", ["", " @5", "mmlu@", "mmlu@five", "mmlu@-1"])
def test_what_cannot_be_a_suite_is_refused_where_it_stands(name: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.suites: .* is no suite or task"):
        make_config({"evaluation": {"suites": [name]}})


def test_the_same_suite_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="mmlu stands twice"):
        make_config({"evaluation": {"suites": ["mmlu", "mmlu"]}})


def test_task_files_are_used_where_the_machines_owner_permits_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, other = tmp_path / "tasks", tmp_path / "tasks-of-others"
    for folder in (tasks / "inner", other):
        folder.mkdir(parents=True)
    (tasks / "way-out").symlink_to(other)
    monkeypatch.delenv(TASK_FOLDERS, raising=False)
    assert not may_use_tasks_of(tasks)
    monkeypatch.setenv(TASK_FOLDERS, f"/nowhere:{tasks}")
    assert may_use_tasks_of(tasks)
    assert may_use_tasks_of(tasks / "inner")
    assert not may_use_tasks_of(other)
    assert not may_use_tasks_of(tasks / "way-out"), "what a link leads to is what counts"
    monkeypatch.setenv(TASK_FOLDERS, "tasks")
    monkeypatch.chdir(tmp_path)
    assert not may_use_tasks_of(tasks), "a relative one would mean whatever folder is current"
