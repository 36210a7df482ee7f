"""What benchmarks of products and features share: time, floors, molecules, peers, lines.

Times are process CPU time, so that other jobs on the machine count less; the median and the
least of several repeats, each over inputs of its own. Ratios are those of the least times.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from ase.build import molecule
from environment import environment

import opml_jax as opml
from opml_jax.basis import AOLayout
from opml_jax.units import ANGSTROM_PER_BOHR

LEAST = 0.02  # seconds of a repeat: short calls are repeated within it


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    least: float
    wall_over_cpu: float

    def row(self) -> dict[str, float]:
        """Columns of a line; a wall_over_cpu above 1.3 says that the run was disturbed."""
        return {
            "milliseconds_median": 1e3 * self.median,
            "milliseconds_least": 1e3 * self.least,
            "wall_over_cpu": self.wall_over_cpu,
        }


def race(
    entries: Mapping[str, tuple[Callable, Sequence[tuple]]], repeats: int
) -> dict[str, Timing]:
    """CPU time of functions, in rounds in which each has its turn, so that all meet one machine.

    Args:
      entries: ``{name: (function, inputs)}``; the tuples of arguments are taken in turn.
      repeats: number of rounds, after a first call that does not count.
    """
    calls, turns, runs, walls = {}, {}, {}, {}
    for name, (function, inputs) in entries.items():
        turn = turns[name] = itertools.cycle(inputs)
        jax.block_until_ready(function(*next(turn)))
        start = time.process_time()
        jax.block_until_ready(function(*next(turn)))
        calls[name] = max(1, int(LEAST / max(time.process_time() - start, 1e-6)))
        runs[name], walls[name] = [], []
    for _, (name, (function, _)) in itertools.product(range(repeats), entries.items()):
        wall, start = time.perf_counter(), time.process_time()
        for _ in range(calls[name]):
            jax.block_until_ready(function(*next(turns[name])))
        runs[name].append((time.process_time() - start) / calls[name])
        walls[name].append((time.perf_counter() - wall) / calls[name])
    return {
        name: Timing(statistics.median(run), min(run), sum(walls[name]) / sum(run))
        for name, run in runs.items()
    }


def cpu_time(function: Callable, inputs: Sequence[tuple], repeats: int) -> Timing:
    """CPU time of one function, see :func:`race`."""
    return race({"": (function, inputs)}, repeats)[""]


def compiled(function: Callable, *arguments: Any) -> tuple[Callable, dict[str, float]]:
    """The compiled function; CPU seconds it took to compile, and temporary bytes it needs."""
    start = time.process_time()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.process_time() - start
    memory = program.memory_analysis()
    temporary = None if memory is None else memory.temp_size_in_bytes
    return program, {"compile_seconds": seconds, "temporary_bytes": temporary}


def gemm_floor(dtype: Any, quick: bool) -> dict[str, float]:
    """Rates of one large dense product, in FLOP/s: XLA, NumPy, and the better of them."""
    n = 1024 if quick else 2048
    rng = np.random.default_rng(0)
    host = [rng.normal(size=(n, n)).astype(dtype) for _ in range(2)]
    out = np.empty_like(host[0])
    entries = {
        "xla": (jax.jit(lambda x: x @ x), [(jnp.asarray(x),) for x in host]),
        "numpy": (lambda x: np.matmul(x, x, out=out), [(x,) for x in host]),
    }
    rates = {name: 2 * n**3 / t.least for name, t in race(entries, 5).items()}
    return {**rates, "floor": max(rates.values())}


def stream_floor() -> float:
    """Bytes per second read and written by a copy into reused memory."""
    source, out = np.ones(16 << 20, np.float32), np.empty(16 << 20, np.float32)
    return 2 * source.nbytes / cpu_time(lambda: np.copyto(out, source), [()], 7).least


def floors(printer: Printer, quick: bool) -> tuple[dict[str, dict[str, float]], float]:
    """GEMM floors by name of dtype, and the stream floor; printed first."""
    gemm = {}
    for name in ("float32", "float64"):
        gemm[name] = gemm_floor(name, quick)
        rates = {f"gigaflops_{k}": 1e-9 * v for k, v in gemm[name].items()}
        printer.line("floor_gemm", dtype=name, **rates)
    stream = stream_floor()
    printer.line("floor_stream_copy", gigabytes_per_second=1e-9 * stream, dtype="float32")
    return gemm, stream


def ethanols(n: int, seed: int = 0) -> list[opml.Structure]:
    """Jiggled copies of ethanol."""
    atoms, rng = molecule("CH3CH2OH"), np.random.default_rng(seed)
    positions = atoms.positions / ANGSTROM_PER_BOHR
    numbers = tuple(int(z) for z in atoms.numbers)
    return [
        opml.Structure(numbers, positions + 0.05 * rng.normal(size=positions.shape))
        for _ in range(n)
    ]


def water(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A cluster at the density of the liquid: jittered cubic grid, random orientations; Bohr."""
    rng = np.random.default_rng(n)
    side = int(np.ceil(n ** (1 / 3)))
    grid = np.indices((side,) * 3).reshape(3, -1).T - (side - 1) / 2
    grid = grid[np.argsort(np.linalg.norm(grid, axis=1), kind="stable")[:n]]
    centres = 3.1 * grid + rng.uniform(-0.2, 0.2, size=grid.shape)
    half = np.deg2rad(104.5) / 2
    arms = 0.96 * np.array([[np.sin(half), 0, np.cos(half)], [-np.sin(half), 0, np.cos(half)]])
    turns = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
    atoms = np.concatenate([centres[:, None], centres[:, None] + arms @ turns], axis=1)
    return np.tile([8, 1, 1], n), atoms.reshape(-1, 3) / ANGSTROM_PER_BOHR


def relative_error(found: Any, exact: Any) -> float:
    """Largest difference over the largest entry, both in float64."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def symmetric(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random symmetric matrices."""
    x = rng.normal(size=shape)
    return x + np.swapaxes(x, -1, -2)


class TypedTriples:
    """Products by triples of atoms (i, k, j): one gather, batched dot and segment sum for each
    triple of elements, blocks of each pair of elements in one array without padding.
    """

    def __init__(self, layout: AOLayout, n: int):
        numbers = np.array(layout.numbers)
        self.kinds = {int(z): np.flatnonzero(numbers == z) for z in np.unique(numbers)}
        self.layout, self.n, self.indices = layout, n, {}
        for a, k, b in itertools.product(self.kinds, repeat=3):
            na, nk, nb = (len(self.kinds[z]) for z in (a, k, b))
            m, i, j, l = (x.ravel() for x in np.indices((n, na, nb, nk)))
            self.indices[a, k, b] = tuple(
                x.astype(np.int32)
                for x in ((m * na + i) * nk + l, (m * nk + l) * nb + j, (m * na + i) * nb + j)
            )

    def _rows(self, z: int) -> np.ndarray:
        starts = self.layout.offsets[self.kinds[z]]
        return (starts[:, None] + np.arange(self.layout.spec.nao(z))).ravel()

    def blocks(self, x: np.ndarray) -> dict:
        """``{(Z_i, Z_j): (n_pairs, n_i, n_j)}`` of matrices."""
        out = {}
        for a, b in itertools.product(self.kinds, repeat=2):
            part = x[:, self._rows(a)[:, None], self._rows(b)[None, :]]
            wa, wb = self.layout.spec.nao(a), self.layout.spec.nao(b)
            part = part.reshape(self.n, len(self.kinds[a]), wa, len(self.kinds[b]), wb)
            out[a, b] = jnp.asarray(part.swapaxes(2, 3).reshape(-1, wa, wb))
        return out

    def multiply(self, x: dict, y: dict) -> dict:
        """Blocks of the product."""
        out = {}
        for (a, k, b), (left, right, where) in self.indices.items():
            terms = jnp.matmul(x[a, k][left], y[k, b][right], precision="highest")
            total = jax.ops.segment_sum(terms, where, len(x[a, b]), indices_are_sorted=True)
            out[a, b] = out[a, b] + total if (a, b) in out else total
        return out


def bsr(x: np.ndarray, size: int) -> scipy.sparse.bsr_array:
    """Block-diagonal matrix of matrices, in square blocks of a size that divides theirs."""
    n, width = len(x), x.shape[-1]
    k = width // size
    data = x.reshape(n, k, size, k, size).swapaxes(2, 3).reshape(-1, size, size)
    rows, columns = np.indices((n * k, k))
    indices = (rows // k * k + columns).ravel()
    shape = (n * width, n * width)
    return scipy.sparse.bsr_array((data, indices, np.arange(n * k + 1) * k), shape=shape)


def atom_padded(x: np.ndarray, layout: AOLayout) -> np.ndarray:
    """Matrices in which every atom has as many AOs as the widest."""
    widest = np.diff(layout.offsets).max()
    at = layout.atom * widest + np.arange(layout.nao) - layout.offsets[layout.atom]
    out = np.zeros((len(x), len(layout.numbers) * widest, len(layout.numbers) * widest), x.dtype)
    out[:, at[:, None], at[None, :]] = x
    return out


class Printer:
    """One line a measurement."""

    def __init__(self, as_json: bool):
        self.as_json, self.environment = as_json, environment()

    def line(self, name: str, timing: Timing | None = None, **metrics: Any) -> None:
        """Print a measurement; metrics that are None are left out."""
        row = {"name": name, **(timing.row() if timing else {}), **metrics}
        row = {k: v for k, v in row.items() if v is not None}
        if self.as_json:
            print(json.dumps({**row, **self.environment}), flush=True)
            return
        text = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
        )
        print(text.removeprefix("name "), flush=True)
