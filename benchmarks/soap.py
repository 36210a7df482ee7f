"""How well do SOAP power spectra do on QM7, their hyper-parameters tuned?

Kernel ridge on heats of formation beside a least-squares sum of atoms, for several sizes of the
training set (``qm7_split.py``). Descriptors (radial scaling, cutoff, width of atoms, size of the
basis, one after the other) and kernels are chosen by the error on the last 20 % of the first 1000
training molecules after training on the other 80 % (for N < 1000 that is more than the training
set); the exponent (2 to 4) and the regularisation the same way from each training set, then
fitted to all of it. Test molecules choose nothing.

Descriptors come from featomic (``pip install '.[bench]'``): power spectra of every atom,
normalised or not, in the 500 leading directions of each element (found on training molecules;
``norm_lost`` is what that costs, the mean fraction of a squared norm, of the worst element).
Kernels are sums over pairs of atoms of one element of the scalar product to the power zeta, or the
same divided by the numbers of atoms; the sum with zeta = 1 is linear regression.

    OMP_NUM_THREADS=1 python benchmarks/soap.py QM7.extxyz --json [--quick] [--tuned FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import ase
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from common import Printer
from featomic import SoapPowerSpectrum
from metatensor import Labels
from qm7_split import TRAIN, element_counts, errors, qm7_split, read_qm7

from opml_jax.learn.ridge import composition_offsets

DIRECTIONS, SAMPLE, CHUNK = 500, 1500, 100
ZETAS = (1, 2, 3, 4, 6)
LAMBDAS = tuple(float(x) for x in 10.0 ** np.arange(-12.0, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Soap:
    """Hyper-parameters of a power spectrum; lengths in Angstrom.

    ``scale`` is r0 of the radial scaling 1 / (1 + (r / r0)^exponent) of Willatt, Musil and
    Ceriotti, Phys. Chem. Chem. Phys. 20, 29661 (2018); 0 for none.
    """

    cutoff: float = 4.5
    sigma: float = 0.3
    n_max: int = 8
    l_max: int = 6
    scale: float = 2.0
    exponent: float = 4.0
    normalised: bool = True

    def calculator(self) -> SoapPowerSpectrum:
        """As featomic knows it; its ``max_radial`` counts from zero."""
        density = {"type": "Gaussian", "width": self.sigma}
        if self.scale:
            density["scaling"] = {
                "type": "Willatt2018",
                "scale": self.scale,
                "exponent": self.exponent,
                "rate": 1.0,
            }
        return SoapPowerSpectrum(
            cutoff={
                "radius": self.cutoff,
                "smoothing": {"type": "ShiftedCosine", "width": 0.5},
            },
            density=density,
            basis={
                "type": "TensorProduct",
                "max_angular": self.l_max,
                "radial": {"type": "Gto", "max_radial": self.n_max - 1},
            },
        )


Spectra = dict[int, tuple[np.ndarray, np.ndarray]]
"""``{element: (features (n_atoms, n), molecule of each atom)}``, molecules ascending."""


def spectra(molecules: Sequence[ase.Atoms], soap: Soap, elements: Sequence[int]) -> Spectra:
    """Power spectra of every atom."""
    pairs = [(a, b) for a in elements for b in elements if a <= b]
    keys = Labels(
        ["center_type", "neighbor_1_type", "neighbor_2_type"],
        np.array([(z, a, b) for z in elements for a, b in pairs]),
    )
    found = soap.calculator().compute(molecules, selected_keys=keys)
    moved = Labels(["neighbor_1_type", "neighbor_2_type"], np.array(pairs))
    found = found.keys_to_samples("center_type").keys_to_properties(moved)
    block = found.block()
    system, centre = (np.asarray(block.samples[k]) for k in ("system", "center_type"))
    values = np.asarray(block.values)
    if soap.normalised:
        values = values / np.linalg.norm(values, axis=1, keepdims=True)
    out = {}
    for z in elements:
        rows = np.flatnonzero(centre == z)
        rows = rows[np.argsort(system[rows], kind="stable")]
        out[z] = values[rows], system[rows]
    return out


def _chunks(molecules: Sequence, size: int = CHUNK) -> Iterator[tuple[int, Sequence]]:
    return ((i, molecules[i : i + size]) for i in range(0, len(molecules), size))


def compressed(
    molecules: Sequence[ase.Atoms], pool: np.ndarray, soap: Soap, elements: Sequence[int]
) -> tuple[Spectra, float]:
    """Spectra in their leading directions, and the largest mean fraction of a norm that is lost.

    Directions are those of up to 1500 atoms of each element, from the first 300 molecules of
    ``pool`` that hold it.
    """
    numbers = [set(molecules[i].numbers) for i in pool]
    having = {z: [i for i, n in zip(pool, numbers, strict=True) if z in n][:300] for z in elements}
    rng, sample = np.random.default_rng(0), {z: [] for z in elements}
    for _, part in _chunks([molecules[i] for i in sorted(set().union(*having.values()))]):
        for z, (x, _) in spectra(part, soap, elements).items():
            sample[z].append(x)
    directions = {}
    for z, parts in sample.items():
        x = rng.permutation(np.concatenate(parts))[:SAMPLE]
        directions[z] = np.linalg.svd(x, full_matrices=False)[2][:DIRECTIONS].T
    out, lost = {z: ([], []) for z in elements}, {z: [] for z in elements}
    for start, part in _chunks(molecules):
        for z, (x, molecule) in spectra(part, soap, elements).items():
            short = x @ directions[z]
            out[z][0].append(short)
            out[z][1].append(molecule + start)
            lost[z].append(1 - np.sum(short**2, axis=1) / np.sum(x**2, axis=1))
    worst = max(float(np.concatenate(v).mean()) for v in lost.values())
    return {z: (np.concatenate(x), np.concatenate(m)) for z, (x, m) in out.items()}, worst


def _of(found: tuple, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of the atoms of chosen molecules, where each begins (and the end), and which."""
    x, molecule = found
    first, last = (np.searchsorted(molecule, chosen, side) for side in ("left", "right"))
    present = np.flatnonzero(last > first)
    rows = [np.arange(first[i], last[i]) for i in present]
    starts = np.concatenate([[0], np.cumsum((last - first)[present])])
    return x[np.concatenate([*rows, np.arange(0)]).astype(int)], starts, present


def kernels(
    found: Spectra, rows: np.ndarray, columns: np.ndarray, zetas: Sequence[int]
) -> dict[int, np.ndarray]:
    """Sums over pairs of atoms of one element, ``{zeta: (n_rows, n_columns)}``, of molecules."""
    out = {zeta: np.zeros((len(rows), len(columns))) for zeta in zetas}
    for of_element in found.values():
        y, to, right = _of(of_element, columns)
        for start, part in _chunks(rows):
            x, at, left = _of(of_element, part)
            if not len(left) or not len(right):
                continue
            g = x @ y.T
            power, last = np.ones_like(g), 0
            for zeta in sorted(zetas):
                power *= g ** (zeta - last)
                last = zeta
                pooled = np.add.reduceat(np.add.reduceat(power, at[:-1]), to[:-1], axis=1)
                out[zeta][np.ix_(start + left, right)] += pooled
    return out


class Problem:
    """Molecules, labels and splits."""

    def __init__(self, path: str):
        self.molecules, self.labels = read_qm7(path)
        self.counts = element_counts(self.molecules)
        self.sizes = self.counts.sum(1)
        self.elements = [
            int(z) for z in np.unique(np.concatenate([m.numbers for m in self.molecules]))
        ]
        self.pool, self.test = qm7_split(len(self.molecules))

    def residual(self, train: np.ndarray) -> np.ndarray:
        """Labels less atoms fitted to ``train``."""
        atoms = composition_offsets(self.counts[train], self.labels[train])
        return self.labels - self.counts @ atoms


def scaled(kernel: np.ndarray, kind: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The kernel of a kind, from sums and numbers of atoms."""
    return kernel if kind == "sum" else kernel / (left[:, None] * right[None, :])


def _weights(kernel: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(n, n_lambdas)`` for every lambda, relative to the mean of the diagonal."""
    e, u = np.linalg.eigh(kernel)
    lam = np.array(LAMBDAS) * np.trace(kernel) / len(kernel)
    return u @ ((u.T @ y)[:, None] / (np.maximum(e, 0)[:, None] + lam))


def choose(
    problem: Problem, train: np.ndarray, sums: dict[int, np.ndarray], kinds: Sequence[str]
) -> list[tuple[float, str, int, float]]:
    """``(MAE, kind, zeta, lambda)`` for every kernel: the best lambda on the last 20 % of train.

    ``sums`` are kernels of ``train`` with itself.
    """
    n = round(0.8 * len(train))
    y, sizes = problem.residual(train[:n])[train], problem.sizes[train]
    out = []
    for kind in kinds:
        for zeta, k in sums.items():
            k = scaled(k, kind, sizes, sizes)
            difference = k[n:, :n] @ _weights(k[:n, :n], y[:n]) - y[n:, None]
            maes = np.abs(difference).mean(0)
            out.append((float(maes.min()), kind, zeta, LAMBDAS[int(maes.argmin())]))
    return sorted(out)


def evaluate(
    problem: Problem,
    train: np.ndarray,
    sums: dict[int, np.ndarray],
    to_test: dict[int, np.ndarray],
    model: tuple[str, int, float],
) -> dict[str, float]:
    """Errors on the test set of a kernel fitted to ``train``."""
    kind, zeta, lam = model
    sizes, others = problem.sizes[train], problem.sizes[problem.test]
    k = scaled(sums[zeta], kind, sizes, sizes)
    y = problem.residual(train)
    k = k + lam * np.trace(k) / len(k) * np.eye(len(k))
    found = scaled(to_test[zeta], kind, others, sizes) @ np.linalg.solve(k, y[train])
    return errors(found, y[problem.test])


STAGES = (
    [
        {"scale": r, "exponent": m}
        for r, m in (
            (0.0, 4.0),
            (2.0, 4.0),
            (2.0, 7.0),
            (1.5, 4.0),
            (1.5, 7.0),
            (2.5, 7.0),
            (2.0, 10.0),
        )
    ],
    [{"cutoff": c} for c in (3.5, 6.0)],
    [{"sigma": s} for s in (0.15, 0.2, 0.4)],
    [{"n_max": n, "l_max": l} for n, l in ((6, 4), (10, 6), (8, 8))],
    [{"normalised": False}],
)
"""What is varied, one stage after the other, from the best so far."""


def tune(problem: Problem, printer: Printer, quick: bool) -> dict[str, tuple[Soap, str]]:
    """The best descriptors and kind of sum, stage by stage, for linear and for all kernels."""
    train = problem.pool[:1000]
    molecules, inner = [problem.molecules[i] for i in train], np.arange(len(train))
    seen: dict[Soap, dict[str, tuple]] = {}
    chosen = {"linear": Soap(), "kernel": Soap()}
    for stage in STAGES[: 1 if quick else None]:
        for change in stage[: 3 if quick else None]:
            for soap in {dataclasses.replace(s, **change) for s in chosen.values()} - set(seen):
                found, lost = compressed(molecules, inner[:800], soap, problem.elements)
                sums = kernels(found, inner, inner, ZETAS)
                results = choose(problem, train, sums, ("sum", "average"))
                linear = next(r for r in results if r[1:3] == ("sum", 1))
                seen[soap] = {"linear": linear, "kernel": results[0]}
                for model, (mae, kind, zeta, lam) in seen[soap].items():
                    printer.line(
                        f"soap_{model}_tuning",
                        validation_mae_kcal_per_mol=mae,
                        kernel=kind,
                        zeta=zeta,
                        relative_lambda=lam,
                        norm_lost=lost,
                        **dataclasses.asdict(soap),
                    )
        chosen = {model: min(seen, key=lambda s, m=model: seen[s][m][0]) for model in chosen}
    return {model: (soap, seen[soap][model][1]) for model, soap in chosen.items()}


def tuned(path: str) -> dict[str, tuple[Soap, str]]:
    """The same from the lines of an earlier run."""
    with open(path) as f:
        rows = [row for row in map(json.loads, f) if row["name"].endswith("_tuning")]
    out = {}
    for model in ("linear", "kernel"):
        mine = [row for row in rows if row["name"] == f"soap_{model}_tuning"]
        best = min(mine, key=lambda row: row["validation_mae_kcal_per_mol"])
        fields = {f.name: best[f.name] for f in dataclasses.fields(Soap)}
        out[model] = Soap(**fields), best["kernel"]
    return out


def curve(
    problem: Problem, printer: Printer, model: str, soap: Soap, kind: str, quick: bool
) -> None:
    """Errors on the test set."""
    found, lost = compressed(problem.molecules, problem.pool, soap, problem.elements)
    zetas = (1,) if model == "linear" else (2, 3, 4)
    sizes = [n for n in TRAIN if not quick or n <= 1000]
    pool = problem.pool[: sizes[-1]]
    every = kernels(found, np.concatenate([pool, problem.test]), pool, zetas)
    for n in sizes:
        sums = {zeta: k[:n, :n] for zeta, k in every.items()}
        to_test = {zeta: k[len(pool) :, :n] for zeta, k in every.items()}
        mae, _, zeta, lam = choose(problem, pool[:n], sums, (kind,))[0]
        printer.line(
            f"soap_{model}",
            n_train=n,
            n_test=len(problem.test),
            **evaluate(problem, pool[:n], sums, to_test, (kind, zeta, lam)),
            validation_mae_kcal_per_mol=mae,
            kernel=kind,
            zeta=zeta,
            relative_lambda=lam,
            norm_lost=lost,
            **dataclasses.asdict(soap),
            peer=f"featomic {version('featomic')}",
        )


def composition(problem: Problem, printer: Printer) -> None:
    """Errors of a sum over atoms."""
    for n in TRAIN:
        y = problem.residual(problem.pool[:n])[problem.test]
        printer.line("composition", n_train=n, n_test=len(y), **errors(np.zeros_like(y), y))


def main() -> None:
    """Run and print one line (``--json``: one JSON object) per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("qm7", help="extxyz with heats of formation")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="3 descriptors, N <= 1000")
    parser.add_argument("--tuned", metavar="FILE", help="take descriptors from lines of a run")
    args = parser.parse_args()
    problem, printer = Problem(args.qm7), Printer(args.json)
    composition(problem, printer)
    best = tuned(args.tuned) if args.tuned else tune(problem, printer, args.quick)
    for model, (soap, kind) in best.items():
        curve(problem, printer, model, soap, kind, args.quick)


if __name__ == "__main__":
    main()
