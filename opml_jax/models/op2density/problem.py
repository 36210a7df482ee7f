"""The loss of kernels as an operator on weights, and conjugate gradients that minimise it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import ConvergenceError
from ...learn.run import COMPILING, Run
from ...learn.states import SAVE_EVERY
from ...numerics import Array, einsum, pytree

STEPS = 10
"""Steps of conjugate gradients between reports."""
STATE = "kernels"
"""Name of the state of conjugate gradients."""

Weights = dict[str, Array]
"""By element and degree, ``"8_2"``."""


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
      factors: ``{key: (vectors, vectors, values)}`` of the preconditioner, without the penalty.
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

    def error(self, b: Weights) -> Array:
        """Mean squared error of a structure's density in the metric."""
        e = self.densities(b) - self.target
        return einsum("sp,spq,sq->", e, self.metric, e) / len(self.target)

    def loss(self, b: Weights) -> Array:
        """The loss."""
        return self.error(b) + self.penalty * _dot(b, b)

    def precondition(self, r: Weights) -> Weights:
        """Inverse of what functions of one atom make of the Hessian, times a residual."""
        out = {}
        for k, (u, v, values) in self.factors.items():
            out[k] = u @ ((u.T @ r[k] @ v) / (values + self.penalty)) @ v.T
        return out


def _contract(a: Array, b: Array, i: int, j: int) -> Array:
    """Sum over an axis of each, in the layout they have: einsum transposes, five times slower."""
    axes = (((i,), (j,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=jax.lax.Precision.HIGHEST)


def _dot(a: Weights, b: Weights) -> Array | int:
    return sum(jnp.vdot(a[k], b[k]) for k in a)


def factors(psi: np.ndarray, metric: np.ndarray, n: int) -> tuple[Array, Array, Array]:
    """Eigenvectors of both parts of one key's diagonal block, and its eigenvalues.

    Of psi ``(n_atoms, 2 l + 1, n_columns)``, the metric ``(n_radial, n_radial)`` between functions
    of one atom and m, and n structures.
    """
    flat = psi.reshape(-1, psi.shape[-1])
    a, u = np.linalg.eigh(flat.T @ flat / n)
    m, v = np.linalg.eigh(metric)
    return u, v, np.maximum(a, 0)[:, None] * np.maximum(m, 0)


@dataclasses.dataclass(frozen=True)
class Solution:
    """Weights b, the steps that were taken, and what remains of the right-hand side, relatively."""

    weights: Weights
    steps: int
    residual: float


def conjugate_gradients(
    problem: Problem,
    *,
    tolerance: float = 1e-6,
    cycles: int = 1000,
    start: Weights | None = None,
    run: Run | None = None,
    name: str = STATE,
) -> Solution:
    """Minimise the loss on products of Psi and M alone; the Hessian is never formed.

    Args:
      problem: the loss.
      tolerance: residual to reach, relative to the right-hand side.
      cycles: most steps.
      start: weights to begin with. Default: none.
      run: hears of the residual, and keeps the state, from which a killed one goes on to the very
        same weights. Default: nothing is kept.
      name: of that state.

    Raises:
      ConvergenceError: the tolerance was not reached.
      ModelFileError: a damaged state, or one of another problem.
    """
    run = run or Run()
    problem = jax.tree.map(jnp.asarray, problem)  # on the device once, not at every call
    right = jax.jit(Problem.right)(problem)
    size = float(jnp.sqrt(_dot(right, right)))
    b, rest = jax.tree.map(jnp.zeros_like, right), right
    if start is not None:
        b = jax.tree.map(jnp.asarray, start)
        rest = jax.tree.map(jnp.subtract, right, jax.jit(Problem.hessian)(problem, b))
    z = problem.precondition(rest)
    running = (b, rest, z, _dot(rest, z))
    steps, saved = 0, time.monotonic()
    if state := run.load(name, running):
        running, steps = state[0], state[1]["steps"]
    residual = _residual(running, size)
    run.progress("conjugate gradients", steps, cycles, COMPILING)
    while residual > tolerance and steps < cycles:
        running = _advance(problem, running)
        steps += STEPS
        residual = _residual(running, size)
        run.progress("conjugate gradients", steps, cycles, f"residual {residual:.1e}")
        if time.monotonic() > saved + SAVE_EVERY:
            run.save(name, running, {"steps": steps})
            saved = time.monotonic()
    if not residual <= tolerance:
        raise ConvergenceError(
            f"conjugate gradients left {residual:.1e} of the right-hand side after {steps} steps; "
            f"{tolerance:.0e} was asked. Raise model.fit.penalty, cycles or tolerance."
        )
    return Solution({k: np.asarray(v) for k, v in running[0].items()}, steps, residual)


@jax.jit
def _advance(problem: Problem, running: Any) -> Any:
    """A few steps of conjugate gradients."""

    def step(running, _):
        b, r, d, rz = running
        h = problem.hessian(d)
        length = rz / _dot(d, h)
        b = jax.tree.map(lambda x, y: x + length * y, b, d)
        r = jax.tree.map(lambda x, y: x - length * y, r, h)
        z = problem.precondition(r)
        new = _dot(r, z)
        return (b, r, jax.tree.map(lambda x, y: x + new / rz * y, z, d), new), None

    return jax.lax.scan(step, running, None, length=STEPS)[0]


def _residual(running: Any, size: float) -> float:
    r = running[1]
    return float(jnp.sqrt(_dot(r, r))) / size if size else 0.0
