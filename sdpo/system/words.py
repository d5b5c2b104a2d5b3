"""Put numbers into words of messages."""


def counted(number: int, one: str, more: str = "") -> str:
    """Return ``1 row``, ``2 rows``: ``one`` is the word for one, ``more`` that for others.

    Without ``more`` it is ``one`` with an s.
    """
    return f"{number} {one if number == 1 else more or f'{one}s'}"
