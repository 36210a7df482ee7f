"""What do the native integrals cost beside their peers, and how wrong are they?

The external potential V of batches of molecules, the gradient of <W, V> and the gradient of
|forces - reference|^2 (training on forces), by this library's native engine (float64, float32 and
with screening), pyscfad's MoleLite and MolePad, and plain libcint through PySCF. Milliseconds per
molecule are the best of several repeats of a compiled call; compilation is timed apart. Errors are
taken in the same run, against libcint for values and MoleLite (else float64) for the rest.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/integrals.py --json [--quick] [--rmd17 DIR]

``--cases`` selects molecules by name, ``--scaling`` runs alkanes up to C32H66 instead,
``--buckets FILE.extxyz`` measures padding on a data set (QM7).
On a GPU the peers that live on the host are left out unless ``--peers`` is given.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from ase.build import molecule
from environment import environment
from pyscf import gto

import opml_jax as opml
from opml_jax.basis import buckets, layout_of
from opml_jax.basis.buckets import smallest_bucket
from opml_jax.integrals import external_potential, screen
from opml_jax.structures.elements import symbol
from opml_jax.units import ANGSTROM_PER_BOHR

TASKS = ("value", "gradient", "force_training")


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several calls, the first not counted."""
    jax.block_until_ready(function())
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        runs.append(time.perf_counter() - start)
    return min(runs)


def alkane(n: int) -> tuple[np.ndarray, np.ndarray]:
    """All-trans C_n H_{2n+2}: atomic numbers, and positions in Bohr."""
    half = np.deg2rad(112.0) / 2
    step = 1.53 * np.array([np.sin(half), np.cos(half), 0.0])
    numbers, positions = [], []
    for k in range(n):
        carbon = np.array([k * step[0], (k % 2) * step[1], 0.0])
        up = 1.0 if k % 2 else -1.0
        numbers.append(6)
        positions.append(carbon)
        for side in (1, -1):
            numbers.append(1)
            positions.append(carbon + 1.09 * np.array([0.0, up * 0.577, side * 0.816]))
        for end, at in ((0, -1.0), (n - 1, 1.0)):
            if k == end:
                numbers.append(1)
                way = np.array([at * step[0], -up * step[1], 0.0])
                positions.append(carbon + 1.09 * way / np.linalg.norm(way))
    return np.array(numbers), np.array(positions) / ANGSTROM_PER_BOHR


def geometry(name: str, rmd17: Path | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Atomic numbers and positions (Bohr); None for a molecule whose file was not given."""
    if name.startswith("C") and name[1:].isdigit():
        return alkane(int(name[1:]))
    if name == "aspirin":
        if rmd17 is None:
            return None
        first = opml.read_structures(sorted(rmd17.glob("*aspirin*.npz"))[0])[0]
        return np.array(first.numbers), np.asarray(first.positions)
    atoms = molecule({"water": "H2O", "ethanol": "CH3CH2OH"}[name])
    return atoms.numbers, atoms.positions / ANGSTROM_PER_BOHR


class Problem:
    """A batch of jiggled copies of a molecule, weights W, reference forces."""

    def __init__(self, numbers, positions, basis_name: str, batch: int):
        rng = np.random.default_rng(0)
        self.numbers, self.basis_name, self.n = tuple(int(z) for z in numbers), basis_name, batch
        self.positions = positions + 0.05 * rng.normal(size=(batch, *positions.shape))
        spin = sum(self.numbers) % 2
        self.structures = [opml.Structure(self.numbers, x, spin=spin) for x in self.positions]
        self.basis = opml.load_basis(basis_name, self.numbers)
        self.layout = layout_of(self.structures[0], self.basis)
        weights = rng.normal(size=(self.layout.nao, self.layout.nao))
        self.weights = weights + weights.T
        self.forces = rng.normal(size=self.positions.shape)
        self.mols = [
            gto.M(
                atom=[(symbol(z), tuple(r)) for z, r in zip(self.numbers, x, strict=True)],
                unit="Bohr",
                basis=basis_name,
                spin=spin,
                verbose=0,
            )
            for x in self.positions
        ]

    def tasks(self, potential: Callable, weights, dtype) -> dict[str, Callable]:
        """The three tasks from a function of all positions."""
        w, forces = jnp.asarray(weights, dtype), jnp.asarray(self.forces, dtype)
        gradient = jax.grad(lambda r: jnp.sum(potential(r) * w))
        training = jax.grad(lambda r: jnp.sum((gradient(r) - forces) ** 2))
        return dict(zip(TASKS, (potential, gradient, training), strict=True))

    def native(self, dtype, tolerance: float | None = None) -> dict[str, Callable]:
        """This library."""
        batch = opml.batch(self.structures, self.basis)
        pairs = None if tolerance is None else screen(batch, self.basis, tolerance=tolerance)

        def potential(r):
            return external_potential(batch.replace(positions=r), self.basis, pairs=pairs)

        return self.tasks(potential, self.weights, dtype)

    def mole_lite(self) -> dict[str, Callable]:
        """pyscfad, topology static."""
        from pyscfad.gto.mole_lite import MoleLite

        def one(r):
            mol = MoleLite(numbers=self.numbers, coords=r, basis=self.basis_name, verbose=0)
            return mol.intor("int1e_nuc", hermi=1)

        return self.tasks(jax.vmap(one), self._theirs(self.weights), jnp.float64)

    def mole_pad(self) -> dict[str, Callable]:
        """pyscfad, topology as data."""
        from pyscfad.ml.gto import MolePad, make_basis_array

        table = make_basis_array(self.basis_name, max_number=max(self.numbers))
        numbers = jnp.asarray(self.numbers)

        def one(r):
            mol = MolePad(numbers, r, basis=table, verbose=0)
            return mol.intor("int1e_nuc", hermi=1)

        probe = np.asarray(jax.jit(one)(self.positions[0]))
        rng = np.random.default_rng(0)
        return self.tasks(jax.vmap(one), rng.normal(size=probe.shape), jnp.float64)

    def _theirs(self, matrix):
        return np.asarray(opml.to_pyscf(np.asarray(matrix), self.structures[0], self.basis))

    def ours(self, matrices):
        """PySCF's order to the library's."""
        return np.asarray(opml.from_pyscf(np.asarray(matrices), self.structures[0], self.basis))

    def libcint(self) -> dict[str, Callable]:
        """Plain libcint in a Python loop, derivative integrals contracted with W."""
        w = self._theirs(self.weights)

        def value():
            return np.array([m.intor("int1e_nuc") for m in self.mols])

        def gradient():
            out = np.zeros(self.positions.shape)
            for k, m in enumerate(self.mols):
                bra = -m.intor("int1e_ipnuc", comp=3)
                for a, (_, _, start, stop) in enumerate(m.aoslice_by_atom()):
                    with m.with_rinv_at_nucleus(a):
                        half = -m.atom_charge(a) * m.intor("int1e_iprinv", comp=3)
                    half[:, start:stop] += bra[:, start:stop]
                    out[k, a] = 2 * np.einsum("xij,ij->x", half, w)
            return out

        return {"value": value, "gradient": gradient}


def measure(problem: Problem, case: str, engines: list[str], args) -> Iterator[dict[str, Any]]:
    """One row for each engine and task."""
    repeats = 3 if args.quick else 7
    reference: dict[str, np.ndarray] = {}
    libcint_seconds: dict[str, float] = {}
    tasks = TASKS[:2] if args.quick else TASKS
    for engine in engines:
        dtype = jnp.float32 if engine.endswith("float32") else jnp.float64
        make = {
            "libcint": problem.libcint,
            "mole_lite": problem.mole_lite,
            "mole_pad": problem.mole_pad,
            "native": lambda: problem.native(jnp.float64),
            "native_float32": lambda: problem.native(jnp.float32),
            "native_screened": lambda: problem.native(jnp.float64, 1e-12),
        }[engine]
        functions = make()
        for task in tasks:
            if task not in functions:
                continue
            heavy = engine.startswith("mole") and task != "value"
            if heavy and problem.n * len(problem.numbers) > args.peer_limit:
                continue
            row: dict[str, Any] = {
                "name": f"{case}_{engine}_{task}",
                "case": case,
                "engine": engine,
                "task": task,
                "batch": problem.n,
                "nao": problem.layout.nao,
                "dtype": jnp.dtype(dtype).name,
            }
            if engine == "libcint":
                function = functions[task]
            else:
                r = jnp.asarray(problem.positions, dtype)
                start = time.perf_counter()
                compiled = jax.jit(functions[task]).lower(r).compile()
                row["compile_seconds"] = time.perf_counter() - start
                memory = compiled.memory_analysis()
                if memory is not None:
                    row["temporary_megabytes"] = memory.temp_size_in_bytes / 1e6

                def function(compiled=compiled, r=r):
                    return compiled(r)

            seconds = best_of(function, 2 if heavy else repeats)
            row["milliseconds_per_molecule"] = 1e3 * seconds / problem.n
            result = np.asarray(function(), np.float64)
            if engine != "mole_pad":  # padded rows: another layout and other weights
                if task == "value" and engine in ("libcint", "mole_lite"):
                    result = problem.ours(result)
                if task in reference:
                    error = np.abs(result - reference[task]).max()
                    row["error"] = float(error)
                    row["relative_error"] = float(error / np.abs(reference[task]).max())
                reference.setdefault(task, result)
            if engine == "libcint":
                libcint_seconds[task] = seconds
            if task in libcint_seconds:
                row["ratio"] = libcint_seconds[task] / seconds
                row["peer"] = "libcint through PySCF, one molecule at a time"
            yield {**row, **environment()}


def scaling(args) -> Iterator[dict[str, Any]]:
    """Alkanes, one molecule, screened: cost exponent from C8H18 to C32H66, memory, errors."""
    repeats = 2 if args.quick else 5
    times: dict[tuple[str, int], float] = {}
    for n in (8, 16) if args.quick else (4, 8, 16, 32):
        problem = Problem(*alkane(n), "def2-svp", 1)
        s = problem.structures[0]
        exact = problem.ours(problem.mols[0].intor("int1e_nuc"))
        libcint = best_of(lambda p=problem: p.mols[0].intor("int1e_nuc"), repeats)
        for tolerance in (None, 1e-12, 1e-9):
            pairs = None if tolerance is None else screen(s, problem.basis, tolerance=tolerance)
            counts = layout_of(s, problem.basis).primitives.counts
            row = {
                "name": f"C{n}H{2 * n + 2}_def2-svp_tolerance_{tolerance}",
                "atoms": len(s.numbers),
                "pairs": sum(counts) * (sum(counts) + 1) // 2 if pairs is None else pairs.count,
                "tolerance": tolerance,
            }

            def potential(r, w, s=s, basis=problem.basis, pairs=pairs):
                return external_potential(s.replace(positions=r), basis, pairs=pairs)

            w = jnp.asarray(problem.weights)
            r = jnp.asarray(s.positions)
            for task, f in {
                "value": potential,
                "gradient": jax.grad(lambda r, w, v=potential: jnp.sum(v(r, w) * w)),
            }.items():
                start = time.perf_counter()
                compiled = jax.jit(f).lower(r, w).compile()
                row[f"{task}_compile_seconds"] = time.perf_counter() - start
                megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
                row[f"{task}_temporary_megabytes"] = megabytes
                seconds = best_of(lambda c=compiled, r=r, w=w: c(r, w), repeats)
                row[f"{task}_milliseconds"] = 1e3 * seconds
                if task == "value":
                    row["error"] = float(np.abs(np.asarray(compiled(r, w)) - exact).max())
                    row["ratio"] = libcint / seconds
                    row["peer"] = "libcint through PySCF"
                key = f"{task} {tolerance}"
                times[key, len(s.numbers)] = seconds
                if (key, 26) in times and len(s.numbers) > 26:
                    growth = np.log(seconds / times[key, 26]) / np.log(len(s.numbers) / 26)
                    row[f"{task}_exponent_from_26_atoms"] = float(growth)
            yield {**row, **environment()}


def padding(path: Path) -> Iterator[dict[str, Any]]:
    """Padded work of a data set in few shapes, relative to the exact pair work."""
    structures = opml.read_structures(path)
    elements = {z for s in structures for z in s.numbers}
    for name in ("sto-3g", "def2-svp", "def2-tzvp"):
        basis = opml.load_basis(name, elements)
        exact = sum(smallest_bucket(basis.spec, [s.numbers]).pair_work for s in structures)
        for n in (1, 4, 8):
            found = buckets(structures, basis, n=n)
            padded = sum(len(indices) * bucket.pair_work for bucket, indices in found)
            yield {
                "name": f"buckets_{path.stem}_{name}_{n}",
                "structures": len(structures),
                "shapes": len(found),
                "ratio": padded / exact,
                "peer": "pair work without padding",
                **environment(),
            }


CASES = {  # molecule: basis sets, batches
    "water": (("sto-3g", "def2-svp", "def2-tzvp"), (1, 32, 128)),
    "ethanol": (("sto-3g", "def2-svp", "def2-tzvp"), (1, 32, 128)),
    "aspirin": (("def2-svp",), (1, 32)),
    "C8": (("def2-svp",), (1,)),
}
QUICK = {"water": (("def2-svp",), (32,)), "ethanol": (("sto-3g",), (8,))}


def main() -> None:
    """Run and print one line (``--json``: one JSON object) per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two small cases, values, gradients")
    parser.add_argument("--cases", nargs="*", help="molecules, e.g. water ethanol")
    parser.add_argument("--bases", nargs="*", help="only these basis sets")
    parser.add_argument("--batches", nargs="*", type=int, help="only these batches")
    parser.add_argument("--engines", nargs="*", help="only these engines")
    parser.add_argument("--rmd17", type=Path, help="folder of rMD17 npz files, for aspirin")
    parser.add_argument("--scaling", action="store_true", help="alkanes, screened")
    parser.add_argument("--buckets", type=Path, metavar="FILE", help="padding on a data set")
    parser.add_argument("--peers", action="store_true", help="host peers even on an accelerator")
    parser.add_argument(
        "--peer-limit",
        type=int,
        default=300,
        help="most atoms in a batch for derivatives by pyscfad",
    )
    args = parser.parse_args()

    def rows() -> Iterator[dict[str, Any]]:
        if args.scaling:
            yield from scaling(args)
        if args.buckets:
            yield from padding(args.buckets)
        if args.scaling or args.buckets:
            return
        engines = ["libcint", "mole_lite", "mole_pad", "native", "native_float32"]
        if jax.default_backend() != "cpu" and not args.peers:
            engines = ["libcint", "native", "native_float32"]
        engines = args.engines or engines
        for name, (bases, batches) in (QUICK if args.quick else CASES).items():
            found = geometry(name, args.rmd17) if not args.cases or name in args.cases else None
            if found is None:
                continue
            for basis in args.bases or bases:
                for batch in args.batches or batches:
                    problem = Problem(*found, basis, batch)
                    yield from measure(problem, f"{name}_{basis}_{batch}", engines, args)

    for row in rows():
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        skip = {"name", "case", "engine", "task", "peer", *environment()}
        text = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in row.items()
            if k not in skip
        )
        print(f"{row['name']:<44}{text}", flush=True)


if __name__ == "__main__":
    main()
