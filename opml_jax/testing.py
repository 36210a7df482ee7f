"""Public test helpers: random molecules, symmetry and derivative checks, a plain product.

For whoever writes a function of molecules and wants to know that it respects physics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .basis import AOLayout
from .conventions import rotation_to_e3nn
from .errors import OpmlError, one_of
from .irreps import e3nn
from .numerics import Array, matmul
from .structures import Structure
from .units import ANGSTROM_PER_BOHR


def random_rotation(seed: int | np.random.Generator, *, improper: bool = False) -> np.ndarray:
    """Uniform random orthogonal matrix ``(3, 3)``; with determinant -1 if ``improper``."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q) * (-1 if improper else 1)


def random_structure(numbers: Sequence[int], seed: int | np.random.Generator) -> Structure:
    """A random cluster of atoms with no pair closer than 0.9 Angstrom.

    Args:
      numbers: atomic numbers; an odd electron count gets spin 1.
      seed: of NumPy's generator.
    """
    rng = np.random.default_rng(seed)
    closest = 0.9 / ANGSTROM_PER_BOHR
    box = 1.6 * closest * len(numbers) ** (1 / 3)
    positions: list[np.ndarray] = []
    while len(positions) < len(numbers):
        x = rng.uniform(-box, box, size=3)
        if all(np.linalg.norm(x - y) > closest for y in positions):
            positions.append(x)
        else:
            box *= 1.01
    return Structure(numbers, np.array(positions), spin=sum(numbers) % 2)


def assert_equivariant(
    fn: Callable[[Structure], Any],
    structure: Structure,
    *,
    vectors: Sequence[str] = ("forces", "dipole"),
    tensors: Sequence[str] = ("quadrupole", "polarizability"),
    atomic: Sequence[str] = ("forces",),
    n: int = 4,
    seed: int = 0,
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> None:
    """Assert that a function of a molecule transforms as its output says it does.

    Checks rotations, reflections, translations and permutations of atoms. The output may be a
    number or array (taken as invariant), an ``e3nn_jax.IrrepsArray`` with atoms in front
    (equivariant; follows the permutation), or a dict of these, in which names in ``vectors`` are
    Cartesian vectors ``(..., 3)``, names in ``tensors`` are matrices ``(..., 3, 3)``, and names in
    ``atomic`` have atoms in front. Translation is only meaningful for what does not depend on the
    origin.

    Args:
      fn: takes a :class:`~opml_jax.structures.Structure`.
      structure: where to check.
      vectors: names of Cartesian vectors in a dict output.
      tensors: names of Cartesian tensors of rank 2.
      atomic: names of per-atom arrays in a dict output.
      n: number of random operations; every second one is improper.
      seed: of the random operations.
      rtol: largest error allowed, relative to the largest element of each output.
      atol: absolute error allowed besides, for outputs that vanish by symmetry.

    Raises:
      AssertionError: naming the operation, the output and the error.

    Example:
      >>> assert_equivariant(lambda s: atom_features(s, basis), s)     # doctest: +SKIP
    """
    rng = np.random.default_rng(seed)

    def named(s: Structure) -> dict[str, Any]:
        out = fn(s)
        return out if isinstance(out, dict) else {"output": out}

    def values(out: dict[str, Any]) -> dict[str, np.ndarray]:
        return {
            k: np.asarray(v.array if isinstance(v, e3nn.IrrepsArray) else v) for k, v in out.items()
        }

    reference = named(structure)
    plain = values(reference)
    allowed = {k: atol + rtol * np.abs(v).max(initial=0.0) for k, v in plain.items()}
    by_atom = {k for k, v in reference.items() if isinstance(v, e3nn.IrrepsArray) or k in atomic}
    positions = np.asarray(structure.positions)

    def compare(what: str, got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
        for k, value in got.items():
            error = np.abs(value - expected[k]).max(initial=0.0)
            assert error <= allowed[k], (
                f"{what} changes {k!r} by {error:.1e}, over {allowed[k]:.1e}"
            )

    for i in range(n):
        r = random_rotation(rng, improper=bool(i % 2))
        got = values(named(structure.replace(positions=positions @ r.T)))
        expected = dict(plain)
        for k, v in reference.items():
            if isinstance(v, e3nn.IrrepsArray):
                expected[k] = np.asarray(v.transform_by_matrix(rotation_to_e3nn(r)).array)
            elif k in vectors:
                expected[k] = plain[k] @ r.T
            elif k in tensors:
                expected[k] = r @ plain[k] @ r.T
        compare(f"{'improper' if i % 2 else 'proper'} rotation {i}", got, expected)
        shift = rng.normal(size=3)
        compare(
            f"translation {i}", values(named(structure.replace(positions=positions + shift))), plain
        )
        order = rng.permutation(structure.n_atoms)
        swapped = structure.replace(
            positions=positions[order], numbers=tuple(structure.numbers[j] for j in order)
        )
        compare(
            f"permutation {order.tolist()}",
            values(named(swapped)),
            {k: v[order] if k in by_atom else v for k, v in plain.items()},
        )


def assert_grad_matches_fd(
    fn: Callable[[Any], Any], x: Any, *, step: float = 1e-3, atol: float = 1e-7, rtol: float = 1e-6
) -> None:
    """Assert that ``jax.grad(fn)(x)`` agrees with fourth-order central differences.

    Args:
      fn: scalar function of one array.
      x: ``(...)`` where to differentiate, float64.
      step: of the differences; their own error is of order ``step**4``.
      atol: absolute tolerance.
      rtol: tolerance relative to the largest component.

    Raises:
      AssertionError: with the largest difference.
    """
    x = np.asarray(x, np.float64)
    gradient = np.asarray(jax.jit(jax.grad(fn))(x))
    assert np.isfinite(gradient).all(), "the gradient is not finite"
    f = jax.jit(fn)
    finite = np.zeros_like(x)
    for index in np.ndindex(*x.shape):

        def at(k, index=index):
            moved = x.copy()
            moved[index] += k * step
            return float(f(moved))

        finite[index] = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    error = np.abs(gradient - finite).max(initial=0.0)
    allowed = atol + rtol * np.abs(finite).max(initial=0.0)
    assert error <= allowed, f"gradient off by {error:.2e}, over {allowed:.2e}"


def reference_product(
    a: Array,
    b: Array,
    layout: AOLayout,
    cutoff: float | None = None,
    positions: Any = None,
    out: str = "pattern",
) -> Array:
    r"""Product of two operators of one molecule, the plain way.

    :math:`C_{ij} = \sum_k A_{ik} B_{kj}` by loops over atoms i, j and k in Python,
    without a plan, tiles or a rule of differentiation: what
    :meth:`opml_jax.operators.Operator.multiply` is held against. Blocks of atoms further apart than
    ``cutoff`` count as zero, whatever ``a`` and ``b`` hold there.

    Args:
      a: ``(nao, nao)``.
      b: ``(nao, nao)``.
      layout: of the molecule.
      cutoff: largest distance of the atoms of a block, Bohr. Default: every block is kept.
      positions: ``(n_atoms, 3)``, Bohr; where the atoms are, if a cutoff is given.
      out: ``"pattern"``: blocks within the cutoff; ``"full"``: every block of the product of the
        restricted operands; ``"upper"``: of the blocks within the cutoff, the elements on and above
        the diagonal of the matrix; ``"diagonal"``: on-site blocks in the slots of the basis.

    Returns:
      ``(nao, nao)``; for ``"diagonal"`` ``(n_atoms, n_slots, n_slots)``, zero where an element has
      no such shell. Differentiable in ``a`` and ``b``.

    Raises:
      OpmlError: an unknown ``out``, or a cutoff without positions.
    """
    outs = ("pattern", "full", "upper", "diagonal")
    one_of("out", out, outs, OpmlError)
    n, starts = len(layout.numbers), layout.offsets.tolist()
    near = np.ones((n, n), bool)
    if cutoff is not None:
        if positions is None:
            raise OpmlError("positions", got=None, expected="given with a cutoff")
        x = np.asarray(positions, float)
        near = np.array([[np.linalg.norm(p - q) <= cutoff for q in x] for p in x])

    def block(m: Array, i: int, j: int) -> Array:
        size = starts[i + 1] - starts[i], starts[j + 1] - starts[j]
        return jax.lax.dynamic_slice(m, (starts[i], starts[j]), size)  # one program for a shape

    def entry(i: int, j: int) -> Array:
        total = jnp.zeros_like(block(a, i, j))
        if near[i, j] or out == "full":
            for k in range(n):
                if near[i, k] and near[k, j]:
                    total = total + matmul(block(a, i, k), block(b, k, j))
        return total

    a, b = jnp.asarray(a), jnp.asarray(b)
    if out == "diagonal":
        sites = []
        for i in range(n):
            local = layout.slots[i] - starts[i]  # beyond the block where there is no such shell
            local = np.where(layout.slots[i] < layout.nao, local, starts[i + 1] - starts[i])
            sites.append(jnp.pad(entry(i, i), ((0, 1), (0, 1)))[np.ix_(local, local)])
        return jnp.stack(sites)
    product = jnp.block([[entry(i, j) for j in range(n)] for i in range(n)])
    return jnp.triu(product) if out == "upper" else product
