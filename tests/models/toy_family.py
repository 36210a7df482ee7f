"""A family of models that is as small as one can be: energies as sums over pairs of atoms.

E = sum_i e_Z(i) + sum_{i<j} sum_k w_k,Z(i)Z(j) exp(-(r_ij - c_k)^2 / 2 s^2), with Gaussians of
centres c_k and width s. It is linear in e and w, so least squares and a ridge solve it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from opml_jax.basis import batch, load_basis
from opml_jax.data.plausibility import check_finite
from opml_jax.errors import at_least
from opml_jax.learn.config import positive
from opml_jax.learn.ridge import composition_offsets, ridge_validated
from opml_jax.models import EnergyModel, Family
from opml_jax.models.base import EnergyDefinition, ModelConfig
from opml_jax.models.family import Fit
from opml_jax.numerics import einsum
from opml_jax.units import EV_PER_HARTREE


@dataclasses.dataclass(frozen=True)
class PairsFit:
    """How the terms are solved for.

    Attributes:
      precision: Precision of the energies, in eV; errors below it are not worth fitting.
    """

    precision: float = 1e-5

    def __post_init__(self):
        at_least("model.fit", self, ("precision",))


@dataclasses.dataclass(frozen=True)
class PairsConfig(ModelConfig):
    """Energies as sums over pairs of atoms.

    Attributes:
      gaussians: Number of Gaussians of the distance of two atoms.
      reach: Distance of the outermost one, in Bohr.
      fit: How the terms are solved for.
    """

    family: ClassVar[str] = "pairs"
    targets: ClassVar[tuple[str, ...]] = ("energy",)

    gaussians: int = 12
    reach: float = 4.0
    fit: PairsFit | None = PairsFit()

    def __post_init__(self):
        at_least("model", self, ("gaussians",), 2)
        positive("model", self, "reach")


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs(EnergyDefinition):
    """The pure functions. Nothing is read of the basis but which elements there are."""

    def atoms(self, structure):
        """Number of atoms of each element, ``(..., n_elements)``."""
        return self.one_hot(structure).sum(axis=-2)

    def pairs(self, structure):
        """Sums of each Gaussian over the pairs of each two elements, ``(..., n_columns)``."""
        hot, positions = self.one_hot(structure), jnp.asarray(structure.positions)
        square = jnp.sum((positions[..., :, None, :] - positions[..., None, :, :]) ** 2, axis=-1)
        is_pair = square > 0  # at 0, an atom and itself or padding, a root has no derivative
        distance = jnp.sqrt(jnp.where(is_pair, square, 1.0))[..., None]
        centres, width = jnp.linspace(0, self.config.reach, self.config.gaussians, retstep=True)
        values = jnp.exp(-(((distance - centres) / width) ** 2) / 2) * is_pair[..., None] / 2
        sums = einsum("...ie,...jf,...ijk->...efk", hot, hot, values)
        return sums.reshape(*sums.shape[:-3], -1)

    def apply(self, params, structure):
        """The energy, in Hartree."""
        atoms, pairs = self.atoms(structure), self.pairs(structure)
        return {"energy": atoms @ params["atoms"] + pairs @ params["pairs"]}


class PairsFamily(Family):
    """Sums over pairs of atoms, by ridge regression."""

    name = "pairs"
    about = "Pairs: energies as sums over pairs of atoms, a toy"
    Config, Functions, Model = PairsConfig, Pairs, EnergyModel

    def define(self, config, elements):
        """The pure functions for some elements."""
        return Pairs(config, load_basis("sto-3g", elements))

    def check(self, definition, config, sets):
        """Refuse energies that are not there, or no numbers."""
        for name, part in sets.items():
            check_finite(f"the data set ({name} split)", {"energy": part["energy"]})

    def fit(self, definition, config, sets, run):
        """Energies of atoms by least squares, then pairs by a ridge that validation chooses."""
        parts = [sets["train"], sets["validation"]]
        batches = [batch(part.structures, definition.basis) for part in parts]
        precision = config.fit.precision / EV_PER_HARTREE
        with run.stage("pairs") as end_with:
            counts = [np.asarray(definition.atoms(b)) for b in batches]
            atoms = composition_offsets(counts[0], np.asarray(parts[0]["energy"]))
            labels = [p["energy"] - n @ atoms for p, n in zip(parts, counts, strict=True)]
            rows = zip([np.asarray(definition.pairs(b)) for b in batches], labels, strict=True)
            train, validation = rows
            ridge = ridge_validated([train], validation, tolerance=precision)
            end_with(f"validation rmse {1e3 * EV_PER_HARTREE * ridge.score:.3g} meV")
        return Fit({"atoms": atoms, "pairs": ridge.weights}, {"lambda": ridge.lam})

    def summary(self, model):
        """What a model reads, for the report."""
        return "distances between atoms"


FAMILY = PairsFamily()
