"""Who is taken as a node, who is refused, and by whom: a head and members over real sockets."""

import re
import threading
from pathlib import Path

import pytest

from flows.commands.nodes import join_run
from sdpo.config import LaunchConfig, ModelConfig
from sdpo.config.nodes import Address
from sdpo.events import EventReader
from sdpo.processes.nodes.head import Head
from sdpo.processes.nodes.meeting import node_versions, objection, read_token, write_token
from sdpo.processes.nodes.member import Member
from sdpo.processes.nodes.outlook import ByPeople
from sdpo.processes.nodes.rendezvous import address_by_variables, listener, listening
from sdpo.processes.nodes.words import Challenge, Hello, Work, proof_of, word_of
from sdpo.processes.stage_specs import ViewSpec

HERE = Address("127.0.0.1", 0)
NONCE, SECRET = "n" * 32, "s" * 64


def hello(**fields: object) -> Hello:
    known: dict[str, object] = {
        "host": "node-b",
        "pid": 7,
        "address": "10.0.0.2",
        "proof": proof_of(SECRET, NONCE),
        "nonce": "m",
        "versions": node_versions(),
        "gpus": 0,
        "is_own": False,
    }
    return Hello.model_validate(known | fields)


@pytest.mark.parametrize(
    ("fields", "launch", "why"),
    [
        ({}, {}, ""),
        ({"gpus": 4}, {"device": "cuda", "processes": 8, "nodes": 2}, ""),
        (
            {"gpus": 3},
            {"device": "cuda", "processes": 8, "nodes": 2},
            r"node node-b has 3 CUDA devices, and each node is to run 4 ",
        ),
        ({"proof": ""}, {}, r"node node-b does not see /shared/step-1\.nodes\.json"),
        ({"proof": proof_of("x", NONCE)}, {}, r"node node-b sees another step-1\.nodes\.json"),
        (
            {"versions": node_versions() | {"torch": "2.1.0"}},
            {},
            r"node node-b has other versions: torch 2\.1\.0 there, .* here",
        ),
        ({"versions": {}}, {}, r"sdpo absent there, .* here"),
    ],
)
def test_a_node_is_taken_or_refused_by_name(
    fields: dict[str, object], launch: dict[str, object], why: str
) -> None:
    found = objection(
        hello(**fields),
        launch=LaunchConfig.model_validate({"device": "cpu"} | launch),
        token=Path("/shared/step-1.nodes.json"),
        secret=SECRET,
        nonce=NONCE,
    )
    assert re.search(why, found) if why else found == ""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ViewSpec:
    """A stage that fails at its file, which is none of tokens."""
    monkeypatch.setenv("SDPO_LOCK_DIR", str(tmp_path / "locks"))
    (tmp_path / "tokens.arrow").write_bytes(b"not arrow")
    (tmp_path / "run" / "logs").mkdir(parents=True)
    spec = ViewSpec(
        name="view",
        run=tmp_path / "run",
        model=ModelConfig(),
        launch=LaunchConfig(device="cpu", launcher="torchrun", threads=1),
        tokenizer=tmp_path,
        tokens=tmp_path / "tokens.arrow",
        row=0,
    )
    path(spec).write_text(spec.model_dump_json(), encoding="utf-8")
    return spec


def path(spec: ViewSpec) -> Path:
    return spec.run / "logs" / "view.json"


def member(address: Address, told: list[str]) -> Member:
    return Member(rendezvous=address, once=True, is_own=False, patience_s=5, tell=told.append)


def test_a_stage_of_another_node_ends_with_its_own_message_and_its_events(spec: ViewSpec) -> None:
    told: list[str] = []
    server, address = listener(HERE)
    with server:
        head = Head(
            spec,
            path(spec),
            server=server,
            outlook=ByPeople(address, own=False),
            asked=lambda: False,
        )
        there = threading.Thread(target=member(address, told).run)
        there.start()
        outcome = head.run()
        there.join(30)
    assert outcome.code == 1
    events = list(EventReader(spec.events).read())
    (error,) = [event for event in events if event.event == "error"]
    assert not error.user
    assert "tokens.arrow" in error.message
    assert [event.event for event in events][:2] == ["waiting", "waited"]
    assert told[-1] == f"node 0 of 1 for {path(spec)}"
    assert not list(spec.log.parent.glob("*.nodes.json"))


def test_a_head_that_is_asked_to_stop_ends_while_it_waits(spec: ViewSpec) -> None:
    server, address = listener(HERE)
    with server:
        outlook = ByPeople(address, own=False)
        head = Head(spec, path(spec), server=server, outlook=outlook, asked=lambda: True)
        assert head.run().code == 143
    assert [event.event for event in EventReader(spec.events).read()] == ["waiting", "interrupted"]


def test_a_node_does_not_work_for_a_head_that_does_not_know_the_folder(tmp_path: Path) -> None:
    token, told, codes = tmp_path / "stage.nodes.json", list[str](), list[int]()
    write_token(token)
    server, address = listener(HERE)
    with server:
        there = threading.Thread(target=lambda: codes.append(member(address, told).run()))
        there.start()
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as lines:
            asked = Challenge(protocol=1, token=token, nonce=NONCE)
            lines.write(asked.model_dump_json().encode() + b"\n")
            lines.flush()
            heard = word_of(lines.readline())
            while not isinstance(heard, Hello):
                heard = word_of(lines.readline())
            work = Work(
                proof=proof_of("guessed", heard.nonce),
                spec=tmp_path / "spec.json",
                node=0,
                nodes=1,
                per_node=1,
                files=[],
            )
            lines.write(work.model_dump_json().encode() + b"\n")
            lines.flush()
            there.join(10)
    assert codes == [2]
    assert "does not know the run's own folder" in told[-1]


def test_a_node_answers_about_no_other_file_than_a_token(tmp_path: Path) -> None:
    for name, is_token in (("step-1.nodes.json", True), ("secrets.json", False)):
        secret = write_token(tmp_path / name)
        assert read_token(tmp_path / name) == (secret if is_token else "")
    (tmp_path / "bad.nodes.json").write_text("[1, 2]")
    assert read_token(tmp_path / "bad.nodes.json") == ""
    assert read_token(tmp_path / "none.nodes.json") == ""


def test_a_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    token = tmp_path / "stage.nodes.json"
    write_token(token)
    assert token.stat().st_mode & 0o777 == 0o600
    assert write_token(token) != write_token(token)


def test_an_address_that_is_taken_or_elsewhere_is_refused_with_the_remedy() -> None:
    server, address = listener(HERE)
    with server:
        for place in (str(address), "192.0.2.1:29400"):
            launch = LaunchConfig(launcher="torchrun", rendezvous=place, device="cpu")
            refused = pytest.raises(ValueError, match=r"nobody can be waited for .*rendezvous")
            with refused, listening(launch):
                pass


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, None),
        ({"MASTER_ADDR": "node-a"}, Address("node-a", 29400)),
        ({"MASTER_ADDR": "node-a", "MASTER_PORT": "1234"}, Address("node-a", 1234)),
        ({"PET_MASTER_ADDR": "fd00::1", "PET_MASTER_PORT": "1234"}, Address("fd00::1", 1234)),
        (
            {"MASTER_ADDR": "node-a", "MASTER_PORT": "1234", "TORCHELASTIC_RUN_ID": "none"},
            Address("node-a", 1235),  # at the former it listens itself
        ),
    ],
)
def test_launchers_say_where_the_run_is_by_their_variables(
    variables: dict[str, str], address: Address | None
) -> None:
    assert address_by_variables(variables) == address


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"])
def test_of_several_that_a_launcher_starts_on_a_node_the_first_one_joins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setenv(name, "3")
    assert join_run("127.0.0.1:1", patience_s=0, tell=told.append) == 0
    assert told == ["process 3 that was started on this node: the first one joins for all of it"]
    monkeypatch.setenv(name, "0")
    assert join_run("127.0.0.1:1", patience_s=0, tell=told.append) == 1, "it looks for the run"
