"""Predictions of which the model itself says that training has seen nothing like it."""

from __future__ import annotations

import warnings

import numpy as np

from ...errors import DataWarning, counted
from ...structures.names import name_of

FAR = 2.0
"""Times the largest of the validation set."""


def warn_of_doubt(
    doubt: np.ndarray, largest: float | None, what: str = "the standard deviation"
) -> None:
    """Name structures of a ``Model.doubt`` (NaN says nothing) far beyond the ``largest`` known."""
    far = [] if largest is None else np.flatnonzero(doubt > FAR * largest)
    if not len(far):
        return
    named = ", ".join(name_of(int(i)) for i in far[:5]) + (", ..." if len(far) > 5 else "")
    warnings.warn(
        f"{what} is more than {FAR:g} times the largest of the validation set in "
        f"{len(far)} of {counted(len(doubt), 'structure')} ({named}). Predictions are "
        "extrapolations there.",
        DataWarning,
        stacklevel=4,
    )
