"""Tiny models of every kind and what they predict, which later code has to predict too.

This was run once, with commit 72a9646 ("Read once more: one loop where memory lacks, ..."), before
families of models got folders of their own. It cannot be run with later code, whose configurations
and modules are others, and need not be: the files beside it are what is kept. It says how they came
about. With that commit on the path and default flags of XLA::

    python make.py [NAME ...]

For each NAME it writes ``NAME.safetensors``, a model, and ``NAME.npz``: atomic numbers and
positions of the structures (Bohr, a row each, padded with zeros), and arrays under
``OPTION/QUANTITY``, where OPTION is ``plain`` or the option of ``Model.predict`` that was switched
on, and ``field_dipole``. Models of the package (``pretrained_*``) are not copied, and those that
later code refuses (``removed_*``) predict nothing.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import numpy as np

import opml_jax as opml
from opml_jax import observables
from opml_jax.data.reference import Method, calculate
from opml_jax.models import (
    Model,
    Op2DensityConfig,
    Op2DensityNetworkConfig,
    Op2OpConfig,
    Op2OpNetworkConfig,
    Op2PropConfig,
    OperatorNetworkConfig,
)
from opml_jax.training import TrainConfig, train
from opml_jax.training.config import EffectiveConfig, OptimConfig
from opml_jax.units import ANGSTROM_PER_BOHR

HERE = Path(__file__).parent
SPLITS = {"train": list(range(24)), "validation": list(range(24, 32))}
TEST = slice(32, 35)

OPTIM = OptimConfig(epochs=3, batch_size=8)
ENERGY_FORCES = ("energy", "forces")
NETWORK = {"components": 4, "hidden": (8,), "gates": 3}

INVARIANTS = Op2PropConfig(
    basis="sto-3g", powers=(1, 2), components=8, hidden=(8,), vectors=4, references=8, members=2
)
PRODUCTS = Op2PropConfig(
    basis="sto-3g",
    metric="lifted",
    powers=(1,),
    others=("overlap",),
    channels=6,
    components=8,
    hidden=(8,),
    vectors=4,
)
GUESS = Op2OpConfig("sto-3g", ("S", "W", "W S", "W W", "E"), density_words=(), exponents=(0.6,))
CONVERGED = replace(GUESS, density_words=("P", "S P S", "U", "U S", "U P S"))
DENSITY = Op2DensityConfig(
    aux_basis="demon", basis="6-31g**", components=6, references=8, penalty=1e-6
)

CHNO = {  # Angstrom
    "COHHHH": [
        [-0.05, 0.66, 0.01],
        [0.02, -0.75, -0.02],
        [-1.10, 0.97, 0.03],
        [0.43, 1.06, 0.90],
        [0.46, 1.07, -0.87],
        [0.93, -1.03, 0.04],
    ],
    "CONHHH": [
        [-0.16, 0.39, 0.02],
        [-1.19, -0.25, -0.01],
        [1.08, -0.15, 0.03],
        [-0.15, 1.50, -0.02],
        [1.14, -1.16, -0.06],
        [1.94, 0.37, 0.05],
    ],
}
"""Methanol and formamide, distorted a little."""


@functools.cache
def water() -> opml.Dataset:
    """Bundled water, PBE/def2-SVP, with what follows from its Fock matrices.

    Those are quadrupoles, and polarizabilities of electrons that do not respond to each other.
    """
    bundled = opml.read_dataset(opml.bundled("water")).subset(range(TEST.stop))
    basis = opml.load_basis("def2-svp", [1, 8])

    @jax.jit
    def tensors(structure, fock):
        overlap = opml.integrals.overlap(structure, basis)
        dm = observables.density_matrix(fock, overlap, 10)
        alpha = observables.polarizability(fock, overlap, 10, structure, basis)
        return observables.quadrupole(dm, structure, basis), alpha

    pairs = zip(bundled.structures, bundled["fock"], strict=True)
    quadrupole, polarizability = zip(*(tensors(s, f) for s, f in pairs), strict=True)
    own = {"quadrupole": list(map(np.asarray, quadrupole))}
    own["polarizability"] = list(map(np.asarray, polarizability))
    return opml.Dataset(bundled.structures, {**bundled.labels, **own}, bundled.meta)


@functools.cache
def small_water() -> opml.Dataset:
    """The same geometries with matrices of Hartree-Fock in STO-3G."""
    method = Method("hf", "sto-3g", forces=False)
    found = [calculate(s, method) for s in water().structures]
    labels = {k: [f[k] for f in found] for k in ("fock", "dm")}
    return opml.Dataset(water().structures, labels, {"basis": "sto-3g", "convention": "opml-1"})


def properties(model: Op2PropConfig, targets: Sequence[str] = ENERGY_FORCES, **changes) -> Model:
    """A model of energies and more."""
    config = TrainConfig(model=model, targets=tuple(targets), optim=replace(OPTIM, **changes))
    return train(water(), SPLITS, config).model


def operators(operator: Op2OpConfig, **changes) -> Model:
    """A model of Fock or density matrices of Hartree-Fock in STO-3G."""
    config = TrainConfig(
        operator=operator, targets=(operator.target,), optim=replace(OPTIM, **changes)
    )
    return train(small_water(), SPLITS, config).model


def densities(density: Op2DensityConfig) -> Model:
    """A model of electron densities."""
    config = TrainConfig(density=density, targets=("density",), optim=OPTIM)
    return train(water(), SPLITS, config).model


def effective() -> Model:
    """A matrix in STO-3G with observables of PBE/def2-SVP."""
    config = TrainConfig(
        operator=GUESS,
        effective=EffectiveConfig(components=4, steps=10),
        targets=("mo_energy", "dipole", "lowdin_charges"),
    )
    return train(water(), SPLITS, config).model


def operator_network() -> Model:
    """The smallest operator network."""
    config = TrainConfig(
        network=OperatorNetworkConfig(
            "sto-3g", channels=1, layers=1, lmax=1, message_lmax=0, hidden=2
        ),
        targets=ENERGY_FORCES,
        optim=replace(OPTIM, epochs=1),
    )
    return train(water(), SPLITS, config).model


MODELS: dict[str, tuple[Callable[[], Model], tuple[str, ...]]] = {
    "op2prop_invariants": (
        lambda: properties(INVARIANTS, (*ENERGY_FORCES, "dipole", "quadrupole", "polarizability")),
        ("plain", "uncertainty", "linear"),
    ),
    "op2prop_products": (
        lambda: properties(
            replace(PRODUCTS, last_layer=True), (*ENERGY_FORCES, "dipole"), field_dipole_sigma=0.01
        ),
        ("plain", "uncertainty", "field_dipole"),
    ),
    "op2op_self_consistent": (
        lambda: operators(replace(CONVERGED, uncertainty=True)),
        ("plain", "uncertainty", "guess"),
    ),
    "op2op_stages": (
        lambda: operators(replace(CONVERGED, stages=1, input_basis="6-31g")),
        ("plain", "guess"),
    ),
    "op2op_network": (
        lambda: operators(
            replace(GUESS, network=Op2OpNetworkConfig(inputs=4, **NETWORK)), learning_rate=1e-2
        ),
        ("plain",),
    ),
    "op2op_dm": (lambda: operators(replace(GUESS, target="dm")), ("plain",)),
    "effective": (effective, ("plain",)),
    "density": (lambda: densities(replace(DENSITY, uncertainty=True)), ("plain", "uncertainty")),
    "density_network": (
        lambda: densities(replace(DENSITY, network=Op2DensityNetworkConfig(**NETWORK))),
        ("plain",),
    ),
    "density_widths": (
        lambda: densities(
            replace(DENSITY, network=Op2DensityNetworkConfig(**NETWORK, points=50, widths=0.3))
        ),
        ("plain",),
    ),
    "density2prop": (
        lambda: properties(replace(PRODUCTS, density="density.safetensors")),
        ("plain",),
    ),
    "density2prop_beside": (
        lambda: properties(replace(PRODUCTS, density="density.safetensors", density_beside=True)),
        ("plain",),
    ),
    "pretrained_water": (lambda: opml.load_model("pretrained:water"), ("plain", "uncertainty")),
    "pretrained_chno": (lambda: opml.load_model("pretrained:chno"), ("plain", "uncertainty")),
    "removed_operator_network": (operator_network, ()),
    "removed_matrix_network": (
        lambda: operators(
            replace(
                GUESS,
                words=("S", "W"),
                network=Op2OpNetworkConfig(
                    "matrix", components=1, inputs=1, hidden=(1,), gates=1, channels=1
                ),
            ),
            epochs=1,
        ),
        (),
    ),
}
"""How to get it, and the options of its predictions, by name; ``density`` is before its users."""


def chno() -> list[opml.Structure]:
    """The molecules of :data:`CHNO`."""
    numbers = {"H": 1, "C": 6, "N": 7, "O": 8}
    return [
        opml.Structure([numbers[a] for a in atoms], np.array(x) / ANGSTROM_PER_BOHR)
        for atoms, x in CHNO.items()
    ]


def predictions(model: Model, structures, options: Sequence[str]) -> dict[str, np.ndarray]:
    """What ``NAME.npz`` holds."""
    n_atoms = max(s.n_atoms for s in structures)
    numbers = np.zeros((len(structures), n_atoms), int)
    positions = np.zeros((len(structures), n_atoms, 3))
    for i, s in enumerate(structures):
        numbers[i, : s.n_atoms], positions[i, : s.n_atoms] = s.numbers, s.positions
    out = {"numbers": numbers, "positions": positions}
    for option in options:
        if option == "field_dipole":
            dipole = jax.jit(model.field_dipole_fn())
            out[option] = np.array([dipole(s) for s in structures])
            continue
        chosen = {} if option == "plain" else {option: True}
        found = model.predict(structures, **chosen)
        out |= {f"{option}/{k}": v for k, v in found.items()}
    return out


def main(names: Sequence[str]) -> None:
    """Make what is named, or all."""
    os.chdir(HERE)  # files hold the path of the density that they were trained on
    jax.config.update("jax_enable_x64", True)
    for name in names or MODELS:
        make, options = MODELS[name]
        model = make()
        if not name.startswith("pretrained"):
            opml.save_model(f"{name}.safetensors", model)
            model = opml.load_model(f"{name}.safetensors")
        if options:
            structures = chno() if name == "pretrained_chno" else water().structures[TEST]
            np.savez_compressed(f"{name}.npz", **predictions(model, structures, options))
        print(f"{name}: {sum(p.stat().st_size for p in HERE.glob(f'{name}.*')) / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
