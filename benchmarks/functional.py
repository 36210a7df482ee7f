"""A learned functional on top of LDA: energies, forces, matrices and densities of one function.

    opml generate train.xyz -o train.h5 --basis def2-svp --method pbe --grid-level 1 \\
        --density-fit --iterates 2
    python benchmarks/functional.py train.h5 validation.h5 test=test.h5 six=six.h5 \\
        --cache DIR --json

Molecules near their minima and displaced, with energies, forces and the first matrices of their
SCFs. Ridge, prior and weights of rows are chosen by the errors of validation at the reference's
densities; test sets are then calculated self-consistently. Baselines and projections of labels are
kept in ``--cache``, from which a killed run goes on, and the parameters in ``params.pkl`` there.
"""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from environment import record

import opml_jax as opml
from opml_jax.data import Dataset
from opml_jax.data.reference import atomic_densities, reference_observables
from opml_jax.mean_field import kohn_sham
from opml_jax.models.functional import Words, learned_functional, superposed
from opml_jax.models.functional.baseline import Baseline
from opml_jax.models.functional.fit import Labelled, NormalEquations, normal_equations
from opml_jax.models.functional.rows import projected
from opml_jax.models.functional.words import fit_maps
from opml_jax.observables import dipole
from opml_jax.quantities import iterate
from opml_jax.units import ANGSTROM_PER_BOHR, DEBYE_PER_EBOHR, EV_PER_HARTREE

MEV = 1e3 * EV_PER_HARTREE / ANGSTROM_PER_BOHR
"""meV/Angstrom of Hartree/Bohr."""

CYCLES = (1, 2)
"""Of the SCFs, whose matrices are rows too."""


class Molecules:
    """Labelled geometries, which share a compiled baseline."""

    def __init__(self, path: Path, cache: Path):
        self.name, self.cache = path.stem, cache / path.stem
        self.data = opml.read_dataset(path)
        self.cache.mkdir(parents=True, exist_ok=True)

    def labelled(self, baseline: Baseline, atoms, everything, limit: int) -> Iterator[Labelled]:
        """Each with its baseline, kept on disk."""
        room = baseline.room(everything)
        for i in range(min(limit, len(self.data))):
            kept = self.cache / f"{i}.pkl"
            if not kept.exists():
                temporary = kept.with_suffix(".part")
                own = self._of(i, baseline, atoms, room)
                temporary.write_bytes(pickle.dumps(own))
                temporary.rename(kept)
            yield pickle.loads(kept.read_bytes())

    def _of(self, i: int, baseline: Baseline, atoms, room) -> Labelled:
        structure, labels = self.data.structures[i], self.data.labels
        together, grids = baseline.laid_out([structure], room)
        dms, focks = (
            [labels[k][i], *(labels[iterate(k, c)][i] for c in CYCLES)] for k in ("dm", "fock")
        )
        n, nao = len(structure.numbers), together.layout.nao
        padded = np.stack([np.pad(dm, (0, nao - len(dm)))[None] for dm in dms])
        energy, gradient, computed = baseline.of_densities(together, grids, padded)
        own = len(focks[0])
        differences = [f - c[0, :own, :own] for f, c in zip(focks, computed, strict=True)]
        free = superposed(atoms, structure, baseline.basis)
        slope = -np.asarray(labels["forces"][i]) - gradient[0, :n]
        found = projected(structure, baseline.basis, dms, differences, free)
        return Labelled(found, float(labels["energy"][i] - energy[0]), slope.reshape(-1))


def chosen(systems: dict[str, NormalEquations]) -> tuple[float, np.ndarray, dict]:
    """Score, weights and errors of the best ridge and weights of rows on validation."""
    best = np.inf, np.zeros(0), {}
    for energy, gradient in ((0.1, 1.0), (1.0, 10.0)):
        for ridge in (1e-5, 1e-6, 1e-7, 1e-8):
            weights = systems["train"].solve(ridge, energy=energy, gradient=gradient)
            line = {"ridge": ridge, "energy_weight": energy, "gradient_weight": gradient}
            for name, system in systems.items():
                left = {k: max(v, 0.0) ** 0.5 for k, v in system.loss(weights).items()}
                line |= {f"{name}_energy_rms_mha": 1e3 * left["energy"]}
                line |= {f"{name}_forces_rms_mev_per_angstrom": MEV * left["gradient"]}
                line |= {f"{name}_fock_rms_uha": 1e6 * left["matrices"]}
            print({k: float(f"{v:.3g}") for k, v in line.items()}, flush=True)
            # a tenth less of one error is worth a tenth more of another; of forces, a fifth
            score = np.log(line["validation_energy_rms_mha"])
            score += 2 * np.log(line["validation_forces_rms_mev_per_angstrom"])
            score += np.log(line["validation_fock_rms_uha"])
            if score < best[0]:
                best = score, weights, line
    return best


def judged(params: dict, data: Dataset, baseline: Baseline, everything, atoms, size: int) -> dict:
    """Self-consistent energies, forces, matrices and dipoles beside the labels."""
    basis = baseline.basis

    @jax.jit
    def calculated(params, structures, grids, free):
        def total(positions):
            moved = structures.replace(positions=positions)
            correction = learned_functional(params, moved, basis, free)
            found = kohn_sham(moved, basis, grids, correction=correction, tolerance=1e-5)
            return found["energy"].sum(), found

        gradient, found = jax.grad(total, has_aux=True)(structures.positions)
        return found, gradient, dipole(found["dm"], structures, basis)

    rows, seconds = [], 0.0
    reference = reference_observables(data, ("dipole", "mo_energy"))
    room = baseline.room(everything)
    for first in range(0, len(data), size):
        index = range(first, min(first + size, len(data)))
        inside = [*index, *[index[-1]] * (size - len(index))]
        together, grids = baseline.laid_out([data.structures[i] for i in inside], room)
        nao = together.layout.nao
        free = np.stack([superposed(atoms, data.structures[i], basis, nao) for i in inside])
        start = time.process_time()
        found, gradient, dipoles = jax.tree.map(
            np.asarray, calculated(params, together, grids, jnp.asarray(free))
        )
        seconds = time.process_time() - start  # of the last batch: compiled
        for b, i in enumerate(index):
            fock, n = data.labels["fock"][i], len(data.structures[i].numbers)
            own = len(fock)
            left = found["fock"][b, :own, :own] - fock
            s, occupied = found["overlap"][b, :own, :own], sum(data.structures[i].numbers) // 2
            levels = scipy.linalg.eigh(found["fock"][b, :own, :own], s, eigvals_only=True)
            levels = levels - reference["mo_energy"][i]
            slope = gradient[b, :n] + data.labels["forces"][i]
            rows.append(
                {
                    "converged": bool(found["residual"][b] <= 1e-5),
                    "energy_mha": 1e3 * (found["energy"][b] - data.labels["energy"][i]),
                    "fock_mae_uha": 1e6 * np.abs(left).mean(),
                    "occupied_mae_uha": 1e6 * np.abs(levels[:occupied]).mean(),
                    "gap_uha": 1e6 * abs(levels[occupied] - levels[occupied - 1]),
                    "dipole_debye": DEBYE_PER_EBOHR
                    * np.linalg.norm(dipoles[b] - reference["dipole"][i]),
                    "forces_mae_mev_per_angstrom": MEV * np.abs(slope).mean(),
                    "forces_rms_mev_per_angstrom": MEV * np.sqrt((slope**2).mean()),
                }
            )
            print(i, {k: float(f"{v:.3g}") for k, v in rows[-1].items()}, flush=True)
    good = [r for r in rows if r["converged"]]
    out = {"n": len(rows), "converged": len(good), "cpu_seconds_per_molecule": seconds / size}
    for k in rows[0]:
        if k != "converged":
            values = np.abs([r[k] for r in good])
            out |= {k: float(values.mean()), f"{k}_worst": float(values.max())}
    return out


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("tests", nargs="*", metavar="NAME=FILE")
    parser.add_argument("--cache", type=Path, required=True, help="folder")
    parser.add_argument("--n-train", type=int, default=10**9)
    parser.add_argument("--cubic", type=int, default=Words.cubic, help="channels")
    parser.add_argument("--quartic", type=int, default=Words.quartic, help="channels")
    parser.add_argument("--priors", type=float, nargs="+", default=[Words.prior])
    parser.add_argument("--seed", type=int, default=0, help="of the mixtures")
    parser.add_argument("--batch", type=int, default=1, help="molecules at once")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    names = [pair.split("=", 1) for pair in args.tests]
    sets = {"train": args.train, "validation": args.validation}
    sets |= {name: Path(path) for name, path in names}
    molecules = {name: Molecules(path, args.cache) for name, path in sets.items()}
    basis = opml.load_basis(molecules["train"].data.meta["basis"], molecules["train"].data.elements)
    level = molecules["train"].data.meta["grid_level"]
    baseline, atoms = Baseline(basis, "lda", level), atomic_densities(basis)
    everything = [s for m in molecules.values() for s in m.data.structures]
    some = {"train": args.n_train, "validation": 10**9}
    begin = time.process_time()
    labelled = {
        name: list(molecules[name].labelled(baseline, atoms, everything, n))
        for name, n in some.items()
    }
    line = {"name": "functional", "baseline": "lda", "n_train": len(labelled["train"])}
    line |= {"rows_cpu_seconds": time.process_time() - begin}
    element = np.searchsorted(
        basis.elements, np.concatenate([x.projected.numbers for x in labelled["train"]])
    )
    change = np.concatenate([x.projected.change[0] for x in labelled["train"]])
    free = np.concatenate([x.projected.atoms for x in labelled["train"]])
    best = np.inf, {}, {}
    for prior in args.priors:
        words = Words(args.cubic, args.quartic, prior, args.seed)
        maps = fit_maps(words, change, free, element)
        begin = time.process_time()
        systems = {
            name: normal_equations(maps, basis.elements, rows) for name, rows in labelled.items()
        }
        seconds = time.process_time() - begin
        score, weights, found = chosen(systems)
        if score < best[0]:
            weights = weights.reshape(len(basis.elements), -1)
            found |= {**dataclasses.asdict(words), "normal_equations_cpu_seconds": seconds}
            best = score, {"maps": maps, "weights": weights}, found
    line |= best[2]
    (args.cache / "params.pkl").write_bytes(pickle.dumps(best[1]))
    for name, _ in names:
        part = molecules[name].data
        line[name] = judged(best[1], part, baseline, everything, atoms, args.batch)
    record(line, "functional", args.json)


if __name__ == "__main__":
    main()
