"""Tell where a run comes from: the run it replays or extends, and find that one again.

``run.yaml`` keeps it. The path says where the origin was, the digest of its identity which run it
is: an origin that moved together with its runs is found, and another run in its place is not
mistaken for it.
"""

from pathlib import Path

from sdpo.errors import IntegrityError, SdpoError, UserError
from sdpo.identity.canonical import digest_of
from sdpo.store.run_file import Origin
from sdpo.store.run_folder import RunFolder


def origin_chain(run: RunFolder, origin: Origin | None) -> tuple[list[RunFolder], list[str]]:
    """Return the origin, its origin and so on, nearest first, and a sentence about each not
    found."""
    chain: list[RunFolder] = []
    while origin is not None:
        here = chain[-1] if chain else run
        found = find_origin(here, origin)
        if found is None:
            return chain, [
                f"the origin {origin.run} of {here.name} is neither at {origin.path} nor beside it"
            ]
        if any(found.path.samefile(known.path) for known in [run, *chain] if known.path.exists()):
            return chain, [f"the origins of {run.name} lead in a circle at {found.name}"]
        chain.append(found)
        try:
            origin = found.read_run().origin
        except SdpoError as error:
            return chain, [f"the origin of {found.name} cannot be read: {error}"]
    return chain, []


def find_origin(run: RunFolder, origin: Origin) -> RunFolder | None:
    """Return the folder of the origin: where it was, or beside ``run``."""
    for path in (Path(origin.path), run.path.parent / origin.run):
        found = RunFolder(path)
        try:
            content = found.read_run()
        except (UserError, IntegrityError, OSError):
            continue
        if digest_of(content.identity) == origin.identity:
            return found
    return None
