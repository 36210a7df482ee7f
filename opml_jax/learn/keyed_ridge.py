"""Least squares of one kind of block and irrep, and many lambdas at once.

The rows of a key are never kept: a triangle (QR) of descriptors and labels holds all that least
squares needs, of training and of validation alike, and costs no precision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from .ridge import triangle

LAMBDAS = tuple(10.0 ** np.arange(-14.0, 1.5, 1.0))
"""Candidates for the regularisation of columns of unit variance, by the number of rows."""

UNJUDGED = 1e-3
"""Least lambda of a key that validation lacks.

Its rows are few (a rare pair of elements): the least lambda would fit them exactly, and nothing
says how far they can be trusted. With two N-O pairs in training, mean errors of a molecule of QM7
reached 0.02 Hartree.
"""

VANISHING = 1e-10
"""Columns this much smaller than the largest of their key are rounding errors."""


class KeyedSystem:
    """Least squares of one key: rows ``[1, x, y]`` as a triangle."""

    def __init__(self):
        self._rows: list[np.ndarray] = []
        self._kept = 0
        self.n_rows = 0.0

    @classmethod
    def of(cls, triangle: np.ndarray, n_rows: float) -> KeyedSystem:
        """A system of so many rows with this :meth:`triangle`."""
        out = cls()
        out._rows, out._kept, out.n_rows = [triangle], len(triangle), n_rows
        return out

    def join(self, other: KeyedSystem) -> None:
        """Take over the rows of another system of this key."""
        rows = other.triangle()
        self._rows.append(rows)
        self._kept += len(rows)
        self.n_rows += other.n_rows

    def add(self, x: np.ndarray, y: np.ndarray, weight: float = 1.0) -> None:
        """Rows ``(n, n_columns)`` and ``(n, n_outputs)``, each as ``weight`` of a row."""
        rows = weight**0.5 * np.concatenate([np.ones((len(x), 1)), x, y], axis=1)
        self._rows.append(rows)
        self._kept += len(rows)
        self.n_rows += weight * len(rows)
        if self._kept > 3 * rows.shape[1]:  # a triangle and twice as many: QR pays
            self.triangle()

    def triangle(self) -> np.ndarray:
        """What is left of the rows: as many as columns at most."""
        rows = np.concatenate(self._rows)
        if len(rows) > rows.shape[1]:
            rows = triangle(rows)
        self._rows, self._kept = [rows], len(rows)
        return rows

    def spreads(self, n_outputs: int, constant: bool) -> np.ndarray:
        """Standard deviations ``(n_columns,)``, about zero where there is no constant."""
        rows = self.triangle()
        x = rows[:, 1:-n_outputs]
        mean = rows[:, 0] @ x / (rows[:, 0] @ rows[:, 0]) if constant else 0.0
        return np.sqrt(((x - rows[:, :1] * mean) ** 2).sum(axis=0) / self.n_rows)

    def less(self, weights: Mapping[str, np.ndarray]) -> KeyedSystem:
        """The same rows with what ``weights`` (and a ``constant``) leave of the labels."""
        linear, rows = weights["weights"], self.triangle().copy()
        y = rows[:, -linear.shape[1] :]
        y -= rows[:, 1 : 1 + len(linear)] @ linear
        y -= rows[:, :1] * weights.get("constant", 0.0)
        return KeyedSystem.of(rows, self.n_rows)

    def sums_of_squares(self, coefficients: np.ndarray) -> np.ndarray:
        """Of the rows times each column of ``(1 + n_columns + n_outputs, n)``: ``(n,)``."""
        return ((self.triangle() @ coefficients) ** 2).sum(axis=0)


@dataclasses.dataclass(frozen=True)
class KeyFit:
    """What was chosen for a key: the regularisation, and what validation says of it.

    ``rmse`` is of the irreps, in the unit of the matrix, ``left`` that over their size.
    """

    lam: float
    rmse: float
    left: float


Candidate = tuple[dict[str, np.ndarray], KeyFit]
"""``weights`` ``(n_columns, n_outputs)`` and perhaps ``constant`` ``(n_outputs,)``, and the fit."""


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values ``s`` of ``n`` training rows of a key, their columns standardised.

    ``mean`` ``(n_columns + n_outputs,)`` is that of columns and labels, ``inverse`` what columns
    are multiplied by (zero for what vanishes), ``projected`` ``(rank, n_outputs)`` the labels in
    the left vectors, ``wanted`` their root mean squares ``(n_outputs,)``.
    """

    n: float
    mean: np.ndarray
    inverse: np.ndarray
    s: np.ndarray
    vt: np.ndarray
    projected: np.ndarray
    wanted: np.ndarray


def spectrum(
    train: KeyedSystem, n_outputs: int, constant: bool, least: np.ndarray | float = 0.0
) -> Spectrum | None:
    """Columns that spread less than ``least`` are standardised by it; None of what vanishes."""
    rows = train.triangle()
    r = triangle(rows)
    n, n_columns = train.n_rows, r.shape[1] - 1 - n_outputs
    # the first column is the constant: below its row the triangle is that of centred rows
    mean = r[0, 1:] / r[0, 0] if constant else np.zeros(r.shape[1] - 1)
    body = r[1:, 1:] if constant else triangle(rows[:, 1:])
    x, y = body[:, :n_columns], body[:, n_columns:]
    spread = np.sqrt((x**2).sum(axis=0) / n)
    size = np.sqrt((rows[:, 1 : 1 + n_columns] ** 2).sum(axis=0) / n)
    wanted = np.sqrt((y**2).sum(axis=0) / n)
    if not size.max() > 0 or not wanted.max() > 1e-12:
        return None
    floored = np.maximum(np.maximum(spread, least), 1e-300)
    inverse = np.where(spread > VANISHING * size.max(), 1 / floored, 0.0)
    u, s, vt = np.linalg.svd(x * inverse, full_matrices=False)
    return Spectrum(n, mean, inverse, s, vt, u.T @ y, wanted)


def solve_key(
    train: KeyedSystem,
    validation: KeyedSystem | None,
    n_outputs: int,
    constant: bool,
    least: np.ndarray | float = 0.0,
    start: Mapping[str, np.ndarray] | None = None,
) -> list[Candidate]:
    """Weights of one key for each of :data:`LAMBDAS`; none if it vanishes by symmetry.

    Of a key that validation lacks (None) those from :data:`UNJUDGED` on, by what training leaves.
    Columns that spread less than ``least`` are standardised by it. With weights to ``start`` from,
    these are what solutions are drawn to; with the last lambda, which is infinite, they stand.
    """
    if start is not None:
        left = validation and validation.less(start)
        changes = solve_key(train.less(start), left, n_outputs, constant, least)
        judge = left or train.less(start)
        none = np.zeros((1 + len(start["weights"]), n_outputs))
        error = judge.sums_of_squares(np.concatenate([none, np.eye(n_outputs)])).sum()
        rmse = float(error / (judge.n_rows * n_outputs)) ** 0.5
        kept = {k: np.array(v) for k, v in start.items()}
        moved = [({k: kept[k] + v for k, v in change.items()}, fit) for change, fit in changes]
        return [*moved, (kept, KeyFit(np.inf, rmse, 1.0))]
    own = spectrum(train, n_outputs, constant, least)
    if own is None:
        return []
    n_columns = len(own.inverse)
    judge, out = validation or train, []
    for lam in LAMBDAS if validation else [lam for lam in LAMBDAS if lam >= UNJUDGED]:
        filtered = own.s / (own.s**2 + lam * own.n)
        w = own.inverse[:, None] * (own.vt.T @ (filtered[:, None] * own.projected))
        c = own.mean[n_columns:] - own.mean[:n_columns] @ w
        error = judge.sums_of_squares(np.concatenate([c[None], w, -np.eye(n_outputs)])).sum()
        rmse = float(error / (judge.n_rows * n_outputs)) ** 0.5
        fit = KeyFit(lam, rmse, rmse / float(np.sqrt((own.wanted**2).mean())))
        out.append(({"weights": w, "constant": c} if constant else {"weights": w}, fit))
    return out


def best_of(candidates: Sequence[Candidate], floor: float = 0.0) -> Candidate:
    """The candidate of smallest validation error whose lambda is not below ``floor``."""
    allowed = [c for c in candidates if c[1].lam >= 0.99 * floor]
    return min(allowed, key=lambda c: c[1].rmse)
