"""Electron densities: how well they are learned, beside lambda-SOAP, and what energies they give.

    python benchmarks/density.py waters DIR --json
    python benchmarks/density.py ladder DATA.h5 --train 400 --test 100 --json

``waters``: DIR holds ``water_monomers_1k_rholearn.xyz`` and ``e_densities.npz`` (rho_learn: 1000
waters, B3LYP/cc-pVQZ, cc-pVQZ-JKFIT). Random split of seed 0: 250 for test, training sets are the
first N of the rest. Errors are against the published coefficients. lambda-SOAP is featomic's
equivariant power spectrum (extra ``bench``): cutoff 4 Angstrom, width 0.3 Angstrom, 8 radial
functions, l up to 6, of which 1000 channels are kept, farthest point first on the first 100
structures, as in SALTED's examples; both kinds of features with both kernels, all else
alike. ``ladder``: labels of ``opml generate`` or ``bundled:water``; errors of densities, and
energies of the first ``--energies`` test structures through PySCF, with SCF cycles from the density
beside PySCF's own guesses. ``scaling``: conjugate gradients beside the same steps in NumPy.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from environment import record

import opml_jax as opml
from opml_jax import density
from opml_jax.basis import layout_of
from opml_jax.interfaces.density import compare_energies
from opml_jax.models import DensityModel, Op2Density, Op2DensityConfig
from opml_jax.training import density as training
from opml_jax.training.density_metrics import coefficient_errors, density_errors
from opml_jax.training.density_solver import Problem

WATERS = Op2DensityConfig(aux_basis="cc-pvqz-jkfit", baseline="average", metric="overlap")


def published(folder: Path) -> tuple[list[opml.Structure], np.ndarray, opml.basis.Basis]:
    """The 1000 waters: structures, coefficients, auxiliary basis."""
    structures = opml.read_structures(folder / "water_monomers_1k_rholearn.xyz")
    aux = opml.load_basis(WATERS.aux_basis, [1, 8])
    layout = layout_of(structures[0], aux)
    c = np.full((len(structures), layout.nao), np.nan)
    with np.load(folder / "e_densities.npz") as f:
        for i, (l, _) in enumerate(f["keys"].tolist()):
            for row, (structure, centre) in zip(
                f[f"blocks/{i}/values/data"], f[f"blocks/{i}/values/samples"].tolist(), strict=True
            ):
                own = np.flatnonzero((layout.atom == centre) & (layout.l == l))
                c[structure, own.reshape(-1, 2 * l + 1).T] = row
    if not np.isfinite(c).all():
        raise SystemExit("coefficients are missing")
    return structures, c, aux


def lambda_soap(structures, lmax: int) -> dict[int, dict[int, np.ndarray]]:
    """Power spectrum ``{Z: {l: (n_structures, n_atoms of Z, n_channels, 2 l + 1)}}``."""
    from ase import Atoms
    from featomic import SphericalExpansion
    from featomic.clebsch_gordan import EquivariantPowerSpectrum

    hypers = {
        "cutoff": {"radius": 4.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
        "density": {"type": "Gaussian", "width": 0.3},
        "basis": {
            "type": "TensorProduct",
            "max_angular": 6,
            "radial": {"type": "Gto", "max_radial": 7},
        },
    }
    calculator = EquivariantPowerSpectrum(SphericalExpansion(**hypers))
    atoms = [
        Atoms(s.numbers, np.asarray(s.positions) * opml.units.ANGSTROM_PER_BOHR) for s in structures
    ]
    from metatensor import Labels

    keys = np.array([[l, 1] for l in range(lmax + 1)])
    found = calculator.compute(
        atoms, selected_keys=Labels(["o3_lambda", "o3_sigma"], keys), neighbors_to_properties=True
    )
    out: dict[int, dict[int, np.ndarray]] = {}
    for key, block in found.items():
        x = np.asarray(block.values).transpose(0, 2, 1)
        own = x.reshape(len(structures), -1, *x.shape[1:])
        columns = np.moveaxis(own[:100], 2, 0).reshape(own.shape[2], -1)
        own = own[:, :, training.farthest_points(columns, 1000)]
        out.setdefault(int(key["center_type"]), {})[int(key["o3_lambda"])] = own
    return out


def with_features(found, features, index) -> dict:
    """Environments with other features."""
    return {
        z: dataclasses.replace(
            own, features={l: x[index].reshape(-1, *x.shape[2:]) for l, x in features[z].items()}
        )
        for z, own in found.items()
    }


def predicted(definition, params, found, structures, naux: int) -> list[np.ndarray]:
    """Coefficients of environments, with all electrons."""
    c = np.zeros((len(structures), naux))
    for z, own in found.items():
        values = jax.jit(definition.of_element)(params[str(z)], own.features)
        for l, x in values.items():
            c[own.structure[:, None, None], own.places[l]] = x
    metric = jax.jit(
        lambda s: density.metric_matrix(s, definition.aux_basis, definition.config.metric)
    )
    q = density.charges(structures[0], definition.aux_basis)
    return [
        np.asarray(density.with_electrons(own, metric(s), q, s.n_electrons))
        for own, s in zip(c, structures, strict=True)
    ]


def waters(args) -> None:
    """Learning curves of the published set."""
    structures, c, aux = published(args.data)
    order = np.random.default_rng(args.seed).permutation(len(structures))
    test, pool = order[: args.test], order[args.test :]
    basis = opml.load_basis(WATERS.basis, [1, 8])
    plain = Op2Density(WATERS, basis, aux)
    start = time.process_time()
    ours = training.environments(plain, structures)
    print(f"features: {time.process_time() - start:.0f} CPU s", flush=True)
    kinds = {
        "operator": {
            z: {l: x.reshape(len(structures), -1, *x.shape[1:]) for l, x in e.features.items()}
            for z, e in ours.items()
        }
    }
    if not args.alone:
        start = time.process_time()
        kinds["lambda-soap"] = lambda_soap(structures, aux.spec.lmax)
        print(f"lambda-SOAP: {time.process_time() - start:.0f} CPU s", flush=True)
    wanted = {"test": [structures[i] for i in test]}
    for n in args.sizes:
        own = [structures[i] for i in pool[:n]]
        for kernel in args.kernels:
            for kind, features in kinds.items():
                config = dataclasses.replace(WATERS, kernel=kernel)
                definition = Op2Density(config, basis, aux)
                places = training.places(definition, own)
                start = time.process_time()
                params, solution = training.fit_density(
                    definition, own, c[pool[:n]], found=with_features(places, features, pool[:n])
                )
                seconds = time.process_time() - start
                at = with_features(training.places(definition, wanted["test"]), features, test)
                found = predicted(definition, params, at, wanted["test"], c.shape[1])
                row = coefficient_errors(found, c[test], wanted["test"], definition)
                line = {"name": f"waters_{kind}_{kernel}", "n_train": n, "n_test": len(test)}
                line |= {"seed": args.seed, **row, "fit_cpu_seconds": seconds}
                line |= {"cg_steps": solution.steps}
                record(line, "density", args.json)


def ladder(args) -> None:
    """Errors and energies of a labelled set."""
    path = opml.bundled("water", ".h5") if str(args.data) == "bundled:water" else args.data
    dataset = opml.read_dataset(path, basis=args.basis, convention=args.convention)
    order = np.random.default_rng(args.seed).permutation(len(dataset))
    train, test = (dataset.subset(i) for i in np.split(order, [args.train])[:2])
    test = test.subset(range(args.test))
    config = Op2DensityConfig(metric=args.metric, references=args.references)
    bases = (opml.load_basis(n, dataset.elements) for n in (config.basis, config.aux_basis))
    definition = Op2Density(config, *bases)
    start = time.process_time()
    params, solution = training.train_density(definition, train)
    seconds = time.process_time() - start
    model = DensityModel(definition, params)
    line = {"name": f"ladder_{args.name}", "n_train": len(train), "n_test": len(test)}
    line |= {"seed": args.seed, "metric": config.metric, "fit_cpu_seconds": seconds}
    line |= {"cg_steps": solution.steps, "references": config.references}
    line |= density_errors(model.predict(test.structures), test, definition)
    line |= compare_energies(model, test.subset(range(min(args.energies, len(test)))))
    record(line, "density", args.json)


def scaling(args) -> None:
    """A step of conjugate gradients beside NumPy, and how it grows."""
    structures, c, aux = published(args.data)
    basis = opml.load_basis(WATERS.basis, [1, 8])
    order = np.random.default_rng(args.seed).permutation(len(structures))
    for n, references in ((100, 50), (100, 100), (250, 50), (250, 100), (500, 100)):
        config = dataclasses.replace(WATERS, references=references)
        definition = Op2Density(config, basis, aux)
        own = order[:n]
        start = time.process_time()
        problem, _ = training.make_problem(definition, [structures[i] for i in own], c[own])
        assembly = time.process_time() - start
        problem = jax.tree.map(np.asarray, problem)
        b = problem_weights(problem)
        step = jax.jit(Problem.hessian)
        ours = jax.tree.map(np.asarray, step(problem, b))
        seconds = least(lambda: jax.block_until_ready(step(problem, b)))  # noqa: B023
        theirs, plain = plain_hessian(problem, b)
        worst = max(np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max() for k in b)
        line = {
            "name": "cg_step",
            "n_train": n,
            "references": references,
            "columns": int(sum(v.size for v in b.values())),
            "assembly_cpu_seconds": assembly,
            "step_seconds": seconds,
            "numpy_step_seconds": plain,
            "times_faster_than_numpy": plain / seconds,
            "relative_difference": float(worst),
            "metric_bytes": int(problem.metric.nbytes),
            "psi_bytes": int(sum(p.nbytes for p in problem.psi.values())),
        }
        record(line, "density", args.json)


def problem_weights(problem) -> dict[str, np.ndarray]:
    """Random weights."""
    rng = np.random.default_rng(0)
    return {
        k: rng.normal(size=(p.shape[-1], problem.places[k].shape[-1]))
        for k, p in problem.psi.items()
    }


def least(function, repeats: int = 5) -> float:
    """Least wall time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def plain_hessian(problem, b) -> tuple[dict[str, np.ndarray], float]:
    """The product as one writes it at first: a dense Psi for each structure, one at a time."""
    n, naux = problem.target.shape
    keys = list(problem.psi)
    sizes = [b[k].size for k in keys]
    first = np.cumsum([0, *sizes])
    atoms = {k: problem.places[k][:, 0, 0] // naux for k in keys}
    flat = np.concatenate([b[k].ravel() for k in keys])
    total, seconds = np.zeros(len(flat)), 0.0
    for i in range(n):
        psi = np.zeros((naux, len(flat)))
        for k, start in zip(keys, first, strict=False):
            radial = problem.places[k].shape[-1]
            for a in np.flatnonzero(atoms[k] == i):
                for r in range(radial):
                    rows = problem.places[k][a, :, r] - i * naux
                    columns = start + np.arange(problem.psi[k].shape[-1]) * radial + r
                    psi[rows[:, None], columns] = problem.psi[k][a]
        begin = time.perf_counter()  # Psi is there already in a real solver
        total += psi.T @ (problem.metric[i] @ (psi @ flat)) / n
        seconds += time.perf_counter() - begin
    total += float(problem.penalty) * flat
    parts = np.split(total, first[1:-1])
    return {k: p.reshape(b[k].shape) for k, p in zip(keys, parts, strict=True)}, seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["waters", "ladder", "scaling"])
    parser.add_argument("data", type=Path, help="folder, or labelled data")
    parser.add_argument("--name", default="water", help="of the labelled molecules")
    parser.add_argument("--basis", help="of Fock matrices in npz files")
    parser.add_argument("--convention", help="their AO order")
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 100, 250, 500])
    parser.add_argument("--kernels", nargs="+", default=["gaussian", "polynomial"])
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=None)
    parser.add_argument("--energies", type=int, default=20)
    parser.add_argument("--metric", default="coulomb", choices=density.METRICS)
    parser.add_argument("--references", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="without lambda-SOAP")
    parser.add_argument("--quick", action="store_true", help="40 structures, Gaussian kernel")
    parser.add_argument("--json", action="store_true", help="append lines to results/density.jsonl")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.kernels, args.train, args.energies = [40], ["gaussian"], 40, 2
    args.test = args.test or {"waters": 250}.get(args.task, 100)
    jax.config.update("jax_enable_x64", True)
    {"waters": waters, "ladder": ladder, "scaling": scaling}[args.task](args)


if __name__ == "__main__":
    main()
