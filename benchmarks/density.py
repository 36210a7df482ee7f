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
from opml_jax.learn.references import farthest_points
from opml_jax.learn.run import Run
from opml_jax.models.op2density import (
    FAMILY,
    Op2Density,
    Op2DensityConfig,
    Op2DensityFit,
    Op2DensityModel,
    Op2DensityNetworkConfig,
    Op2DensityNetworkFit,
)
from opml_jax.models.op2density.closed_form import problem_of, solve_problem, subtract_baselines
from opml_jax.models.op2density.fit_network import train_network
from opml_jax.models.op2density.functions import kernel, reduced
from opml_jax.models.op2density.labels import (
    Environments,
    Labelled,
    density_matrix,
    environments,
    label,
    metric_matrices,
    places,
    residuals,
)
from opml_jax.models.op2density.metrics import coefficient_errors, density_errors
from opml_jax.models.op2density.problem import Problem
from opml_jax.models.op2density.variance import calibrated, variance_parameters
from opml_jax.training import TrainConfig, train

WATERS = Op2DensityConfig(
    aux_basis="cc-pvqz-jkfit", baseline="average", metric="overlap", length=3.0
)
PENALTY = 1e-10
FIT = Op2DensityFit(penalty=PENALTY)
SILENT = Run()


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
        own = own[:, :, farthest_points(columns, 1000)]
        out.setdefault(int(key["center_type"]), {})[int(key["o3_lambda"])] = own
    return out


class Waters:
    """The published set: structures, coefficients, metrics, and features by kind."""

    def __init__(self, folder: Path, config: Op2DensityConfig = WATERS):
        self.structures, self.coefficients, aux = published(folder)
        self.definition = Op2Density(config, opml.load_basis(config.basis, [1, 8]), aux)
        own = environments(self.definition, self.structures)
        n = len(self.structures)
        self.features = {
            "operator": {
                z: {l: x.reshape(n, -1, *x.shape[1:]) for l, x in e.features.items()}
                for z, e in own.items()
            }
        }
        self.metric = metric_matrices(self.definition, self.structures)

    def part(self, index: np.ndarray, kind: str = "operator") -> Labelled:
        """What losses need of the structures at ``index``."""
        structures = [self.structures[i] for i in index]
        features = self.features[kind]
        known: dict[int, Environments] = {
            z: dataclasses.replace(
                place,
                features={l: x[index].reshape(-1, *x.shape[2:]) for l, x in features[z].items()},
            )
            for z, place in places(self.definition, structures).items()
        }
        return Labelled(self.metric[index], self.coefficients[index], known, tuple(structures))


def predicted(definition: Op2Density, params, part: Labelled) -> list[np.ndarray]:
    """Coefficients of molecules of one composition, with all electrons."""
    q = density.charges(part.structures[0], definition.aux_basis)
    c = part.target - residuals(definition, params, part)
    rows = zip(c, part.metric, part.structures, strict=True)
    return [np.asarray(density.with_electrons(x, m, q, s.n_electrons)) for x, m, s in rows]


def kernels(definition: Op2Density, train: Labelled):
    """Parameters and solution of the kernels, and CPU seconds."""
    start = time.process_time()
    solved = solve_problem(definition, FIT, *problem_of(definition, PENALTY, train), SILENT)
    return *solved, time.process_time() - start


def waters(args) -> None:
    """Learning curves of the published set."""
    data = Waters(args.data)
    order = np.random.default_rng(args.seed).permutation(len(data.structures))
    test, pool = order[: args.test], order[args.test :]
    if not args.alone:
        start = time.process_time()
        lmax = data.definition.aux_basis.spec.lmax
        data.features["lambda-soap"] = lambda_soap(data.structures, lmax)
        print(f"lambda-SOAP: {time.process_time() - start:.0f} CPU s", flush=True)
    for n in args.sizes:
        for name in args.kernels:
            config = dataclasses.replace(WATERS, kernel=name)
            definition = dataclasses.replace(data.definition, config=config)
            for kind in data.features:
                params, solution, seconds = kernels(definition, data.part(pool[:n], kind))
                at = data.part(test, kind)
                found = predicted(definition, params, at)
                row = coefficient_errors(found, at.target, at.structures, definition)
                line = {"name": f"waters_{kind}_{name}", "n_train": n, "n_test": len(test)}
                line |= {"seed": args.seed, **row, "fit_cpu_seconds": seconds}
                line |= {"cg_steps": solution.steps}
                record(line, "density", args.json)


def networks(args) -> None:
    """Networks beside the kernels: the same waters, features, split, loss and metric."""
    data = Waters(args.data)
    order = np.random.default_rng(args.seed).permutation(len(data.structures))
    test, pool = order[: args.test], order[args.test :]
    at, validation = data.part(test), data.part(pool[-100:])
    settings = Op2DensityNetworkFit(epochs=args.epochs, batch_size=10, learning_rate=1e-2)
    for n in args.sizes:
        sets = {"train": data.part(pool[:n]), "validation": validation}
        for alone in (True, False):
            config = dataclasses.replace(WATERS, network=Op2DensityNetworkConfig(alone=alone))
            definition = dataclasses.replace(data.definition, config=config)
            start = time.process_time()
            if alone:
                params, _ = subtract_baselines(definition, sets["train"])
            else:
                params, *_ = kernels(definition, sets["train"])
            fit = train_network(definition, settings, params, sets, Run(seed=args.seed))
            seconds = time.process_time() - start
            line = {"name": f"waters_network_{'alone' if alone else 'on_kernels'}"}
            line |= {"n_train": n, "n_validation": 100, "n_test": len(test), "seed": args.seed}
            line |= {"epochs": settings.epochs, "fit_cpu_seconds": seconds}
            line["kept"] = any("network" in p for p in fit.params.values())
            line |= {f"validation_{k}": v for k, v in fit.facts.items()}
            found = predicted(definition, fit.params, at)
            line |= coefficient_errors(found, at.target, at.structures, definition)
            record(line, "density", args.json)


def uncertainty(args) -> None:
    """Standard deviations of the kernels beside errors of waters they have not seen."""
    config = dataclasses.replace(WATERS, references=args.references)
    data = Waters(args.data, config)
    order = np.random.default_rng(args.seed).permutation(len(data.structures))
    test, pool = order[: args.test], order[args.test :]
    at, validation = data.part(test), data.part(pool[-100:])
    plain = data.definition
    doubting = dataclasses.replace(config, uncertainty=True)
    definition = dataclasses.replace(plain, config=doubting)
    for n in args.sizes:
        problem, bases = problem_of(plain, PENALTY, data.part(pool[:n]))
        start = time.process_time()
        params, solution = solve_problem(plain, FIT, problem, bases, SILENT)
        solving = time.process_time() - start
        columns = int(sum(w.size for w in solution.weights.values()))
        for exact in (columns, 0):
            start = time.process_time()
            variances = variance_parameters(problem, bases, solution.weights, exact)
            seconds = time.process_time() - start
            own = {z: {**p, "variance": variances[z]} for z, p in params.items()}
            own, factor = calibrated(definition, own, validation)
            model = Op2DensityModel(definition, own)
            sigma = model.predict(at.structures, uncertainty=True)["density_uncertainty"]
            error = residuals(definition, own, at)
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
                "variance_bytes": sum(x.nbytes for x in jax.tree.leaves(variances)),
            }
            water = at.structures[0]
            stretched = [
                water.replace(positions=scale * np.asarray(water.positions))
                for scale in (1.0, 1.1, 1.2, 1.5)
            ]
            away = model.predict(stretched, uncertainty=True)
            line["sigma_stretched"] = away["density_uncertainty"].tolist()
            record(line, "density", args.json)


def widths(args) -> None:
    """True densities: what a fixed basis misses, and what widths of its functions do about it."""
    dataset = opml.read_dataset(opml.bundled("water", ".h5"))
    order = np.random.default_rng(args.seed).permutation(len(dataset))
    parts = np.split(order, [args.train, args.train + 50, args.train + 100])
    splits = dict(zip(("train", "validation"), parts, strict=False))
    test = dataset.subset(parts[2])
    exact = exact_densities(test)
    settings = Op2DensityNetworkFit(
        epochs=args.epochs, batch_size=10, learning_rate=1e-2, dipole_weight=args.dipole_weight
    )
    on_points = dataclasses.replace(settings, points=args.points)
    models = {
        "kernels": None,
        "network": Op2DensityNetworkConfig(fit=settings),
        "network_on_points": Op2DensityNetworkConfig(widths=1e-9, fit=on_points),
        "widths": Op2DensityNetworkConfig(widths=args.range, fit=on_points),
    }
    for name in args.aux:
        line = {"n_train": args.train, "n_validation": 50, "n_test": 50, "seed": args.seed}
        line |= {"aux_basis": name, "range": args.range, "points": args.points}
        line |= {"epochs": args.epochs, "dipole_weight": args.dipole_weight}
        for kind, network in models.items():
            config = Op2DensityConfig(aux_basis=name, length=3.0, network=network, fit=FIT)
            start = time.process_time()
            trained = train(dataset, splits, TrainConfig(model=config, seed=args.seed))
            seconds, model = time.process_time() - start, trained.model
            aux = model.definition.aux_basis
            if network is None:
                fitted = {"coefficients": model.reference_coefficients(test)}
                errors = true_errors(aux, test, exact, fitted)
                record({"name": "widths_fit", **line, **errors}, "density", args.json)
            errors = true_errors(aux, test, exact, model.predict(test.structures))
            stage = "widths_" if model.definition.flexible else "network_"
            losses = [v for k, v in model.card.items() if k.startswith(stage)]
            errors |= {"fit_cpu_seconds": seconds, "validation_loss": min(losses, default=1.0)}
            record({"name": f"widths_{kind}", **line, **errors}, "density", args.json)


def exact_densities(dataset, level: int = 3) -> list[tuple[np.ndarray, ...]]:
    """Points, weights and densities of the density matrices of a data set."""
    basis, out = opml.load_basis(dataset.meta["basis"], dataset.elements), []
    for i, s in enumerate(dataset.structures):
        points, weights = density.grid(s, level)
        dm = density_matrix(dataset, i, basis)
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
    learned, test = (dataset.subset(i) for i in np.split(order, [args.train])[:2])
    test = test.subset(range(args.test))
    config = Op2DensityConfig(metric=args.metric, references=args.references, length=3.0, fit=FIT)
    definition = FAMILY.define(config, dataset.elements)
    start = time.process_time()
    fit = FAMILY.fit(definition, config, {"train": learned}, SILENT)  # kernels need no validation
    seconds = time.process_time() - start
    model = FAMILY.model(definition, fit.params, {})
    line = {"name": f"ladder_{args.name}", "n_train": len(learned), "n_test": len(test)}
    line |= {"seed": args.seed, "metric": config.metric, "fit_cpu_seconds": seconds}
    line |= {"cg_steps": fit.facts["cg_steps"], "references": config.references}
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
        own = [structures[i] for i in order[:n]]
        start = time.process_time()
        labelled = label(definition, own, c[order[:n]], SILENT)
        problem, bases = problem_of(definition, PENALTY, labelled)
        assembly = time.process_time() - start
        times = kernel_times(definition, labelled.environments[8], bases["8"])
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
            **times,
        }
        record(line, "density", args.json)


def kernel_times(definition: Op2Density, oxygens: Environments, bases) -> dict[str, float]:
    """Kernels between oxygens and references, all degrees, beside a loop over pairs in NumPy."""
    config, b = definition.config, bases["references"]
    a = reduced(bases["components"], oxygens.features, config.kernel)
    a = {l: np.asarray(v) for l, v in a.items()}

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
