"""Compiling as little as may be: programs kept on disk, and quick compilation for short work.

Programs are kept so that the next process need not compile them again. The command line and the
ASE calculator turn this on (:func:`keep_programs`); importing the library does not. It is JAX's own
cache, in a folder for each kind of processor and version of jaxlib: XLA compiles for the processor
at hand, and its programs may crash on another. Beside what XLA makes of it lies what XLA is given
by a :class:`Program`, so that the next process need not trace it again (:mod:`opml_jax.traces`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from .errors import CacheWarning
from .traces import BEGINNING, UNFINISHED, kept_trace

VARIABLE = "OPML_CACHE"
"""Environment variable: a folder for compiled programs, or ``off``."""

OFF = ("off", "0", "no", "false", "none")
LARGEST = 512 * 2**20
"""Bytes of programs kept for one processor; what was not used for longest goes first."""

QUICKEST = 0.1
"""Seconds: what compiles faster is not kept, as reading it back would save next to nothing."""

FORGOTTEN = 60 * 86400
"""Seconds after which programs of a processor or a jaxlib that nobody came with are deleted."""


@dataclasses.dataclass(frozen=True)
class ProgramCache:
    """Where compiled programs are kept.

    Attributes:
      folder: the folder, or None where nothing is kept.
      reason: what decided so.
      ours: whether this library bounds its size; one that was named to JAX itself is JAX's.
    """

    folder: Path | None
    reason: str
    ours: bool = True

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of programs there, of traces, and the bytes of all."""
        paths = list(_entries(self.folder, "-cache"))
        traces = sum(path.name.startswith(BEGINNING) for path in paths)
        return len(paths) - traces, traces, sum(path.stat().st_size for path in paths)


def program_cache() -> ProgramCache:
    """Where programs are to be kept, by the environment; nothing is made or changed.

    What was set for JAX itself (``JAX_COMPILATION_CACHE_DIR`` and its kin) goes before
    ``OPML_CACHE``, and that before ``XDG_CACHE_HOME`` and the system's folder for caches.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if text.lower() in OFF:
        return ProgramCache(None, f"{VARIABLE}={text}")
    if not _of_jax("jax_enable_compilation_cache"):
        return ProgramCache(None, "JAX_ENABLE_COMPILATION_CACHE")
    known = _of_jax("jax_compilation_cache_dir")
    if known and Path(known) != _kept:
        return ProgramCache(Path(known), "JAX_COMPILATION_CACHE_DIR", ours=False)
    try:
        root = Path(text).expanduser() if text else _system_folder() / "opml_jax" / "programs"
    except RuntimeError:  # a user without a home
        return ProgramCache(None, "no home directory")
    return ProgramCache(root.absolute() / _processor(), VARIABLE if text else "default")


_kept: Path | None = None
_tried = False
"""The folder that this process has turned on, and whether it has tried to."""


def keeps() -> bool:
    """Whether this process keeps what it compiles."""
    on = _of_jax("jax_enable_compilation_cache") and _of_jax("jax_compilation_cache_dir")
    return bool(on)


def keep_programs() -> None:
    """Let JAX keep what it compiles, for all that this process compiles from now on.

    A folder that cannot be written is a :class:`~opml_jax.errors.CacheWarning`, once, and the
    programs are compiled as if there were none.
    """
    global _kept, _tried
    cache = program_cache()
    if cache.folder is None and cache.reason.startswith(VARIABLE):
        return _set(jax_enable_compilation_cache=False)
    # JAX opens one folder in a process; a program of several processes serves no single one
    if cache.folder is None or not cache.ours or _tried or jax.distributed.is_initialized():
        return None
    _tried = True
    try:
        cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache.folder):
            os.utime(cache.folder)
        _tidy(cache.folder)
    except OSError as err:
        text = f"compiled programs are not kept: {cache.folder}: {err.strerror or err}. "
        warnings.warn(
            f"{text}Set {VARIABLE} to a folder that can be written, or to off.",
            CacheWarning,
            stacklevel=2,
        )
        return None
    _kept = cache.folder
    # a damaged or a busy entry is compiled anew, which is nobody's concern
    told = "Error (reading|writing) persistent compilation cache entry"
    warnings.filterwarnings("ignore", told, UserWarning)
    return _set(
        jax_compilation_cache_dir=str(cache.folder),
        jax_compilation_cache_max_size=LARGEST,
        jax_persistent_cache_min_compile_time_secs=QUICKEST,
    )


def _of_jax(option: str) -> Any:
    """A setting of JAX, which declares no types for most."""
    return getattr(jax.config, option)


def _set(**options: object) -> None:
    for name, value in options.items():
        jax.config.update(name, value)


def _system_folder() -> Path:
    """The user's folder for caches; RuntimeError: there is no home."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _processor() -> str:
    """A name for the kind of processor and the compiler, the same on every machine of the kind."""
    words = [platform.machine(), platform.processor(), version("jaxlib")]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in told:
            words += sorted(value.split())
    mark = hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]
    return f"{platform.machine() or 'cpu'}-{mark}-jaxlib-{version('jaxlib')}"


def _entries(folder: Path | None, ending: str) -> Iterator[Path]:
    """Files of the cache; none where there is no folder."""
    if folder is not None and folder.is_dir():
        yield from folder.glob(f"*{ending}")


def _tidy(folder: Path) -> None:
    """Delete what JAX never would: halves of a killed process, and programs that nobody can use.

    A program without its time of access stops JAX from making room for others.
    """
    for path in _entries(folder, "-cache"):
        told = path.with_name(path.name.removesuffix("-cache") + "-atime")
        # one that is being written now is young
        if not told.exists() and time.time() - path.stat().st_mtime > 60:
            path.unlink(missing_ok=True)
    for path in _entries(folder, UNFINISHED):
        if time.time() - path.stat().st_mtime > 60:
            path.unlink(missing_ok=True)
    for other in folder.parent.glob("*-jaxlib-*"):
        if other != folder and time.time() - other.stat().st_mtime > FORGOTTEN:
            for path in other.iterdir():
                path.unlink(missing_ok=True)
            other.rmdir()


COMPILING = 4e6
"""Pairs of primitives times nuclei whose potential, features and forces cost as much as compiling
for one more shape: some ten seconds of a core."""

CALL = 5e3
"""What a call costs beside its work, in the same unit: thousands of small steps are much work."""

MUCH = 10
"""Times :data:`COMPILING`, after which a thorough compilation pays for itself."""


class Program:
    """A function that is compiled quickly for little work, and thoroughly for much.

    On CPUs XLA's full effort takes two to four times as long, and gives programs that run up to
    twice as fast; results agree to rounding. On other devices effort is always full.

    Its trace is kept on disk where programs are (:func:`opml_jax.traces.kept_trace`): there it can
    be evaluated, but neither differentiated nor mapped over.

    Args:
      function: a pure function.
      static_argnums: of ``jax.jit``.
    """

    def __init__(self, function: Callable[..., Any], static_argnums: tuple[int, ...] = ()):
        function = kept_trace(function, static_argnums, lambda: _kept if keeps() else None)
        self.thorough = jax.jit(function, static_argnums=static_argnums)
        self.quick = jax.jit(function, static_argnums=static_argnums, compiler_options=_LITTLE)

    def for_work(self, work: float) -> Callable[..., Any]:
        """The function, compiled for so much work in all, in the unit of :data:`COMPILING`."""
        quick = work <= MUCH * COMPILING and jax.default_backend() == "cpu"
        return self.quick if quick else self.thorough


_LITTLE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""XLA's options for quick compilation: LLVM without optimisation, fused loops by the older way."""
