r"""Widths: factors of the exponents of the shells of one molecule, each normalised as before.

A basis belongs to elements. With widths every shell (atom, l, n) of a molecule has a shape of its
own: its radial part R(r) becomes :math:`w^{3/4} R(\sqrt w\, r)`, so that exponents are multiplied
by w and coefficients of unnormalised primitives by :math:`w^{(l + 3/2) / 2}`.
"""

from __future__ import annotations

import numpy as np

from ..errors import Code, OpmlError
from ..numerics import Array, is_concrete
from .layout import AOLayout


def check_widths(layout: AOLayout, widths: Array) -> None:
    """Refuse widths that are not a positive number for each shell.

    Args:
      layout: of the molecule.
      widths: ``(n_shells,)``, in the order of :attr:`AOLayout.shell_ls`; may be traced.

    Raises:
      OpmlError: another shape; numbers that are not positive and finite.
    """
    if np.shape(widths) != (layout.n_shells,):
        raise OpmlError(
            "widths",
            got=f"shape {np.shape(widths)}",
            expected=f"({layout.n_shells},), a factor for each shell of {layout!r}",
            code=Code.SHAPE,
        )
    if is_concrete(widths):
        own = np.asarray(widths)
        if not (np.isfinite(own) & (own > 0)).all():
            raise OpmlError("widths", got=repr(own.min()), expected="positive factors of exponents")


def scale_of_coefficients(l: Array | int, widths: Array) -> Array:
    """What multiplies coefficients of unnormalised primitives of degree l."""
    return widths ** (0.5 * (l + 1.5))
