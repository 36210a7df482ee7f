"""What an Op2Density model is and how it is trained: settings of kernels, network and widths."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NoReturn

from ...density import METRICS
from ...errors import ConfigError, at_least, one_of
from ...features.inputs import OPERATORS
from ...learn.config import DescentConfig, positive
from ..base.config import ModelConfig

KERNELS = ("gaussian", "polynomial")
BASELINES = ("atoms", "average")

LARGEST = 1.0
"""Logarithm of a factor of exponents that makes sense: sets have one every factor of 2 to 3."""


def _refuse(name: str, got: object, expected: str, hint: str = "") -> NoReturn:
    raise ConfigError(f"model.{name}", got=got, expected=expected, hint=hint)


@dataclasses.dataclass(frozen=True)
class Op2DensityNetworkFit(DescentConfig):
    """How the network and the widths are trained: AdamW on what the kernels leave.

    Attributes:
      dipole_weight: Weight of the squared error of dipoles beside the error in the metric; each
        counts in units of what it was at the start.
      real_space_weight: Weight, likewise, of the absolute error of the density on points.
      points: Points of each structure, drawn from an atomic grid that is turned at random. They
        have a part where real_space_weight or the network's widths are not zero.
    """

    dipole_weight: float = 0.0
    real_space_weight: float = 0.0
    points: int = 500

    def __post_init__(self):
        super().__post_init__()
        at_least("model.network.fit", self, ("points",), 1)
        at_least("model.network.fit", self, ("dipole_weight", "real_space_weight"))


@dataclasses.dataclass(frozen=True)
class Op2DensityNetworkConfig:
    """A network on top of the kernels.

    Attributes:
      alone: Whether the kernels are left out, but for the baseline, to see what the network is
        worth.
      components: The network reads so many principal components of the irreps of one degree, at
        most.
      hidden: Widths of the hidden layers of the networks that make the gates.
      gates: Functions of the scalars of an atom that multiply its irreps.
      widths: Largest logarithm of the factor of a shell's exponents, which then depend on the
        environment and are learned from true densities on points; 0 means a fixed basis. Below half
        the logarithm of the ratio of neighbouring exponents (0.35 for a ratio of 2) functions
        cannot meet.
      fit: How the network is trained.
    """

    alone: bool = False
    components: int = 8
    hidden: tuple[int, ...] = (32,)
    gates: int = 8
    widths: float = 0.0
    fit: Op2DensityNetworkFit | None = Op2DensityNetworkFit()

    def __post_init__(self):
        at_least("model.network", self, ("components", "gates"), 1)
        if not 0 <= self.widths <= LARGEST:
            _refuse("network.widths", self.widths, f"from 0 (a fixed basis) to {LARGEST:g}")


@dataclasses.dataclass(frozen=True)
class Op2DensityFit:
    """How the kernels are solved for.

    Attributes:
      penalty: Penalty of the squares of the weights, beside the mean error of a structure; null
        means that validation chooses it.
      tolerance: Conjugate gradients end at this residual, relative to the right-hand side.
      cycles: Conjugate gradients take at most so many steps.
    """

    penalty: float | None = None
    tolerance: float = 1e-6
    cycles: int = 3000

    def __post_init__(self):
        at_least("model.fit", self, ("cycles",), 1)
        positive("model.fit", self, "tolerance")
        if self.penalty is not None:
            positive("model.fit", self, "penalty")


@dataclasses.dataclass(frozen=True)
class Op2DensityConfig(ModelConfig):
    """What an Op2Density model reads and predicts.

    Attributes:
      aux_basis: Auxiliary basis of the density, which is any fitting set that PySCF knows.
      basis: Basis of the operator that is read; its functions up to l give irreps up to 2 l.
      operator: Name of the operator that is read.
      powers: Powers of the operator that are read.
      components: Principal components of the irreps of each degree and element that are compared.
      references: Reference environments of each element, chosen farthest point first.
      kernel: What multiplies products of irreps, which is gaussian or polynomial.
      length: Length of the Gaussian kernel, in units of the spread of an element's scalars; null
        means that validation chooses it.
      zeta: Power of the polynomial kernel, which is products of irreps times those of scalars to
        the power zeta - 1.
      baseline: What is learned is the difference from superposed free atoms (atoms), or from the
        mean of the training set (average).
      metric: Metric in which the error of densities is made least, which is coulomb, overlap, or
        hartree+external.
      fit_metric: Metric, likewise, in which coefficients of density matrices are found.
      uncertainty: Whether the model keeps what standard deviations of predictions need; files
        become larger.
      network: A network that adds to the kernels or stands alone; null means kernels only.
      fit: How the kernels are solved for.
    """

    family: ClassVar[str] = "op2density"
    chosen: ClassVar[tuple[str, ...]] = ("length",)

    aux_basis: str = "def2-universal-jkfit"
    basis: str = "even-tempered-f"
    operator: str = "screened_potential"
    powers: tuple[int, ...] = (1, 2)
    components: int = 32
    references: int = 100
    kernel: str = "gaussian"
    length: float | None = None
    zeta: int = 2
    baseline: str = "atoms"
    metric: str = "coulomb"
    fit_metric: str = "coulomb"
    uncertainty: bool = False
    network: Op2DensityNetworkConfig | None = None
    fit: Op2DensityFit | None = Op2DensityFit()

    def __post_init__(self):
        at_least("model", self, ("components", "references", "zeta"), 1)
        if self.length is not None:
            positive("model", self, "length")
        one_of("model.kernel", self.kernel, KERNELS)
        one_of("model.baseline", self.baseline, BASELINES)
        for name in ("metric", "fit_metric"):
            one_of(f"model.{name}", getattr(self, name), METRICS)
        one_of("model.operator", self.operator, OPERATORS)
        if self.uncertainty and self.network and self.network.alone:
            hint = "Set model.network.alone: false."
            _refuse("uncertainty", "a network alone", "kernels, whose variance it is", hint)
        if self.uncertainty and self.network and self.network.widths:
            got = f"model.network.widths {self.network.widths}"
            expected = "a fixed basis, whose coefficients the kernels' variances are of"
            _refuse("uncertainty", got, expected, "Set model.network.widths: 0.")

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what is learned: the density."""
        return ("density",)

    @property
    def doubts(self) -> bool:
        """Whether the trained model has standard deviations."""
        return self.uncertainty

    def check(self) -> None:
        """Refuse settings of a training that would have no part in it.

        Raises:
          ConfigError: there are such.
        """
        network = self.network
        if network is None:
            return
        if network.alone and self.fit not in (None, Op2DensityFit()):
            got, expected = f"{self.fit} and a network alone", "left out: no kernels are solved for"
            _refuse("fit", got, expected, "Or set model.network.alone: false.")
        descent = network.fit or Op2DensityNetworkFit()
        drawn = descent.real_space_weight or network.widths
        if not drawn and descent.points != Op2DensityNetworkFit.points:
            got = f"{descent.points} and no loss on points"
            expected = "left out, or with real_space_weight or model.network.widths"
            _refuse("network.fit.points", got, expected)
