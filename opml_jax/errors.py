"""Exception classes and the one way this library words a refusal.

Every class is a ``ValueError``: callers who only want to know "my input was bad" need no
import from here. A message says which argument, what it got, what it expected, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OpmlError(ValueError):
    """Base of all errors this library raises on bad input."""


class StructureError(OpmlError):
    """A molecular structure that cannot be meant: shape, NaN, contact, electron count."""


class BasisError(OpmlError):
    """A basis set that is unknown, incomplete for an element, or carries an ECP."""


class ConventionError(OpmlError):
    """Two things in different bases, AO orders or levels of theory were combined."""


class DataError(OpmlError):
    """A data file that is empty, truncated, unsafe or lacks what is asked of it."""


class ConfigError(OpmlError):
    """A configuration with an unknown key or a value out of range."""


class ModelFileError(OpmlError):
    """A model file that is damaged or of a format this version does not read."""


class PrecisionError(OpmlError):
    """float64 is needed but ``jax_enable_x64`` is off."""


class ConvergenceError(OpmlError):
    """A reference calculation that did not converge."""


class UnitWarning(UserWarning):
    """Numbers that are plausible only in another unit."""


class DataWarning(UserWarning):
    """Labels of a file that are left unread."""


def refusal(argument: str, *, got: object, expected: str, hint: str = "") -> str:
    """The sentence of a refusal: ``argument must be expected; got got. hint``."""
    return f"{argument} must be {expected}; got {got}." + (f" {hint}" if hint else "")


def one_of(
    argument: str, value: object, known: Iterable[str], error: type[OpmlError] = ConfigError
) -> None:
    """Refuse a name that is not known, and say which one may be meant.

    Raises:
      OpmlError: of the class ``error``, if ``value`` is not among ``known``.
    """
    known = [*known]
    if value not in known:
        hint = nearest(str(value), known)
        raise error(
            refusal(argument, got=repr(value), expected=f"one of {', '.join(known)}", hint=hint)
        )


def at_least(where: str, config: object, names: Iterable[str], least: int = 0) -> None:
    """Refuse settings below ``least``.

    Args:
      where: what they belong to, for the message.
      config: has them as attributes.
      names: which.
      least: of each.

    Raises:
      ConfigError: one of them is smaller.
    """
    for name in names:
        if (value := getattr(config, name)) < least:
            expected = f"at least {least}" if least else "zero or more"
            raise ConfigError(refusal(f"{where}.{name}", got=value, expected=expected))


def nearest(word: str, known: Iterable[str]) -> str:
    """``"Did you mean 'x'?"`` for the closest known word, or an empty string."""
    words = {str(k).lower(): str(k) for k in known}
    match = difflib.get_close_matches(str(word).lower(), list(words), n=1, cutoff=0.5)
    return f"Did you mean {words[match[0]]!r}?" if match else ""
