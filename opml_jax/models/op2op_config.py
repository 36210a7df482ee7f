"""What an Op2Op model is made of: its words, and the choices by name."""

from __future__ import annotations

import dataclasses

from ..errors import ConfigError, one_of, refusal
from ..operators.words import check_words, every_word
from .op2op_network import Op2OpNetworkConfig

PIECES = "E"
"""Letter of the pieces of the nuclei's potential: a word with it is one word for each piece."""
LETTERS = ("S", "S^-1", "T", "V", "W", PIECES)
"""Operators known before the density: overlap, its inverse, kinetic energy, nuclei, neutral atoms.
V reaches far, so models with it are not size-extensive, and no word has it by default."""
DENSITY_LETTERS = (*LETTERS, "P", "U")
"""And those of the density: itself, and the electrostatic potential."""

TARGETS = ("fock", "dm")
"""Matrices that may be learned."""

BASELINES = ("neutral_atoms", "hcore", "superposed", "none")
"""What a first guess starts from: T + W, T + V, T + V and the Coulomb matrix of superposed atoms,
or nothing; for density matrices those of these operators, the superposed atoms, or nothing."""

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


@dataclasses.dataclass(frozen=True)
class Op2OpConfig:
    """What the model is made of.

    Attributes:
      basis: basis set of the matrices, and of all operators but those of ``input_basis``.
      words: products that make the first guess, of overlap S, its inverse S^-1, kinetic energy
        T, the potential of the nuclei V, of neutral atoms W, and the pieces E of V, each of
        which makes a word of its own.
      density_words: further products that make the self-consistent matrix, of these, the density
        matrix P and the electrostatic potential U; none: the first guess is the prediction.
      stages: 0: the density is made self-consistent. Else the matrix has as many stages, each a
        linear map with the density words of the stage before, the first guess' at first: nothing
        to converge, a larger error than that of a density that does.
      exponents: of Gaussians, Bohr^-2, descending: the potential of the nuclei of each element is
        cut into pieces of ranges between them.
      cycles: most self-consistent cycles.
      tolerance: largest element of F[P] - F left, Hartree.
      history: matrices remembered by the extrapolation (DIIS).
      network: what adds to the closed form (:mod:`opml_jax.models.op2op_network`), of the first
        guess without density words, else of the self-consistent matrix.
      target: ``"fock"``, or ``"dm"``, the density matrix, which needs ``density_words`` to be none.
      baseline: what the first guess starts from, one of :data:`BASELINES`.
      window: which levels of a larger basis those of the matrix are, if it was trained on
        observables: the ``"lowest"``, or as many around the highest occupied one (``"homo"``).
      input_basis: basis set of the operators that make ``words``; None: ``basis``. Irreps of
        blocks that it lacks are not learned (from them).
      uncertainty: keep what standard deviations of predictions need; files become larger.
    """

    basis: str = "def2-svp"
    words: tuple[str, ...] = WORDS
    density_words: tuple[str, ...] = DENSITY_WORDS
    stages: int = 0
    exponents: tuple[float, ...] = (2.0, 0.6, 0.2)
    cycles: int = 40
    tolerance: float = 1e-7
    history: int = 8
    network: Op2OpNetworkConfig | None = None
    target: str = TARGETS[0]
    baseline: str = BASELINES[0]
    window: str = WINDOWS[0]
    input_basis: str | None = None
    uncertainty: bool = False

    def __post_init__(self):
        one_of("operator.target", self.target, TARGETS)
        one_of("operator.baseline", self.baseline, BASELINES)
        one_of("operator.window", self.window, WINDOWS)
        check_words("operator.words", self.words, LETTERS)
        check_words("operator.density_words", self.density_words, DENSITY_LETTERS)
        falling = list(self.exponents) == sorted(set(self.exponents), reverse=True)
        if not self.words or not falling or min(self.exponents, default=1.0) <= 0:
            raise ConfigError(
                refusal(
                    "operator",
                    got=f"{len(self.words)} words, exponents {self.exponents}",
                    expected="at least one word, and positive exponents in descending order",
                )
            )
        if self.target == "dm" and self.density_words:
            raise ConfigError(
                refusal(
                    "operator.density_words",
                    got=f"{len(self.density_words)} words and target dm",
                    expected="none: a density matrix is predicted in one step",
                )
            )
        if self.stages < 0 or (self.stages and (self.network or not self.density_words)):
            raise ConfigError(
                refusal(
                    "operator.stages",
                    got=f"{self.stages}, {len(self.density_words)} density words",
                    expected="0, or a positive number with density words and without a network",
                )
            )
        if self.uncertainty and (self.network or self.target != "fock"):
            raise ConfigError(
                refusal(
                    "operator.uncertainty",
                    got=f"target {self.target}{', and a network' if self.network else ''}",
                    expected="target fock without a network: it is that of the linear map",
                )
            )
        if self.cycles < 1 or self.history < 2 or not self.tolerance > 0:
            raise ConfigError(
                refusal(
                    "operator",
                    got=f"cycles {self.cycles}, history {self.history}, tolerance {self.tolerance}",
                    expected="at least 1, at least 2, and positive",
                )
            )
        if self.network and self.target != "fock":
            raise ConfigError(
                refusal("operator.network", got="target dm", expected="target fock, or no network")
            )
        network = self.network
        if network and self.density_words and (network.alone or network.kind == "matrix"):
            raise ConfigError(
                refusal(
                    "operator.network",
                    got=f"kind {network.kind}, alone {network.alone}, density words",
                    expected="kind gated beside the closed form",
                    hint="Or set operator.density_words: [], a first guess.",
                )
            )
        if self.network and self.network.kind == "matrix" and self.input_basis:
            raise ConfigError(
                refusal(
                    "operator.network.kind",
                    got=f"matrix and input_basis {self.input_basis}",
                    expected="gated: products of operators are made in the basis of the matrices",
                )
            )
