"""Energies and forces of rMD17 molecules: how well Op2Prop learns them.

    python benchmarks/rmd17.py DIR --molecule ethanol --cache DIR --json

DIR holds the published splits (``rmd17_ethanol_train_01.npz``, ``..._test_01.npz``). A training
set is the first N of the training file, the last twentieth of it (at least 20, 10 of 50) for
validation (models without a network are solved again for all N once it has chosen lambda);
errors are those of the first 500 (``--test``) test structures. Descriptors and their derivatives
are kept in ``--cache``; fit times are CPU time of this process from there on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from environment import record

import opml_jax as opml
from opml_jax.data import Dataset, concatenate, read_dataset
from opml_jax.learn.run import Run
from opml_jax.models.op2prop import Op2Prop, Op2PropConfig, Op2PropFit
from opml_jax.models.op2prop.closed_form import fit_closed_form
from opml_jax.models.op2prop.descriptors import (
    Cache,
    Labelled,
    Wanted,
    build_cache,
    padded_labels,
    rounding_noise,
)
from opml_jax.models.op2prop.residual import make_inputs, predict_residual, train_residual
from opml_jax.units import EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE

TARGETS = ("energy", "forces")
CLOSED_FORM = Op2PropFit(targets=TARGETS, epochs=0)
NETWORKS = Op2PropFit(
    targets=TARGETS, epochs=100, batch_size=10, weight_decay=1e-2, ema=0.995, energy_weight=0.1
)
SIMPLE = Op2PropConfig(metric="lowdin", components=300, hidden=(128, 128), fit=CLOSED_FORM)
PRODUCTS = Op2PropConfig(
    basis="even-tempered",
    metric="lifted",
    others=("overlap",),
    powers=(1,),
    channels=64,
    components=300,
    hidden=(128, 128),
    fit=CLOSED_FORM,
)
ENSEMBLE = {"components": 200, "hidden": (96, 96), "members": 4, "fit": NETWORKS}
MODELS = {
    "products": PRODUCTS,
    "products_kernel": dataclasses.replace(PRODUCTS, references=600),
    "products_128": dataclasses.replace(PRODUCTS, channels=128),
    "products_128_residual": dataclasses.replace(PRODUCTS, channels=128, fit=NETWORKS),
    "products_residual": dataclasses.replace(PRODUCTS, fit=NETWORKS),
    "products_ensemble": dataclasses.replace(PRODUCTS, **ENSEMBLE),
    "closed_form": SIMPLE,
    "kernel": dataclasses.replace(SIMPLE, references=600),
    "residual": dataclasses.replace(SIMPLE, fit=NETWORKS),
    "ensemble": dataclasses.replace(SIMPLE, **ENSEMBLE),
}


def descriptors(definition: Op2Prop, structures, folder: Path) -> tuple[Cache, np.ndarray]:
    """Descriptors with derivatives, and their rounding; a killed run goes on in ``folder``."""
    wanted, drawn = Wanted(derivatives=True), definition.draw(0)
    start = time.process_time()
    run = Run(folder, on_progress=_every_tenth)
    cache = build_cache(definition, structures, wanted, drawn, run=run)
    print(f"descriptors: {time.process_time() - start:.0f} CPU s", flush=True)
    return cache, rounding_noise(definition, structures, cache, wanted, drawn)


def _every_tenth(stage: str, done: int, total: int, note: str) -> None:
    if done * 10 // total > (done - 1) * 10 // total:
        print(f"{stage}: {done} of {total}", flush=True)


def labelled(
    cache: Cache, data: Dataset, splits: Mapping[str, Sequence[int]], targets=TARGETS
) -> dict[str, Labelled]:
    """Sets by name: descriptors and labels of the structures at these places of both."""
    n_atoms = cache.one_hot.shape[1]
    return {
        k: Labelled(cache.subset(i), padded_labels(data.subset(i), targets, n_atoms))
        for k, i in splits.items()
    }


def errors(residual: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of what remains of the labels."""
    energy = 1e3 * EV_PER_HARTREE * residual["energy"]
    forces = 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE * residual["forces"]
    return {
        "energy_mae_mev": float(np.abs(energy).mean()),
        "forces_mae_mev_per_angstrom": float(np.abs(forces).mean()),
        "energy_rmse_mev": float(np.sqrt((energy**2).mean())),
        "forces_rmse_mev_per_angstrom": float(np.sqrt((forces**2).mean())),
    }


def residuals(
    definition: Op2Prop, fit: Op2PropFit, sets: Mapping[str, Labelled], noise: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Train, and give what remains of the labels of ``test``."""
    params = fit_closed_form(definition, fit, sets, noise).params
    inputs = {k: make_inputs(params, part) for k, part in sets.items()}
    test = inputs["test"]
    if not fit.epochs:
        return test
    params = train_residual(definition, fit, params, inputs, Run(seed=seed)).params

    def network(z, one_hot):
        members = definition.networks(params["residual"], z, one_hot, dipole=False)
        return tuple(x.mean(axis=0) for x in members)

    predicted = predict_residual(network, params["scale"], test)
    return {k: test[k] - np.asarray(predicted[k]) for k in TARGETS}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="published splits (npz)")
    parser.add_argument("--molecule", default="ethanol")
    parser.add_argument("--cache", type=Path, required=True, help="folder for descriptors")
    parser.add_argument("--models", nargs="*", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--sizes", type=int, nargs="*", default=[50, 200, 1000])
    parser.add_argument("--test", type=int, default=500, help="test structures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of networks")
    parser.add_argument("--quick", action="store_true", help="50 structures, closed form")
    parser.add_argument("--json", action="store_true", help="append lines to results/rmd17.jsonl")
    args = parser.parse_args()
    if args.quick:
        args.models, args.sizes = ["closed_form"], [50]
    jax.config.update("jax_enable_x64", True)
    name = f"rmd17_{args.molecule}"
    sets = [read_dataset(args.folder / f"{name}_{part}_01.npz") for part in ("train", "test")]
    pool, test = sets[0], sets[1].subset(range(args.test))
    data = concatenate([pool, test])
    for kind in args.models:
        config = MODELS[kind]
        definition = Op2Prop(config, opml.load_basis(config.basis, data.elements))
        stem = f"{name}_{config.metric}" + (f"_{config.channels}" * bool(config.channels))
        cache, noise = descriptors(definition, data.structures, args.cache / stem)
        for n in args.sizes:
            n_validation = max(n // 20, 10 if n < 100 else 20)
            splits = {
                "train": range(n - n_validation),
                "validation": range(n - n_validation, n),
                "test": range(len(pool), len(data)),
            }
            parts = labelled(cache, data, splits)
            for seed in args.seeds if config.fit.epochs else [0]:
                start = time.process_time()
                residual = residuals(definition, config.fit, parts, noise, seed)
                line = {"name": kind, "molecule": args.molecule, "n_train": n, "n_test": len(test)}
                line |= {"seed": seed, **errors(residual)}
                line["fit_cpu_seconds"] = time.process_time() - start
                record(line, "rmd17", args.json)


if __name__ == "__main__":
    main()
