r"""Draws from the posterior of the weights of an Op2Op model, and the scale of what they predict.

See :mod:`opml_jax.models.op2op.draws`. What a key leaves of validation, over the mean of
:math:`x^T (X^T X + \lambda n)^{-1} x` there, is the variance :math:`\sigma_o^2` of an output.
Predicted matrices have errors of their density too; one factor for the matrices, and one for each
observable, makes 68 % of the errors on validation less than a standard deviation.
"""

from __future__ import annotations

import warnings

import numpy as np

from ...data import Dataset
from ...data.reference import observables_of
from ...errors import DataWarning
from ...features.couple import IrrepKey, has_constant, key_name
from ...learn.calibration import scale_of_rows
from ...learn.keyed_ridge import Candidate, KeyedSystem, Spectrum, spectrum
from ..base.definition import Params
from .functions import Op2Op
from .model import Op2OpModel

N_DRAWS = 32
"""Their mean square scatters by a quarter, so a standard deviation by an eighth."""

OBSERVABLES = ("mo_energy", "gap", "dipole", "lowdin_charges")
"""What has a factor of its own; Mulliken's charges have that of Löwdin's."""


def draw(
    rows: Spectrum,
    chosen: Candidate,
    judge: KeyedSystem,
    rng: np.random.Generator,
    n_draws: int = N_DRAWS,
    known: Params | None = None,
) -> Params:
    """Draws from the posterior of one key; ``judge`` says how large its errors are.

    Those that are ``known``, of a model that training starts from, become less in what it sees.

    Returns:
      ``directions`` ``(n_columns, n_draws)``, ``scales`` ``(n_outputs, n_draws)`` and, of a key
      with a constant, ``constant`` ``(n_draws,)``.
    """
    weights, fit = chosen
    (n_columns, n_outputs), prior = weights["weights"].shape, fit.lam * rows.n
    free = rng.standard_normal((n_columns, n_draws)) / prior**0.5
    # less where there are data: the covariance is 1 / (s^2 + lambda n) along their vectors
    less = 1 - np.sqrt(prior / (rows.s**2 + prior))
    a = rows.inverse[:, None] * (free - rows.vt.T @ (less[:, None] * (rows.vt @ free)))
    if known is not None:
        a = _updated(rows, known["directions"], prior, rng)
    moved = rng.standard_normal(n_draws) / rows.n**0.5 - rows.mean[:n_columns] @ a
    constant = moved if "constant" in weights else np.zeros(n_draws)
    leverage = np.concatenate([constant[None], a, np.zeros((n_outputs, n_draws))])
    offset = weights.get("constant", np.zeros(n_outputs))
    error = np.concatenate([offset[None], weights["weights"], -np.eye(n_outputs)])
    ratio = judge.sums_of_squares(error) / judge.sums_of_squares(leverage).mean()
    signs = rng.choice([-1.0, 1.0], (n_outputs, n_draws))
    out = {"directions": a, "scales": np.sqrt(ratio)[:, None] * signs}
    return {**out, "constant": constant} if "constant" in weights else out


def _updated(
    rows: Spectrum, directions: np.ndarray, prior: float, rng: np.random.Generator
) -> np.ndarray:
    """Earlier draws ``(n_columns, n_draws)``, each drawn to a solution of rows that are noise."""
    spread = np.where(rows.inverse > 0, 1 / np.where(rows.inverse > 0, rows.inverse, 1.0), 0.0)
    seen = rows.vt @ (spread[:, None] * directions)
    noise = rng.standard_normal(seen.shape)
    change = (rows.s[:, None] * noise - rows.s[:, None] ** 2 * seen) / (
        rows.s[:, None] ** 2 + prior
    )
    return directions + rows.inverse[:, None] * (rows.vt.T @ change)


def drawn(
    definition: Op2Op,
    train: dict[IrrepKey, KeyedSystem],
    validation: dict[IrrepKey, KeyedSystem],
    least: dict[IrrepKey, np.ndarray],
    chosen: dict[IrrepKey, Candidate],
    known: Params,
) -> Params:
    """Draws of every key, as :func:`opml_jax.models.op2op.draws.drawn_changes` reads them.

    Those that are ``known`` before, of a model that training starts from, are updated.
    """
    out, rng = {}, np.random.default_rng(0)
    for key, best in chosen.items():
        rows = spectrum(train[key], definition.n_outputs(key), has_constant(key), least[key])
        if rows is None:  # what was chosen is earlier weights, whose draws are known
            continue
        judge, earlier = validation.get(key, train[key]), known.get(key_name(key))
        out[key_name(key)] = draw(rows, best, judge, rng, known=earlier)
    return out


def calibrated(definition: Op2Op, params: Params, held_out: Dataset) -> Params:
    """Parameters whose deviations exceed 68 % of errors on molecules with ``fock``, by factors."""
    params = {k: v for k, v in params.items() if k != "calibration"}
    rows = [
        {"fock": np.asarray(f), **observables_of(s, np.asarray(f), definition.basis)}
        for s, f in zip(held_out.structures, held_out.labels["fock"], strict=True)
    ]
    for structure, row in zip(held_out.structures, rows, strict=True):
        pairs = structure.n_electrons // 2
        row["gap"] = np.diff(row["mo_energy"][pairs - 1 : pairs + 1]).sum()

    def factor(values: dict[str, np.ndarray], name: str) -> float:
        return scale_of_rows(values[name], values[f"{name}_uncertainty"], [r[name] for r in rows])

    def predicted(params: Params) -> dict[str, np.ndarray]:
        with warnings.catch_warnings(action="ignore", category=DataWarning):
            model = Op2OpModel(definition, params)
            return model.predict(held_out.structures, uncertainty=True, allow_unconverged=True)

    of_matrices = factor(predicted(params), "fock")
    draws = {k: {**v, "scales": of_matrices * v["scales"]} for k, v in params["draws"].items()}
    params = {**params, "draws": draws}
    scaled = predicted(params)
    calibration = {name: np.asarray(factor(scaled, name)) for name in OBSERVABLES}
    return {**params, "calibration": calibration}
