"""Basis sets by name, from PySCF's library, checked element by element.

PySCF is imported when a basis is loaded, not before, and its loader is asked for one element
at a time so that a missing element is an error and never a silently empty shell.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable

import numpy as np

from ..errors import BasisError, nearest, refusal
from ..structures.elements import atomic_number, symbol
from .shells import Basis, Shell

_POPLE = ("321g", "431g", "631g", "631+", "6311g", "6311+")  # PySCF parses these, unlisted


def load_basis(name: str, numbers: Iterable[int | str]) -> Basis:
    """Load a spherical all-electron basis from PySCF's library.

    General contractions are split into one shell per contracted function; the AO order is
    unchanged.

    Args:
      name: any name PySCF knows, e.g. ``"sto-3g"``, ``"def2-svp"``, ``"cc-pvtz"``.
      numbers: atomic numbers (or symbols) to cover; repeats are fine.

    Returns:
      A :class:`Basis`, elements ascending, shells ascending in l.

    Raises:
      BasisError: unknown name (the nearest known one is suggested), an element the basis
        lacks, an element for which it is an effective-core-potential basis, or l above g.

    Example:
      >>> load_basis("def2-svp", [8, 1, 1])
      Basis('def2-svp', H, O)
    """
    elements = sorted({atomic_number(z) for z in numbers})
    if not elements:
        raise BasisError(refusal("numbers", got="no elements", expected="at least one element"))
    return Basis.from_shells(name, {z: _element(name, z) for z in elements})


@functools.lru_cache(maxsize=1024)
def _element(name: str, z: int) -> tuple[Shell, ...]:
    from pyscf.gto import basis as library
    from pyscf.lib.exceptions import BasisNotFoundError

    key = "".join(c for c in name.lower() if c not in "-_ ")
    if key in library.GTH_ALIAS:
        raise BasisError(
            refusal(
                "basis name",
                got=repr(name),
                expected="an all-electron basis (GTH sets belong to pseudopotentials)",
            )
        )
    if key not in library.ALIAS and not key.startswith(_POPLE):
        hint = nearest(key, library.ALIAS)
        raise BasisError(
            refusal("basis name", got=repr(name), expected="known to PySCF", hint=hint)
        )
    try:
        with warnings.catch_warnings():  # PySCF advertises another library before it raises
            warnings.simplefilter("ignore")
            raw = library.load(name, symbol(z))
    except (BasisNotFoundError, KeyError) as err:
        raise BasisError(
            refusal("basis", got=f"{name!r}, which lacks {symbol(z)}", expected="one that has it")
        ) from err
    _refuse_ecp(library, name, z)
    shells = []
    for l, *rows in raw:
        if rows and not isinstance(rows[0], (list, tuple)):
            rows = rows[1:]  # a spinor kappa precedes the primitives
        table = np.array(rows, dtype=np.float64)
        for coefficients in table[:, 1:].T:
            used = coefficients != 0
            shells.append(Shell(int(l), table[used, 0], coefficients[used]))
    if not shells or any((s.exponents <= 0).any() for s in shells):
        raise BasisError(
            refusal("basis", got=f"no usable shells for {symbol(z)} in {name!r}", expected="shells")
        )
    return tuple(shells)


def _refuse_ecp(library, name: str, z: int) -> None:
    try:
        ecp = library.load_ecp(name, symbol(z))
    except Exception:  # PySCF raises many kinds for "no ECP here"; none of them matters
        return
    if ecp:
        raise BasisError(
            refusal(
                "basis",
                got=f"{name!r}, which replaces the {ecp[0]} core electrons of {symbol(z)} by an "
                "effective core potential",
                expected="an all-electron basis",
                hint="Use e.g. 'x2c-svpall', 'ano-rcc' or 'dyall-v2z'.",
            )
        )
