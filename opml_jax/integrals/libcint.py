"""The libcint driver: reference integrals through pyscfad, on the host, in float64.

A molecule goes through pyscfad's ``MoleLite`` (composition static), a batch through ``MolePad``
(composition traced, one molecule after another). Derivatives in positions, charges, exponents
and coefficients exist to fourth order, forward and reverse; ``hermi=1`` halves their work.

pyscfad is imported on first use. Importing it turns on x64, which is why x64 must already be
on; its padded-molecule module also replaces PySCF's basis loader by one that returns an empty
shell for a missing basis, which is undone here.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, Basis, BatchLayout
from ..conventions import pyscf_permutation
from ..errors import OpmlError
from ..numerics import Array, matmul, require_x64
from ..structures import Structure, StructureBatch
from ..structures.elements import symbol

_PTR_RINV_ZETA = 7  # slot of libcint's env array that holds the exponent of a smeared charge


@functools.cache
def _pyscfad():
    """Pyscfad's classes, imported without its side effects on PySCF."""
    require_x64("driver='libcint'")
    from pyscf.gto import basis as library
    from pyscf.gto.basis import parse_nwchem

    loaders = library._load_external, parse_nwchem.load
    from pyscfad.gto.mole_lite import MoleLite
    from pyscfad.ml.gto.basis_array import BasisArray
    from pyscfad.ml.gto.mole_pad import MolePad

    library._load_external, parse_nwchem.load = loaders
    return MoleLite, MolePad, BasisArray


def _table(shell) -> Array:
    return jnp.stack([jnp.asarray(shell.exponents), jnp.asarray(shell.coefficients)], axis=1)


def _molecule(numbers: tuple[int, ...], positions: Array, basis: Basis):
    MoleLite, _, _ = _pyscfad()
    shells = {}
    for z in set(numbers):
        by_l = shells.setdefault(symbol(z), {})
        for shell in basis.element_shells(z):
            by_l.setdefault(shell.l, []).append(_table(shell))
    return MoleLite(numbers=numbers, coords=positions, basis=shells, verbose=0)


def _basis_array(basis: Basis):
    """The basis as pyscfad's padded array, indexed by atomic number (0: no functions)."""
    _, _, BasisArray = _pyscfad()
    spec = basis.spec
    ls = np.array(spec.slot_ls, np.int32)
    n_primitives = max(len(s.exponents) for own in basis.shells for s in own)
    size = (max(spec.elements) + 1, len(ls))
    mask = np.zeros((*size, n_primitives, 2), bool)
    rows = jnp.zeros((*size, n_primitives, 2)).at[..., 0].set(1.0)
    first = {l: int(np.flatnonzero(ls == l)[0]) for l in spec.slot_ls}
    for z, own in zip(spec.elements, basis.shells, strict=True):
        used = dict.fromkeys(first, 0)
        for shell in own:
            k, n = first[shell.l] + used[shell.l], len(shell.exponents)
            used[shell.l] += 1
            # libcint screens with the last exponent of a shell: pad with the most diffuse one
            padding = jnp.broadcast_to(jnp.asarray(shell.exponents).min(), (n_primitives - n,))
            rows = rows.at[z, k, :n].set(_table(shell)).at[z, k, n:, 0].set(padding)
            mask[z, k, :n] = True
    return BasisArray(
        data=rows,
        mask_shl=jnp.asarray(mask[:, :, 0, 1]),
        mask_ctr=jnp.asarray(mask[:, :, :1, 1]),
        mask_data=jnp.asarray(mask),
        ls=ls,
        l_loc=np.append(0, np.cumsum(np.bincount(ls))).astype(np.int32),
        nprim=np.int32(n_primitives),
        nctr=np.int32(1),
    )


def _evaluate(structure, basis: Basis, layout, function, *batched) -> Array:
    """Apply ``function(mol, *batched)`` to the molecule, or to each of a batch, and reorder AOs.

    ``function`` returns ``(..., nao, nao)`` in PySCF's order; the result is in the library's.
    """
    require_x64("driver='libcint'")
    if isinstance(structure, Structure):
        assert isinstance(layout, AOLayout)
        out = function(_molecule(structure.numbers, structure.positions, basis), *batched)
        index = layout.from_pyscf_index
        return out[..., index[:, None], index[None, :]]
    assert isinstance(structure, StructureBatch)
    assert isinstance(layout, BatchLayout)
    _, MolePad, _ = _pyscfad()
    array = _basis_array(basis)
    width = basis.spec.n_slots
    to_slots = pyscf_permutation(basis.spec.slot_ls)
    theirs = (np.arange(structure.n_atoms)[:, None] * width + to_slots).ravel()

    def one(numbers, positions, ao_slot, *rest):
        out = function(MolePad(numbers, positions, basis=array, verbose=0), *rest)
        out = out[..., theirs[:, None], theirs[None, :]]
        out = jnp.pad(out, [(0, 0)] * (out.ndim - 2) + [(0, 1), (0, 1)])
        return out[..., ao_slot[:, None], ao_slot[None, :]]

    arrays = (structure.numbers, structure.positions, layout.ao_slot, *batched)
    return jax.vmap(one)(*(jnp.asarray(a) for a in arrays))


def matrix(name: str, structure, basis: Basis, layout) -> Array:
    """One of libcint's symmetric one-electron integrals: ovlp, kin, nuc, r."""
    if name == "int1e_r":
        return _evaluate(structure, basis, layout, _position)
    return _evaluate(structure, basis, layout, lambda mol: mol.intor(name, hermi=1))


def _position(mol) -> Array:
    return mol.intor("int1e_r", hermi=1)


def coulomb(structure, basis: Basis, layout, charges: Array, centres: Array, widths: Array):
    r"""Sum over centres C of :math:`q_C \langle i| erf(|r-C|/\sqrt 2 \sigma_C)/|r-C| |j\rangle`.

    Args:
      structure: molecule or batch.
      basis: its basis.
      layout: its AO layout.
      charges: ``(n,)``, or ``(n_structures, n)``.
      centres: ``(n, 3)`` Bohr, or with a leading batch axis.
      widths: ``(n,)`` Bohr, 0 for points; not differentiable here.
    """
    widths = _constant(widths)
    zeta = jnp.where(widths > 0, 0.5 / jnp.where(widths > 0, widths, 1.0) ** 2, 0.0)

    def potential(mol, q, c, z):
        env = mol._env

        def one(centre, exponent):
            mol._env = env.at[_PTR_RINV_ZETA].set(exponent)
            mol.set_rinv_origin(centre)
            return mol.intor("int1e_rinv", hermi=1)

        matrices = jax.vmap(one)(c, z)
        n = matrices.shape[-1]
        return matmul(q, matrices.reshape(len(q), n * n)).reshape(n, n)

    return _evaluate(structure, basis, layout, potential, charges, jnp.asarray(centres), zeta)


@jax.custom_jvp
def _constant(x: Array) -> Array:
    """Identity that refuses to be differentiated, where libcint would answer zero."""
    return x


def _constant_jvp(primals, tangents):
    if not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero):
        raise OpmlError(
            "widths must be constant with driver='libcint', which has no derivative "
            "with respect to them."
        )
    return primals[0], jnp.zeros_like(primals[0])


_constant.defjvp(_constant_jvp, symbolic_zeros=True)
