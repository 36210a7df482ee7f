"""Pictures of locality. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..operators import Operator
from ..structures import Structure
from ..structures.elements import symbol
from ..units import ANGSTROM_PER_BOHR
from .locality import block_norms


def plot_block_norms(operators: Mapping[str, Operator], structure: Structure) -> Any:
    """Norms of atom-pair blocks against distance, one panel per pair of elements.

    Args:
      operators: by name, of one molecule.
      structure: the molecule.

    Returns:
      A ``matplotlib.figure.Figure``.
    """
    from matplotlib.figure import Figure

    norms = {name: block_norms(o, structure) for name, o in operators.items()}
    pairs = list(next(iter(norms.values())))
    figure = Figure(figsize=(3.2 * len(pairs), 2.8), layout="constrained")
    axes = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for ax, (a, b) in zip(axes, pairs, strict=True):
        for name, own in norms.items():
            distance, norm = own[a, b]
            ax.semilogy(distance * ANGSTROM_PER_BOHR, norm, ".", label=name)
        ax.set_title(f"{symbol(a)}-{symbol(b)}")
        ax.set_xlabel("distance (Angstrom)")
    axes[0].set_ylabel("norm of the block")
    axes[-1].legend(frameon=False)
    return figure


def plot_cutoff_study(study: Mapping[str, np.ndarray]) -> Any:
    """Errors of :func:`cutoff_study` against the cutoff.

    Returns:
      A ``matplotlib.figure.Figure``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.0), layout="constrained")
    ax = figure.subplots()
    for name, error in study.items():
        if name not in ("cutoff", "kept"):
            # an error of exactly zero has no place on a logarithmic axis
            shown = np.where(error > 0, error, np.nan)
            ax.semilogy(study["cutoff"] * ANGSTROM_PER_BOHR, shown, ".-", label=name)
    ax.set_xlabel("cutoff (Angstrom)")
    ax.set_ylabel("error")
    ax.legend(frameon=False)
    return figure
