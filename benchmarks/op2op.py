"""Fock matrices of water and ethanol: learned self-consistent fields, and what they are worth.

    python benchmarks/op2op.py DIR --json

DIR holds ``water_pbe_def2svp.npz`` and ``ethanol_pbe_def2svp.npz`` (``R`` in Angstrom, ``Z``, ``F``
in Hartree and PySCF's AO order). Splits by position in the file: water 500 for training, 100 for
validation, 100 for test, then 100 at 300 K and 60 with 0.08 Angstrom of noise; ethanol 130, 20 and
50. ``--scf N`` starts PySCF from the predictions of the first N test structures, beside its own
guesses. ``--more`` adds training structures of ethanol from an HDF5 file of ``opml generate
--no-forces --grid-level 1`` (geometries 200 to 999 of rMD17's train_01; the npz holds the first
200), for a learning curve with ``--n-train``. ``--networks`` trains networks on first guesses, or
alone (``gated-alone``); ``paper`` has one gate an output. ``--words``
takes other words, one-shot on T + V: ``powers``, V to V^3, or ``products``, those with S, T and all
products of two of V, S, T; or ``more``, 17 beside the default ones. ``--labels`` is for an HDF5
file of ``opml generate --no-forces`` with geometries of one molecule: the first 30 test, ten more
validate. ``--input-basis`` makes known words in another basis. ``--uncertainty``
compares errors with standard deviations, and has those of stretched molecules. What the errors are:
:mod:`opml_jax.models.op2op.metrics`.
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
from opml_jax.data import Dataset
from opml_jax.data.reference import reference_observables
from opml_jax.interfaces.pyscf import compare_guesses
from opml_jax.models.op2op import (
    Op2OpConfig,
    Op2OpModel,
    Op2OpNetworkConfig,
    Op2OpNetworkFit,
)
from opml_jax.training import TrainConfig, train
from opml_jax.training.metrics import errors
from opml_jax.units import ANGSTROM_PER_BOHR

SPLITS = {
    "water": {
        "train": range(500),
        "validation": range(500, 600),
        "test": range(600, 700),
        "300K": range(700, 800),
        "noise": range(800, 860),
    },
    "ethanol": {
        "train": range(130),
        "validation": range(130, 150),
        "test": range(150, 200),
    },
}
GATED = Op2OpNetworkConfig(fit=Op2OpNetworkFit(epochs=100, batch_size=50, learning_rate=5e-3))
NETWORKS = {"gated": GATED, "paper": dataclasses.replace(GATED, gates=0)}
ONE_SHOT = {"density_words": (), "baseline": "hcore"}
WORDS = {
    "powers": {"words": ("V", "V V", "V V V"), **ONE_SHOT},
    "products": {
        "words": ("V", "V V", "V V V", "S", "T", "V S", "T V", "S T", "S S", "T T"),
        **ONE_SHOT,
    },
    "more": {
        "words": (*Op2OpConfig().words, "E W", "E T", "S E S", "W S^-1 W S^-1 T", "E S^-1 W"),
        "density_words": (
            *Op2OpConfig().density_words,
            *("E U", "E U S", "S E U", "U S^-1 U S^-1 U", "U S^-1 W", "U S^-1 T", "U E P"),
            *("E P U S", "E P W S", "S U P U S", "U P U P U", "S P U P U P S"),
        ),
    },
}
SCF = "self-consistent"
STRETCHES = (1.0, 1.02, 1.05, 1.1)
GRIDS = {"water": 4, "ethanol": 1}


def read(file: Path) -> Dataset:
    """Fock matrices in the library's order."""
    with np.load(file) as f:
        numbers, positions, fock = f["Z"], f["R"] / ANGSTROM_PER_BOHR, f["F"]
        energy = f["E"]
    structures = [opml.Structure(numbers, r) for r in positions]
    basis = opml.load_basis("def2-svp", numbers)
    fock = [opml.from_pyscf(m, s, basis) for s, m in zip(structures, fock, strict=True)]
    meta = {"method": "pbe", "basis": "def2-svp", "grid_level": GRIDS[file.name.split("_")[0]]}
    return Dataset(structures, {"fock": fock, "energy": list(energy)}, meta)


def joined(first: Dataset, more: Dataset) -> Dataset:
    """Structures and Fock matrices of both."""
    fock = first.labels["fock"] + more.labels["fock"]
    return Dataset(first.structures + more.structures, {"fock": fock}, first.meta)


def doubts(model: Op2OpModel, part: Dataset) -> dict[str, dict[str, float]]:
    """How many errors are within a standard deviation, and how the two go together."""
    found = model.predict(part.structures, uncertainty=True)
    wanted = reference_observables(part)
    pairs = [s.n_electrons // 2 for s in part.structures]
    levels = zip(wanted["mo_energy"], pairs, strict=True)
    wanted |= {"gap": [e[n] - e[n - 1] for e, n in levels], "fock": part.labels["fock"]}
    out = {}
    for name, reference in wanted.items():
        error = np.abs(found[name] - np.array(reference)).reshape(len(part), -1)
        sigma = found[f"{name}_uncertainty"].reshape(len(part), -1)
        ranks = [np.argsort(np.argsort((x**2).mean(axis=1))) for x in (error, sigma)]
        out[name] = {
            "within_one": float((error < sigma).mean()),
            "within_two": float((error < 2 * sigma).mean()),
            "rank_correlation_of_molecules": float(np.corrcoef(*ranks)[0, 1]),
        }
    sigmas = {}
    for stretch in STRETCHES:
        some = part.structures[:20]
        far = [s.replace(positions=stretch * np.asarray(s.positions)) for s in some]
        own = model.predict(far, uncertainty=True, allow_unconverged=True)
        root = np.sqrt((own["fock_uncertainty"] ** 2).mean(axis=(1, 2)))
        sigmas[str(stretch)] = float(1e6 * np.nanmedian(root))
    return {**out, "fock_sigma_uha_stretched": sigmas}


def models(config: Op2OpConfig, data: Dataset, splits: dict, args):
    """Yield names, models, and what was noted in training them, one after another."""

    def trained(config):
        start = time.perf_counter(), time.process_time()
        done = train(data, splits, TrainConfig(model=config))
        notes = {"fit_seconds": time.perf_counter() - start[0]}
        return done.model, notes | {"fit_cpu_seconds": time.process_time() - start[1]}

    one_shot = dataclasses.replace(config, density_words=())
    if not config.density_words:
        yield "guess", *trained(one_shot)
    else:
        model, notes = trained(config)
        yield SCF, model, notes
        if args.guess:
            yield "guess", model.first_guess, notes
    for name in args.networks:
        kind, _, alone = name.partition("-")
        network = dataclasses.replace(NETWORKS[kind], alone=bool(alone))
        model, notes = trained(dataclasses.replace(one_shot, network=network))
        card = {k: v for k, v in model.card.items() if k.startswith("network")}
        yield name, model, notes | {"epochs": network.fit.epochs, **card}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="Fock matrices (npz)")
    parser.add_argument(
        "--labels", type=Path, help="HDF5 of another molecule, in place of a folder"
    )
    parser.add_argument("--molecules", nargs="*", choices=[*SPLITS], default=[*SPLITS])
    parser.add_argument("--n-train", type=int, nargs="*", default=[], help="fewer, from the first")
    parser.add_argument("--guess", action="store_true", help="also without the density")
    parser.add_argument("--one-shot", action="store_true", help="only without the density")
    every = [*NETWORKS, *(f"{k}-alone" for k in NETWORKS)]
    parser.add_argument("--networks", nargs="*", choices=every, default=[])
    parser.add_argument("--words", choices=[*WORDS], help="instead of Op2OpConfig's")
    parser.add_argument("--input-basis", help="of words known beforehand")
    parser.add_argument("--scf", type=int, default=0, help="structures to restart PySCF for")
    parser.add_argument("--uncertainty", action="store_true", help="standard deviations")
    parser.add_argument("--quick", action="store_true", help="50 waters")
    parser.add_argument("--json", action="store_true", help="append lines to results/op2op.jsonl")
    parser.add_argument("--more", type=Path, help="HDF5 with more ethanols for training")
    args = parser.parse_args()
    settings = {"input_basis": args.input_basis, "uncertainty": args.uncertainty}
    if args.words:
        settings |= WORDS[args.words]
    config = Op2OpConfig(**settings)
    if args.one_shot:
        config = dataclasses.replace(config, density_words=())
    if args.quick:
        args.molecules, args.n_train = ["water"], [50]
    jax.config.update("jax_enable_x64", True)
    if args.labels:
        args.molecules = [args.labels.stem]
    for molecule in args.molecules:
        if args.labels:
            data = opml.read_dataset(args.labels)
            parts = {"train": range(40, len(data)), "validation": range(30, 40)}
            split = parts | {"test": range(30)}
        else:
            data, split = read(args.folder / f"{molecule}_pbe_def2svp.npz"), SPLITS[molecule]
        pool = list(split["train"])
        if args.more and molecule == "ethanol":
            n = len(data)
            data = joined(data, opml.read_dataset(args.more))
            pool += range(n, len(data))
        for n in args.n_train or [len(pool)]:
            splits = {"train": pool[:n], "validation": list(split["validation"])}
            for name, model, notes in models(config, data, splits, args):
                line = {"name": name, "molecule": molecule, "n_train": n}
                line |= {"words": args.words or "default", "input_basis": args.input_basis}
                line |= notes
                uncertain = args.uncertainty and name == (SCF if config.density_words else "guess")
                for key in list(split)[2:]:
                    part = data.subset(split[key])
                    model.predict(part.structures)  # compiles
                    start = time.perf_counter()
                    line[key] = errors(model.predict(part.structures), part, model)
                    line[key]["ms_per_molecule"] = (time.perf_counter() - start) / len(part) * 1e3
                    if uncertain:
                        line[key]["uncertainty"] = doubts(model, part)
                if args.scf:
                    part = data.subset(list(split["test"])[: args.scf])
                    line["scf"] = compare_guesses(model, part)
                record(line, "op2op", args.json and not args.quick)


if __name__ == "__main__":
    main()
