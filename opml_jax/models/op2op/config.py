"""What an Op2Op model is made of and how it is trained: its words, and the choices by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from ...errors import ConfigError, at_least, one_of
from ...learn.config import DescentConfig
from ...operators.words import check_words, every_word
from ..base.config import ModelConfig

PIECES = "E"
"""Letter of the pieces of the nuclei's potential: a word with it is one word for each piece."""
LETTERS = ("S", "S^-1", "T", "V", "W", PIECES)
"""Operators known before the density: overlap, its inverse, kinetic energy, nuclei, neutral atoms.
V reaches far, so models with it are not size-extensive, and no word has it by default."""
DENSITY_LETTERS = (*LETTERS, "P", "U")
"""And those of the density: itself, and the electrostatic potential."""

TARGETS = ("fock", "dm")
"""Matrices that may be learned."""

OBSERVABLES = ("mo_energy", "dipole", "lowdin_charges", "polarizability")
"""What a small matrix may be fitted to in place of its elements."""

BASELINES = ("neutral_atoms", "hcore", "superposed", "none")
"""What a first guess starts from: T + W, T + V, T + V and the Coulomb matrix of superposed atoms,
or nothing; for density matrices those of these operators, the superposed atoms, or nothing."""

PROJECTIONS = ("auto", "local", "meta_gga", "none")
"""What learned matrices are reduced to: those of local potentials, or of these and potentials
between gradients of orbitals."""

BITS = (64, 16)
"""Of a weight in a model file."""

EXTRAPOLATIONS = ("commutator", "difference")
"""What self-consistency makes small."""

WINDOWS = ("lowest", "homo")
"""Levels of a larger basis that a matrix may stand for."""

WORDS = (
    *every_word("STW", 3),
    *("W S^-1 W", "W S^-1 W S^-1 W", "W S^-1 T", "T S^-1 T", "E", "E S"),
)
DENSITY_WORDS = (
    *(w for w in every_word("STWU", 3) if "U" in w),
    *("U S^-1 U", "P", "S P S", "P S", "P T", "P U", "S S P S", "S P S S", "S S P S S"),
    *("T P S", "T P T", "W P S", "W P W", "W P T", "U P S", "U P U", "W P U", "T P U"),
    *("W S P S", "W W P S", "S P U P S", "S P T P S", "S P W P S", "E P S", "S P E P S"),
)

_EXAMPLE = "opml config template effective prints such a configuration."


@dataclasses.dataclass(frozen=True)
class OperatorLosses:
    """Weights of the losses of a predicted Fock matrix F.

    Attributes:
      matrix: Weight of the errors of all elements of F (Frobenius norm).
      occupied: Weight of the error between occupied orbitals, which moves their levels.
      mixing: Weight of the error between occupied and virtual orbitals over the difference of their
        energies, which moves the density; its unit is Hartree^2.
      levels: Weight of the errors of orbital energies themselves; it costs a diagonalisation in
        each step.
      commutator: Weight of F P S - S P F with the density matrix P of the reference, between
        orthogonal functions; it asks for a density that belongs to F and for no label of F.
      frontier: Lowest virtual orbitals that occupied and levels include.
    """

    matrix: float = 1.0
    occupied: float = 0.0
    mixing: float = 0.0
    levels: float = 0.0
    commutator: float = 0.0
    frontier: int = 0

    def __post_init__(self):
        where = "model.network.fit.losses"
        at_least(where, self, [f.name for f in dataclasses.fields(self)])
        if not self.matrix and not self.need_orbitals:
            raise ConfigError(where, got="all zero", expected="one weight above zero")

    @property
    def need_orbitals(self) -> bool:
        """True unless all that counts are elements of F."""
        others = (self.occupied, self.mixing, self.levels, self.commutator)
        return any(others)


@dataclasses.dataclass(frozen=True)
class Op2OpNetworkFit(DescentConfig):
    """How the network of Fock matrices is trained.

    Attributes:
      losses: What is minimised, in units of what the closed form leaves of it.
    """

    losses: OperatorLosses = OperatorLosses()


@dataclasses.dataclass(frozen=True)
class Op2OpNetworkConfig:
    """A network that adds to the closed form.

    Attributes:
      alone: Whether the closed form is left out, but for its constants, to see what it is worth.
      components: Most principal components of the irreps of one kind.
      inputs: Most inputs of the gates.
      hidden: Widths of the hidden layers of the gates' networks.
      gates: Gates of each kind of block; with 0 every output has a gate of its own.
      fit: How the network is trained.
    """

    alone: bool = False
    components: int = 12
    inputs: int = 12
    hidden: tuple[int, ...] = (32,)
    gates: int = 16
    fit: Op2OpNetworkFit | None = Op2OpNetworkFit()

    def __post_init__(self):
        at_least("model.network", self, ("components", "inputs"), 1)
        at_least("model.network", self, ("gates",))
        if min(self.hidden, default=1) < 1:
            got = f"hidden {self.hidden}"
            raise ConfigError("model.network", got=got, expected="positive widths")


@dataclasses.dataclass(frozen=True)
class ObservablesFit:
    """How the matrices of a small basis are fitted to observables of a larger one.

    Errors count in units of what the closed form in the small basis leaves of them.

    Attributes:
      targets: Observables of the larger basis' Fock matrices that are reproduced, among mo_energy,
        dipole and lowdin_charges, and polarizability, which is a label.
      components: Principal components of the columns of each kind of block that may move.
      steps: Most steps of L-BFGS on each of two ways, which are all components alike, or half of
        the steps in proportion to their size and then alike; validation decides.
      penalty: Weight of the squares of all variables of L-BFGS together.
      occupied_weight: Weight of the mean square error of occupied orbital energies.
      virtual_weight: Weight of that of the unoccupied ones in the window.
      virtuals: Unoccupied levels that count, from the lowest on; 0 means all. Across
        compositions a small basis cannot have all virtual levels of a large one, and the gap needs
        the first.
      dipole_weight: Weight of the mean square error of dipoles.
      charges_weight: Weight of that of Löwdin's charges.
      polarizability_weight: Weight of that of polarizabilities.
    """

    targets: tuple[str, ...] = OBSERVABLES[:3]
    components: int = 24
    steps: int = 300
    penalty: float = 1e-6
    occupied_weight: float = 1.0
    virtual_weight: float = 0.1
    virtuals: int = 0
    dipole_weight: float = 1.0
    charges_weight: float = 1.0
    polarizability_weight: float = 1.0

    def __post_init__(self):
        where = "model.fit.observables"
        if not self.targets or not set(self.targets) <= set(OBSERVABLES):
            expected = f"some of {', '.join(OBSERVABLES)}"
            got, hint = self.targets, _EXAMPLE
            raise ConfigError(f"{where}.targets", got=got, expected=expected, hint=hint)
        at_least(where, self, ("components", "steps"), 1)
        numbers = [f.name for f in dataclasses.fields(self) if f.name != "targets"]
        at_least(where, self, numbers)


@dataclasses.dataclass(frozen=True)
class Op2OpFit:
    """What an Op2Op model is fitted to.

    Attributes:
      observables: How its matrices are fitted to observables of a larger basis; null means that
        they are fitted to the elements of reference matrices, in closed form.
      iterates: Weight of squared errors at each density of the first cycles of reference SCFs,
        where data have such (opml generate --iterates), beside 1 of the converged one; for
        self-consistent models.
      bits: Of a stored weight, 64 or 16; with 16 model files take a quarter of the space, and
        rounding errors are such that they cancel on the training rows. Not with stages.
    """

    observables: ObservablesFit | None = None
    iterates: float = 0.25
    bits: int = BITS[0]

    def __post_init__(self):
        at_least("model.fit", self, ("iterates",))
        if self.bits not in BITS:
            raise ConfigError("model.fit.bits", got=self.bits, expected=" or ".join(map(str, BITS)))


@dataclasses.dataclass(frozen=True)
class Op2OpConfig(ModelConfig):
    """A model of Fock or density matrices.

    Attributes:
      basis: Basis set of the matrices, and of all operators but those of input_basis.
      words: Products that make the first guess, of overlap S, its inverse S^-1, kinetic energy T,
        the potential of the nuclei V, of neutral atoms W, and the pieces E of V, each of which
        makes a word of its own.
      density_words: Further products that make the self-consistent matrix, of these, the density
        matrix P and the electrostatic potential U; without any the first guess is the prediction.
      stages: With 0 the density is made self-consistent. Else the matrix has as many stages, each a
        linear map with the density words of the stage before, the first guess' at first; nothing
        has to converge, and the error is larger than that of a density that does.
      exponents: Exponents of Gaussians in Bohr^-2, descending, which cut the potential of the
        nuclei of each element into pieces of ranges between them.
      projection: Whether what is learned is reduced to the matrix of a local potential (local),
        which exchange and correlation of an LDA or GGA is, or of a local potential and another one
        between gradients of orbitals (meta_gga); none, or auto, which means none for Fock matrices
        that are not made self-consistent, and local for others, unless validation is at most half
        as wrong without (geometries of one molecule, say). Exact exchange is not local.
      exchange: Part of exact exchange in the Fock matrix of a density, which is computed and not
        learned: 0.25 of PBE0, 0.2 of B3LYP, 1 of Hartree-Fock.
      extrapolation: What self-consistency makes small: the commutator of F[P] and P between
        orthogonal functions, or the difference of F[P] and F.
      cycles: Most self-consistent cycles.
      tolerance: Largest element of it that may remain, in Hartree.
      history: Matrices remembered by the extrapolation (DIIS).
      network: A network that adds to the closed form of the first guess without density words, else
        of the self-consistent matrix.
      target: What is predicted: fock, the Fock matrix, or dm, the density matrix, which needs
        density_words to be [].
      baseline: What the first guess starts from: neutral_atoms (T + W), hcore (T + V), superposed
        (T + V and the Coulomb matrix of superposed atoms), or none.
      window: Which levels of a larger basis those of the matrix are, if it is fitted to
        observables: the lowest, or as many around the highest occupied one (homo).
      input_basis: Basis set of the operators that make words; null means that of basis. Irreps of
        blocks that it lacks are not learned from them.
      uncertainty: Whether the model keeps what standard deviations of predictions need; files
        become larger.
      fit: What the model is fitted to.
    """

    family: ClassVar[str] = "op2op"

    basis: str = "def2-svp"
    words: tuple[str, ...] = WORDS
    density_words: tuple[str, ...] = DENSITY_WORDS
    stages: int = 0
    exponents: tuple[float, ...] = (2.0, 0.6, 0.2)
    projection: str = PROJECTIONS[0]
    exchange: float = 0.0
    extrapolation: str = EXTRAPOLATIONS[0]
    cycles: int = 40
    tolerance: float = 1e-6
    history: int = 8
    network: Op2OpNetworkConfig | None = None
    target: str = TARGETS[0]
    baseline: str = BASELINES[0]
    window: str = WINDOWS[0]
    input_basis: str | None = None
    uncertainty: bool = False
    fit: Op2OpFit | None = Op2OpFit()

    def __post_init__(self):
        one_of("model.target", self.target, TARGETS)
        one_of("model.baseline", self.baseline, BASELINES)
        one_of("model.window", self.window, WINDOWS)
        one_of("model.projection", self.projection, PROJECTIONS)
        one_of("model.extrapolation", self.extrapolation, EXTRAPOLATIONS)
        check_words("model.words", self.words, LETTERS)
        check_words("model.density_words", self.density_words, DENSITY_LETTERS)
        for wrong, name, got, expected in self._refusals():
            if wrong:
                where = f"model.{name}" if name else "model"
                raise ConfigError(where, got=got, expected=expected)

    def _refusals(self) -> Iterator[tuple[bool, str, str, str]]:
        """What may be wrong: whether it is, where, what is there and what should be."""
        falling = list(self.exponents) == sorted(set(self.exponents), reverse=True)
        positive = min(self.exponents, default=1.0) > 0
        given = f"{len(self.words)} words, exponents {self.exponents}"
        expected = "at least one word, and positive exponents in descending order"
        yield not self.words or not falling or not positive, "", given, expected
        wrong = self.cycles < 1 or self.history < 2 or not self.tolerance > 0
        given = f"cycles {self.cycles}, history {self.history}, tolerance {self.tolerance}"
        yield wrong, "", given, "at least 1, at least 2, and positive"
        one_shot, of_dm, network = not self.density_words, self.target == "dm", bool(self.network)
        words, and_network = f"{len(self.density_words)} density words", ", and a network" * network
        expected = "none: a density matrix is predicted in one step"
        yield of_dm and not one_shot, "density_words", f"{words} and target dm", expected
        wrong = self.stages < 0 or (self.stages > 0 and (network or one_shot))
        expected = "0, or a positive number with density words and without a network"
        yield wrong, "stages", f"{self.stages}, {words}{and_network}", expected
        wrong = self.uncertainty and (network or of_dm)
        expected = "target fock without a network: it is that of the linear map"
        yield wrong, "uncertainty", f"target {self.target}{and_network}", expected
        yield network and of_dm, "network", "target dm", "target fock, or no network"
        wrong = of_dm and self.is_local
        given = f"{self.projection}, and target dm"
        yield wrong, "projection", given, "auto or none: densities are not local"
        wrong = bool(self.exchange) and one_shot
        yield wrong, "exchange", f"{self.exchange}, and no density words", "0, or density words"
        yield not 0 <= self.exchange <= 1, "exchange", f"{self.exchange}", "from 0 to 1"
        wrong = self.network is not None and self.network.alone and not one_shot
        expected = "false, or with density_words: []: the network stands beside the closed form"
        yield wrong, "network.alone", f"true, and {words}", expected

    @property
    def is_self_consistent(self) -> bool:
        """Whether the density is made self-consistent at prediction."""
        return bool(self.density_words) and not self.stages

    @property
    def projected_on(self) -> str:
        """:attr:`projection`, and what it means if it is auto."""
        if self.projection == "auto":
            return "local" if self.is_self_consistent else "none"
        return self.projection

    @property
    def is_local(self) -> bool:
        """Whether what is learned is reduced to the matrices of potentials."""
        return self.projected_on != "none"

    @property
    def judges_itself(self) -> bool:
        """Whether predictions say how much of what is learned is no matrix of potentials."""
        return self.is_self_consistent and self.is_local

    @property
    def targets(self) -> tuple[str, ...]:
        """The matrix that is learned, or the observables that it is fitted to."""
        if self.fit and self.fit.observables:
            return self.fit.observables.targets
        return (self.target,)

    @property
    def doubts(self) -> bool:
        """Whether the trained model has standard deviations."""
        return self.uncertainty

    def check(self) -> None:
        """Refuse a window without observables, and observables of a model that cannot have them.

        Raises:
          ConfigError: functions and fit do not go together.
        """
        if self.fit and self.fit.bits == 16 and self.stages:
            got = f"16, and {self.stages} stages"
            raise ConfigError("model.fit.bits", got=got, expected="64, or no stages")
        expected = None
        if not self.fit or not self.fit.observables:
            where, got = "model.window", f"{self.window!r}, and no observables"
            if self.window != "lowest":
                expected = "lowest, unless model.fit.observables says what levels are"
        else:
            where, got = "model.fit.observables", f"targets {self.targets}, of {self.functions}"
            if self.network or (self.density_words and not self.stages):
                expected = "with density_words: [] or stages, and no network"
            elif self.target != "fock" or self.uncertainty or self.is_local:
                expected = "with target: fock, uncertainty: false and no projection"
            elif self.window != "lowest" and self.targets != ("mo_energy",):
                expected = "with targets: [mo_energy], unless window is lowest"
        if expected:
            raise ConfigError(where, got=got, expected=expected, hint=_EXAMPLE)
