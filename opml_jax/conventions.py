"""The one component convention of the library, and every permutation that leads to it.

Atomic orbitals and irreps carry real spherical harmonics with m = -l..l and z as polar axis:
p is (y, z, x), d is (xy, yz, z2, xz, x2-y2). These are e3nn's harmonics once Cartesian vectors
are entered as (y, z, x); no other change of basis is needed. PySCF agrees for every l but 1,
where it stores (x, y, z). No other module holds a permutation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .errors import ConventionError, refusal

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


def pyscf_order(l: int) -> tuple[int, ...]:
    """Positions of this library's components of a shell inside PySCF's shell."""
    return CARTESIAN_TO_E3NN if l == 1 else tuple(range(2 * l + 1))


def pyscf_permutation(ls: Sequence[int]) -> np.ndarray:
    """Index array ``p`` with ``ours = theirs[p]`` for AOs of consecutive shells ``ls``."""
    index, start = [], 0
    for l in ls:
        index.extend(start + k for k in pyscf_order(l))
        start += 2 * l + 1
    return np.array(index, dtype=np.int64)


_P_ORDERS = {"".join("yzx"[i] for i in order): order for order in itertools.permutations(range(3))}


def diagnose(matrix: np.ndarray, expected: np.ndarray, ls: Sequence[int], tol: float = 1e-6) -> str:
    """Name the permutation that turns ``matrix`` into ``expected``, an AO matrix known for sure.

    Tries every order of the p components, alone and with m reversed for l >= 2.

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
    for reverse in (False, True):
        for name, order in _P_ORDERS.items():
            index, start = [], 0
            for l in ls:
                m = np.arange(2 * l + 1)
                if l == 1:
                    m = np.argsort(order)
                elif reverse:
                    m = m[::-1]
                index.extend(start + m)
                start += 2 * l + 1
            index = np.array(index)
            if np.abs(matrix[np.ix_(index, index)] - expected).max() < tol:
                if name == "yzx" and not reverse:
                    return "agrees"
                text = f"p components stored as ({', '.join(name)})"
                return text + (" and m = l..-l for l > 1" if reverse else "")
    return "unknown"


def check_convention(matrix, expected, ls, *, where: str = "matrix", tol: float = 1e-6) -> None:
    """Raise :class:`ConventionError` naming the permutation when two AO matrices disagree."""
    verdict = diagnose(np.asarray(matrix), np.asarray(expected), ls, tol)
    if verdict != "agrees":
        raise ConventionError(
            refusal(
                where,
                got=verdict,
                expected="in the library's AO order (p as y, z, x; m = -l..l)",
                hint="Use opml_jax.from_pyscf for matrices that come from PySCF.",
            )
        )
