"""Energies, forces and dipoles from a predicted density, beside those from the operator.

    python benchmarks/density_energy.py check DIR
    python benchmarks/density_energy.py water DIR --json
    python benchmarks/density_energy.py ethanol DENSITIES.h5 --energies RMD17.npz --json
    python benchmarks/density_energy.py cost DIR --json

``DIR`` holds DenSNet's water (``h2o_small_{train,valid}_augccpvdz_df_augccpvqzjkfit.npz`` of
github.com/MihailBogojeski/equiv_dens_ml: PBE/aug-cc-pVDZ, coefficients in aug-cc-pVQZ-JKFIT). The
first N of one file are learned; of the other a half of seed 0 chooses lambda, the other half tests.
``check`` repeats an energy, forces and a fit by PySCF. ``ethanol``: Fock or density matrices of
PBE/def2-SVP (npz, or HDF5 of ``opml generate``) of the first geometries of a split of rMD17,
energies and forces from the split itself; the first N are learned, the last ones test, those before
them choose lambda (``--held-out``). Both: a density model is trained first,
then the closed form for energies and forces on it, N geometries each: ``density`` alone, ``beside``
the operator, and ``operator`` alone (products of the same number of channels without a density).
Forces are those of cached derivatives, which tests hold against gradients of the model. Dipoles are
the density's, of ``operator`` its head's, against those of density matrices. ``cost``: seconds of
one call for energy and forces of models of ``--folder``.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from density import least, predicted
from environment import record
from rmd17 import labelled

import opml_jax as opml
from opml_jax import density
from opml_jax.data.reference import molecule
from opml_jax.learn.run import Run
from opml_jax.models import density2prop, op2density, op2prop
from opml_jax.models.density2prop import Density2PropConfig, Density2PropFit, Density2PropInputs
from opml_jax.models.op2density import Op2Density, Op2DensityConfig, Op2DensityFit
from opml_jax.models.op2density.closed_form import problem_of, solve_problem
from opml_jax.models.op2density.labels import (
    Labelled,
    density_matrix,
    free_atoms,
    label,
    labelled_coefficients,
)
from opml_jax.models.op2density.metrics import coefficient_errors
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.models.op2prop.closed_form import fit_closed_form
from opml_jax.models.op2prop.descriptors import Wanted, build_cache, rounding_noise
from opml_jax.models.op2prop.residual import make_inputs
from opml_jax.quantities import QUANTITIES
from opml_jax.units import ANGSTROM_PER_BOHR, DEBYE_PER_EBOHR

WATER = Op2DensityConfig(
    aux_basis="aug-cc-pvqz-jkfit", length=10.0, fit=Op2DensityFit(penalty=1e-10)
)  # 3: energies extrapolate badly
ETHANOL = Op2DensityConfig()
PENALTY = 1e-10
INPUTS = {"metric": "lifted", "others": ("overlap",), "powers": (1,)}
OPERATOR = Op2PropConfig(basis="even-tempered", channels=64, **INPUTS)
BESIDE = {"density": None, "beside": Density2PropInputs(**INPUTS)}
FILES = (
    "h2o_small_train_augccpvdz_df_augccpvqzjkfit",
    "h2o_small_valid_augccpvdz_df_augccpvqzjkfit",
)


@dataclasses.dataclass
class Molecules:
    """Molecules with energies, forces, dipoles and coefficients of densities."""

    dataset: opml.Dataset
    coefficients: list
    atoms: dict
    definition: Op2Density
    validation: list
    test: list

    def part(self, index) -> Labelled:
        """What losses of densities need of some of them."""
        c = [self.coefficients[i] for i in index]
        return label(self.definition, self.dataset.subset(index).structures, c, Run())


def published(folder: Path) -> tuple[opml.Dataset, list, list]:
    """DenSNet's waters, training file first: labels, coefficients, PySCF's density matrices."""
    structures, energies, forces, c, dms = [], [], [], [], []
    aux = opml.load_basis(WATER.aux_basis, [1, 8])
    for name in FILES:
        with np.load(folder / f"{name}.npz") as f:
            for i, x in enumerate(f["calc_positions"]):
                s = opml.Structure([8, 1, 1], x / ANGSTROM_PER_BOHR)
                structures.append(s)
                c.append(density.from_pyscf(f["df_coeff"][i], s, aux))
                dms.append((f["mo_coeff"][i] * f["mo_occ"][i]) @ f["mo_coeff"][i].T)
            energies += f["calc_energy_hartree"].tolist()
            forces += list(f["calc_forces"] * ANGSTROM_PER_BOHR)  # they are in Hartree/Angstrom
    dipoles = [dipole(s, "aug-cc-pvdz", dm) for s, dm in zip(structures, dms, strict=True)]
    labels = {"energy": np.array(energies), "forces": forces, "dipole": np.array(dipoles)}
    return opml.Dataset(structures, labels, {"method": "pbe", "basis": "aug-cc-pvdz"}), c, dms


def dipole(structure: opml.Structure, basis: str, dm: np.ndarray) -> np.ndarray:
    """Of a density matrix in PySCF's order, about the centre of nuclear charge."""
    mol = molecule(structure, basis)
    z, x = mol.atom_charges(), mol.atom_coords()
    with mol.with_common_origin(z @ x / z.sum()):
        return -np.einsum("xij,ij->x", mol.intor("int1e_r"), dm)


def check(args) -> None:
    """The published numbers repeated."""
    from pyscf import dft

    dataset, c, dms = published(args.data)
    s, aux = dataset.structures[0], opml.load_basis(WATER.aux_basis, [1, 8])
    basis = opml.load_basis("aug-cc-pvdz", [1, 8])
    own = density.fit(opml.from_pyscf(dms[0], s, basis), s, basis, aux)
    mol = molecule(s, "aug-cc-pvdz")
    calculation = dft.RKS(mol, xc="pbe").run(verbose=0, conv_tol=1e-10)
    force = -calculation.nuc_grad_method().set(verbose=0).kernel()
    print("energy", calculation.e_tot - dataset["energy"][0])
    print("forces", np.abs(force - dataset["forces"][0]).max())
    print("coefficients", np.abs(own - c[0]).max(), "of", np.abs(c[0]).max())


def waters(args) -> Molecules:
    """DenSNet's."""
    dataset, c, _ = published(args.data)
    definition = op2density.FAMILY.define(WATER, [1, 8])
    orbital = opml.load_basis("aug-cc-pvdz", [1, 8])
    atoms = {z: density.atomic_coefficients(z, orbital, definition.aux_basis) for z in (1, 8)}
    held_out = 100 + np.random.default_rng(0).permutation(100)
    return Molecules(dataset, c, atoms, definition, held_out[:50].tolist(), held_out[50:].tolist())


def ethanols(args) -> Molecules:
    """Densities from Fock matrices, energies and forces from rMD17."""
    units = {"basis": "def2-svp", "convention": "pyscf", "energy_unit": "hartree"}
    stated = args.data.suffix in (".h5", ".hdf5")
    focks = opml.read_dataset(args.data, **({} if stated else units))
    energies = opml.read_dataset(args.energies).subset(range(len(focks)))
    x, y = (np.array([s.positions for s in d.structures]) for d in (focks, energies))
    assert np.abs(x - y).max() < 1e-6
    config = dataclasses.replace(ETHANOL, references=args.references, length=args.length)
    definition = op2density.FAMILY.define(config, focks.elements)
    orbital = opml.load_basis("def2-svp", focks.elements)
    dipoles = [
        dipole(s, "def2-svp", opml.to_pyscf(density_matrix(focks, i, orbital), s, orbital))
        for i, s in enumerate(focks.structures)
    ]
    labels = {k: energies.labels[k] for k in ("energy", "forces")} | {"dipole": np.array(dipoles)}
    dataset = opml.Dataset(energies.structures, labels, {"method": "pbe", "basis": "def2-svp"})
    atoms = free_atoms(definition, focks)
    c = labelled_coefficients(definition, focks)
    n_validation, n_test = args.held_out
    last = list(range(len(focks) - n_validation - n_test, len(focks)))
    return Molecules(dataset, c, atoms, definition, last[:n_validation], last[n_validation:])


def learn(args, name: str, own: Molecules) -> None:
    """Learning curves."""
    inner, test, fit = own.definition, own.part(own.test), Op2DensityFit(penalty=PENALTY)
    for n in args.sizes:
        path = args.folder / f"{name}_{n}.safetensors"
        line = {"n_train": n, "n_validation": len(own.validation), "n_test": len(own.test)}
        line |= {"references": inner.config.references, "length": inner.config.length}
        if not path.exists():
            start = time.process_time()
            problem = problem_of(inner, PENALTY, own.part(range(n)), own.atoms)
            params, _ = solve_problem(inner, fit, *problem, Run())
            line["density_fit_cpu_seconds"] = time.process_time() - start
            opml.save_model(path, op2density.FAMILY.model(inner, params, {}))
        for kind in args.kinds:
            row = {"name": f"{name}_{kind}", **line}
            row |= closed_form(args, name, own, n, kind, path)
            if kind == "density":
                row |= density_errors(own, test, opml.load_model(path).params)
            record(row, "density_energy", args.json)


def closed_form(args, name: str, own: Molecules, n: int, kind: str, path: Path) -> dict:
    """Errors of the closed form on the test set; the model is kept in the folder."""
    start = time.process_time()
    data = own.dataset.subset([*range(n), *own.validation, *own.test])
    cuts = np.cumsum([0, n, len(own.validation), len(own.test)]).tolist()
    splits = dict(zip(("train", "validation", "test"), map(range, cuts, cuts[1:]), strict=False))
    # one epoch, which is not run: those that choose lambda do not join the training set
    if kind == "operator":
        family, fit = op2prop.FAMILY, Op2PropFit(targets=("energy", "forces", "dipole"), epochs=1)
        definition = family.define(OPERATOR, data.elements)
        drawn = definition.draw(0)
    else:
        family, fit = density2prop.FAMILY, Density2PropFit(targets=("energy", "forces"), epochs=1)
        config = Density2PropConfig(density=str(path), beside=BESIDE[kind], channels=64)
        definition = family.define(config, data.elements)
        drawn = definition.draw(0, data.structures[:n], opml.load_model(path).params)
    wanted = Wanted(derivatives=True, irreps=(1,) if kind == "operator" else ())
    cache = build_cache(definition, data.structures, wanted, drawn)
    noise = rounding_noise(definition, data.structures, cache, wanted, drawn)
    sets = labelled(cache, data, splits, fit.targets)
    solved = fit_closed_form(definition, fit, sets, noise, drawn)
    model = family.model(definition, solved.params, {})
    opml.save_model(args.folder / f"{name}_{kind}_{n}.safetensors", model)
    residual = make_inputs(solved.params, sets["test"])
    out = {"lambda": solved.energy.lam, "cpu_seconds": time.process_time() - start}
    for target in fit.targets:
        unit, error = QUANTITIES[target].suffix, np.abs(residual[target])
        error = error * QUANTITIES[target].factor
        out[f"{target}_mae_{unit}"] = float(error.mean())
        out[f"{target}_median_{unit}"] = float(np.median(error))
        out[f"{target}_max_{unit}"] = float(error.max())
    return out


def density_errors(own: Molecules, test: Labelled, params) -> dict:
    """Of coefficients, and of dipoles against those of density matrices, on the test set."""
    inner, wanted = own.definition, [own.coefficients[i] for i in own.test]
    c = predicted(inner, params, test)
    predicted_dipoles, fitted = (
        np.array(
            [
                density.dipole(x, s, inner.aux_basis)
                for x, s in zip(coefficients, test.structures, strict=True)
            ]
        )
        for coefficients in (c, wanted)
    )
    exact = own.dataset["dipole"][np.array(own.test)]
    error = DEBYE_PER_EBOHR * np.abs(predicted_dipoles - exact)
    return {
        **coefficient_errors(c, wanted, test.structures, inner),
        "dipole_mae_debye": float(error.mean()),
        "dipole_median_debye": float(np.median(error)),
        "dipole_of_fit_mae_debye": float(DEBYE_PER_EBOHR * np.abs(fitted - exact).mean()),
    }


def cost(args) -> None:
    """Seconds of energy and forces of one molecule, of every model in the folder."""
    own = waters(args) if args.energies is None else ethanols(args)
    name = "water" if args.energies is None else "ethanol"
    s = own.dataset.structures[-1]
    for kind in args.kinds:
        model = opml.load_model(args.folder / f"{name}_{kind}_{args.sizes[-1]}.safetensors")
        for what in ("energy", "dipole") if kind != "operator" else ("energy",):

            def run(x, model=model, what=what):
                def energy(x):
                    out = model.definition.apply(model.params, s.replace(positions=x))
                    return out["energy"], out.get("dipole") if what == "dipole" else None

                return jax.value_and_grad(energy, has_aux=True)(x)

            call = jax.jit(run).lower(jax.numpy.asarray(s.positions)).compile()
            seconds = least(lambda call=call: jax.block_until_ready(call(s.positions)), 20)
            row = {"name": f"cost_{name}_{kind}", "and": what, "seconds": seconds}
            record(row, "density_energy", args.json)


def water(args) -> None:
    """Learning curves of DenSNet's water."""
    learn(args, "water", waters(args))


def ethanol(args) -> None:
    """Learning curves of ethanol."""
    learn(args, "ethanol", ethanols(args))


TASKS = {f.__name__: f for f in (check, water, ethanol, cost)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("data", type=Path)
    parser.add_argument("--energies", type=Path, help="of ethanol: a split of rMD17")
    parser.add_argument("--references", type=int, default=100, help="of ethanol, an element")
    parser.add_argument("--length", type=float, default=3.0, help="of ethanol's kernels")
    parser.add_argument("--held-out", type=int, nargs=2, default=[35, 65], help="of ethanol")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--kinds", nargs="+", default=["density", "beside", "operator"])
    parser.add_argument("--folder", type=Path, help="keeps models (default: nothing is kept)")
    parser.add_argument(
        "--json", action="store_true", help="append to results/density_energy.jsonl"
    )
    args = parser.parse_args()
    args.sizes = args.sizes or ([66, 132, 265] if args.energies else [25, 50, 100])
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or Path(temporary)
        args.folder.mkdir(parents=True, exist_ok=True)
        TASKS[args.task](args)


if __name__ == "__main__":
    main()
