"""Put numbers into words of messages."""


def noun(number: int, one: str, more: str = "") -> str:
    """Return the word for so many: ``one``, else ``more``, which is ``one`` with an s if empty."""
    return one if number == 1 else more or f"{one}s"


def counted(number: int, one: str, more: str = "") -> str:
    """Return ``1 row``, ``2 rows``: a number with its :func:`noun`."""
    return f"{number} {noun(number, one, more)}"


def be(number: int) -> str:
    """Return the verb for so many: ``is`` or ``are``."""
    return noun(number, "is", "are")
