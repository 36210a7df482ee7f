"""Settings of Density2Prop: the density that is read, what may be read beside it, and the fit."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

from ...errors import ConfigError, at_least
from ...features import Inputs
from ..op2prop.config import AtomwiseConfig, AtomwiseFit, check_powers

_EXAMPLE = "opml config template density-energy prints such a configuration."


@dataclasses.dataclass(frozen=True)
class Density2PropFit(AtomwiseFit):
    """How energies are fitted to a predicted density; dipoles are those of the density."""

    def __post_init__(self):
        super().__post_init__()
        if "dipole" in self.targets:
            got, expected = self.targets, "without dipole: it is that of the density"
            raise ConfigError("model.fit.targets", got=got, expected=expected, hint=_EXAMPLE)


@dataclasses.dataclass(frozen=True)
class Density2PropInputs:
    """Operators that are read beside a density, in the basis of its model.

    Attributes:
      operator: Operator that is read: screened_potential (size-extensive), external_potential or
        neutral_atom_potential; overlap or kinetic show what is known without a potential.
      powers: Powers of the operator that give features.
      metric: How operators are multiplied: plain, lowdin, overlap; lifted makes blocks of far
        pairs of atoms visible, damped makes them small.
      resolve: Whether V (charges) or V^2 (intermediates) is resolved by element; or none.
      others: Operators beside it, such as overlap and kinetic.
    """

    operator: str = "screened_potential"
    powers: tuple[int, ...] = (1, 2, 3, 4)
    metric: str = "plain"
    resolve: str = "none"
    others: tuple[str, ...] = ()

    def __post_init__(self):
        Inputs(self.operator, self.metric, self.resolve, self.others)  # refuses what it must
        check_powers("model.beside.powers", self.powers)


@dataclasses.dataclass(frozen=True)
class Density2PropConfig(AtomwiseConfig):
    """A model of energies as functions of a predicted electron density, whose dipole is theirs.

    Attributes:
      density: A trained Op2Density model, as a run directory or a model file; it is copied into
        the model.
      beside: Operators that are read beside the density; null means none.
      channels: Number of random mixtures of the irreps of the density, and as many of those of the
        operators, whose products are the invariants.
      references: Reference atoms of each element for the kernel, up to so many; 0 for no kernel.
        It is worth the most where compositions differ.
      components: Principal components of the invariants that the networks read.
      hidden: Widths of the hidden layers of the networks.
      members: Networks in the ensemble; more than one also gives standard deviations.
      last_layer: Whether the model keeps what standard deviations of one network or none need; an
        ensemble has its own.
      fit: How the model is trained.
    """

    family: ClassVar[str] = "density2prop"

    density: str = ""
    beside: Density2PropInputs | None = None
    channels: int = 64
    references: int = 0
    components: int = 48
    hidden: tuple[int, ...] = (64, 64)
    members: int = 1
    last_layer: bool = False
    fit: Density2PropFit | None = dataclasses.field(default=Density2PropFit(), kw_only=True)

    def __post_init__(self):
        at_least("model", self, ("channels",), 1)
        self.check_readout()

    @property
    def functions(self) -> Self:
        """The configuration of the functions alone, which do not know where the density was."""
        return dataclasses.replace(super().functions, density="")

    def check(self) -> None:
        """Refuse a training without a density.

        Raises:
          ConfigError: there is none.
        """
        if not self.density:
            expected = "a run directory or model file of an Op2Density model"
            raise ConfigError("model.density", got="none", expected=expected, hint=_EXAMPLE)
