"""Nodes as values: one list, and what executing and looking ahead make of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import TypeVar

import pytest

from sdpo.chain.context import Context
from sdpo.chain.execute import Execution, execute
from sdpo.chain.node import Cached, Errand, Expansion, Find, Identity, Look, Made, Node, Part
from sdpo.config import RunConfig
from sdpo.events import Event, NodeEvent
from sdpo.history.dryrun import DryRun, NodeLine
from sdpo.hooks import Host
from sdpo.inputs.resolve import Resolved
from sdpo.store.reuse import NOT_DONE
from sdpo.store.run_folder import RunFolder

T = TypeVar("T")


class Place:
    """A run folder, and nodes that write a file each."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        self.called: list[str] = []
        run = RunFolder(folder / "run")
        run.path.mkdir()
        self.context = Context(
            run=run,
            resolved=Resolved(
                config=RunConfig(), model=folder, inputs={}, has_template=False, references={}
            ),
            cache=folder / "cache",
            clock="",
            host=Host(call=self._call, listen=self.events.append),
        )

    def _call(self, name: str, function: Callable[..., T], /, *args: object) -> T:
        self.called.append(name)
        return function(*args)

    def file(self, name: str) -> Path:
        return self.context.run.path / f"{name}.json"

    def node(
        self,
        name: str,
        *inputs: str,
        title: str = "",
        first: Callable[[], Sequence[Part]] = tuple,
    ) -> Node:
        """A node that writes what its inputs have, and depends on it."""

        def identity() -> Identity:
            return {"read": [self.file(other).read_text() for other in inputs]}

        def make(_find: Find) -> Made:
            self.file(name).write_text(json.dumps({name: dict(identity())}))
            return Made({}, [self.file(name)])

        return Node(
            name=name, title=title, inputs=inputs, identity=identity, make=make, first=first
        )

    def cached(self, name: str, *inputs: str) -> Cached:
        """A file in the place of a cache."""
        path = self.file(name)
        return Cached(
            name=name,
            inputs=inputs,
            fault=lambda: "" if path.is_file() else "not cached",
            make=lambda _locks: path.write_text(name) and None,
        )


def nodes(events: Sequence[Event]) -> list[NodeEvent]:
    return [event for event in events if isinstance(event, NodeEvent)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_node_is_done_once_and_again_where_what_it_reads_has_changed(place: Place) -> None:
    parts = [place.node("a"), place.node("b", "a")]
    assert execute(place.context, parts).executed == ["a", "b"]
    assert execute(place.context, parts).executed == []
    changed = [place.node("new"), place.node("a", "new"), place.node("b", "a")]
    assert execute(place.context, changed).executed == ["new", "a", "b"]


def test_what_is_cached_of_a_new_input_is_not_said_to_be_made_again(place: Place) -> None:
    parts = [place.node("data"), place.cached("tokens", "data")]
    assert execute(place.context, parts).executed == ["data", "tokens"]
    assert [event.reason for event in nodes(place.events)] == [NOT_DONE, NOT_DONE]
    place.file("tokens").unlink()
    assert execute(place.context, parts).executed == ["tokens"]
    assert nodes(place.events)[-1].reason == "not cached"


def test_an_expansion_is_asked_when_what_stands_before_it_is_done(place: Place) -> None:
    def expand() -> list[Part]:
        assert place.file("plan").is_file(), "the plan is done before its steps are asked for"
        return [place.node("step-1", "plan"), place.node("step-2", "step-1")]

    done = execute(place.context, [place.node("plan"), Expansion(expand=expand)])
    assert done.executed == ["plan", "step-1", "step-2"]


def test_what_is_done_first_is_done_only_for_a_node_that_is_not_there(place: Place) -> None:
    scored = place.cached("scored")
    parts = [place.node("a", first=lambda: [scored])]
    assert execute(place.context, parts).executed == ["a", "scored"]
    place.file("scored").unlink()
    assert execute(place.context, parts).executed == []
    assert not place.file("scored").exists()


def test_the_host_calls_what_has_a_title_and_hears_of_each_node(place: Place) -> None:
    inner = place.node("b")
    execute(place.context, [place.node("a", title="make a"), Expansion(expand=lambda: [inner])])
    assert place.called == ["make a"]
    assert [(e["node"], e["status"]) for e in place.events] == [("a", "run"), ("b", "run")]


def test_a_dry_run_does_nothing_and_tells_a_node_by_what_it_reads(place: Place) -> None:
    parts = [place.node("a"), place.node("aside"), place.node("b", "a"), place.node("c", "aside")]
    execute(place.context, parts)
    ran: list[str] = []
    dry = DryRun(place.context)
    dry.open.add("a")  # as where it has to be done
    dry.go_through([*parts[1:], Errand(do=lambda: ran.append("errand"))])
    assert [(line.node, line.action) for line in dry.lines] == [
        ("aside", "REUSE"),
        ("b", "RUN IF"),
        ("c", "REUSE"),
    ]
    assert ran == []


def test_a_dry_run_shows_what_is_not_expanded_yet_as_a_rule(place: Place) -> None:
    def never() -> list[Part]:
        raise AssertionError("nobody knows the plan")

    steps = Expansion(expand=never, rule="a step for each partition of the plan")
    known = Expansion(expand=never, foreseen=lambda: ("step-1", "step-2"))
    dry = DryRun(place.context)
    dry.go_through([place.cached("tokens"), place.node("plan"), steps, known])
    told = "an earlier output differs"
    assert dry.lines == [
        NodeLine("tokens", "RUN", "not cached"),
        NodeLine("plan", "RUN IF", told),
        NodeLine("a step for each partition of the plan", "RUN IF", told),
        NodeLine("step-1", "RUN IF", told),
        NodeLine("step-2", "RUN IF", told),
    ]
    assert not place.file("tokens").exists()


def test_a_look_is_taken_by_whoever_goes_through(place: Place) -> None:
    looked: list[str] = []
    parts = [Look(look=lambda: looked.append("looked"))]
    execute(place.context, parts)
    DryRun(place.context).go_through(parts)
    assert looked == ["looked", "looked"]


def test_nothing_intercepts_a_context(place: Place) -> None:
    assert Context.__subclasses__() == []
    with pytest.raises(FrozenInstanceError):
        place.context.cache = Path()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        place.context.host.listen = print  # type: ignore[misc]
    assert Execution(place.context).executed == []
