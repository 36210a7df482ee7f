"""Arrays of several structures as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..numerics import Array


def padded(arrays: Sequence[Array]) -> np.ndarray:
    """Arrays as one with a leading axis, each padded by zeros to the largest of every axis."""
    sizes = np.array([np.shape(a) for a in arrays])
    out = np.zeros((len(arrays), *sizes.max(axis=0)))
    for i, a in enumerate(arrays):
        out[(i, *map(slice, np.shape(a)))] = a
    return out
