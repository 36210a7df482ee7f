"""Settings of Op2Prop: what its functions read, and how it is fitted."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ...errors import ConfigError, at_least, one_of
from ...features import Inputs
from ...learn.config import DescentConfig, positive
from ...units import DEBYE_PER_EBOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE
from ..base import ModelConfig

PROPERTIES = {
    "dipole": (1,),
    "quadrupole": (2,),
    "isotropic_polarizability": (0,),
    "polarizability": (0, 2),
}
"""Properties beside the energy that may be learned, and the L of the irreps that they are made of:
0 of a number, 1 of a vector, 2 of a symmetric matrix without a trace, 0 and 2 of one with it."""

TARGETS = ("energy", "forces", *PROPERTIES)
"""Labels that may be learned."""


@dataclasses.dataclass(frozen=True)
class AtomwiseFit(DescentConfig):
    """How energies are fitted to descriptors of atoms, and networks to what that leaves.

    Attributes:
      targets: Which of energy, forces, dipole, quadrupole, polarizability and
        isotropic_polarizability are learned; energy is always among them.
      loss: What the networks minimise, mean square errors (mse) or mean absolute ones (mae, smooth
        within a tenth of what the closed form leaves).
      energy_weight: Weight of energy errors in units of what the closed form leaves.
      forces_weight: Weight of force errors in these units.
      force_sigma: Error of a force component, in eV/Angstrom, that counts as much in the closed
        form as energy_sigma.
      energy_sigma: Error of an energy, in eV, that counts as much in the closed form as
        force_sigma.
      force_precision: Precision of the labels, in eV/Angstrom (integration grids leave about
        5e-5). Among regularisations this close to the best the strongest is taken.
    """

    targets: tuple[str, ...] = ("energy", "forces")
    loss: str = "mse"
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    force_sigma: float = 0.2
    energy_sigma: float = 0.04
    force_precision: float = 5e-5

    def __post_init__(self):
        super().__post_init__()
        for name in ("force_sigma", "energy_sigma"):
            positive("model.fit", self, name)
        at_least("model.fit", self, ("energy_weight", "forces_weight", "force_precision"))
        one_of("model.fit.loss", self.loss, ("mse", "mae"))
        if not set(self.targets) <= set(TARGETS) or "energy" not in self.targets:
            expected = f"energy and any of {', '.join(TARGETS[1:])}"
            raise ConfigError("model.fit.targets", got=self.targets, expected=expected)

    @property
    def sigmas(self) -> dict[str, float]:
        """Errors that count as one in the closed form, by what has them, in atomic units."""
        return {
            "energy": self.energy_sigma / EV_PER_HARTREE,
            "forces": self.force_sigma / EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
        }

    @property
    def weights(self) -> dict[str, float]:
        """Weights of what the networks are trained on, by name."""
        return {"energy": self.energy_weight, "forces": self.forces_weight}

    @property
    def precisions(self) -> dict[str, float]:
        """Precisions of the labels of parts that are solved alone, by name, in atomic units."""
        return {}


@dataclasses.dataclass(frozen=True)
class Op2PropFit(AtomwiseFit):
    """How the closed form is solved, and how networks are trained on what it leaves.

    Attributes:
      dipole_weight: Weight of dipole errors in units of what the closed form leaves.
      field_dipole_sigma: Error, in Debye, that counts as much as energy_sigma, of minus the
        derivative of the energy in a uniform field, which is then fitted to dipoles together with
        energies and forces; with 0 it is not.
      consistency_sigma: Error, in Debye, that counts as much, of the difference between that
        derivative and the dipole; both are then solved together, and 1e-4 makes them agree to 1e-7
        e Bohr on water. With 0 they may differ.
      dipole_precision: Precision of the labels, in Debye; it means what force_precision does.
    """

    targets: tuple[str, ...] = ("energy", "forces", "dipole")
    dipole_weight: float = 1.0
    field_dipole_sigma: float = 0.0
    consistency_sigma: float = 0.0
    dipole_precision: float = 1e-4

    def __post_init__(self):
        super().__post_init__()
        numbers = ("dipole_weight", "dipole_precision", "field_dipole_sigma", "consistency_sigma")
        at_least("model.fit", self, numbers)
        if self.consistency_sigma and not self.field_dipole_sigma:
            got = f"{self.consistency_sigma} without field_dipole_sigma"
            where = "model.fit.consistency_sigma"
            raise ConfigError(where, got=got, expected="0, or both")
        if self.field_dipole_sigma and "dipole" not in self.targets:
            hint = "model.fit.field_dipole_sigma fits derivatives in a field to dipoles."
            got, expected = self.targets, "dipole among them"
            raise ConfigError("model.fit.targets", got=got, expected=expected, hint=hint)

    @property
    def sigmas(self) -> dict[str, float]:
        """Those of derivatives in a field too, as far as they are fitted."""
        of_field = {"field_dipole": self.field_dipole_sigma, "consistency": self.consistency_sigma}
        return super().sigmas | {k: v / DEBYE_PER_EBOHR for k, v in of_field.items() if v}

    @property
    def weights(self) -> dict[str, float]:
        """Those of dipoles too; a difference of dipoles counts in units of its sigma."""
        of_dipoles = dict.fromkeys(("dipole", "field_dipole"), self.dipole_weight)
        return super().weights | of_dipoles | {"consistency": 1.0}

    @property
    def precisions(self) -> dict[str, float]:
        """That of dipoles."""
        return {"dipole": self.dipole_precision / DEBYE_PER_EBOHR}


class AtomwiseConfig(ModelConfig):
    """What configurations of models that read descriptors of atoms have in common."""

    @property
    def training(self) -> Any:
        """How the model is trained: as ``fit`` says, or by default."""
        return self.fit or type(self).fit

    @property
    def targets(self) -> tuple[str, ...]:
        """Labels that are learned."""
        return self.training.targets

    @property
    def doubts(self) -> bool:
        """Whether the trained model has standard deviations; an ensemble needs networks for it."""
        config: Any = self
        return config.last_layer or (config.members > 1 and self.training.epochs > 0)

    def check_readout(self) -> None:
        """Refuse sizes of a readout that make none."""
        config: Any = self
        at_least("model", config, ("components", "members"), 1)
        at_least("model", config, ("references",))
        if min(config.hidden, default=1) < 1:
            got, expected = config.hidden, "positive widths"
            raise ConfigError("model.hidden", got=got, expected=expected)


def check_powers(where: str, powers: tuple[int, ...]) -> None:
    """Refuse powers of an operator that there are none."""
    if not powers or min(powers) < 1:
        raise ConfigError(where, got=powers, expected="positive integers")


@dataclasses.dataclass(frozen=True)
class Op2PropConfig(AtomwiseConfig):
    """A model of energies, and more, as functions of an operator.

    Attributes:
      basis: Basis set of the operator that is read, which need not be that of the labels.
      operator: Operator that is read: screened_potential (size-extensive), external_potential or
        neutral_atom_potential; overlap or kinetic show what is known without a potential.
      powers: Powers of the operator that give features.
      gram_powers: Powers whose on-site irreps enter scalar products, if there are no channels.
      metric: How operators are multiplied: plain, lowdin, overlap; lifted makes blocks of far
        pairs of atoms visible, damped makes them small.
      resolve: Whether V (charges) or V^2 (intermediates) is resolved by element; or none.
      others: Operators beside it, such as overlap and kinetic.
      channels: Number of random mixtures of irreps whose products are the invariants; with 0
        scalar products of gram_powers are.
      references: Reference atoms of each element for the kernel, up to so many; 0 for no kernel.
        It is worth the most where compositions differ.
      components: Principal components of the invariants that the networks read.
      hidden: Widths of the hidden layers of the networks.
      vectors: Principal dipole vectors that the network weighs; 0 leaves dipoles to the closed
        form.
      members: Networks in the ensemble; more than one also gives standard deviations.
      last_layer: Whether the model keeps what standard deviations of one network or none need; an
        ensemble has its own.
      fit: How the model is trained.
    """

    family: ClassVar[str] = "op2prop"

    basis: str = "def2-svp"
    operator: str = "screened_potential"
    powers: tuple[int, ...] = (1, 2, 3, 4)
    gram_powers: tuple[int, ...] = (1, 2)
    metric: str = "plain"
    resolve: str = "none"
    others: tuple[str, ...] = ()
    channels: int = 0
    references: int = 0
    components: int = 48
    hidden: tuple[int, ...] = (64, 64)
    vectors: int = 12
    members: int = 1
    last_layer: bool = False
    fit: Op2PropFit | None = dataclasses.field(default=Op2PropFit(), kw_only=True)

    def __post_init__(self):
        Inputs(self.operator, self.metric, self.resolve, self.others)  # refuses what it must
        check_powers("model.powers", self.powers)
        check_powers("model.gram_powers", self.gram_powers)
        if not self.channels and not set(self.gram_powers) <= set(self.powers):
            expected = f"a part of powers {self.powers}"
            raise ConfigError("model.gram_powers", got=self.gram_powers, expected=expected)
        at_least("model", self, ("channels", "vectors"))
        self.check_readout()
