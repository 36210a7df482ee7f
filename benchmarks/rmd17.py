"""Energies and forces of rMD17 molecules: Op2Prop and the operator network.

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
from pathlib import Path

import jax
import numpy as np
from environment import record

import opml_jax as opml
from opml_jax.data import read_dataset
from opml_jax.models import Op2Prop, Op2PropConfig, OperatorNetwork, OperatorNetworkConfig
from opml_jax.training import operator_network, residual
from opml_jax.training.cache import Cache, build_cache, rounding_noise
from opml_jax.training.closed_form import fit_closed_form
from opml_jax.training.config import OptimConfig
from opml_jax.training.trainer import padded_labels
from opml_jax.units import EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE

RESIDUAL = OptimConfig(epochs=100, batch_size=10, weight_decay=1e-2, ema=0.995, energy_weight=0.1)
NETWORK = OptimConfig(
    batch_size=8, learning_rate=5e-3, ema=0.99, weight_decay=0.0, energy_weight=0.05
)
SIMPLE = Op2PropConfig(metric="lowdin", components=300, hidden=(128, 128))
PRODUCTS = Op2PropConfig(
    basis="even-tempered",
    metric="lifted",
    others=("overlap",),
    powers=(1,),
    channels=64,
    components=300,
    hidden=(128, 128),
)
MODELS = {
    "products": PRODUCTS,
    "products_kernel": dataclasses.replace(PRODUCTS, references=600),
    "products_128": dataclasses.replace(PRODUCTS, channels=128),
    "products_128_residual": dataclasses.replace(PRODUCTS, channels=128),
    "products_residual": PRODUCTS,
    "products_ensemble": dataclasses.replace(PRODUCTS, components=200, hidden=(96, 96), members=4),
    "closed_form": SIMPLE,
    "kernel": dataclasses.replace(SIMPLE, references=600),
    "residual": SIMPLE,
    "ensemble": dataclasses.replace(SIMPLE, components=200, hidden=(96, 96), members=4),
    "operator_network": OperatorNetworkConfig(),
}


def descriptors(definition, structures, folder: Path) -> tuple[Cache, np.ndarray]:
    """Descriptors with derivatives, and their rounding; a killed run goes on in ``folder``."""
    built = {"derivatives": True, "params": definition.draw(0)}
    start = time.process_time()
    cache = build_cache(definition, structures, folder=folder, on_progress=_every_tenth, **built)
    print(f"descriptors: {time.process_time() - start:.0f} CPU s", flush=True)
    noise = np.zeros(0)
    if isinstance(definition, Op2Prop):
        noise = rounding_noise(definition, structures, cache, **built)
    return cache, noise


def _every_tenth(done: int, total: int) -> None:
    if done * 10 // total > (done - 1) * 10 // total:
        print(f"descriptors: {done} of {total}", flush=True)


def errors(left: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of what is left of the labels."""
    energy = 1e3 * EV_PER_HARTREE * left["energy"]
    forces = 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE * left["forces"]
    return {
        "energy_mae_mev": float(np.abs(energy).mean()),
        "forces_mae_mev_per_angstrom": float(np.abs(forces).mean()),
        "energy_rmse_mev": float(np.sqrt((energy**2).mean())),
        "forces_rmse_mev_per_angstrom": float(np.sqrt((forces**2).mean())),
    }


def fit_op2prop(definition, caches, labels, noise, epochs: int, seed: int) -> dict[str, np.ndarray]:
    """Train, and give what is left of the test labels."""
    optim = dataclasses.replace(RESIDUAL, epochs=epochs)
    fit = fit_closed_form(
        definition,
        caches["train"],
        caches["validation"],
        labels["train"],
        labels["validation"],
        optim,
        noise,
    )
    inputs = {k: residual.make_inputs(fit.params, caches[k], labels[k]) for k in caches}
    if not epochs:
        return inputs["test"]
    params, _ = residual.train_residual(
        definition, fit.params, inputs["train"], inputs["validation"], optim, seed
    )

    def network(z, one_hot):
        found = definition.networks(params["residual"], z, one_hot, dipole=False)
        return tuple(x.mean(axis=0) for x in found)

    found = residual.predict_residual(network, params["scale"], inputs["test"])
    return {k: inputs["test"][k] - np.asarray(found[k]) for k in ("energy", "forces")}


def fit_network(definition, caches, labels, epochs: int, seed: int, state: Path):
    """The same for the operator network."""
    optim = dataclasses.replace(NETWORK, epochs=epochs)
    params, _ = operator_network.train_network(
        definition,
        caches["train"],
        caches["validation"],
        labels["train"],
        labels["validation"],
        optim,
        seed,
        state=state,
        fingerprint=str((definition.config, optim, len(caches["train"]), seed)),
        on_epoch=lambda epoch, row: print(epoch, row, flush=True),
    )
    bare = {**params, "offsets": np.zeros_like(params["offsets"])}
    test = caches["test"]
    function = jax.jit(lambda *x: operator_network.predict(definition, bare, *x))
    energy, forces = [], []
    for start in range(0, len(test), 20):
        part = (
            np.asarray(a[start : start + 20], np.float32) for a in (test.x, test.dx, test.one_hot)
        )
        e, f = function(*part)
        energy.append(np.asarray(e, np.float64))
        forces.append(np.asarray(f))
    baseline = test.one_hot.sum(axis=1) @ params["offsets"]
    wanted = labels["test"]["forces"].reshape(len(test), -1)
    return {
        "energy": labels["test"]["energy"] - baseline - np.concatenate(energy),
        "forces": wanted - np.concatenate(forces),
    }


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
    parser.add_argument("--epochs", type=int, default=30, help="of the operator network")
    parser.add_argument("--quick", action="store_true", help="50 structures, closed form")
    parser.add_argument("--json", action="store_true", help="append lines to results/rmd17.jsonl")
    args = parser.parse_args()
    if args.quick:
        args.models, args.sizes = ["closed_form"], [50]
    jax.config.update("jax_enable_x64", True)
    name = f"rmd17_{args.molecule}"
    sets = [read_dataset(args.folder / f"{name}_{part}_01.npz") for part in ("train", "test")]
    pool, test = sets[0], sets[1].subset(range(args.test))
    structures = pool.structures + test.structures
    targets = ("energy", "forces")
    n_atoms = structures[0].n_atoms
    for kind in args.models:
        config = MODELS[kind]
        define = OperatorNetwork if kind == "operator_network" else Op2Prop
        definition = define(config, opml.load_basis(config.basis, pool.elements))
        stem = f"{name}_network"
        if define is Op2Prop:
            stem = f"{name}_{config.metric}" + (f"_{config.channels}" * bool(config.channels))
        cache, noise = descriptors(definition, structures, args.cache / stem)
        for n in args.sizes:
            n_validation = max(n // 20, 10 if n < 100 else 20)
            index = {
                "train": range(n - n_validation),
                "validation": range(n - n_validation, n),
                "test": range(len(pool), len(structures)),
            }
            caches = {k: cache.subset(i) for k, i in index.items()}
            labels = {
                k: padded_labels(pool.subset(index[k]), targets, n_atoms)
                for k in ("train", "validation")
            } | {"test": padded_labels(test, targets, n_atoms)}
            trained = kind.endswith(("residual", "ensemble"))
            for seed in args.seeds if trained or kind == "operator_network" else [0]:
                start = time.process_time()
                if define is OperatorNetwork:
                    state = args.cache / f"{stem}_{n}_{seed}_{args.epochs}.state.npz"
                    left = fit_network(definition, caches, labels, args.epochs, seed, state)
                else:
                    epochs = RESIDUAL.epochs if trained else 0
                    left = fit_op2prop(definition, caches, labels, noise, epochs, seed)
                line = {"name": kind, "molecule": args.molecule, "n_train": n, "n_test": len(test)}
                line |= (
                    {"seed": seed} | errors(left) | {"fit_cpu_seconds": time.process_time() - start}
                )
                line |= {"epochs": args.epochs} if define is OperatorNetwork else {}
                record(line, "rmd17", args.json)


if __name__ == "__main__":
    main()
