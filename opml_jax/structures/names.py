"""What structures are called in messages: by their places in the user's file, not in a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

_NAMES: ContextVar[Sequence[object]] = ContextVar("names", default=())


@contextlib.contextmanager
def called(names: Sequence[object]) -> Iterator[None]:
    """Within it, messages about one of so many structures have these names.

    Args:
      names: of each: its index in a file, perhaps with the file (``"3 of water.xyz"``).
    """
    token = _NAMES.set(names)
    try:
        yield
    finally:
        _NAMES.reset(token)


def name_of(i: int) -> str:
    """What structure ``i`` of a list is called: its index, unless it has a name."""
    names = _NAMES.get()
    return str(names[i] if i < len(names) else i)
