"""Exception classes and the one way this library words a refusal.

Every class is a ``ValueError``: callers who only want to know "my input was bad" need no
import from here. A message says which argument, what it got, what it expected, what to do.
"""

from __future__ import annotations

import difflib
import enum
import os
import re
from collections.abc import Iterable
from importlib.metadata import requires
from typing import ClassVar


class Code(enum.StrEnum):
    """Numbers of refusals: they never change their meaning, and docs/errors.md says what to do."""

    ARGUMENT = "OPML-001"
    COMMAND_LINE = "OPML-002"
    STRUCTURE = "OPML-100"
    COORDINATE = "OPML-101"
    CONTACT = "OPML-102"
    SHAPE = "OPML-103"
    EMPTY = "OPML-104"
    ELEMENT = "OPML-105"
    ELECTRONS = "OPML-106"
    PERIODIC = "OPML-107"
    BASIS = "OPML-200"
    UNKNOWN_BASIS = "OPML-201"
    BASIS_LACKS_ELEMENT = "OPML-202"
    CORE_POTENTIAL = "OPML-203"
    CONVENTION = "OPML-300"
    LAYOUT = "OPML-301"
    LEVEL_OF_THEORY = "OPML-302"
    MATRIX = "OPML-303"
    ELECTRON_NUMBER = "OPML-304"
    SINGULAR = "OPML-305"
    GAP = "OPML-306"
    DATA = "OPML-400"
    NO_FILE = "OPML-401"
    DAMAGED = "OPML-402"
    UNSAFE = "OPML-403"
    FORMAT_VERSION = "OPML-404"
    LABEL = "OPML-405"
    UNIT = "OPML-406"
    NOT_FINITE = "OPML-407"
    LABEL_SHAPE = "OPML-408"
    SPLIT = "OPML-409"
    WORKER = "OPML-410"
    CONFIG = "OPML-500"
    UNKNOWN_NAME = "OPML-501"
    MODEL_FILE = "OPML-600"
    OTHER_RUN = "OPML-601"
    UNSEEN_ELEMENT = "OPML-602"
    CAPABILITY = "OPML-603"
    PRECISION = "OPML-700"
    CONVERGENCE = "OPML-701"
    DIVERGED = "OPML-702"
    DOMAIN = "OPML-703"
    MEMORY = "OPML-704"
    DEVICE = "OPML-705"
    SYSTEM = "OPML-800"
    DISK_FULL = "OPML-801"
    NOT_WRITABLE = "OPML-802"
    BUSY = "OPML-803"
    UNIT_WARNING = "OPML-900"
    DATA_WARNING = "OPML-901"
    CACHE_WARNING = "OPML-902"


class OpmlError(ValueError):
    """Base of all errors this library raises on bad input.

    ``OpmlError("powers", got=powers, expected="positive integers", hint="...")`` words what an
    argument must be, what it is, and what to do; a sentence alone is taken as it is.

    Attributes:
      message: what is wrong and what to do; ``str`` adds the code.
      code: which refusal it is, whatever its words.
    """

    code: Code = Code.ARGUMENT

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: str = "",
        hint: str | None = "",
        code: Code | None = None,
    ):
        if expected:
            what = f"{what} must be {expected}; got {got}." + (f" {hint}" if hint else "")
        super().__init__(what)
        self.message = what
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def within(self, where: object) -> OpmlError:
        """The same error, which says where it was met."""
        return type(self)(f"{where}: {self.message}", code=self.code)


class StructureError(OpmlError):
    """A molecular structure that cannot be meant: shape, NaN, contact, electron count."""

    code = Code.STRUCTURE


class BasisError(OpmlError):
    """A basis set that is unknown, incomplete for an element, or carries an ECP."""

    code = Code.BASIS


class ConventionError(OpmlError):
    """Two things in different bases, AO orders or levels of theory were combined."""

    code = Code.CONVENTION


class DataError(OpmlError):
    """A data file that is empty, truncated, unsafe or lacks what is asked of it."""

    code = Code.DATA


class ConfigError(OpmlError):
    """A configuration with an unknown key or a value out of range."""

    code = Code.CONFIG


class ModelFileError(OpmlError):
    """A model file that is damaged or of a format this version does not read."""

    code = Code.MODEL_FILE


class PrecisionError(OpmlError):
    """float64 is needed but ``jax_enable_x64`` is off."""

    code = Code.PRECISION


class ConvergenceError(OpmlError):
    """A reference calculation that did not converge."""

    code = Code.CONVERGENCE


class UnitWarning(UserWarning):
    """Numbers that are plausible only in another unit."""

    code: ClassVar[Code] = Code.UNIT_WARNING


class DataWarning(UserWarning):
    """Labels of a file that are left unread."""

    code: ClassVar[Code] = Code.DATA_WARNING


class CacheWarning(UserWarning):
    """Compiled programs that cannot be kept for the next process."""

    code: ClassVar[Code] = Code.CACHE_WARNING


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
            argument,
            got=repr(value),
            expected=f"one of {', '.join(known)}",
            hint=hint,
            code=Code.UNKNOWN_NAME,
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
            raise ConfigError(f"{where}.{name}", got=value, expected=expected)


def nearest(word: str, known: Iterable[str]) -> str:
    """``"Did you mean 'x'?"`` for the closest known word, or an empty string."""
    words = {str(k).lower(): str(k) for k in known}
    match = difflib.get_close_matches(str(word).lower(), list(words), n=1, cutoff=0.5)
    return f"Did you mean {words[match[0]]!r}?" if match else ""


def counted(n: int, noun: str) -> str:
    """A number of things: ``1 structure``, ``2 structures``, ``0 geometries``."""
    plural = f"{noun[:-1]}ies" if noun[-1] == "y" and noun[-2] not in "aeiou" else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"


def near_path(path: str | os.PathLike) -> str:
    """What to do about a path that is not there: the closest name in its folder, if any."""
    folder, name = os.path.split(os.fspath(path))
    try:
        close = difflib.get_close_matches(name, os.listdir(folder or "."), n=1, cutoff=0.8)
    except OSError:
        close = []
    if not close or close[0] == name:
        return "Check the path."
    return f"Did you mean {os.path.join(folder, close[0])!r}?"


def to_install(extra: str) -> str:
    """The command that installs what an extra of this package has, from a clone or an index.

    The package itself may be on no index, so what is named is what the extra asks for.
    """
    end = f'extra == "{extra}"'
    wanted = [r.partition(";") for r in requires("opml_jax") or []]
    packages = [r.strip() for r, _, when in wanted if when.strip().replace("'", '"') == end]
    return f"pip install {' '.join(map(repr, packages))} (the extra {extra})"


def check_file(
    path: str | os.PathLike,
    expected: str = "a file",
    *,
    error: type[OpmlError] = DataError,
    hint: str = "",
) -> None:
    """Refuse a path that no file has.

    Args:
      path: of a file that is to be read.
      expected: what kind of file.
      error: class of the refusal.
      hint: what else to do than to look at the path.

    Raises:
      OpmlError: of the class ``error``: nothing is there, or a folder.
    """
    if os.path.isfile(path):
        return
    hint = f"{near_path(path)} {hint}".rstrip()
    what = f"{path} is a folder, not a file" if os.path.isdir(path) else f"no such file: {path}"
    raise error(f"{what}; expected {expected}. {hint}", code=Code.NO_FILE)


def memory_wanted(err: BaseException) -> float | None:
    """GiB that JAX could not have, or NaN if it does not say; None: it is about something else."""
    if "RESOURCE_EXHAUSTED" not in str(err):
        return None
    found = re.search(r"allocat\w+ (\d+) bytes", str(err))
    return int(found.group(1)) / 2**30 if found else float("nan")
