"""Chemical symbols, atomic weights and isotopes: naming or weighing an atom needs no import."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import Code, StructureError, nearest
from ..units import ELECTRON_MASS_PER_DALTON

SYMBOLS = tuple(
    """
    X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V
    Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag
    Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
    Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am
    Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
    """.split()
)
"""``SYMBOLS[z]`` is the symbol of atomic number z; index 0 is a dummy."""

WEIGHTS = np.array(
    """
    0
    1.008 4.002602 6.94 9.0121831 10.81 12.011 14.007 15.999 18.99840316 20.1797 22.98976928
    24.305 26.9815385 28.085 30.973762 32.06 35.45 39.948 39.0983 40.078 44.955908 47.867 50.9415
    51.9961 54.938044 55.845 58.933194 58.6934 63.546 65.38 69.723 72.63 74.921595 78.971 79.904
    83.798 85.4678 87.62 88.90584 91.224 92.90637 95.95 97.90721 101.07 102.9055 106.42 107.8682
    112.414 114.818 118.71 121.76 127.6 126.90447 131.293 132.905452 137.327 138.90547 140.116
    140.90766 144.242 144.91276 150.36 151.964 157.25 158.92535 162.5 164.93033 167.259 168.93422
    173.054 174.9668 178.49 180.94788 183.84 186.207 190.23 192.217 195.084 196.966569 200.592
    204.38 207.2 208.9804 208.98243 209.98715 222.01758 223.01974 226.02541 227.02775 232.0377
    231.03588 238.02891 237.04817 244.06421 243.06138 247.07035 247.07031 251.07959 252.083
    257.09511 258.09843 259.101 262.11 267.122 268.126 271.134 270.133 269.1338 278.156 281.165
    281.166 285.177 286.182 289.19 289.194 293.204 293.208 294.214
    """.split(),
    float,
)
"""``WEIGHTS[z]``: standard atomic weight in Dalton (J. Meija et al., Pure Appl. Chem. 88, 265
(2016), as ASE has them; of elements without one, a long-lived isotope); 0 for a dummy."""

ISOTOPES = {
    1: {1: 1.00782503223, 2: 2.01410177812, 3: 3.0160492779},
    2: {3: 3.0160293201, 4: 4.00260325413},
    3: {6: 6.0151228874, 7: 7.0160034366},
    4: {9: 9.012183065},
    5: {10: 10.01293695, 11: 11.00930536},
    6: {12: 12.0, 13: 13.00335483507, 14: 14.0032419884},
    7: {14: 14.00307400443, 15: 15.00010889888},
    8: {16: 15.99491461957, 17: 16.9991317565, 18: 17.99915961286},
    9: {19: 18.99840316273},
    10: {20: 19.9924401762, 21: 20.993846685, 22: 21.991385114},
    11: {23: 22.989769282},
    12: {24: 23.985041697, 25: 24.985836976, 26: 25.982592968},
    13: {27: 26.98153853},
    14: {28: 27.97692653465, 29: 28.9764946649, 30: 29.973770136},
    15: {31: 30.97376199842},
    16: {32: 31.9720711744, 33: 32.9714589098, 34: 33.967867004, 36: 35.96708071},
    17: {35: 34.968852682, 37: 36.965902602},
}
"""``ISOTOPES[z][A]``: masses in Dalton of the natural isotopes of H to Cl, of tritium and of carbon
14 (M. Wang et al., Chinese Phys. C 36, 1603 (2012), as NIST has them)."""

_HYDROGEN = {"D": 2, "T": 3}
_NUMBERS = {s.lower(): z for z, s in enumerate(SYMBOLS)}


def symbol(z: int) -> str:
    """Chemical symbol of an atomic number."""
    return SYMBOLS[z]


def atomic_number(name: str | int) -> int:
    """Atomic number of a chemical symbol (or of a number written as text).

    Raises:
      StructureError: no such element.
    """
    text = str(name).strip()
    z = int(text) if text.isdigit() else _NUMBERS.get(text.lower(), 0)
    if not 1 <= z < len(SYMBOLS):
        hint = nearest(text, SYMBOLS[1:])
        raise StructureError(
            "element", got=repr(name), expected="a symbol", hint=hint, code=Code.ELEMENT
        )
    return z


def isotope(name: str | int) -> tuple[int, float | None]:
    """Atomic number and, where the name is of an isotope, its mass.

    Args:
      name: a symbol or atomic number, ``D``, ``T``, or a symbol with a mass number before or after
        it (``13C``, ``C13``). ``H2`` is none: files label atoms so; ``2H`` and ``D`` are.

    Returns:
      ``(atomic number, mass in Dalton)``; the mass is None for an element as it occurs.

    Raises:
      StructureError: no such element, or an isotope that :data:`ISOTOPES` does not have.

    Example:
      >>> isotope("D"), isotope("13C"), isotope("O")
      ((1, 2.01410177812), (6, 13.00335483507), (8, None))
    """
    text = str(name).strip()
    if text.upper() in _HYDROGEN:
        return 1, ISOTOPES[1][_HYDROGEN[text.upper()]]
    before = re.fullmatch(r"(?P<a>[0-9]{1,3})(?P<symbol>[A-Za-z]{1,2})", text)
    after = re.fullmatch(r"(?P<symbol>[A-Za-z]{1,2})(?P<a>[0-9]{1,3})", text)
    match = before or after
    if match is None or match["symbol"].lower() not in _NUMBERS:
        return atomic_number(text), None
    z, known = atomic_number(match["symbol"]), ISOTOPES.get(atomic_number(match["symbol"]), {})
    if int(match["a"]) not in known or (after and z == 1):
        names = ", ".join(f"{a}{SYMBOLS[z]}" for a in known) or f"none of {SYMBOLS[z]}"
        raise StructureError(
            "element",
            got=repr(name),
            expected=f"a symbol or an isotope ({names})",
            code=Code.ELEMENT,
        )
    return z, known[int(match["a"])]


def formula(numbers: Sequence[int]) -> str:
    """Symbols in alphabetical order, each with how many there are, such as ``CH4``."""
    counts = Counter(SYMBOLS[z] for z in numbers)
    return "".join(s + (str(n) if n > 1 else "") for s, n in sorted(counts.items()))


def masses(numbers: Sequence[int]) -> np.ndarray:
    """Masses of atoms from :data:`WEIGHTS`, ``(n_atoms,)`` in electron masses."""
    return WEIGHTS[list(numbers)] * ELECTRON_MASS_PER_DALTON
