r"""Ridge regression in closed form, with its regularisation chosen honestly.

Minimises :math:`|A w - y|^2 + \lambda |w|^2`. The normal equations of operator features reach the
limits of float64 (condition numbers of 1e16), so what has up to a few thousand columns (or rows)
goes through orthogonal factorisations: a streamed QR for many rows, then one SVD that serves every
lambda. Beyond that, normal equations of columns of unit length, or of the rows where these are
fewer, with lambda above rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import OpmlError

LAMBDAS = tuple(10.0**k for k in np.arange(-10.0, 7.5, 0.5))
"""Default candidates for the regularisation of standardised columns."""


CHANGES = (*LAMBDAS, np.inf)
"""And where weights are differences from earlier ones, all of which are kept with the last."""

MANY = 2048
"""Columns and rows beyond which normal equations take the place of orthogonal factorisations."""


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression.

    Attributes:
      weights: ``(n_columns,)``.
      lam: the regularisation chosen.
      score: root mean square error that chose it (leave-one-out or validation).
      scores: errors of all candidates.
    """

    weights: np.ndarray
    lam: float
    score: float
    scores: tuple[float, ...]


def _solutions(v, s, uty, lambdas) -> np.ndarray:
    """``(n_columns, n_lambdas)`` weights from the SVD."""
    lam = np.asarray(lambdas)
    safe = np.where(s > s[0] * 1e-15, s, np.inf) if len(s) and s[0] > 0 else np.full(len(s), np.inf)
    filters = np.where(np.isfinite(safe)[:, None], s[:, None] / (s[:, None] ** 2 + lam), 0.0)
    return v @ (filters * uty[:, None])


def _choose(weights, scores, lambdas, tolerance: float) -> Ridge:
    """The strongest regularisation whose error is as good as the least, to ``tolerance``.

    A smaller lambda would fit what the labels do not hold; between equals the larger one
    extrapolates better, on water by two orders of magnitude.
    """
    enough = np.flatnonzero(np.asarray(scores) <= 1.01 * np.min(scores) + tolerance)
    best = int(enough[np.argmax(np.asarray(lambdas)[enough])])
    every = tuple(float(x) for x in scores)
    return Ridge(weights[:, best], float(lambdas[best]), every[best], every)


def ridge_leave_one_out(
    a: np.ndarray, y: np.ndarray, lambdas: Sequence[float] = LAMBDAS, *, tolerance: float = 0.0
) -> Ridge:
    """Ridge with lambda chosen by the leave-one-out error, exact from the leverages.

    Golub, Heath, Wahba, Technometrics 21, 215 (1979).

    Args:
      a: ``(n_rows, n_columns)``.
      y: ``(n_rows,)``.
      lambdas: candidates.
      tolerance: error within which labels are not worth fitting, in the unit of ``y``.

    Raises:
      OpmlError: no rows, or lengths that differ.
    """
    _check(a, y)
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    uty = u.T @ y
    weights = _solutions(vt.T, s, uty, lambdas)
    # 1 - leverage and the residual as sums of positive terms: with more columns than rows and a
    # small lambda both vanish, and differences would make interpolation look perfect
    outside = 1.0 - np.sum(u**2, axis=1)
    spanned = (outside < 1e-12) | (a.shape[1] >= a.shape[0])  # rows within the columns' span
    outside = np.where(spanned, 0.0, outside)
    rest = np.where(spanned, 0.0, y - u @ uty)
    scores = []
    for lam in lambdas:
        kept = 1.0 / (1.0 + s**2 / lam)
        residual = (rest + u @ (kept * uty)) / (outside + u**2 @ kept)
        scores.append(np.sqrt(np.mean(residual**2)))
    return _choose(weights, scores, lambdas, tolerance)


def ridge_validated(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    validation: tuple[np.ndarray, np.ndarray],
    lambdas: Sequence[float] = LAMBDAS,
    *,
    tolerance: float = 0.0,
    refit: bool = False,
) -> Ridge:
    """Ridge with lambda chosen by the error on held-out rows; rows arrive in chunks.

    Args:
      chunks: ``(a, y)`` pairs, rows in any number; only one is held at a time.
      validation: ``(a, y)`` that chooses lambda.
      lambdas: candidates.
      tolerance: error within which labels are not worth fitting, in the unit of ``y``.
      refit: whether to solve once more, with that lambda, for all rows together.

    Raises:
      OpmlError: lengths that differ.
    """
    a, y = validation
    _check(a, y)
    system = _System()
    for part in chunks:
        _check(*part)
        system.add(*part)
    if system.empty:
        raise OpmlError("chunks", got="no rows", expected="at least one chunk")
    weights = system.solve(lambdas)
    scores = np.sqrt(np.mean((a @ weights - y[:, None]) ** 2, axis=0))
    fit = _choose(weights, scores, lambdas, tolerance)
    if not refit:
        return fit
    system.add(a, y)
    return dataclasses.replace(fit, weights=system.solve([fit.lam])[:, 0])


def triangle(rows: np.ndarray) -> np.ndarray:
    """R of rows = Q R: as good as the rows in least squares."""
    return np.linalg.qr(rows, mode="r")  # pyright: ignore[reportReturnType]  # stubs know no modes


class _System:
    """Least squares whose rows come in chunks.

    A triangle by QR, then an SVD: as precise as the columns allow. More than :data:`MANY` columns
    with still more rows become normal equations, in columns of unit length, solved by a Cholesky
    factorisation for each lambda. Small columns are then solved as precisely as large ones; below
    rounding lambda is raised to it, and with so many columns validation asks for more than that.
    Fewer rows than columns, but still more than that number, are solved for in the rows' own
    normal equations, w = A^T (A A^T + lambda)^-1 y.
    """

    def __init__(self):
        self.rows: np.ndarray | None = None
        self.gram: np.ndarray | None = None

    @property
    def empty(self) -> bool:
        return self.rows is None and self.gram is None

    def add(self, a: np.ndarray, y: np.ndarray) -> None:
        rows, n_columns = np.column_stack([a, y]), a.shape[1]
        if self.gram is not None:
            self.gram += rows.T @ rows
            return
        rows = rows if self.rows is None else np.vstack([self.rows, rows])
        if len(rows) > n_columns > MANY:
            self.rows, self.gram = None, rows.T @ rows
        else:
            self.rows = triangle(rows) if len(rows) > n_columns else rows

    def solve(self, lambdas: Sequence[float]) -> np.ndarray:
        """``(n_columns, n_lambdas)`` weights, zero for a lambda that is infinite."""
        finite = np.isfinite(lambdas)
        some = self._solve(np.asarray(lambdas)[finite])
        weights = np.zeros((len(some), len(lambdas)))
        weights[:, finite] = some
        return weights

    def _solve(self, lambdas: Sequence[float] | np.ndarray) -> np.ndarray:
        if self.gram is None:
            assert self.rows is not None  # nobody solves an empty system
            a, y = self.rows[:, :-1], self.rows[:, -1]
            if min(a.shape) > MANY:
                return _solve_rows(a, y, lambdas)
            u, s, vt = np.linalg.svd(a, full_matrices=False)
            return _solutions(vt.T, s, u.T @ y, lambdas)
        length = np.sqrt(np.diag(self.gram)[:-1])
        inverse = np.where(length > 0, 1.0 / np.where(length > 0, length, 1.0), 0.0)
        gram = self.gram[:-1, :-1] * inverse * inverse[:, None]
        least = len(gram) * np.finfo(float).eps
        penalties = [np.maximum(lam * inverse**2, least) for lam in lambdas]
        return _cholesky(gram, self.gram[:-1, -1] * inverse, penalties) * inverse[:, None]


def _solve_rows(a: np.ndarray, y: np.ndarray, lambdas: Sequence[float] | np.ndarray) -> np.ndarray:
    """``(n_columns, n_lambdas)`` weights from normal equations of the rows."""
    gram = a @ a.T
    least = len(gram) * np.finfo(float).eps * gram.diagonal().max()
    return a.T @ _cholesky(gram, y, [max(lam, least) for lam in lambdas])


def _cholesky(gram: np.ndarray, right: np.ndarray, penalties: Sequence) -> np.ndarray:
    """``(n, n_penalties)`` solutions of gram + penalty; those below rounding are all the same."""
    import scipy.linalg

    solutions, before = [], None
    for penalty in penalties:
        if before is None or np.any(penalty != before):
            system = gram.copy()
            system.flat[:: len(gram) + 1] += penalty
            factor = scipy.linalg.cho_factor(system, overwrite_a=True, check_finite=False)
            solution = scipy.linalg.cho_solve(factor, right)
        solutions.append(solution)
        before = penalty
    return np.array(solutions).T


def _check(a: np.ndarray, y: np.ndarray) -> None:
    if a.ndim != 2 or y.shape != (len(a),) or not len(a):
        got = f"shapes {a.shape} and {y.shape}"
        expected = "(n_rows, n_columns) and (n_rows,) with at least one row"
        raise OpmlError("rows", got=got, expected=expected)


def stated(lam: float) -> float | str:
    """A lambda as cards, which are JSON, have it."""
    return float(lam) if np.isfinite(lam) else "infinite"


def composition_offsets(counts: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Energy per atom of each element: least squares, of least norm when compositions repeat.

    From numbers of atoms ``(n_structures, n_elements)`` and energies ``(n_structures,)``.
    """
    return np.linalg.lstsq(counts.astype(float), energies, rcond=1e-10)[0]
