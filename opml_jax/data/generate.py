"""Labels in number: one finished geometry, one file; a killed run loses nothing it finished.

Every label is written on its own to ``<output>.parts/`` by an atomic rename, under a name made
of its geometry and level of theory. A rerun finds what is there, computes the rest and joins
all of it into one HDF5 file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
)
from pathlib import Path
from typing import Any

import numpy as np

from ..basis import layout_of, load_basis
from ..errors import Code, ConventionError, DataError, OpmlError, counted
from ..structures import Structure
from .dataset import Dataset
from .files import atomic_path, locked, write_text
from .functionals import check_dispersion
from .reference import Method, calculate, other_setting, record_id
from .store import read_hdf5, write_hdf5
from .stored import StoredLabel

PARTS = ".parts"
"""End of the name of the folder of finished labels, after that of the output."""

MANIFEST = "manifest.json"
"""What a folder of parts is to hold: level of theory, and the name of each geometry's file. Their
checksums are in the files."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run did: ``done`` now, ``found`` from before, and ``failed`` (index, reason)."""

    done: int
    found: int
    failed: tuple[tuple[int, str], ...]


def _label(structure: Structure, method: Method, part: str) -> str | None:
    """Compute one label into its part file; returns the reason when that is impossible."""
    try:
        labels = calculate(structure, method)
    except OpmlError as err:
        return err.message
    except Exception as err:  # one geometry that breaks PySCF must not end the run
        return f"{type(err).__name__}: {err}"
    if not all(np.isfinite(v).all() for v in labels.values()):
        return "the calculation returned NaN"
    with atomic_path(part) as temporary, open(temporary, "wb") as f:
        np.savez(f, **labels)  # pyright: ignore[reportArgumentType]  # no label is allow_pickle
    return None


def _outcome(future: Future) -> str | None:
    """Why a label is missing, also where its worker was lost.

    A broken executor ends the run, and so does a label that cannot be written: a full disk.
    """
    try:
        return future.result()
    except (BrokenExecutor, OSError):
        raise
    except OpmlError as err:
        return err.message
    except Exception as err:  # of a cluster, in its own words
        return f"{type(err).__name__}: {err}"


def _labelled(
    jobs: Mapping[int, tuple[Structure, Method, str]], executor: Executor | None
) -> Generator[tuple[int, str | None], None, None]:
    """Which job has finished, and why it has no label, one after the other; closing ends the rest.

    Raises:
      DataError: a worker process died.
    """
    if executor is None:
        for i, job in jobs.items():
            yield i, _label(*job)
        return
    futures, done = {executor.submit(_label, *job): i for i, job in jobs.items()}, 0
    try:
        for future in as_completed(futures):
            reason = _outcome(future)
            done += reason is None
            yield futures[future], reason
    except BrokenExecutor as err:
        raise DataError(
            f"a worker process died after {done} of {counted(len(jobs), 'label')} (out of "
            "memory?). Nothing finished is lost: run the same command again, with fewer workers.",
            code=Code.WORKER,
        ) from err
    finally:
        for future in futures:
            future.cancel()


def read_part(part: Path) -> dict[str, np.ndarray] | None:
    """Labels of one finished geometry, None of a damaged file; its checksums are looked at."""
    try:
        with open(part, "rb") as file, np.load(file, allow_pickle=False) as f:
            labels = {k: f[k] for k in f.files}
        return labels if all(np.isfinite(v).all() for v in labels.values()) else None
    except Exception:  # zip and NumPy raise many kinds on a damaged file: compute it again
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class PartRows(Sequence):
    """One label of finished geometries, in the files where they are.

    Attributes:
      paths: of the files.
      name: of the label.
      shapes: of its values.
    """

    paths: Sequence[Path]
    name: str
    shapes: Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        with np.load(self.paths[i], allow_pickle=False) as f:  # they have all been read before
            return f[self.name]


def generate(
    structures: Sequence[Structure],
    output: str | os.PathLike,
    method: Method,
    *,
    executor: Executor | None = None,
    extra_meta: dict | None = None,
    on_progress: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> Outcome:
    """Label structures and join them, with any found earlier, into one HDF5 file.

    Args:
      structures: geometries, in the order of the output.
      output: HDF5 file; existing labels of the same geometries and level are kept.
      method: level of theory.
      executor: any ``concurrent.futures.Executor`` whose workers see the same files, such as
        :class:`opml_jax.data.workers.Workers`. Default: this process, one at a time.
      extra_meta: entries added to the file's meta data (how the geometries were made).
      on_progress: called with ``(done, total, failed)`` after every geometry.

    Returns:
      An :class:`Outcome`. Geometries that do not converge are left out of the file and listed
      in ``<output>.failed.txt``.

    Raises:
      ConventionError: ``output`` holds labels of another level of theory.
      DataError: nothing could be labelled, or two geometries are identical.
      OpmlError: another process writes ``output``; an executor that forks this process; a method
        whose dispersion is missing.
    """
    if not structures:
        raise DataError(
            "structures", got="an empty list", expected="at least one structure", code=Code.EMPTY
        )
    load_basis(method.basis, {z for s in structures for z in s.numbers})  # refuse before the first
    check_dispersion(method.method)
    context: Any = getattr(executor, "_mp_context", None)
    if isinstance(executor, ProcessPoolExecutor) and context.get_start_method() == "fork":
        raise OpmlError(
            "executor",
            got="a ProcessPoolExecutor that forks, which hangs once JAX has started threads",
            expected="one whose processes start anew",
            hint="Take opml_jax.data.workers.Workers(n), or mp_context=get_context('spawn').",
        )
    with locked(output):
        path = Path(output).absolute()  # workers may run in another folder
        return _generate(structures, path, method, executor, extra_meta or {}, on_progress)


def _generate(
    structures: Sequence[Structure],
    output: Path,
    method: Method,
    executor: Executor | None,
    extra_meta: dict,
    on_progress: Callable[[int, int, int], None],
) -> Outcome:
    """:func:`generate`, of an output that nobody else writes."""
    parts = output.with_name(output.name + PARTS)
    ids = [record_id(s, method) for s in structures]
    if len(set(ids)) != len(ids):
        raise DataError("structures", got="identical geometries", expected="distinct ones")
    old = labelled_before(output, method)
    earlier = {record_id(s, method): i for i, s in enumerate(old.structures)}
    paths = [parts / f"{key}.npz" for key in ids]
    todo = [i for i, p in enumerate(paths) if ids[i] not in earlier and not p.exists()]
    found, failed, done = len(ids) - len(todo), [], 0
    on_progress(found, len(ids), 0)
    if todo:
        contents = {"level": dataclasses.asdict(method), "geometries": ids}
        write_text(parts / MANIFEST, json.dumps(contents, indent=1) + "\n")

    def finish(i: int, reason: str | None) -> None:
        nonlocal done
        done += reason is None
        if reason is not None:
            failed.append((i, reason))
        on_progress(found + done + len(failed), len(ids), len(failed))

    jobs = {i: (structures[i], method, str(paths[i])) for i in todo}
    with contextlib.closing(_labelled(jobs, executor)) as finished:
        for i, reason in finished:
            finish(i, reason)

    # labels stay in their files: all of them may be more than memory holds
    shapes, kept, without = {}, [], {i for i, _ in failed}
    for i in range(len(ids)):
        if ids[i] not in earlier:
            record = read_part(paths[i])
            if record is None and i not in without:
                finish(i, _label(structures[i], method, str(paths[i])))  # damaged from outside
                record = read_part(paths[i])
            if record is None:
                continue
            shapes[i] = {name: value.shape for name, value in record.items()}
        kept.append(i)
    failures = output.with_name(output.name + ".failed.txt")
    failures.unlink(missing_ok=True)
    if failed:
        write_text(failures, "".join(f"{i}\t{reason}\n" for i, reason in sorted(failed)))
    # what an earlier, longer list labelled stays in the file, after what was asked for now
    wanted = set(ids)
    rest = [i for key, i in earlier.items() if key not in wanted]
    if not kept and not rest:
        shutil.rmtree(parts, ignore_errors=True)
        raise DataError(
            f"none of {counted(len(ids), 'geometry')} could be labelled; the first: {failed[0][1]}"
        )
    new = [i for i in kept if i in shapes]
    position = {i: k for k, i in enumerate(new)}
    where = [(1, position[i]) if i in shapes else (0, earlier[ids[i]]) for i in kept]
    where = np.array([*where, *((0, i) for i in rest)])
    names = list(shapes[new[0]] if new else old.labels)
    labels = {
        name: StoredLabel(
            [
                old.labels[name] if len(old) else [],
                PartRows([paths[i] for i in new], name, [shapes[i][name] for i in new]),
            ],
            where,
        )
        for name in names
    }
    known = [structures[i] for i in kept] + [old.structures[i] for i in rest]
    basis = load_basis(method.basis, {z for s in known for z in s.numbers})
    origin = {k: old.meta[k] for k in ("source", "sampling") if k in old.meta}
    meta = {**method.meta(), **origin, **extra_meta}
    try:
        write_hdf5(output, Dataset(known, labels, meta, [layout_of(s, basis).hash for s in known]))
    except DataError as err:
        raise err.within(f"labels stay in {parts}") from err
    shutil.rmtree(parts, ignore_errors=True)
    return Outcome(done, found, tuple(sorted(failed)))


def labelled_before(output: Path, method: Method) -> Dataset:
    """What a finished earlier run labelled, its labels unread.

    Raises:
      ConventionError: at another level of theory.
    """
    if not output.exists():
        return Dataset([])
    old = read_hdf5(output, lazy=True)
    if key := other_setting(old.meta, method.meta()):
        raise ConventionError(
            f"{key} of {output}",
            got=repr(getattr(Method.from_meta(old.meta), key)),
            expected=repr(getattr(method, key)),
            hint="Choose another output file for another level of theory.",
            code=Code.LEVEL_OF_THEORY,
        )
    return old
