r"""Minimising the loss of densities: conjugate gradients, and normal equations to check them.

The loss and its notation are in :mod:`.closed_form`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import ConvergenceError
from ...learn.run import Run
from ...learn.states import SAVE_EVERY
from ...numerics import Array, einsum, pytree

STEPS = 10
"""Steps of conjugate gradients between reports."""

PAIRS = 256
"""Pairs of atoms at a time when the Hessian is formed."""

Weights = dict[str, Array]
"""By element and degree, ``"8_2"``."""

STATE = "kernels"
"""Name of the state of conjugate gradients."""


@pytree
class Problem:
    """What the loss is made of.

    Attributes:
      psi: ``{key: (n_atoms, 2 l + 1, n_columns)}``, a key for each element and l.
      places: ``{key: (n_atoms, 2 l + 1, n_radial)}`` in all structures' coefficients one after
        the other.
      metric: ``(n_structures, naux, naux)``, padded by zeros.
      target: ``(n_structures, naux)`` coefficients less their baseline, padded likewise.
      penalty: eta.
      factors: ``{key: (vectors, vectors, inverse)}`` of the preconditioner.
    """

    psi: Weights
    places: dict[str, Array]
    metric: Array
    target: Array
    penalty: Array | float
    factors: dict[str, tuple[Array, Array, Array]]

    def densities(self, b: Weights) -> Array:
        """``(n_structures, naux)`` coefficients of weights ``{key: (n_columns, n_radial)}``."""
        out = jnp.zeros(self.target.size, self.target.dtype)
        for k, psi in self.psi.items():
            out = out.at[self.places[k]].set(_contract(psi, b[k], 2, 0))
        return out.reshape(self.target.shape)

    def back(self, v: Array) -> Weights:
        """Transpose of :meth:`densities`, divided by the number of structures."""
        flat = v.reshape(-1) / len(self.target)
        rows = {k: p.reshape(-1, p.shape[-1]) for k, p in self.psi.items()}
        radial = {k: p.reshape(-1, p.shape[-1]) for k, p in self.places.items()}
        return {k: _contract(psi, flat[radial[k]], 0, 0) for k, psi in rows.items()}

    def hessian(self, b: Weights) -> Weights:
        """Half the second derivative of the loss, times weights."""
        product = self.back(einsum("spq,sq->sp", self.metric, self.densities(b)))
        return {k: product[k] + self.penalty * b[k] for k in b}

    def right(self) -> Weights:
        """Minus half the slope of the loss at no weights."""
        return self.back(einsum("spq,sq->sp", self.metric, self.target))

    def loss(self, b: Weights) -> Array:
        """The loss."""
        e = self.densities(b) - self.target
        error = einsum("sp,spq,sq->", e, self.metric, e) / len(self.target)
        return error + self.penalty * _dot(b, b)

    def precondition(self, r: Weights) -> Weights:
        """Inverse of what functions of one atom make of the Hessian, times a residual."""
        out = {}
        for k, (u, v, inverse) in self.factors.items():
            out[k] = u @ ((u.T @ r[k] @ v) * inverse) @ v.T
        return out


def _contract(a: Array, b: Array, i: int, j: int) -> Array:
    """Sum over an axis of each, in the layout they have: einsum transposes, five times slower."""
    axes = (((i,), (j,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=jax.lax.Precision.HIGHEST)


def _dot(a: Weights, b: Weights) -> Array | int:
    return sum(jnp.vdot(a[k], b[k]) for k in a)


def factors(psi: np.ndarray, metric: np.ndarray, n: int, penalty: float):
    """Eigenvectors of both parts of one key's diagonal block, and its inverse eigenvalues.

    Args:
      psi: ``(n_atoms, 2 l + 1, n_columns)``.
      metric: ``(n_radial, n_radial)`` between functions of one atom and m.
      n: structures.
      penalty: eta.
    """
    flat = psi.reshape(-1, psi.shape[-1])
    a, u = np.linalg.eigh(flat.T @ flat / n)
    m, v = np.linalg.eigh(metric)
    return u, v, 1 / (np.maximum(a, 0)[:, None] * np.maximum(m, 0) + penalty)


@dataclasses.dataclass(frozen=True)
class Solution:
    """Result of :func:`conjugate_gradients`.

    Attributes:
      weights: b.
      steps: how many were taken.
      residual: what remains of the right-hand side, relative to it.
    """

    weights: Weights
    steps: int
    residual: float


def conjugate_gradients(
    problem: Problem,
    *,
    tolerance: float = 1e-6,
    cycles: int = 1000,
    preconditioned: bool = True,
    run: Run | None = None,
) -> Solution:
    """Minimise the loss on products of Psi and M alone; the Hessian is never formed.

    Args:
      problem: the loss.
      tolerance: residual to reach, relative to the right-hand side.
      cycles: most steps.
      preconditioned: by the blocks of single atoms; otherwise plain.
      run: hears of the residual, and keeps the state, from which a killed one goes on to the very
        same weights. Default: nothing is kept.

    Raises:
      ConvergenceError: the tolerance was not reached.
      ModelFileError: a damaged state, or one of another problem.
    """
    run = run or Run()
    problem = jax.tree.map(jnp.asarray, problem)  # on the device once, not at every call
    precondition = problem.precondition if preconditioned else lambda r: r
    right = jax.jit(Problem.right)(problem)
    size = float(jnp.sqrt(_dot(right, right)))
    z = precondition(right)
    running = (jax.tree.map(jnp.zeros_like, right), right, z, _dot(right, z))
    steps, saved = 0, time.monotonic()
    if state := run.load(STATE, running):
        running, steps = state[0], state[1]["steps"]
    residual = _residual(running, size)
    while residual > tolerance and steps < cycles:
        running = _advance(problem, running, preconditioned)
        steps += STEPS
        residual = _residual(running, size)
        run.progress("conjugate gradients", steps, cycles, f"residual {residual:.1e}")
        if time.monotonic() > saved + SAVE_EVERY:
            run.save(STATE, running, {"steps": steps})
            saved = time.monotonic()
    if not residual <= tolerance:
        raise ConvergenceError(
            f"conjugate gradients left {residual:.1e} of the right-hand side after {steps} steps; "
            f"{tolerance:.0e} was asked. Raise model.fit.penalty, cycles or tolerance."
        )
    return Solution({k: np.asarray(v) for k, v in running[0].items()}, steps, residual)


@functools.partial(jax.jit, static_argnums=2)
def _advance(problem: Problem, running: Any, preconditioned: bool) -> Any:
    """A few steps of conjugate gradients."""
    precondition = problem.precondition if preconditioned else lambda r: r

    def step(running, _):
        b, r, d, rz = running
        h = problem.hessian(d)
        length = rz / _dot(d, h)
        b = jax.tree.map(lambda x, y: x + length * y, b, d)
        r = jax.tree.map(lambda x, y: x - length * y, r, h)
        z = precondition(r)
        new = _dot(r, z)
        return (b, r, jax.tree.map(lambda x, y: x + new / rz * y, z, d), new), None

    return jax.lax.scan(step, running, None, length=STEPS)[0]


def _residual(running: Any, size: float) -> float:
    r = running[1]
    return float(jnp.sqrt(_dot(r, r))) / size if size else 0.0


def normal_equations(problem: Problem) -> Weights:
    """The same minimum by forming and solving the normal equations; for few columns.

    Its memory grows with the square of all columns together: it is there to check the other way,
    and :mod:`.variance` needs the same matrix.
    """
    matrix, keys = hessian_matrix(problem)
    right = jax.jit(Problem.right)(problem)
    flat = np.concatenate([np.asarray(right[k]).ravel() for k in keys])
    return unravelled(np.linalg.solve(matrix, flat), right, keys)


def unravelled(flat: np.ndarray, like: Weights, keys: Sequence[str]) -> Weights:
    """One vector as weights by key."""
    sizes = np.cumsum([like[k].size for k in keys])[:-1]
    parts = np.split(flat, sizes)
    return {k: p.reshape(like[k].shape) for k, p in zip(keys, parts, strict=True)}


def hessian_matrix(problem: Problem) -> tuple[np.ndarray, list[str]]:
    """Half the Hessian of the loss, rows by key, and the order of the keys.

    Assembled from pairs of atoms: Psi is sparse, and products with its zeros would be most of the
    work.
    """
    keys = sorted(problem.psi)
    sizes = [problem.psi[k].shape[-1] * problem.places[k].shape[-1] for k in keys]
    ends = np.cumsum([0, *sizes])
    matrix = np.zeros((ends[-1], ends[-1]))
    for i, a in enumerate(keys):
        for j, b in enumerate(keys[: i + 1]):
            block = _hessian_block(problem, a, b) / len(problem.target)
            rows, columns = slice(*ends[i : i + 2]), slice(*ends[j : j + 2])
            matrix[rows, columns] = block
            matrix[columns, rows] = block.T
    matrix.flat[:: len(matrix) + 1] += float(problem.penalty)
    return matrix, keys


def _hessian_block(problem: Problem, a: str, b: str) -> np.ndarray:
    """Sum over structures between two keys, ``(columns * radial of a, columns * radial of b)``."""
    naux = problem.target.shape[1]
    psi, at = ([np.asarray(v[k]) for k in (a, b)] for v in (problem.psi, problem.places))
    metric = np.asarray(problem.metric).reshape(-1, naux)
    first, second = (p[:, 0, 0] // naux for p in at)
    i, j = np.nonzero(first[:, None] == second)  # pairs of atoms of one structure
    (_, _, c), (_, m, d) = psi[0].shape, psi[1].shape
    n, r = (p.shape[-1] for p in at)
    out = np.zeros((c * n * r, d))
    for part in np.array_split(np.arange(len(i)), max(1, len(i) // PAIRS)):
        rows, columns = at[0][i[part]], at[1][j[part]] % naux
        between = metric[rows[..., None, None], columns[:, None, None]]  # (pairs, m, n, m', n')
        between = between.reshape(*between.shape[:2], -1)
        half = (psi[0][i[part]].swapaxes(1, 2) @ between).reshape(len(part), c, n, m, r)
        half = half.transpose(1, 2, 4, 0, 3).reshape(c * n * r, -1)
        out += half @ psi[1][j[part]].reshape(-1, d)
    return out.reshape(c * n, r, d).swapaxes(1, 2).reshape(c * n, d * r)
