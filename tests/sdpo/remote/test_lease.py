"""One process owns a run, and who has lost it learns it."""

import threading
from typing import Any

import pytest
from http_store import Store

from sdpo.errors import IntegrityError, InUseError
from sdpo.events import Event
from sdpo.remote.lease import Lease, LostRunError, Owner, acquire, newest, this_process
from sdpo.remote.place import Place, open_place

SILENCE_S = 2.0


@pytest.fixture
def place(store: Store) -> Place:
    return open_place(store.url, "tiny")


def owner(folder: str = "/here", silence_s: float = SILENCE_S) -> Owner:
    return this_process(folder=folder, silence_s=silence_s)


def test_of_many_who_try_at_once_one_owns_the_run(place: Place) -> None:
    start, got, refused = threading.Barrier(5), list[Lease](), list[str]()

    def try_it(number: int) -> None:
        start.wait()
        try:
            lease = acquire(place, owner(f"/{number}"), sleep=lambda s: None)
            got.append(lease)
            for _ in range(60):
                lease.say()
        except (InUseError, LostRunError) as error:
            refused.append(str(error))

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alive = [lease for lease in got if lease.number == newest(place)]
    assert len(alive) == 1
    assert len({lease.number for lease in got}) == len(got)


def test_an_owner_that_is_silent_is_taken_over_and_told_so_when_it_comes_back(place: Place) -> None:
    first = acquire(place, owner("/there"))
    events: list[Event] = []
    second = acquire(place, owner(), listen=events.append)
    assert second.number == 2
    assert not second.was_mine
    assert [e["event"] for e in events] == ["waiting", "waited", "warning"]
    assert "has said nothing for 2 s: taken over" in str(events[-1]["message"])
    with pytest.raises(LostRunError, match="was taken over by process"):
        first.say()
    for folder in ("/third", "/fourth"):  # what older owners said is forgotten
        acquire(place, owner(folder, 0.1))
        place.write(
            f"lease/{newest(place):08d}.beat.json",
            owner().model_copy(update={"ended": True}).model_dump_json().encode(),
        )
    with pytest.raises(LostRunError):
        first.check()


def test_an_owner_that_lives_is_not_taken_over(place: Place) -> None:
    lease = acquire(place, owner("/there"))
    with pytest.raises(InUseError, match=r"the run at .* is in use by process"):
        acquire(place, owner(), sleep=lambda seconds: lease.say())
    assert newest(place) == 1


def test_one_that_waits_gets_the_run_when_it_is_given_back(place: Place) -> None:
    lease, looks = acquire(place, owner("/there")), iter(range(100))
    second = acquire(
        place, owner(), wait=True, sleep=lambda seconds: lease.say(ended=next(looks) == 3)
    )
    assert second.number == 2


def test_the_same_folder_goes_on_at_once_and_knows_that_nobody_wrote_between(place: Place) -> None:
    first = acquire(place, owner())
    never = pytest.fail
    again = acquire(place, owner(), known=first.owner.token, sleep=lambda s: never("waited"))
    assert (again.number, again.was_mine) == (2, True)
    again.say(ended=True)
    copied = acquire(place, owner("/copy"), known=again.owner.token)
    assert (copied.number, copied.was_mine) == (3, False)


@pytest.mark.parametrize("content", [b"mine", b"{}", b"\xff"])
def test_what_does_not_say_who_owns_the_run_is_not_written_over(
    place: Place, content: bytes
) -> None:
    place.write("lease/00000001.json", content)
    with pytest.raises(IntegrityError, match="does not say who owns the run"):
        acquire(place, owner())
    assert place.read("lease/00000001.json") == content


def test_a_claim_whose_answer_was_lost_is_known_as_ones_own(place: Place, store: Store) -> None:
    mine, real = owner(), place.create
    said: list[bool] = []

    class Lossy:
        """The first creation is done, and its sender is told that somebody was before."""

        def create(self, name: str, content: bytes) -> bool:
            done = real(name, content)
            said.append(done)
            return done and len(said) > 1

        def __getattr__(self, name: str) -> Any:
            return getattr(place, name)

    assert acquire(Lossy(), mine).number == 1  # type: ignore[arg-type]
    assert said[0]
