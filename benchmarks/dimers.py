"""Two water molecules pulled apart: do linear models of V know the long range, unlike a cutoff?

The study of the paper: pairs of water molecules at 20 distances between oxygens from 3.5 to 12
Angstrom, PBE/def2-SVP (50 pairs, in ``data/``); closed-form ridge for energies
(L = 0) and dipoles (L = 1) on V, on V and V^2, on V to V^3 (blocks with one atom at an oxygen,
summed, or at any atom, summed by element; bare and screened), beside correlations of neighbour
densities (ACDC nu = 2, featomic) at cutoffs of 4 and more Angstrom.

Splits: ``tail`` (the paper's: train below 8 and at 12 Angstrom, test between), ``beyond`` (train
below 8, test above), ``pairs`` (train 4 of 5 pairs at all distances, test the others). Lambda, and
whether columns are divided by their spread, are chosen twice, on the training set alone: by
leave-one-out (``selection`` row, the paper's) and by leaving out all rows of one distance, or of
one pair for ``pairs`` (group). ``constant`` predicts each pair's label at its nearest distance in
the training set: what a perfect model of separate molecules knows.

RMSE is over structures, of vectors by their norm; ``energy_change`` is E(d) - E(12 Angstrom) of a
pair, in which errors of the molecules themselves cancel.

    OMP_NUM_THREADS=1 python benchmarks/dimers.py --json [--quick] [--picture FILE]
    OMP_NUM_THREADS=1 python benchmarks/dimers.py --labels DIR [--pairs N]

The second makes the labels again into DIR (an hour or two on one core; run again to go on), the
file that is kept in ``data/``. ACDC needs featomic (``pip install '.[bench]'``), and is left
out without.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from common import Printer
from scipy.spatial.transform import Rotation

import opml_jax as opml
from opml_jax.conventions import cartesian_to_e3nn
from opml_jax.features import AtomFeatures, atom_features
from opml_jax.units import ANGSTROM_PER_BOHR, DEBYE_PER_EBOHR

DISTANCES = np.linspace(3.5, 12.0, 20)
PAIRS, SEED, NOISE = 50, 2414, 0.05
NUMBERS = (8, 1, 1) * 2
BOND, ANGLE = 0.969, np.deg2rad(104.2)
LABELS = Path(__file__).parent / "data" / "water_dimers_pbe_def2svp.npz"
LAMBDAS = 10.0 ** np.arange(-12.0, 4.5, 0.5)  # for columns of unit spread
POWERS, CENTRES = (1, 2, 3), ("oxygen", "all")
SHOWN = 19  # the pair of the picture
SHOWN_FIT = ("tail", "row", "oxygen")
PICTURED = (
    "V to power 1, cc-pvtz",
    "V to power 2, cc-pvtz",
    "V to power 3, cc-pvtz",
    "screened V to power 3, cc-pvtz",
    "ACDC 4 Å, n 7, σ 0.3 Å",
    "ACDC 14 Å, n 12, σ 0.5 Å",
)


def geometries(n_pairs: int = PAIRS, seed: int = SEED) -> np.ndarray:
    """Dimers ``(n_pairs, n_distances, 6, 3)`` in Angstrom: O H H O H H, oxygens on the z axis.

    Monomers are water near its minimum with Gaussian noise of 0.05 Angstrom on every coordinate,
    turned at random; pair i depends on the seed and i only.
    """
    rng = np.random.default_rng(seed)
    arms = [[s * np.sin(ANGLE / 2), 0, np.cos(ANGLE / 2)] for s in (1, -1)]
    water = BOND * np.array([[0, 0, 0], *arms])
    out = np.empty((n_pairs, len(DISTANCES), 6, 3))
    for pair in out:
        monomers = water + NOISE * rng.normal(size=(2, 3, 3))
        turns = Rotation.random(2, rng=rng).as_matrix()
        monomers = (monomers - monomers[:, :1]) @ np.swapaxes(turns, 1, 2)
        pair[:, :3] = monomers[0]
        pair[:, 3:] = monomers[1] + DISTANCES[:, None, None] * np.array([0, 0, 1])
    return out


def make_labels(out: Path, n_pairs: int) -> None:
    """PBE/def2-SVP energies and dipoles into ``out``, in this process; run again to go on."""
    from pyscf import lib

    from opml_jax.data.generate import generate
    from opml_jax.data.reference import Method
    from opml_jax.data.store import read_hdf5

    lib.num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    positions = geometries(n_pairs).reshape(-1, 6, 3)
    method = Method("pbe", "def2-svp", grid_level=4, conv_tol=1e-10)
    structures = [opml.Structure(NUMBERS, r / ANGSTROM_PER_BOHR) for r in positions]

    def progress(done: int, total: int, failed: int) -> None:
        if done % len(DISTANCES) == 0:
            print(f"{done} of {total}, {failed} failed", flush=True)

    file = out / "water_dimers.h5"
    outcome = generate(structures, file, method, on_progress=progress)
    if outcome.failed:
        sys.exit(f"{len(outcome.failed)} did not converge, see {file}.failed.txt")
    data = read_hdf5(file)
    np.savez_compressed(
        out / LABELS.name,
        positions_angstrom=positions,
        energies_hartree=np.array(data.labels["energy"][: len(positions)]),
        dipoles_ebohr=np.array(data.labels["dipole"][: len(positions)]),
        meta=json.dumps({**method.meta(), "seed": SEED, "noise_angstrom": NOISE}),
    )
    print(f"{out / LABELS.name}: {len(positions)} dimers")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Columns of a linear model, ``{L: (n, n_columns, 2 L + 1)}``, and what they are."""

    what: dict[str, str | int | float]
    columns: dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Dimers and labels, energies in Hartree, dipoles in Debye in e3nn's order."""

    positions: np.ndarray
    energies: np.ndarray
    dipoles: np.ndarray

    @property
    def pair(self) -> np.ndarray:
        """Which pair each dimer is of."""
        return np.arange(len(self.energies)) // len(DISTANCES)

    @property
    def distance(self) -> np.ndarray:
        """Distance of the oxygens, Angstrom."""
        return self.positions[:, 3, 2]

    def splits(self) -> dict[str, np.ndarray]:
        """Masks of training sets."""
        near, far = self.distance < 8, self.distance > 11.99
        return {"tail": near | far, "beyond": near, "pairs": self.pair % 5 != SHOWN % 5}

    def constants(self, train: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """For each L the label of the same pair at its nearest training distance."""
        gap = np.abs(self.distance[:, None] - self.distance[None, :])
        gap[(self.pair[:, None] != self.pair[None, :]) | ~train[None, :]] = np.inf
        nearest = gap.argmin(1)
        yield 0, self.energies[nearest, None]
        yield 1, self.dipoles[nearest]


def read(path: Path, quick: bool) -> Problem:
    """The labels."""
    with np.load(path) as f:
        keep = slice(20 * len(DISTANCES)) if quick else slice(None)
        return Problem(
            f["positions_angstrom"][keep],
            f["energies_hartree"][keep],
            np.asarray(cartesian_to_e3nn(f["dipoles_ebohr"][keep])) * DEBYE_PER_EBOHR,
        )


def of_potential(problem: Problem, basis_name: str, operator: str) -> Iterator[Inputs]:
    """V, V and V^2, V to V^3: by oxygens, and by oxygens and by hydrogens."""
    basis = opml.load_basis(basis_name, (1, 8))
    recipe = AtomFeatures(basis.spec, POWERS, lmax=1)
    structures = [opml.Structure(NUMBERS, r / ANGSTROM_PER_BOHR) for r in problem.positions]

    @jax.jit
    def features(batch):
        found = atom_features(batch, basis, POWERS, operator=operator, lmax=1)
        return found.filter("0e").array, found.filter("1o").array

    size = 100
    batches = (structures[i : i + size] for i in range(0, len(structures), size))
    parts = zip(*(features(opml.batch(few, basis)) for few in batches), strict=True)
    found = dict(enumerate(np.concatenate(p) for p in parts))
    power = {
        l: np.array([c.power for c in recipe.channels if (c.l, c.parity) == (l, (-1) ** l)])
        for l in found
    }
    for centres in CENTRES:
        for top in POWERS:
            columns = {}
            for l, x in found.items():
                x = x.reshape(*x.shape[:2], -1, 2 * l + 1)[:, :, power[l] <= top]
                columns[l] = summed(x, centres)
            what = {"model": "V", "powers": top, "operator": operator, "basis": basis_name}
            yield Inputs({**what, "centres": centres}, columns)


def of_densities(problem: Problem, quick: bool) -> Iterator[Inputs]:
    """ACDC, the paper's settings first."""
    from acdc import correlations, densities, expansion

    settings = [(4.0, 7, 0.3), (8.0, 7, 0.3), (14.0, 7, 0.3), (14.0, 12, 0.5), (14.0, 12, 1.0)]
    l_max = 4
    for cutoff, n, sigma in settings[: 3 if quick else None]:
        found = correlations(
            densities(NUMBERS, problem.positions, expansion(cutoff, n, l_max, sigma))
        )
        what = {"model": "ACDC nu=2", "peer": f"featomic {version('featomic')}"}
        what |= {"cutoff_angstrom": cutoff, "n_max": n, "l_max": l_max, "sigma_angstrom": sigma}
        for centres in CENTRES if n == 7 else CENTRES[:1]:
            columns = {l: summed(x, centres) for l, x in found.items()}
            yield Inputs({**what, "centres": centres}, columns)


def summed(x: np.ndarray, centres: str) -> np.ndarray:
    """Features of atoms ``(n, 6, n_features, 2 L + 1)`` summed over oxygens, or by element."""
    by = [x[:, [0, 3]].sum(1)]
    if centres == "all":
        by.append(x[:, [1, 2, 4, 5]].sum(1))
    return np.concatenate(by, axis=1)


Fit = tuple[float, np.ndarray, float]
"""Error that chose lambda, weights, lambda."""


def ridge(a: np.ndarray, y: np.ndarray, groups: np.ndarray) -> dict[str, Fit]:
    """Ridge with lambda by leaving out rows and by leaving out groups of rows, both exact.

    Errors of what is left out are (1 - H)^-1 of those of the fit, in the block left out; 1 - H is
    built from lambda / (s^2 + lambda), as it vanishes where there are more columns than rows. Of
    lambdas within 1 % of the least error the largest.
    """
    u, s, vt = np.linalg.svd(a, full_matrices=len(a) > a.shape[1])
    vt, uty = vt[: len(s)], u.T @ y
    blocks = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    found: dict[str, list[Fit]] = {"row": [], "group": []}
    for lam in LAMBDAS:
        rest = lam / (np.concatenate([s, np.zeros(len(y) - len(s))]) ** 2 + lam)
        residual = u @ (rest * uty)
        weights = vt.T @ (s / (s**2 + lam) * uty[: len(s)])
        left = {
            "row": residual / ((u**2) @ rest),
            "group": np.concatenate(
                [np.linalg.solve((u[b] * rest) @ u[b].T, residual[b]) for b in blocks]
            ),
        }
        for name, e in left.items():
            found[name].append((float(np.sqrt(np.mean(e**2))), weights, float(lam)))
    return {
        name: max((f for f in fits if f[0] <= 1.01 * min(f[0] for f in fits)), key=lambda f: f[2])
        for name, fits in found.items()
    }


def fit(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, groups: np.ndarray
) -> dict[str, tuple[np.ndarray, dict[str, float]]]:
    """Predictions ``(n, 2 L + 1)``, with an intercept for L = 0, and what was chosen."""
    scalar = x.shape[2] == 1
    shift, origin = (x[train].mean(0), y[train].mean(0)) if scalar else (0.0, 0.0)
    x, y = x - shift, y - origin
    spread = np.sqrt(np.mean(x[train] ** 2, axis=(0, 2)))
    keep = spread > 1e-12 * spread.max()
    best: dict[str, tuple] = {}
    for standardised in (True, False):
        rows = np.swapaxes(x[:, keep], 1, 2) / (spread[keep] if standardised else spread.max())
        a = rows[train].reshape(-1, rows.shape[2])
        of_rows = np.repeat(groups[train], rows.shape[1])
        for name, found in ridge(a, y[train].ravel(), of_rows).items():
            if name not in best or found[0] < best[name][0][0]:
                best[name] = found, standardised, rows @ found[1] + origin
    return {
        name: (
            prediction,
            {"columns": int(keep.sum()), "standardised": standardised, "lambda": found[2]},
        )
        for name, (found, standardised, prediction) in best.items()
    }


def rmse(prediction: np.ndarray, reference: np.ndarray, chosen: np.ndarray) -> float:
    """Over structures, of vectors by their norm."""
    return float(np.sqrt(np.mean(np.sum((prediction - reference)[chosen] ** 2, axis=1))))


def study(problem: Problem, printer: Printer, quick: bool) -> dict[str, np.ndarray]:
    """Print every model's errors; energies of the split of the paper for the picture."""
    labels = {0: problem.energies[:, None], 1: problem.dipoles}
    splits, curves = problem.splits(), {}

    def change(energies: np.ndarray) -> np.ndarray:
        curve = energies.reshape(-1, len(DISTANCES))
        return (curve - curve[:, -1:]).reshape(-1, 1)

    def line(what: dict, split: str, found: dict[int, np.ndarray], **more) -> None:
        train = splits[split]
        printer.line(
            "dimers",
            split=split,
            **what,
            energy_rmse_uha=1e6 * rmse(found[0], labels[0], ~train),
            energy_change_rmse_uha=1e6 * rmse(change(found[0]), change(labels[0]), ~train),
            dipole_rmse_debye=rmse(found[1], labels[1], ~train),
            n_train=int(train.sum()),
            n_test=int((~train).sum()),
            **more,
        )

    for split in ("tail", "beyond"):
        line({"model": "constant"}, split, dict(problem.constants(splits[split])))
    for inputs in _inputs(problem, quick):
        for split, train in splits.items():
            groups = problem.pair if split == "pairs" else np.round(problem.distance, 3)
            fits = {l: fit(inputs.columns[l], labels[l], train, groups) for l in labels}
            for selection in fits[0]:
                found = {l: fits[l][selection][0] for l in labels}
                more = {
                    f"{name}_{key}": value
                    for l, name in enumerate(("energy", "dipole"))
                    for key, value in fits[l][selection][1].items()
                }
                line({**inputs.what, "selection": selection}, split, found, **more)
                if (split, selection, inputs.what["centres"]) == SHOWN_FIT:
                    curves[_title(inputs.what)] = found[0][:, 0]
    return curves


def _inputs(problem: Problem, quick: bool) -> Iterator[Inputs]:
    try:
        yield from of_densities(problem, quick)
    except ImportError as err:
        print(f"without ACDC: {err}", file=sys.stderr)
    for basis_name in ("def2-svp",) if quick else ("def2-svp", "cc-pvtz"):
        for operator in ("external_potential", "screened_potential"):
            yield from of_potential(problem, basis_name, operator)


def _title(what: dict) -> str:
    if what["model"] == "V":
        kind = "V" if what["operator"] == "external_potential" else "screened V"
        return f"{kind} to power {what['powers']}, {what['basis']}"
    return "ACDC {cutoff_angstrom:g} Å, n {n_max}, σ {sigma_angstrom:g} Å".format(**what)


def picture(problem: Problem, curves: dict[str, np.ndarray], path: Path) -> None:
    """Energies of one pair against distance, and their errors."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    milli = 27211.386
    mine = problem.pair == SHOWN
    d, energy = problem.distance[mine], problem.energies[mine]
    train = problem.splits()["tail"][mine]
    figure, (top, bottom) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    top.plot(d[train], milli * (energy - energy[-1])[train], "ko", label="PBE, trained on")
    top.plot(d[~train], milli * (energy - energy[-1])[~train], "ko", mfc="w", label="PBE, test")
    for name, found in curves.items():
        top.plot(d, milli * (found[mine] - energy[-1]), label=name)
        bottom.semilogy(d, milli * np.abs(found[mine] - energy), label=name)
    low, high = milli * np.array([(energy - energy[-1]).min(), (energy - energy[-1]).max()])
    margin = 0.5 * (high - low)
    top.set(
        ylabel=f"energy of pair {SHOWN} less PBE at 12 Å / meV", ylim=(low - margin, high + margin)
    )
    bottom.set(ylabel="absolute error / meV")
    top.legend(fontsize=7)
    for axis in (top, bottom):
        axis.set_xlabel("distance of the oxygens / Å")
        axis.axvspan(8, 11.9, color="0.92", zorder=0)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Run and print one line (``--json``: one JSON object) per model and split."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="20 pairs, def2-SVP only")
    parser.add_argument("--picture", type=Path, help="png to write")
    parser.add_argument("--data", type=Path, default=LABELS, help="file of labels")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="make the labels instead")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of --labels")
    args = parser.parse_args()
    if args.labels:
        make_labels(args.labels, args.pairs)
        return
    problem = read(args.data, args.quick)
    curves = study(problem, Printer(args.json), args.quick)
    if args.picture:
        picture(problem, {k: v for k, v in curves.items() if k in PICTURED}, args.picture)


if __name__ == "__main__":
    main()
