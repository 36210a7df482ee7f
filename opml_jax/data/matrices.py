"""AO matrices of foreign files: checked against their geometry, and put in the library's order.

The overlap of a molecule follows from its geometry and basis, so a file that has it shows its order
for certain. Of a Fock matrix alone the order is found by what of it follows from the geometry
(:func:`opml_jax.conventions.diagnose_fock`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..basis import Basis, from_pyscf, layout_of, load_basis
from ..conventions import AO_ORDERS, diagnose, diagnose_fock, from_convention
from ..errors import Code, ConventionError, DataError
from ..structures import Structure
from .labels import Source
from .plausibility import check_core_levels

MATRICES = {
    "fock": Source(("fock", "hamiltonian", "Ham", "H", "F"), 1.0),
    "overlap": Source(("overlap", "S"), 1.0),
    "dm": Source(("dm", "density_matrix", "P"), 1.0),
}
"""Fields a foreign file may hold in atomic units, and their names there."""

JUDGES = ("overlap", "fock")
"""Fields whose AO order can be found out, the surest first."""

CHECKED = 3
"""Structures, spread over the file, whose matrices are held against their geometry."""

SINGLE_PRECISION = 1e-4
"""Overlaps of files agree to this with computed ones: printed or stored with six digits, at
geometries with six digits, by programs whose basis sets differ in the last digits."""


def check_matrices(
    structures: Sequence[Structure], labels: Mapping[str, Sequence[np.ndarray]], basis: Basis
) -> str:
    """In which order the AO matrices of a data set are, by :data:`CHECKED` structures of it.

    Args:
      structures: molecules.
      labels: AO matrices by field; the first of :data:`JUDGES` among them decides.
      basis: what they are in.

    Returns:
      ``"agrees"`` (also where there is neither), or as :func:`opml_jax.conventions.diagnose`.
    """
    name = next((n for n in JUDGES if n in labels), None)
    if name is None:
        return "agrees"
    cases = []
    for i in _sample(structures):
        s = structures[i]
        cases.append((labels[name][i], _operators(s, basis), layout_of(s, basis).shell_ls))
    if name == "fock":
        return diagnose_fock(cases)
    verdicts = [diagnose(m, known[0], ls, SINGLE_PRECISION) for m, known, ls in cases]
    return next((v for v in verdicts if v != "agrees"), "agrees")


def _sample(structures: Sequence[Structure]) -> list[int]:
    return sorted({*np.linspace(0, len(structures) - 1, CHECKED).astype(int).tolist()})


def _operators(structure: Structure, basis: Basis) -> list[np.ndarray]:
    """S, T, V and V S^-1 V in the library's order, by libcint."""
    from .reference import molecule

    mol = molecule(structure, basis.name)
    names = ("int1e_ovlp", "int1e_kin", "int1e_nuc")
    s, t, v = (from_pyscf(mol.intor(n), structure, basis) for n in names)
    return [s, t, v, v @ np.linalg.solve(s, v)]


def own_matrices(
    path: Path,
    structures: Sequence[Structure],
    found: Mapping[str, Sequence[np.ndarray]],
    basis_name: str,
    convention: str | None,
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """AO matrices of a file in the library's order, and the layout hash of every structure.

    Args:
      path: the file, for messages.
      structures: molecules.
      found: AO matrices by field, as the file has them, Hartree.
      basis_name: the basis they are in.
      convention: their order, one of :data:`opml_jax.conventions.AO_ORDERS`; None: not known.

    Raises:
      DataError: matrices of another size or unit, not symmetric, or not finite.
      ConventionError: an order that is not stated, or another than what the matrices are in.
    """
    basis = load_basis(basis_name, {z for s in structures for z in s.numbers})
    layouts = [layout_of(s, basis) for s in structures]
    for name, values in found.items():
        for i, (layout, v) in enumerate(zip(layouts, values, strict=True)):
            _check_matrix(f"{name}[{i}] of {path}", v, layout.nao, basis_name)

    def converted(order: str, indices: Iterable[int]) -> dict[str, list[np.ndarray]]:
        return {
            name: [from_convention(values[i], layouts[i].shell_ls, order) for i in indices]
            for name, values in found.items()
        }

    sample = _sample(structures)
    few = [structures[i] for i in sample]

    def verdict(order: str) -> str:
        return check_matrices(few, converted(order, sample), basis)

    def lowest(i: int, structure: Structure) -> float:
        import scipy.linalg  # here alone: reading other files need not wait for it

        try:
            s = _operators(structure, basis)[0]
            return scipy.linalg.eigh(own["fock"][i], s, eigvals_only=True)[0]
        except np.linalg.LinAlgError as err:
            got = f"one without eigenvalues ({err})"
            raise DataError(
                f"fock[{i}] of {path}", got=got, expected="a Fock matrix", code=Code.MATRIX
            ) from err

    if convention is None or verdict(convention) != "agrees":
        known = any(n in found for n in JUDGES)
        fits = [order for order in AO_ORDERS if known and verdict(order) == "agrees"]
        got = verdict("opml") if known else "matrices that do not show it"
        raise _refused(path, got, convention, fits, basis_name)
    own = converted(convention, range(len(structures)))
    if "fock" in own:
        check_core_levels(str(path), few, [lowest(i, s) for i, s in zip(sample, few, strict=True)])
    return own, [layout.hash for layout in layouts]


def _check_matrix(where: str, matrix: np.ndarray, nao: int, basis_name: str) -> None:
    """Size, symmetry, and numbers."""
    if matrix.shape != (nao, nao):
        expected = f"shape {(nao, nao)}, as {basis_name} has for this molecule"
        hint = "Is it in another basis? Name it with basis."
        raise DataError(
            where, got=f"shape {matrix.shape}", expected=expected, hint=hint, code=Code.MATRIX
        )
    if not np.isfinite(matrix).all():
        raise DataError(where, got="NaN", expected="finite", code=Code.MATRIX)
    if np.abs(matrix - matrix.T).max() > SINGLE_PRECISION * max(1.0, np.abs(matrix).max()):
        raise DataError(
            where, got="one that is not", expected="a symmetric matrix", code=Code.MATRIX
        )


def _refused(
    path: Path, verdict: str, convention: str | None, fits: Sequence[str], basis_name: str
) -> ConventionError:
    """The order the matrices are in, named; what to pass."""
    known = {
        "agrees": "p components stored as (y, z, x)",
        "unknown": "an order that is not known",
    }
    orders = ", ".join(AO_ORDERS)
    stated = f"stated, one of {orders}" if convention is None else f"{convention!r}, as stated"
    hint = f"Are they in another basis than {basis_name}? An overlap in the file would decide."
    if fits:
        hint = f"Pass convention={' or '.join(map(repr, fits))}."
    where, got = f"AO order of {path}", known.get(verdict, verdict)
    return ConventionError(where, got=got, expected=stated, hint=hint, code=Code.LAYOUT)
