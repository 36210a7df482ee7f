"""Energies and forces of 3BPA, a flexible molecule, between and beyond temperatures.

    python benchmarks/threebpa.py DIR --cache DIR --json

DIR holds the published training sets (``dataset_3BPA_train_300K.xyz``, ``..._mixedT.xyz``). The
published test sets are not needed: ``from_300K`` trains on the 500 geometries at 300 K and is
tested on those of the mixed set (300, 600 and 1200 K) that the first does not hold;
``both`` trains on five sixths of all and is tested on the others, chosen with seed 0. A twentieth
of each training set is for validation. Model, descriptors and fit are those of ``rmd17.py``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from environment import record
from rmd17 import MODELS, descriptors, errors, labelled, residuals

import opml_jax as opml
from opml_jax.data import concatenate, duplicates, random_split, read_dataset
from opml_jax.models import Op2Prop

SPLITS = ("from_300K", "both")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="published training sets (extxyz)")
    parser.add_argument("--cache", type=Path, required=True, help="folder for descriptors")
    parser.add_argument("--models", nargs="*", choices=[*MODELS], default=["products"])
    parser.add_argument("--splits", nargs="*", choices=SPLITS, default=SPLITS)
    parser.add_argument("--stride", type=int, default=1, help="every so-manieth of each set alone")
    parser.add_argument("--quick", action="store_true", help="40 structures of each set")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    cold, mixed = (
        read_dataset(args.folder / f"dataset_3BPA_train_{name}.xyz") for name in ("300K", "mixedT")
    )
    n_cold = len(cold)
    twice = {j for i, j in duplicates(cold.structures + mixed.structures) if i < n_cold <= j}
    keep = [j for j in range(len(mixed)) if j + n_cold not in twice]
    if args.quick:
        n_cold, keep = 40, keep[:40]
        cold = cold.subset(range(n_cold))
    cold, keep = cold.subset(range(0, n_cold, args.stride)), keep[:: args.stride]
    n_cold = len(cold)
    data = concatenate([cold, mixed.subset(keep)])
    n = len(data)
    train = n - max(n // 6, 10)
    both = random_split(n, train - train // 20, train // 20, n - train, seed=0)
    splits = {
        "from_300K": {
            "train": range(n_cold - n_cold // 20),
            "validation": range(n_cold - n_cold // 20, n_cold),
            "test": range(n_cold, n),
        },
        "both": both,
    }
    splits = {k: splits[k] for k in args.splits}
    print(f"{n} geometries, {len(twice)} of the mixed set are in the other", flush=True)
    stem = f"3bpa_{n}"
    for kind in args.models:
        config = MODELS[kind]
        definition = Op2Prop(config, opml.load_basis(config.basis, data.elements))
        folder = args.cache / f"{stem}_{config.metric}_{config.channels}"
        cache, noise = descriptors(definition, data.structures, folder)
        for name, split in splits.items():
            sets = labelled(cache, data, split)
            start = time.process_time()
            residual = residuals(definition, config.fit, sets, noise, seed=0)
            line = {"name": kind, "split": name, "n_train": len(split["train"])}
            line |= errors(residual) | {"fit_cpu_seconds": time.process_time() - start}
            hot = np.asarray(split["test"]) >= n_cold
            for temperature, of in (("300K", ~hot), ("mixedT", hot)):
                if of.any():
                    line[temperature] = errors({k: v[of] for k, v in residual.items()})
            line |= {k: len(v) for k, v in split.items()}
            record(line, "threebpa", args.json and not args.quick)


if __name__ == "__main__":
    main()
