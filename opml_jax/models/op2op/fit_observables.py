r"""Effective Op2Op: a small matrix whose observables are those of a larger basis.

The first guess of :class:`~opml_jax.models.Op2Op` is linear in its weights, and so is its last
stage, if it has stages. It starts as the closed form of the larger basis' Fock operator between the
small functions,

.. math::
    F_s = S_{sl} S_{ll}^{-1} F_l S_{ll}^{-1} S_{ls},

and its weights then move, in principal components of each kind of block's columns, until orbital
energies, dipoles, charges and polarizabilities agree (Nigam, Smidt, Dusson, arXiv:2602.15345;
Cignoni et al., arXiv:2311.00844, indirect learning). All molecules enter every step of L-BFGS.
Components move first in proportion to their size, which carries over to other molecules, and then
all alike; or all alike from the start, which may fit one molecule further. Validation decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from ...data import Dataset
from ...learn.run import COMPILING, Run
from ...numerics import Array, require_x64
from ..base.definition import Params
from ..family import Fit
from .closed_form import split_columns
from .config import ObservablesFit
from .draws import last_map, with_last_map
from .effective import ObservablesLoss, Prepared, prepare
from .functions import Op2Op

FADES = ("fade", "functional_fade")
"""Parameters that are scales of fades."""

PATIENCE = 20
"""Steps without a better validation error after which training stops."""


def fit_observables(
    definition: Op2Op, params: Params, sets: Mapping[str, Dataset], fit: ObservablesFit, run: Run
) -> Fit:
    """Weights whose matrices have the observables of the labels; the best on validation.

    Args:
      definition: one-shot model in the small basis: without density words, or with stages, of
        which the last one's weights move.
      params: to start from, the closed form of :func:`opml_jax.models.op2op.effective.projected`
        matrices.
      sets: ``train`` and ``validation``: checked closed shells with ``fock`` in a larger basis, and
        other labels of the targets.
      fit: targets, weights and settings.
      run: told how far it is.

    Returns:
      Parameters, and a history of a row a step, one way after the other: the loss of training and
      validation, 1 for each weight at the start.

    Raises:
      PrecisionError: x64 is off.
    """
    require_x64("training")
    # observables are fitted from here on, not elements, which fade where the overlap is small
    last = {k: v for k, v in last_map(definition, params).items() if k not in FADES}
    start = with_last_map(definition, params, last)
    prepared = prepare(definition, start, {k: sets[k] for k in ("train", "validation")}, fit)
    weights, sizes = _variables(definition, prepared)
    flat, unflatten = jax.flatten_util.ravel_pytree(weights)
    loss = ObservablesLoss(definition, fit)
    objective = _Objective(loss, unflatten, np.asarray(flat), prepared.parts, run)
    best = objective.minimum(np.asarray(jax.flatten_util.ravel_pytree(sizes)[0]))
    changes = _changes(prepared.columns, unflatten(jnp.asarray(best.flat)))
    if definition.config.stages:
        by_key = {prepared.keys[name]: change for name, change in changes.items()}
        moved = {k: _moved(last[k], v) for k, v in split_columns(definition, by_key).items()}
    else:
        moved = {"guess": _moved(last["guess"], changes)}
    params = with_last_map(definition, start, {**last, **moved})
    return Fit(params, history=objective.history)


def _variables(definition: Op2Op, prepared: Prepared) -> tuple[Params, Params]:
    """Changes of the weights of every component, zero, and in what proportion they move first."""
    weights, sizes = {}, {}
    for name, columns in prepared.columns.items():
        size, n_outputs = columns["size"], definition.n_outputs(prepared.keys[name])
        weights[name] = {"weights": np.zeros((len(size), n_outputs))}
        sizes[name] = {"weights": np.repeat(size[:, None], n_outputs, axis=1)}
        if "mean" in columns:
            weights[name]["constant"] = np.zeros(n_outputs)
            sizes[name]["constant"] = np.ones(n_outputs)
    return weights, sizes


class Point(NamedTuple):
    """Changes of all weights, and the validation loss there."""

    loss: float
    flat: np.ndarray


class _Objective:
    """The losses of both sets, of changes of all weights ``(n,)``, and the steps so far.

    In units of the errors of the ``start``, which is no change.
    """

    def __init__(
        self,
        loss: ObservablesLoss,
        unflatten: Callable[[Any], Params],
        start: np.ndarray,
        parts: Mapping[str, Params],
        run: Run,
    ):
        self.start, self.parts, self.fit, self.run = start, parts, loss.fit, run
        self.history: list[dict[str, float]] = []
        squares = jax.jit(lambda flat, batches: loss.squares(unflatten(flat), batches))
        scales = {k: float(s / n) for k, (s, n) in squares(start, parts["train"]).items()}

        def total(flat: Array, batches: Params) -> Array:
            return loss.total(unflatten(flat), batches, scales)

        self.loss, self.loss_and_slope = jax.jit(total), jax.jit(jax.value_and_grad(total))

    def point(self, flat: np.ndarray) -> Point:
        """Changes with their loss on validation."""
        return Point(float(self.loss(jnp.asarray(flat), self.parts["validation"])), flat)

    def minimum(self, sizes: np.ndarray) -> Point:
        """The better end of two ways: in proportion to ``sizes`` and then alike, or alike."""
        alike, steps = np.ones_like(sizes), self.fit.steps
        self.run.progress("observables", 0, 2 * steps, COMPILING)
        start = self.point(self.start)
        by_size = self.descend(start, sizes, (steps + 1) // 2)
        ends = [self.descend(by_size, alike, steps // 2), self.descend(start, alike, steps)]
        return min(ends, key=lambda point: point.loss)

    def descend(self, start: Point, size: np.ndarray, steps: int) -> Point:
        """The best on validation of the way from ``start``, in variables that move by ``size``."""
        from scipy.optimize import minimize

        best, since, train_loss, penalty = start, 0, 0.0, self.fit.penalty

        def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal train_loss
            loss, slope = self.loss_and_slope(jnp.asarray(size * x), self.parts["train"])
            train_loss = float(loss)
            return train_loss + float(penalty * x @ x), size * np.asarray(slope) + 2 * penalty * x

        def step(x: np.ndarray) -> None:
            nonlocal best, since
            point = self.point(size * x)
            best, since = (point, 0) if point.loss < best.loss else (best, since + 1)
            losses = {"loss": train_loss, "validation_loss": point.loss}
            self.history.append({"step": len(self.history) + 1, **losses})
            self.run.progress("observables", len(self.history), 2 * self.fit.steps)
            if since >= PATIENCE:
                raise StopIteration

        options = {"maxiter": steps, "maxcor": 30}
        x = start.flat / size
        minimize(evaluate, x, jac=True, method="L-BFGS-B", callback=step, options=options)
        return best


def _changes(columns: Params, weights: Params) -> Params:
    """Weights of principal components as weights of columns."""
    out: Params = {}
    for name, of_key in columns.items():
        change = of_key["components"] @ np.asarray(weights[name]["weights"])
        out[name] = {"weights": change}
        if "mean" in of_key:
            out[name]["constant"] = np.asarray(weights[name]["constant"]) - of_key["mean"] @ change
    return out


def _moved(start: Params, changes: Params) -> Params:
    """Weights by name, with changes of some of them."""
    return start | {
        name: {k: start[name][k] + v for k, v in change.items()} for name, change in changes.items()
    }
