"""The one component convention of the library, and every permutation that leads to it.

Atomic orbitals and irreps carry real spherical harmonics with m = -l..l and z as polar axis:
p is (y, z, x), d is (xy, yz, z2, xz, x2-y2). These are e3nn's harmonics once Cartesian vectors
are entered as (y, z, x); no other change of basis is needed. PySCF agrees for every l but 1,
where it stores (x, y, z). No other module holds a permutation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .errors import Code, ConventionError, one_of

CONVENTION = "opml-1"
"""Name stored with every matrix: real harmonics, m = -l..l, z polar, atoms > shells > m."""

CARTESIAN_TO_E3NN = (1, 2, 0)
"""``v[..., CARTESIAN_TO_E3NN]`` turns (x, y, z) into the components of the irrep 1o."""

E3NN_TO_CARTESIAN = (2, 0, 1)
"""Inverse of :data:`CARTESIAN_TO_E3NN`."""


def cartesian_to_e3nn(vectors):
    """Vectors ``(..., 3)`` from (x, y, z) to the 1o components (y, z, x)."""
    return vectors[..., CARTESIAN_TO_E3NN]


def e3nn_to_cartesian(vectors):
    """Inverse of :func:`cartesian_to_e3nn`."""
    return vectors[..., E3NN_TO_CARTESIAN]


_QUADRATIC = np.zeros((5, 3, 3))
for _m, (_i, _j) in {0: (0, 1), 1: (1, 2), 3: (0, 2)}.items():  # xy, yz, xz
    _QUADRATIC[_m, _i, _j] = _QUADRATIC[_m, _j, _i] = 0.5**0.5
_QUADRATIC[2] = np.diag([-1.0, -1.0, 2.0]) / 6**0.5  # z2
_QUADRATIC[4] = np.diag([1.0, -1.0, 0.0]) / 2**0.5  # x2-y2


def matrix_to_e3nn(matrices):
    """Symmetric traceless part of matrices ``(..., 3, 3)`` in x, y, z as irreps 2e ``(..., 5)``.

    The five components are orthonormal: their sum of squares is that of the nine elements.
    """
    return (matrices[..., None, :, :] * _QUADRATIC.astype(matrices.dtype)).sum(axis=(-1, -2))


def e3nn_to_matrix(components):
    """Inverse of :func:`matrix_to_e3nn`: a symmetric traceless matrix ``(..., 3, 3)``."""
    return (components[..., None, None] * _QUADRATIC.astype(components.dtype)).sum(axis=-3)


def rotation_to_e3nn(rotation):
    """Orthogonal matrix ``(3, 3)`` acting on (x, y, z) as e3nn wants it, acting on (y, z, x).

    ``x.transform_by_matrix(rotation_to_e3nn(R))`` transforms features of this library under R.
    """
    index = np.array(CARTESIAN_TO_E3NN)
    return rotation[index][:, index]


AO_ORDERS = ("opml", "pyscf", "orca")
"""Orders of the components of a shell that matrices of other programs are converted from.

``opml``: this library's. ``pyscf``: p as x, y, z, else the same. ``orca``: m = 0, 1, -1, 2, -2,
..., and the functions of f and g with abs(m) of 3 and 4 of opposite sign.
"""


def component_order(convention: str, l: int) -> tuple[np.ndarray, np.ndarray]:
    """How one shell of another program becomes this library's: ``ours = sign * theirs[index]``.

    ORCA's order of m: ``m_range`` in SchNOrb's ``data.py``, and the maps of QHNet's
    ``ori_dataset.py`` (divelab/AIRS) for p and d; its signs: ``fix_orca_phase_convention`` in occ
    (peterspackman/occ), which reads ORCA's files.

    Args:
      convention: one of :data:`AO_ORDERS`.
      l: angular momentum, up to 4.

    Returns:
      ``index`` and ``sign``, each ``(2 l + 1,)``.
    """
    one_of("convention", convention, AO_ORDERS, ConventionError)
    m = np.arange(-l, l + 1)
    if convention == "orca":
        return np.where(m > 0, 2 * m - 1, -2 * m), np.where(np.abs(m) >= 3, -1, 1)
    index = np.array(CARTESIAN_TO_E3NN) if convention == "pyscf" and l == 1 else m + l
    return index, np.ones_like(m)


def from_convention(matrix: np.ndarray, ls: Sequence[int], convention: str) -> np.ndarray:
    """AO matrix ``(..., nao, nao)`` of another program in this library's order.

    Args:
      matrix: in the order ``convention``, shells in this library's order.
      ls: angular momentum of each shell, in AO order.
      convention: one of :data:`AO_ORDERS`.
    """
    return _reordered(np.asarray(matrix), *_joined(ls, lambda l: component_order(convention, l)))


def _joined(ls: Sequence[int], order_of) -> tuple[np.ndarray, np.ndarray]:
    """Index and sign of all AOs from those of shells."""
    starts = np.cumsum([0, *(2 * l + 1 for l in ls)])
    shells = [order_of(l) for l in ls]
    index = np.concatenate([start + i for start, (i, _) in zip(starts, shells, strict=False)])
    return index, np.concatenate([sign for _, sign in shells])


def _reordered(matrix: np.ndarray, index: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return matrix[..., index[:, None], index] * (sign[:, None] * sign)


def pyscf_order(l: int) -> tuple[int, ...]:
    """Positions of this library's components of a shell inside PySCF's shell."""
    return tuple(component_order("pyscf", l)[0].tolist())


def pyscf_permutation(ls: Sequence[int]) -> np.ndarray:
    """Index array ``p`` with ``ours = theirs[p]`` for AOs of consecutive shells ``ls``."""
    index, start = [], 0
    for l in ls:
        index.extend(start + k for k in pyscf_order(l))
        start += 2 * l + 1
    return np.array(index, dtype=np.int64)


_P_ORDERS = {p: tuple(map("yzx".index, p)) for p in ("yzx", "xyz", "zxy", "yxz", "xzy", "zyx")}
"""Where component i of ours is what: this library's, PySCF's, ORCA's, and the rest."""
_ABOVE = {
    "": lambda l: component_order("opml", l),
    " and m = l..-l for l > 1": lambda l: (np.arange(2 * l, -1, -1), np.ones(2 * l + 1, int)),
    " and m = 0, 1, -1, 2, -2, ... for l > 1": lambda l: component_order("orca", l),
}


def _orders(ls: Sequence[int]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """What an order is called, and how to undo it: every order of p, and three of what is above."""
    for text, above in _ABOVE.items():
        for name, order in _P_ORDERS.items():
            shell = {1: (np.argsort(order), np.ones(3, int))}
            called = f"p components stored as ({', '.join(name)}){text}"
            known = "agrees" if name == "yzx" and not text else called
            yield known, *_joined(ls, lambda l, shell=shell, above=above: shell.get(l) or above(l))


def diagnose(matrix: np.ndarray, expected: np.ndarray, ls: Sequence[int], tol: float = 1e-6) -> str:
    """Name the permutation that turns ``matrix`` into ``expected``, an AO matrix known for sure.

    Tries every order of the p components, alone, with m reversed, and with ORCA's order of m, for
    l >= 2.

    Args:
      matrix: ``(nao, nao)`` of unknown component order, e.g. an overlap read from a file.
      expected: ``(nao, nao)`` the same operator in the library's convention.
      ls: angular momentum of each shell, in AO order.
      tol: largest difference that counts as agreement.

    Returns:
      ``"agrees"``, a description such as ``"p components stored as (x, y, z)"``, or ``"unknown"``.
    """
    if matrix.shape != expected.shape:
        return f"shape {matrix.shape} instead of {expected.shape}"
    for called, index, sign in _orders(ls):
        if np.abs(_reordered(matrix, index, sign) - expected).max() < tol:
            return called
    return "unknown"


TIE = 0.95
"""An order must leave this much less of a Fock matrix unexplained to be preferred to another."""

UNLIKE = 0.4
"""A Fock matrix leaves less than this in its own basis: of a dozen molecules 0.0 to 0.17 in STO-3G
to def2-SVP, up to 0.32 in cc-pVTZ and aug-cc-pVDZ; of water in another basis 0.42 and more."""


def diagnose_fock(
    cases: Sequence[tuple[np.ndarray, Sequence[np.ndarray], Sequence[int]]],
) -> str:
    r"""Name the component order of Fock matrices, of which no element is known for sure.

    The blocks between shells of a Fock matrix are nearly a combination of those of operators that
    follow from the geometry: :math:`S \bar F` as in Wolfsberg and Helmholz (J. Chem. Phys. 20, 837
    (1952)), with the mean of the two shells' diagonal elements, and the operators given. The order
    that leaves the least of them unexplained is the right one.

    Args:
      cases: for each of a few molecules, best differently oriented: the Fock matrix ``(nao, nao)``,
        operators of the same shape in the library's order, the overlap first, and the angular
        momenta of the shells.

    Returns:
      As :func:`diagnose`; of orders that fit alike, as where a molecule's symmetry hides them, the
      library's, PySCF's or ORCA's order of p is taken, in this order.
    """
    left: dict[str, float] = {}
    for fock, operators, ls in cases:
        if fock.shape != operators[0].shape:
            return f"shape {fock.shape} instead of {operators[0].shape}"
        for called, index, sign in _orders(ls):
            own = _unexplained(_reordered(fock, index, sign), operators, ls)
            left[called] = left.get(called, 0.0) + own / len(cases)
    best = min(left.values())
    return next(k for k in left if TIE * left[k] <= best) if best < UNLIKE else "unknown"


def _unexplained(fock: np.ndarray, operators: Sequence[np.ndarray], ls: Sequence[int]) -> float:
    """What is left of the blocks between shells, relative to them."""
    shell = np.repeat(np.arange(len(ls)), [2 * l + 1 for l in ls])
    between = shell[:, None] != shell
    level = (np.bincount(shell, np.diag(fock)) / np.bincount(shell))[shell]
    columns = [operators[0] * (level[:, None] + level), *operators]
    x, y = np.stack([c[between] for c in columns], axis=-1), fock[between]
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.linalg.norm(rest) / np.linalg.norm(y)) if y.any() else 0.0


def check_convention(matrix, expected, ls, *, where: str = "matrix", tol: float = 1e-6) -> None:
    """Raise :class:`ConventionError` naming the permutation when two AO matrices disagree."""
    verdict = diagnose(np.asarray(matrix), np.asarray(expected), ls, tol)
    if verdict != "agrees":
        raise ConventionError(
            where,
            got=verdict,
            expected="in the library's AO order (p as y, z, x; m = -l..l)",
            hint="Use opml_jax.from_pyscf for matrices that come from PySCF.",
            code=Code.LAYOUT,
        )
