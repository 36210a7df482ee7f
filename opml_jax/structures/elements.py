"""Chemical symbols, so that naming an atom needs no import."""

from ..errors import StructureError, nearest, refusal

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
        raise StructureError(refusal("element", got=repr(name), expected="a symbol", hint=hint))
    return z
