"""Many structures a few at a time, and fewer where memory lacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from ..errors import Code, DataWarning, OpmlError, memory_wanted

T = TypeVar("T")


def in_chunks(evaluate: Callable[[int], T], n: int, sizes: Sequence[int]) -> T:
    """What ``evaluate(size)`` gives for the smallest size that holds all, or the largest.

    Args:
      evaluate: does all, so many structures at once.
      n: structures.
      sizes: ascending. Where memory lacks the first is taken instead, with a warning.

    Raises:
      OpmlError: memory lacks for that too.
    """
    size = next((c for c in sizes if c >= n), sizes[-1])
    while True:
        try:
            return evaluate(size)
        except jax.errors.JaxRuntimeError as err:
            wanted = memory_wanted(err)
            if wanted is None:
                raise
            if size == sizes[0]:
                raise OpmlError(
                    f"a single structure asks for {wanted:.1f} GiB at once, which memory lacks. "
                    "Take a smaller basis, or a machine with more.",
                    code=Code.MEMORY,
                ) from err
            warnings.warn(
                f"{size} structures at once ask for {wanted:.1f} GiB, which memory lacks: going on "
                f"with {sizes[0]}.",
                DataWarning,
                stacklevel=3,
            )
            size = sizes[0]
