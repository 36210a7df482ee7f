"""Functionals by what they mean: names that PySCF changed, and dispersions that belong to them."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import OpmlError, UnitWarning

_VWN = {
    "b3lyp": ("b3lyp5", "b3lypg"),
    "b3p86": ("b3p86v5", "b3p86g"),
    "x3lyp": ("x3lyp5", "x3lypg"),
}
"""Functionals whose local correlation PySCF changed from VWN5 to VWN3 (Gaussian's, RPA), and its
names for the two: elements of Fock matrices of QH9 differ by 1e-4 Hartree."""

_VWN_CHANGED = (2, 3)
"""Version of PySCF from which they are the second ones."""

_VWN_NAMES = re.compile(rf"(?<![\w-])({'|'.join(_VWN)})(?!\w)")

_DISPERSION = re.compile(r"-d[234]|_D3?$|_3C$|CF22D$")
"""Suffixes of methods in PySCF, and names in libxc of what is only complete with a dispersion."""


def functional_of(method: str, pyscf_version: str | None = None) -> str:
    """The name of a functional that means the same in every version of PySCF, lower case.

    Args:
      method: its name in the version that calculated, ``"b3lyp"``.
      pyscf_version: that version; None: it is not known, and such names stay.

    Example:
      >>> functional_of("B3LYP", "2.2.1"), functional_of("B3LYP", "2.14.0"), functional_of("PBE")
      ('b3lyp5', 'b3lypg', 'pbe')
    """
    name = "".join(method.lower().split())
    found = re.match(r"(\d+)\.(\d+)", str(pyscf_version or ""))
    if not found:
        return name
    later = (int(found[1]), int(found[2])) >= _VWN_CHANGED
    return _VWN_NAMES.sub(lambda word: _VWN[word[0]][later], name)


def warn_if_two(name: str) -> None:
    """A functional that :func:`functional_of` could not tell apart from another."""
    if found := _VWN_NAMES.search(name):
        warnings.warn(
            f"which {found[0]} the labels have is not known, {' or '.join(_VWN[found[0]])}: a data "
            f"set that names it has to say pyscf_version, or one of these.",
            UnitWarning,
            stacklevel=3,
        )


def same_functional(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether meta data of two sets of labels have one functional, whatever they call it.

    Args:
      one: has ``method`` and, if it is known, ``pyscf_version``.
      other: likewise. Where a name without a version can mean two functionals, of which the other
        set has one, they pass, with a warning.
    """
    first, second = (functional_of(str(m["method"]), m.get("pyscf_version")) for m in (one, other))
    readings = [{functional_of(name, v) for v in ("2.2", "2.3")} for name in (first, second)]
    same = any(_equal(a, b) for a in readings[0] for b in readings[1])
    if same:
        warn_if_two(f"{first},{second}")
    return same


def _equal(name: str, other: str) -> bool:
    """Whether PySCF makes the same functional of two names that mean the same in every version."""
    if name == other or re.search(_DISPERSION, f"{name} {other}"):
        return name == other
    from pyscf.dft import libxc

    try:
        with contextlib.redirect_stderr(None):
            return libxc.parse_xc(name) == libxc.parse_xc(other)
    except Exception:  # PySCF raises many kinds; methods of other programs have their names alone
        return False


def exact_exchange(method: str) -> float | None:
    """The part of exact exchange in a functional, the same at all distances.

    Args:
      method: ``"hf"`` or a functional, as :func:`functional_of` names it.

    Returns:
      0 for semilocal ones; None where PySCF does not know it, or exchange is separated by range.
    """
    if method.lower() == "hf":
        return 1.0
    from pyscf.dft import libxc

    try:
        with contextlib.redirect_stderr(None):
            omega, _, _ = libxc.rsh_coeff(method)
            return None if omega else float(libxc.hybrid_coeff(method))
    except Exception:  # PySCF raises many kinds
        return None


def is_meta_gga(method: str) -> bool | None:
    """Whether a functional depends on the kinetic energy density, or on the Laplacian.

    Args:
      method: ``"hf"`` or a functional, as :func:`functional_of` names it.

    Returns:
      None where PySCF does not know it.
    """
    if method.lower() == "hf":
        return False
    from pyscf.dft import libxc

    try:
        with contextlib.redirect_stderr(None):
            return bool(libxc.is_meta_gga(method))
    except Exception:  # PySCF raises many kinds
        return None


def check_dispersion(method: str) -> None:
    """Refuse a functional without the dispersion that belongs to it.

    PySCF drops ``-d3bj`` from names of functionals and adds it to energies and forces by the
    package pyscf-dispersion; of functionals made with one, such as wB97X-D, it has the rest.

    Raises:
      OpmlError: naming the method.
    """
    from pyscf.dft import libxc
    from pyscf.scf import dispersion

    name, hint = method.lower(), "Take the functional without."
    if name == "hf":
        return
    if _DISPERSION.search(name):
        if dispersion.dftd3 is not None:
            with contextlib.suppress(Exception):  # PySCF raises many kinds: not one that it has
                if dispersion.parse_disp(name)[1] in dispersion.DISP_VERSIONS:
                    return
        hint += " Or install pyscf-dispersion."
    else:
        codes = {code for code, _ in libxc.parse_xc(name)[1]}
        parts = [k for k, code in libxc.XC_CODES.items() if isinstance(code, int | np.integer)]
        if not any(libxc.XC_CODES[k] in codes and _DISPERSION.search(k) for k in parts):
            return
    raise OpmlError(
        "method",
        got=f"{method!r}, whose dispersion would be missing",
        expected="one that PySCF can calculate completely here",
        hint=hint,
    )
