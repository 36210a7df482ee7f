"""Basis sets by name, from PySCF's library, checked element by element.

PySCF is imported when a basis is loaded, not before, and its loader is asked for one element
at a time so that a missing element is an error and never a silently empty shell.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable

import numpy as np

from ..errors import BasisError, Code, nearest
from ..structures.elements import atomic_number, symbol
from .shells import Basis, Shell

_POPLE = ("321g", "431g", "631g", "631+", "6311g", "6311+")  # PySCF parses these, unlisted
_PSEUDO = ("gth", "bfd", "ccecp", "ecp", "crenb", "sbkjc")  # families that always replace a core
_AUXILIARY = ("fit", "ri", "etb")
_HINT = "Use e.g. 'dyall-dz' or 'sto-3g'."
_ALL_ELECTRON = 1.5
"""Least ratio of the steepest s exponent to Z^2 in a basis that resolves the 1s shell. A minimal
STO-3G has 2.15; the steepest valence function beside a core potential stays far below."""


EVEN_TEMPERED = ((0, (2.5, 0.7, 0.2)), (1, (0.9, 0.25)), (2, (0.4,)))
"""Angular momenta and exponents (Bohr^-2) of ``"even-tempered"``, the same for every element.

14 AOs an atom, near-geometric series that span valence and bonds. Uncontracted functions that do
not depend on the element resolve what potentials of different nuclei look like, and every block
has the same channels.
"""


EVEN_TEMPERED_F = (*EVEN_TEMPERED, (3, (0.5,)))
"""The same with f functions, ``"even-tempered-f"``: blocks with irreps up to l = 6."""

_OWN = {"even-tempered": EVEN_TEMPERED, "even-tempered-f": EVEN_TEMPERED_F}


def load_basis(name: str, numbers: Iterable[int | str]) -> Basis:
    """Load a spherical all-electron basis from PySCF's library.

    General contractions are split into one shell per contracted function; the AO order is
    unchanged.

    Args:
      name: any name PySCF knows, e.g. ``"sto-3g"``, ``"def2-svp"``, ``"cc-pvtz"``; or
        ``"even-tempered"`` (:data:`EVEN_TEMPERED`) and ``"even-tempered-f"``.
      numbers: atomic numbers (or symbols) to cover; repeats are fine.

    Returns:
      A :class:`Basis`, elements ascending, shells ascending in l.

    Raises:
      BasisError: unknown name (the nearest known one is suggested), an element the basis
        lacks, an element for which it is an effective-core-potential basis, or l above i.

    Example:
      >>> load_basis("def2-svp", [8, 1, 1])
      Basis('def2-svp', H, O)
    """
    elements = sorted({atomic_number(z) for z in numbers})
    if not elements:
        raise BasisError(
            "numbers", got="no elements", expected="at least one element", code=Code.EMPTY
        )
    if name in _OWN:
        shells = [Shell(l, np.array([a]), np.ones(1)) for l, row in _OWN[name] for a in row]
        return Basis.from_shells(name, dict.fromkeys(elements, shells))
    return Basis.from_shells(name, {z: _element(name, z) for z in elements})


@functools.lru_cache(maxsize=1024)
def _element(name: str, z: int) -> tuple[Shell, ...]:
    from pyscf.gto import basis as library
    from pyscf.gto.mole import uncontract
    from pyscf.lib.exceptions import BasisNotFoundError

    key = "".join(c for c in name.lower() if c not in "-_ ")
    stem = key.removeprefix("unc").partition("@")[0]  # uncontracted and truncated forms
    correlated_pp = "ccp" in stem and "pp" in stem.partition("ccp")[2]
    if stem.startswith(_PSEUDO) or correlated_pp:
        raise BasisError(
            "basis",
            got=f"{name!r}, which belongs to a pseudopotential",
            expected="an all-electron basis",
            hint=_HINT,
            code=Code.CORE_POTENTIAL,
        )
    if stem not in library.ALIAS and not stem.startswith(_POPLE):
        raise BasisError(
            "basis name",
            got=repr(name),
            expected="known to PySCF",
            hint=nearest(key, library.ALIAS),
            code=Code.UNKNOWN_BASIS,
        )
    try:
        with warnings.catch_warnings():  # PySCF advertises another library before it raises
            warnings.simplefilter("ignore")
            if key.startswith("unc"):
                raw = uncontract(library.load(name[3:].lstrip("-_ "), symbol(z)))
            else:
                raw = library.load(name, symbol(z))
    except (BasisNotFoundError, KeyError) as err:
        raise BasisError(
            "basis",
            got=f"{name!r}, which lacks {symbol(z)}",
            expected="one that has it",
            code=Code.BASIS_LACKS_ELEMENT,
        ) from err
    except (AssertionError, ValueError) as err:  # of what follows "@"
        if "@" not in name:
            raise
        raise BasisError(
            "basis name",
            got=f"{name!r} ({err})" if str(err) else repr(name),
            expected=f"how many functions of {symbol(z)} are kept, no more than there are, "
            "as in cc-pvtz@3s2p1d",
        ) from err
    shells = []
    for l, *rows in raw:
        if rows and not isinstance(rows[0], (list, tuple)):
            rows = rows[1:]  # a spinor kappa precedes the primitives
        table = np.array(rows, dtype=np.float64)
        for coefficients in table[:, 1:].T:
            used = coefficients != 0
            if used.any():
                shells.append(Shell(int(l), table[used, 0], coefficients[used]))
    if not shells:  # pyscfad may have replaced PySCF's loader by one that never complains
        raise BasisError(
            "basis",
            got=f"{name!r}, which lacks {symbol(z)}",
            expected="one that has it",
            code=Code.BASIS_LACKS_ELEMENT,
        )
    _refuse_ecp(library, name, z, shells)
    return tuple(shells)


def _refuse_ecp(library, name: str, z: int, shells: list[Shell]) -> None:
    """Two independent signs of a core potential: PySCF has one, or no function is steep enough."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ecp = library.load_ecp(name, symbol(z))
    except Exception:  # PySCF raises many kinds for "no ECP here"; the exponents still tell
        ecp = None
    steepest = max((s.exponents.max() for s in shells if s.l == 0), default=0.0)
    auxiliary = name.lower().endswith(_AUXILIARY)  # fitting sets need not resolve the 1s shell
    if ecp or (steepest < _ALL_ELECTRON * z**2 and not auxiliary):
        core = f"the {ecp[0]} core electrons" if ecp else "core electrons"
        raise BasisError(
            "basis",
            got=f"{name!r}, which replaces {core} of {symbol(z)} by an effective core potential",
            expected="an all-electron basis",
            hint=_HINT,
            code=Code.CORE_POTENTIAL,
        )
