"""Standard deviations of the shipped model of small molecules on molecules that it never saw.

    python benchmarks/novelty.py QM7_DISPLACED.extxyz --small SMALL.xyz [--write MODEL] [--json]

The molecules of H, C, N and O (PBE/def2-SVP) that its training lacked are split at random: 40 are
judged, from the others ``--write`` learns how standard deviations grow on such molecules. SMALL.xyz
is what ``benchmarks/small_molecules.py`` writes (``--rounds 16``): the geometries of the training
set, whose surroundings are then in the card.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import ase.io
import jax
import numpy as np
from environment import record

import opml_jax as opml
from opml_jax.data import random_split
from opml_jax.structures.elements import formula
from opml_jax.structures.trained_for import novel, trained_for
from opml_jax.training.calibration import grown, reliability

N_JUDGED, SEED = 40, 0


def molecules(path: Path, elements: set[int], forces: bool) -> dict[str, list]:
    """Frames of each molecule of these elements; only those with forces if asked for."""
    out: dict[str, list] = {}
    for frame in ase.io.read(path, ":"):
        there = frame.calc is not None and "forces" in frame.calc.results
        if set(frame.numbers.tolist()) <= elements and (there or not forces):
            out.setdefault(frame.info["molecule"], []).append(frame)
    return out


def dataset(frames: list, energies_only: bool) -> opml.Dataset:
    """Labels of frames, as the library reads them from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frames.extxyz")
        columns = None if not energies_only else ["symbols", "positions"]
        ase.io.write(path, frames, columns=columns)
        return opml.read_dataset(path)


def with_surroundings(model: opml.models.Model, path: Path) -> opml.models.Model:
    """The model with the surroundings of its training set in its card.

    The molecules must be those of the card. Their geometries are not to the last digit: the signs
    of normal modes, along which they are displaced, are those of another machine's LAPACK.
    """
    structures = opml.read_structures(path)[:864]
    sizes = model.card["n_train"], model.card["n_validation"]
    splits = random_split(864, *sizes, 864 - sum(sizes), seed=0)
    known, had = trained_for([structures[i] for i in splits["train"]]), model.card["trained_for"]
    assert known["electrons"] == had["electrons"]
    assert set(had["coordinations"]) <= set(known["coordinations"]) | {"H()"}
    had = {**had, "surroundings": known["surroundings"]}
    return dataclasses.replace(model, card={**model.card, "trained_for": had})


def main() -> None:
    """Judge, and with ``--write`` save the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--small", type=Path, help="geometries of the training set")
    parser.add_argument("--write", type=Path, help="model file to write")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model = opml.load_model("pretrained:chno")
    if args.small:
        model = with_surroundings(model, args.small)
    frames = molecules(args.data, set(model.elements), forces=False)
    had = set(model.card["trained_for"]["electrons"][0]["compositions"])
    lacked = sorted(k for k, f in frames.items() if formula(f[0].numbers.tolist()) not in had)
    lacked = np.random.default_rng(SEED).permutation(lacked).tolist()
    judged, others = lacked[:N_JUDGED], lacked[N_JUDGED:]
    if args.write:
        forced = molecules(args.data, set(model.elements), forces=True)
        for source, energies_only in ((frames, True), (forced, False)):
            few = [f for name in others for f in source.get(name, [])]
            model = grown(model, dataset(few, energies_only))
        opml.save_model(args.write, model)
    for displaced in (0.0, 0.05, 0.1):
        few = [f for name in judged for f in frames[name] if f.info["displaced"] == displaced]
        data = dataset(few, energies_only=True)
        error, sigma = reliability(model, data)["energy"]
        line = {"name": "chno", "displaced_angstrom": displaced, "n": len(few)}
        line |= {"novel": int(novel(data.structures, model.card["trained_for"]).sum())}
        line |= {"energy_within_sigma_percent": 100 * float((error < sigma).mean())}
        line |= {"median_error_mev": 27211.386 * float(np.median(error))}
        line |= {"median_sigma_mev": 27211.386 * float(np.median(sigma))}
        line |= {"growth": model.card.get("growth", {})}
        record(line, "novelty", args.json)


if __name__ == "__main__":
    main()
