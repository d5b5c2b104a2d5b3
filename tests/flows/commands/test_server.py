"""What ``sdpo server`` decides before it starts anything."""

import json
import os
from pathlib import Path

import pytest
from bench import Values
from rich.console import Console

from flows.commands import desk, server
from flows.commands.desk import AUTH, CLIENT_AUTH, Desk, credentials, environment, make_password
from flows.commands.server_address import check_open
from sdpo.config.load import make_config
from sdpo.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's folder, and no password in the environment."""
    monkeypatch.delenv(AUTH, raising=False)
    return tmp_path


def test_a_password_is_made_once_and_is_its_owners_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        make_password(folder)
    finally:
        os.umask(before)
    assert (folder / "password").stat().st_mode & 0o777 == 0o600
    first = credentials(folder)
    user, _, password = first.partition(":")
    assert user == "sdpo"
    assert len(password) >= 32
    make_password(folder)
    assert credentials(folder) == first
    other = folder / "other"
    other.mkdir()
    make_password(other)
    assert credentials(other) != first


def test_a_password_of_ones_own_is_taken_and_not_written_down(folder, monkeypatch) -> None:
    monkeypatch.setenv(AUTH, "me:my own")
    make_password(folder)
    assert not (folder / "password").exists()
    assert credentials(folder) == "me:my own"


@pytest.mark.parametrize("value", ["", "me", "me:", ":secret"])
def test_a_password_that_nobody_could_say_is_refused(folder, monkeypatch, value) -> None:
    monkeypatch.setenv(AUTH, value)
    with pytest.raises(UserError, match="write it as user:password"):
        credentials(folder)


def test_a_password_that_is_gone_is_asked_for(folder: Path) -> None:
    with pytest.raises(UserError, match="set it to the same again"):
        credentials(folder)


def test_server_and_clients_have_it_and_one_without_has_none(folder, monkeypatch) -> None:
    made = environment(folder, "http://127.0.0.1:1", "sdpo:secret")
    assert made[AUTH] == made[CLIENT_AUTH] == "sdpo:secret"
    assert made["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    monkeypatch.setenv(CLIENT_AUTH, "of:another server")
    assert not {AUTH, CLIENT_AUTH} & environment(folder, "http://127.0.0.1:1", "").keys()


def test_a_server_of_before_passwords_is_known_to_ask_nobody(folder: Path) -> None:
    (folder / "processes.json").write_text(json.dumps({"url": "http://127.0.0.1:1"}))
    assert not Desk.read(folder).asks


@pytest.mark.parametrize(
    ("host", "hosts"),
    [("0.0.0.0", []), ("::", []), ("192.0.2.7", []), ("trainer", []), ("127.0.0.1", ["trainer"])],
)
def test_a_server_without_a_password_is_reached_from_this_machine_alone(
    folder, host, hosts, tmp_path
) -> None:
    with pytest.raises(UserError, match="eave out one of the two"):
        server.up(
            host=host, port=1, folder=tmp_path / "desk", console=Console(), hosts=hosts, asks=False
        )
    assert not (tmp_path / "desk").exists()


def test_to_ask_and_not_to_ask_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setenv(AUTH, "me:secret")
    with pytest.raises(UserError, match="choose one"):
        server.up(host="127.0.0.1", port=1, folder=folder, console=Console(), asks=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_addresses_may_go_without(folder, host) -> None:
    check_open(host, ["localhost"], asks=False)


def test_the_form_means_the_files_that_the_recipe_means_here(
    folder: Path, tiny_recipe: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's relative paths start elsewhere."""
    (folder / "pairs.jsonl").write_text("{}\n")
    (folder / "base").mkdir()
    monkeypatch.chdir(folder)
    sources = [{"name": "mine", "path": "pairs.jsonl"}, {"name": "hub", "path": "org/pairs"}]
    values = {
        "name": "mine",
        "model": {"name_or_path": "base", "chat_template": "{{ messages }}" * 500},
        "data": {"sources": sources},
        "steps": [{"reference_model": "base"}, {"reference_model": "org/model"}],
        "store": {"cache_dir": "cache"},
    }
    sent: list[Values] = []
    monkeypatch.setattr(server, "running_desk", lambda folder: None)
    monkeypatch.setattr(server, "form_url", lambda desk, name, given: sent.append(given))
    server.form_address(make_config(values), folder=desk.FOLDER)
    (given,) = sent
    assert [each["path"] for each in given["data"]["sources"]] == [
        str(folder / "pairs.jsonl"),
        "org/pairs",
    ]
    assert given["model"]["name_or_path"] == str(folder / "base")
    assert given["model"]["chat_template"] == "{{ messages }}" * 500
    assert [step["reference_model"] for step in given["steps"]] == [
        str(folder / "base"),
        "org/model",
    ]
    assert given["store"] == {"cache_dir": str(folder / "cache"), "runs_dir": str(folder / "runs")}
