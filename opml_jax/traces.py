"""What JAX makes of a function before XLA compiles it, kept on disk beside compiled programs.

Tracing and lowering a model takes longer than loading its compiled program. A trace (StableHLO,
:mod:`jax.export`) is taken from disk if nothing that it may depend on has changed: the sources of
this package, versions of what it is traced with, every setting of JAX, values of the static
arguments, structure and shapes of the others. What cannot be told so surely, such as a family of
models from outside, is traced in every process.

Files are named and dated as those of JAX's own cache, whose bound on bytes counts them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import platform
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

_log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).parent
_IMPORTED = time.time()
BEGINNING = "trace_"
"""Of the names of traces."""

UNFINISHED = "-unfinished"
"""The end of the name of a file that is being written."""

_TRACED_WITH = ("jax", "jaxlib", "e3nn-jax", "flax", "numpy", "scipy")
"""Distributions whose code, or whose numbers, enter a trace."""


def kept_trace(
    function: Callable[..., Any], static: Sequence[int], folder: Callable[[], Path | None]
) -> Callable[..., Any]:
    """The same function for ``jax.jit``, whose trace is taken from disk where it is there.

    On one CPU alone: a trace is for one kind of device, and for so many of them. The function can
    be neither differentiated nor mapped over.

    Args:
      function: a pure function of positional arguments; one from outside, or one that its name
        does not tell (made within another function, or by one from another), is left as it is.
      static: positions of static arguments, as ``jax.jit`` takes them.
      folder: says where traces are kept; None where they are not.
    """
    if not _is_ours(function) or not _is_told_by_name(function):
        return function

    @functools.wraps(function)
    def of(*arguments: Any) -> Any:
        place = folder()
        if place is None or jax.default_backend() != "cpu" or jax.device_count() > 1:
            return function(*arguments)
        fixed = {i: arguments[i] for i in static}
        leaves, tree = jax.tree.flatten([x for i, x in enumerate(arguments) if i not in fixed])
        shapes = [jax.typeof(x) for x in leaves]
        try:
            told = [_text(fixed), _structure(tree), [(str(x), x.weak_type) for x in shapes]]
            text = repr([function.__module__, function.__qualname__, *told, _surroundings()])
        except (TypeError, OSError, ImportError) as err:
            _log.debug("%s is traced: %s", function.__name__, err)
            return function(*arguments)
        name = f"{BEGINNING}{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()}"
        program = _read(place, name)
        if program is None:

            def flat(*leaves: Any) -> Any:
                rest = iter(jax.tree.unflatten(tree, leaves))
                return function(*(fixed[i] if i in fixed else next(rest) for i in range(n)))

            n = len(arguments)
            if (program := _made(flat, shapes)) is not None:
                _write(place, name, program)
        return function(*arguments) if program is None else program.call(*leaves)

    return of


def _text(value: Any) -> str:
    """A text that is equal for equal values alone, in every process.

    Raises:
      TypeError: a value of no such text.
    """
    if value is None or type(value) in (bool, int, float, str, bytes):
        return repr(value)
    if type(value) in (tuple, list):
        return f"{type(value).__name__}({','.join(map(_text, value))})"
    if type(value) is dict:
        return f"dict({','.join(f'{_text(k)}:{_text(v)}' for k, v in value.items())})"
    kind = value if isinstance(value, type) else type(value)
    if not _is_ours(kind):
        raise TypeError(f"nothing tells {kind.__module__}.{kind.__qualname__} in another process")
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is value:
        return name
    if hasattr(value, "identity"):
        return f"{name}{_text(value.identity)}"
    if dataclasses.is_dataclass(value):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return f"{name}({','.join(f'{k}={_text(v)}' for k, v in fields)})"
    raise TypeError(f"nothing tells {name} in another process")


def _is_ours(what: Any) -> bool:
    """Whether a class or a function is made by the sources of this package."""
    return what.__module__.partition(".")[0] == _PACKAGE.name


def _is_told_by_name(function: Callable[..., Any]) -> bool:
    """Whether no other function, and none of other values, has the same name."""
    made = not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__")
    return not made and function.__closure__ is None and "<locals>" not in function.__qualname__


def _structure(tree: Any) -> str:
    """A text of the structure of a tree, static fields of its nodes included.

    Raises:
      TypeError: as :func:`_text`.
    """
    if (node := tree.node_data()) is None:
        return "*"
    kind, fixed = node
    name = f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}<{_text(fixed)}>({','.join(map(_structure, tree.children()))})"


@functools.cache
def _sources() -> tuple[str, ...]:
    """What traces are made by: a hash of every source file here, and versions.

    Raises:
      OSError: no sources are there, such as in an archive, or other ones than were imported.
      ImportError: an unknown version.
    """
    digest, paths = hashlib.sha256(), sorted(_PACKAGE.rglob("*.py"))
    if Path(__file__) not in paths:
        raise FileNotFoundError(f"the sources of {_PACKAGE.name}")
    if changed := [p.name for p in paths if p.stat().st_mtime > _IMPORTED]:
        raise OSError(f"{', '.join(changed)} changed since this process began")
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    versions = (f"{name} {version(name)}" for name in _TRACED_WITH)
    return digest.hexdigest(), platform.python_version(), *versions


def _surroundings() -> tuple[Any, ...]:
    """What else a trace may depend on: sources, and settings of JAX as they are here and now."""
    settings = [(k, repr(getattr(jax.config, k, None))) for k in sorted(jax.config.values)]
    return _sources(), settings


def _read(folder: Path, name: str) -> Any:
    """The trace of a name; None where there is none, or a damaged one."""
    try:
        mark, content = (folder / f"{name}-cache").read_bytes().split(b"\n", 1)
        if mark.decode() != hashlib.sha256(content).hexdigest():
            raise ValueError("its checksum is another")
        from jax import export

        program = export.deserialize(bytearray(content))
        _date(folder, name)
    except FileNotFoundError:
        return None
    except Exception as err:  # whatever is wrong with it: it is traced anew
        _log.debug("%s is traced: %r", name, err)
        return None
    _log.debug("%s is taken from disk", name)
    return program


def _made(function: Callable[..., Any], shapes: Sequence[Any]) -> Any:
    """The trace of a function; None: it cannot be exported."""
    from jax import export

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in shapes]
    try:
        return export.export(jax.jit(function))(*shapes)
    except Exception as err:  # what is wrong with the function itself is said where it is traced
        _log.debug("%s is not exported: %r", function, err)
        return None


def _write(folder: Path, name: str, program: Any) -> None:
    """Write a trace whole or not at all; what cannot be written is traced by the next process."""
    try:
        content = bytes(program.serialize())
        _date(folder, name)  # first: JAX makes no room for others beside a program without a date
        handle, temporary = tempfile.mkstemp(suffix=UNFINISHED, dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        os.replace(temporary, folder / f"{name}-cache")
    except Exception as err:  # a full disk; results of a structure that is not written
        _log.debug("%s is not kept: %r", name, err)


def _date(folder: Path, name: str) -> None:
    """Note that a trace is used now, as JAX's cache does."""
    (folder / f"{name}-atime").write_bytes(time.time_ns().to_bytes(8, "little"))
