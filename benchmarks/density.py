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
beside PySCF's own guesses. ``networks``: the same waters and split by networks on the same
features, alone (on mean coefficients) and on what the kernels leave; the last 100 of the pool are
their validation set. ``uncertainty``: standard deviations beside errors, scaled by the same
validation set. ``widths``: bundled water, errors against the true density on a level 3 grid: of
the fit, of kernels, with a network, with a network descended on points (widths that hardly move),
and with widths; 50 for validation and 50 for test. ``scaling``: kernels and conjugate gradients
beside the same steps in NumPy.
``plot``: the learning curves of ``results/density.jsonl`` as a picture.
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
from opml_jax.models import DensityModel, Op2Density, Op2DensityConfig, Op2DensityNetworkConfig
from opml_jax.models.density import kernel, reduced
from opml_jax.training import density as training
from opml_jax.training.config import OptimConfig
from opml_jax.training.density_metrics import coefficient_errors, density_errors
from opml_jax.training.density_network import train_density_network
from opml_jax.training.density_solver import Problem
from opml_jax.training.density_variance import variance_parameters
from opml_jax.training.density_widths import train_density_widths, true_densities

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
        for name in args.kernels:
            for kind, features in kinds.items():
                config = dataclasses.replace(WATERS, kernel=name)
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
                line = {"name": f"waters_{kind}_{name}", "n_train": n, "n_test": len(test)}
                line |= {"seed": args.seed, **row, "fit_cpu_seconds": seconds}
                line |= {"cg_steps": solution.steps}
                record(line, "density", args.json)


def labelled_waters(args, config: Op2DensityConfig):
    """Waters by set: definition, structures, coefficients, and what losses need, for index sets."""
    structures, c, aux = published(args.data)
    definition = Op2Density(config, opml.load_basis(WATERS.basis, [1, 8]), aux)
    found = training.environments(definition, structures)
    features = {
        z: {l: x.reshape(len(structures), -1, *x.shape[1:]) for l, x in e.features.items()}
        for z, e in found.items()
    }
    metric = training.metrics(definition, structures)

    def part(index):
        own = [structures[i] for i in index]
        at = with_features(training.places(definition, own), features, index)
        return own, c[index], training.Labelled(metric[index], c[index], at)

    return definition, part


def networks(args) -> None:
    """Networks beside the kernels: the same waters, features, split, loss and metric."""
    order = np.random.default_rng(args.seed).permutation(1000)
    test, pool = order[: args.test], order[args.test :]
    definition, part = labelled_waters(args, WATERS)
    wanted, c, at = part(test)
    validation = part(pool[-100:])[2]
    optim = OptimConfig(epochs=args.epochs, batch_size=10, learning_rate=1e-2)
    for n in args.sizes:
        train = part(pool[:n])[2]
        for alone in (True, False):
            config = dataclasses.replace(WATERS, network=Op2DensityNetworkConfig(alone=alone))
            own = dataclasses.replace(definition, config=config)
            start = time.process_time()
            if alone:
                params, _ = training.subtract_baselines(own, train)
            else:
                params, _ = training.solve_problem(own, *training.problem_of(own, train))
            fit = train_density_network(own, params, train, validation, optim, args.seed)
            seconds = time.process_time() - start
            kept = any("network" in p for p in fit.params.values())
            line = {"name": f"waters_network_{'alone' if alone else 'on_kernels'}"}
            line |= {"n_train": n, "n_validation": 100, "n_test": len(test), "seed": args.seed}
            line |= {"epochs": optim.epochs, "fit_cpu_seconds": seconds, "kept": kept}
            line |= {f"validation_{k}": v for k, v in fit.chosen.items()}
            found = predicted(own, fit.params, at.found, wanted, c.shape[1])
            line |= coefficient_errors(found, c, wanted, own)
            record(line, "density", args.json)


def uncertainty(args) -> None:
    """Standard deviations of the kernels beside errors of waters they have not seen."""
    order = np.random.default_rng(args.seed).permutation(1000)
    test, pool = order[: args.test], order[args.test :]
    config = dataclasses.replace(WATERS, uncertainty=True, references=args.references)
    definition, part = labelled_waters(args, config)
    wanted, _, at = part(test)
    validation = part(pool[-100:])[2]
    for n in args.sizes:
        train = part(pool[:n])[2]
        problem, bases = training.problem_of(definition, train)
        start = time.process_time()
        plain = dataclasses.replace(
            definition, config=dataclasses.replace(config, uncertainty=False)
        )
        params, solution = training.solve_problem(plain, problem, bases)
        solving = time.process_time() - start
        columns = int(sum(w.size for w in solution.weights.values()))
        for exact in (columns, 0):
            start = time.process_time()
            found = variance_parameters(problem, bases, solution.weights, exact)
            seconds = time.process_time() - start
            own = {z: {**p, "variance": found[z]} for z, p in params.items()}
            own, factor = training.calibrated(definition, own, validation)
            sigma = DensityModel(definition, own).predict(wanted, uncertainty=True)
            sigma = sigma["density_uncertainty"]
            error = training.left_over(definition, own, at)
            error = np.sqrt(np.einsum("sp,spq,sq->s", error, at.metric, error))
            ranks = [np.argsort(np.argsort(v)) for v in (sigma, error)]
            line = {"name": f"uncertainty_{'exact' if exact else 'blocks'}", "n_train": n}
            line |= {"n_test": len(test), "n_validation": 100, "references": args.references}
            line |= {"columns": columns, "fit_cpu_seconds": solving, "cpu_seconds": seconds}
            line |= {
                "calibration": factor,
                "rms_error_over_rms_sigma": float(np.sqrt((error**2).mean() / (sigma**2).mean())),
                "rank_correlation": float(np.corrcoef(ranks)[0, 1]),
                "within_1_sigma": float(np.mean(error < sigma)),
                "within_2_sigma": float(np.mean(error < 2 * sigma)),
                "variance_bytes": sum(x.nbytes for x in jax.tree.leaves(found)),
            }
            stretched = [
                wanted[0].replace(positions=scale * np.asarray(wanted[0].positions))
                for scale in (1.0, 1.1, 1.2, 1.5)
            ]
            away = DensityModel(definition, own).predict(stretched, uncertainty=True)
            line["sigma_stretched"] = away["density_uncertainty"].tolist()
            record(line, "density", args.json)


def widths(args) -> None:
    """True densities: what a fixed basis misses, and what widths of its functions do about it."""
    dataset = opml.read_dataset(opml.bundled("water", ".h5"))
    order = np.random.default_rng(args.seed).permutation(len(dataset))
    parts = np.split(order, [args.train, args.train + 50, args.train + 100])
    parts = dict(zip(("train", "validation", "test"), map(dataset.subset, parts), strict=False))
    optim = OptimConfig(epochs=args.epochs, batch_size=10, learning_rate=1e-2)
    exact = exact_densities(parts["test"])
    for name in args.aux:
        network = Op2DensityNetworkConfig(
            widths=args.range, points=args.points, dipole_weight=args.dipole_weight
        )
        config = Op2DensityConfig(aux_basis=name, network=network)
        definition = Op2Density(
            config, *(opml.load_basis(n, dataset.elements) for n in (config.basis, name))
        )
        labelled = {
            k: training.label_dataset(definition, parts[k]) for k in ("train", "validation")
        }
        sets = {
            k: (v, true_densities(definition, parts[k], i))
            for i, (k, v) in enumerate(labelled.items())
        }
        start = time.process_time()
        atoms = training.free_atoms(definition, parts["train"])
        problem = training.problem_of(definition, labelled["train"], atoms)
        kernels, _ = training.solve_problem(definition, *problem)
        fitted = training.labelled_coefficients(definition, parts["test"])
        line = {"n_train": args.train, "n_validation": 50, "n_test": 50, "seed": args.seed}
        line |= {"aux_basis": name, "range": args.range, "points": args.points}
        line |= {"epochs": args.epochs, "dipole_weight": args.dipole_weight}
        seconds = time.process_time() - start
        own = true_errors(definition.aux_basis, parts["test"], exact, {"coefficients": fitted})
        record({"name": "widths_fit", **line, **own}, "density", args.json)
        still = dataclasses.replace(config, network=dataclasses.replace(network, widths=1e-9))
        fit = train_density_network(definition, kernels, *labelled.values(), optim, args.seed)
        with_network = time.process_time() - start
        models = {"kernels": (definition, kernels, seconds, 1.0)}
        best = min(fit.chosen.values())
        models["network"] = definition, fit.params, with_network, best
        for kind, settings in (("network_on_points", still), ("widths", config)):
            own = dataclasses.replace(definition, config=settings)
            start = time.process_time()
            found = train_density_widths(own, fit.params, sets, optim, args.seed)
            seconds = with_network + time.process_time() - start
            models[kind] = own, found.params, seconds, found.chosen["widths"]
        for kind, (own, params, seconds, validation) in models.items():
            found = DensityModel(own, params).predict(parts["test"].structures)
            errors = true_errors(own.aux_basis, parts["test"], exact, found)
            errors |= {"fit_cpu_seconds": seconds, "validation_loss": validation}
            record({"name": f"widths_{kind}", **line, **errors}, "density", args.json)


def exact_densities(dataset, level: int = 3) -> list[tuple[np.ndarray, ...]]:
    """Points, weights and densities of the density matrices of a data set."""
    basis, out = opml.load_basis(dataset.meta["basis"], dataset.elements), []
    for i, s in enumerate(dataset.structures):
        points, weights = density.grid(s, level)
        dm = training.density_matrix(dataset, i, basis)
        out.append((points, weights, density.matrix_on_points(dm, s, basis, points)))
    return out


def true_errors(aux, dataset, exact, found) -> dict[str, float]:
    """Absolute errors per electron against exact densities, and errors of the dipole."""
    percent, dipoles = [], []
    for i, (s, (points, weights, rho)) in enumerate(zip(dataset.structures, exact, strict=True)):
        n = layout_of(s, aux)
        c = found["coefficients"][i][: n.nao]
        own = found["widths"][i][: n.n_shells] if "widths" in found else None
        error = density.on_points(c, s, aux, points, own) - rho
        percent.append(100 * (weights @ np.abs(error)) / s.n_electrons)
        dipoles.append(np.abs(density.dipole(c, s, aux, own) - dataset["dipole"][i]).mean())
    return {
        "density_error_total_percent": float(np.mean(percent)),
        "density_error_total_percent_median": float(np.median(percent)),
        "density_error_total_percent_max": float(np.max(percent)),
        "dipole_mae_debye": float(np.mean(dipoles) * opml.units.DEBYE_PER_EBOHR),
    }


def plot(args) -> None:
    """Learning curves from the lines there are."""
    import json

    import matplotlib.pyplot as plt

    results = Path(__file__).with_name("results")
    lines = map(json.loads, (results / "density.jsonl").read_text().splitlines())
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        if line["name"].startswith("waters_"):
            own = curves.setdefault(line["name"].removeprefix("waters_"), {})
            own[line["n_train"]] = line["density_error_percent"]
    figure, axis = plt.subplots(figsize=(5, 3.8), layout="constrained")
    for name, own in sorted(curves.items()):
        axis.loglog(sorted(own), [own[n] for n in sorted(own)], "o-", label=name.replace("_", " "))
    ticks = sorted({n for own in curves.values() for n in own})
    axis.set_xticks(ticks, ticks, minor=False)
    axis.minorticks_off()
    axis.set(xlabel="training waters", ylabel="density error, %")
    axis.legend(fontsize=7)
    figure.savefig(results / "density.png", dpi=90)


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
        problem, bases = training.make_problem(definition, [structures[i] for i in own], c[own])
        assembly = time.process_time() - start
        kernels = kernel_times(definition, [structures[i] for i in own], bases)
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
            **kernels,
        }
        record(line, "density", args.json)


def kernel_times(definition, structures, bases) -> dict[str, float]:
    """Kernels between oxygens and references, all degrees, beside a loop over pairs in NumPy."""
    own = training.environments(definition, structures)[8]
    components, b = bases["8"]["components"], bases["8"]["references"]
    config = definition.config
    a = {l: np.asarray(v) for l, v in reduced(components, own.features, config.kernel).items()}

    @jax.jit
    def ours(a, b):
        return {l: kernel(config, int(l), a, b) for l in a}

    def pairs(rows):
        out = {l: np.zeros((len(rows), 2 * int(l) + 1, len(b[l]), 2 * int(l) + 1)) for l in a}
        for i, row in enumerate(rows):
            for j in range(len(b["0"])):
                d = a["0"][row, :, 0] - b["0"][j, :, 0]
                scalar = np.exp(-0.5 * (d @ d) / config.length**2)
                for l in a:
                    product = a[l][row].T @ b[l][j] if l != "0" else 1.0
                    out[l][i, :, j] = scalar * product
        return out

    found = jax.tree.map(np.asarray, ours(a, b))
    rows = range(min(20, len(a["0"])))
    worst = max(np.abs(found[l][: len(rows)] - v).max() for l, v in pairs(rows).items())
    seconds = least(lambda: jax.block_until_ready(ours(a, b)))
    plain = least(lambda: pairs(rows), 2) * len(a["0"]) / len(rows)
    return {
        "kernel_seconds": seconds,
        "numpy_kernel_seconds": plain,
        "kernel_times_faster_than_numpy": plain / seconds,
        "kernel_difference": float(worst),
    }


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


TASKS = {f.__name__: f for f in (waters, networks, uncertainty, widths, ladder, scaling, plot)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("data", type=Path, nargs="?", help="folder, or labelled data")
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
    parser.add_argument("--epochs", type=int, default=300, help="of networks")
    parser.add_argument("--aux", nargs="+", default=["def2-universal-jfit", "def2-universal-jkfit"])
    parser.add_argument("--range", type=float, default=0.3, help="of logarithms of widths")
    parser.add_argument("--points", type=int, default=1000, help="of each structure, for widths")
    parser.add_argument("--dipole-weight", type=float, default=0.0, help="of networks and widths")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="without lambda-SOAP")
    parser.add_argument("--quick", action="store_true", help="40 structures, Gaussian kernel")
    parser.add_argument("--json", action="store_true", help="append lines to results/density.jsonl")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.kernels, args.train, args.energies = [40], ["gaussian"], 40, 2
    if args.quick and args.task == "widths":
        args.epochs, args.points = 20, 300
    args.test = args.test or (100 if args.task == "ladder" else 250)
    jax.config.update("jax_enable_x64", True)
    TASKS[args.task](args)


if __name__ == "__main__":
    main()
