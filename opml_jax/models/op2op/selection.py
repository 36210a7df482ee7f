"""What validation chooses of a closed form: the scale of fades and the smallest lambda."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from ...data import Dataset
from ...data.reference import molecule
from ...errors import ConvergenceError, DataWarning
from ...learn.run import Run
from ...quantities import metric
from ..base.definition import Params
from .functions import Op2Op
from .metrics import MICRO, operator_errors, paired_matrices
from .model import Op2OpModel

FLOORS = (1e-11, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
"""Candidates for the smallest lambda of all keys.

Each key's own validation is at the reference's densities, and says nothing about the way there: a
map that serves them too well amplifies errors of the density. The floor is therefore chosen by
self-consistent predictions.
"""

N_JUDGED = 40
"""Validation structures that floors are judged by, at most."""

FADES = (0.0, 3e-3, 1e-2, 3e-2, 0.1)
"""Candidates for the eigenvalue of the overlap below which first guesses fade.

Judged by levels on validation: of 40 molecules of QM7 in def2-SVP a prediction that is right to
0.5 mHartree had gaps wrong by 125, and by 6 with the scale that validation chose.
"""

PAYS = 0.5
"""A fade must bring errors of levels below this part of those without: it also costs a little where
nothing is wrong (ethanol in def2-SVP: 0.01 mHartree in the elements). Likewise matrices that are
not projected must have less than this part of the error of those that are: these converge where
the former do not, and lose a few microhartree (water in def2-SVP: 7 instead of 0.1)."""

FUNCTIONAL_FADES = (3e-4, 1e-3, 3e-3)
"""Candidates for the scale below which self-consistent matrices fade, if first guesses do.

The least is taken with which the densities of validation converge. Of 20 molecules of QM7 in
def2-SVP, five, with eigenvalues of the overlap below 9e-4, diverge without: errors of functions
that hardly exist become occupied levels. Mean errors of elements grow from 42 microhartree to 80 at
1e-3 and 182 at 3e-3.
"""

FADED_FLOORS = (1e-8, 1e-7, 1e-6, 1e-5)
"""Candidates for the smallest lambda where matrices fade.

Smaller ones are worse there: with a scale of 1e-3 those five molecules have 132 microhartree with
1e-9, 85 with 1e-6.
"""

SMALL_OVERLAP = 0.01
"""Fades are judged if the overlap of a validation structure has a smaller eigenvalue."""


def judges_of(validation: Dataset) -> Dataset:
    """The structures that choices are judged by."""
    return validation.subset(range(min(N_JUDGED, len(validation))))


def judged_fades(
    definition: Op2Op, with_fade: Callable[[float], Params], judges: Dataset, run: Run
) -> dict[float, float]:
    """Errors of levels, Hartree, by the scale of a fade; empty where no overlap is small.

    Nor are fades of local matrices judged: these have no errors where the overlap is small.
    """
    if definition.config.is_local:
        return {}
    overlaps = (molecule(s, definition.basis).intor("int1e_ovlp") for s in judges.structures)
    small = any(np.linalg.eigvalsh(s)[0] < SMALL_OVERLAP for s in overlaps)
    if definition.config.target != "fock" or not small:
        return {}
    fades = {}
    for i, scale in enumerate(FADES):
        run.progress("fade", i, len(FADES))
        fades[scale] = level_error(definition, with_fade(scale), judges)
    run.progress("fade", len(FADES), len(FADES))
    return fades


def best_fade(fades: dict[float, float]) -> float:
    """The scale with the least error, 0 unless it pays."""
    best = min(fades, key=lambda f: fades[f], default=0.0)
    return best if best and fades[best] < PAYS * fades.get(0.0, np.inf) else 0.0


def converging(
    definition: Op2Op,
    with_choice: Callable[[float, float], Params],
    judges: Dataset,
    run: Run,
    *,
    fades: bool,
) -> tuple[float, dict[float, float]]:
    """The least scale with which densities converge (else the largest), and errors by the floor.

    The scale is 0 unless first guesses fade. Errors are those of self-consistent matrices, Hartree,
    by the smallest lambda of the functional.
    """
    scale, floors = 0.0, {}
    for scale in FUNCTIONAL_FADES if fades else (0.0,):
        tried, floors = FADED_FLOORS if scale else FLOORS, {}
        for i, floor in enumerate(tried):
            run.progress("self-consistent", i, len(tried))
            floors[floor] = mean_error(definition, with_choice(scale, floor), judges)
            least = min(floors.values())
            if floors[floor] > 2 * least and np.isfinite(least):
                break  # larger ones are worse still
        run.progress("self-consistent", len(tried), len(tried))
        if np.isfinite(min(floors.values())):
            break
    return scale, floors


def mean_error(definition: Op2Op, params: Params, data: Dataset) -> float:
    """Mean absolute error of an element of F, Hartree; infinite if a density does not converge."""
    predicted = _predicted(definition, params, data)
    if predicted is None:
        return float("inf")
    pairs = paired_matrices(predicted, data)
    return float(np.concatenate([np.abs(f - wanted).ravel() for f, wanted in pairs]).mean())


def level_error(definition: Op2Op, params: Params, data: Dataset) -> float:
    """Mean absolute errors of occupied levels and of the gap, added; likewise."""
    predicted = _predicted(definition, params, data)
    if predicted is None:
        return float("inf")
    errors = operator_errors(predicted, data)
    return (errors[metric("eigenvalue_occupied")] + errors.get(metric("gap"), 0.0)) / MICRO


def _predicted(definition: Op2Op, params: Params, data: Dataset) -> dict[str, np.ndarray] | None:
    """Predictions, or None if a density does not converge."""
    with warnings.catch_warnings(action="ignore", category=DataWarning):
        try:
            return Op2OpModel(definition, params).predict(data.structures)
        except ConvergenceError:
            return None
