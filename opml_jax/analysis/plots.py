"""Pictures of locality. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..figures import figure
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
    norms = {name: block_norms(o, structure) for name, o in operators.items()}
    pairs = list(next(iter(norms.values())))
    drawn, axes = figure(len(pairs), width=3.2, height=2.8, sharey=True)
    for ax, (a, b) in zip(axes, pairs, strict=True):
        for name, blocks in norms.items():
            distance, norm = blocks[a, b]
            ax.semilogy(distance * ANGSTROM_PER_BOHR, norm, ".", label=name)
        ax.set_title(f"{symbol(a)}-{symbol(b)}")
        ax.set_xlabel("distance (Angstrom)")
    axes[0].set_ylabel("norm of the block")
    axes[-1].legend(frameon=False)
    return drawn
