r"""The libcint driver: reference integrals on the host, in float64, through pyscfad's libcint.

One family of tensors does everything, :math:`\langle \nabla^a i | O | \nabla^b j \rangle` for O
one of overlap, kinetic energy, position, and 1/\|r - C\| of point or Gaussian charges. The
derivative of a member in positions is a contraction of the next members with the tangent, so each
is a ``custom_jvp`` function of plain arrays whose rule is linear: forward and reverse, nested,
inside or outside jit, scan and checkpoint, to fourth order. (pyscfad's own ``MoleLite`` closes
over traced arrays and can only be differentiated inside the jit that traces it.)

Numbers, positions and tables reach the host as arrays, so composition may be traced; a batch is
one callback. Importing pyscfad turns on x64, which is why x64 must already be on.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..basis import AOLayout, Basis, BasisSpec
from ..conventions import pyscf_permutation
from ..errors import OpmlError
from ..numerics import Array, einsum, require_x64
from ..structures import Structure

MAX_ORDER = 4  # pyscfad's libcint goes no further

# Slots of libcint's integer and float tables (cint.h).
_ATM_SLOTS, _BAS_SLOTS, ENV_START = 6, 8, 20
_PTR_RINV_ORIGIN, _PTR_RINV_ZETA = 4, 7


@dataclasses.dataclass(frozen=True)
class _Member:
    """Which tensor: operator, orders of derivative of bra and ket, and all shapes."""

    operator: str
    bra: int
    ket: int
    nao: int
    spec: BasisSpec

    def raised(self) -> _Member:
        """The member with one more derivative of the bra."""
        if self.bra + self.ket >= MAX_ORDER:
            raise OpmlError(
                f"driver='libcint' has derivatives to order {MAX_ORDER}; got order {MAX_ORDER + 1}."
            )
        return dataclasses.replace(self, bra=self.bra + 1)

    def swapped(self) -> _Member:
        """The member with bra and ket exchanged."""
        return dataclasses.replace(self, bra=self.ket, ket=self.bra)

    @property
    def has_centres(self) -> bool:
        """True when the operator sits at given centres."""
        return self.operator == "rinv"

    @property
    def n_components(self) -> int:
        """Number of Cartesian indices of the operator."""
        return {"r": 1, "rr": 2}.get(self.operator, 0)

    def shape(self, n_centres: int) -> tuple[int, ...]:
        """(centre,) bra derivatives, (component,) ket derivatives, row, column."""
        lead = (n_centres,) if self.has_centres else ()
        component = (3,) * self.n_components
        return (*lead, *(3,) * self.bra, *component, *(3,) * self.ket, self.nao, self.nao)


# ---- host side --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def tables(spec: BasisSpec, numbers: tuple[int, ...]):
    """Integer tables atm and bas, and the AO permutation, for atoms without padding.

    env: ``ENV_START`` zeros, positions, exponents and coefficients of ``Basis.flat``.
    """
    n_table = sum(sum(s) for s in spec.sizes) + 1  # Basis.flat closes with an empty primitive
    start = ENV_START + 3 * len(numbers)
    offsets, used = [], 0
    for own in spec.sizes:
        offsets.append(used)
        used += sum(own)
    atm = np.zeros((len(numbers), _ATM_SLOTS), np.int32)
    atm[:, 0] = numbers
    atm[:, 1] = ENV_START + 3 * np.arange(len(numbers))
    bas, ls = [], []
    for a, z in enumerate(numbers):
        e = spec.element_index(z)
        pointer = start + offsets[e]
        for l, n in zip(spec.ls[e], spec.sizes[e], strict=True):
            bas.append([a, l, n, 1, 0, pointer, pointer + n_table, 0])
            pointer += n
            ls.append(l)
    return atm, np.array(bas, np.int32).reshape(-1, _BAS_SLOTS), pyscf_permutation(ls)


def _one(member: _Member, numbers, positions, table, centres, zetas, charges) -> np.ndarray:
    """One molecule: all centres apart, or summed with charges if there are any."""
    from pyscfad.gto._pyscf_moleintor import getints

    real = numbers > 0
    atm, bas, permutation = tables(member.spec, tuple(int(z) for z in numbers[real]))
    env = np.concatenate([np.zeros(ENV_START), positions[real].ravel(), table.ravel()])
    name = f"int1e_{member.operator}"
    order = member.bra + member.ket
    if order:
        name += f"_dr{member.bra}{member.ket}"
    summed = charges is not None
    out = np.zeros(member.shape(len(centres))[1 if summed else 0 :])
    n = len(permutation)

    def integrals() -> np.ndarray:
        raw = getints(f"{name}_sph", atm, bas, env, hermi=0 if order else 1)
        return raw[..., permutation[:, None], permutation].reshape(*shape, n, n)

    shape = out.shape[1 if member.has_centres and not summed else 0 : -2]
    if not member.has_centres:
        out[..., :n, :n] = integrals()
        return out
    for c, (centre, zeta) in enumerate(zip(centres, zetas, strict=True)):
        env[_PTR_RINV_ORIGIN : _PTR_RINV_ORIGIN + 3] = centre
        env[_PTR_RINV_ZETA] = zeta
        if not summed:
            out[c, ..., :n, :n] = integrals()
        elif charges[c]:
            out[..., :n, :n] += charges[c] * integrals()
    return out


def _host(member: _Member, numbers, positions, *rest) -> np.ndarray:
    """The callback: any number of leading batch axes, the same for all arguments."""
    arrays = [np.asarray(x) for x in (numbers, positions, *rest)]
    lead = arrays[1].shape[:-2]
    flat = [x.reshape(-1, *x.shape[len(lead) :]) for x in arrays]
    if len(flat) == 5:  # no charges: centres stay apart
        results = [_one(member, *row, charges=None) for row in zip(*flat, strict=True)]
    else:
        results = [_one(member, *row) for row in zip(*flat, strict=True)]
    return np.stack(results).reshape(*lead, *results[0].shape)


def _callback(member: _Member, *arrays: Array) -> Array:
    n_centres, summed = arrays[3].shape[0], len(arrays) == 6
    shape = member.shape(n_centres)[1 if summed else 0 :]
    out = jax.ShapeDtypeStruct(shape, jnp.float64)
    return jax.pure_callback(
        functools.partial(_host, member), out, *arrays, vmap_method="broadcast_all"
    )


# ---- device side ------------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tensor(member: _Member, numbers, ao_atom, positions, table, centres, zetas) -> Array:
    """A member of the family; axes as :meth:`_Member.shape`."""
    if member.bra < member.ket:  # the operators are symmetric: exchange bra and ket
        other = _tensor(member.swapped(), numbers, ao_atom, positions, table, centres, zetas)
        return _exchange(other, member.swapped())
    return _callback(member, numbers, positions, table, centres, zetas)


def _exchange(tensor: Array, member: _Member) -> Array:
    """Bra and ket of a member exchanged, derivative axes included."""
    lead = 1 if member.has_centres else 0
    bra = list(range(lead, lead + member.bra))
    component = [lead + member.bra + k for k in range(member.n_components)]
    first = lead + member.bra + len(component)
    ket = list(range(first, first + member.ket))
    i, j = tensor.ndim - 2, tensor.ndim - 1
    return jnp.transpose(tensor, [*range(lead), *ket, *component, *bra, j, i])


def _constant(tangent, what: str) -> None:
    """Refuse a derivative that libcint does not have, where zero would be a wrong answer."""
    if not _zero(tangent):
        raise OpmlError(
            f"{what} must be constant with driver='libcint', which has no derivative "
            "with respect to them."
        )


def _zero(tangent) -> bool:
    """True for an argument that is not differentiated."""
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _tensor_jvp(member: _Member, primals, tangents):
    _, _, d_positions, d_table, d_centres, d_zetas = tangents
    ao_atom = primals[1]
    _constant(d_table, "exponents and coefficients")
    _constant(d_zetas, "widths")
    value = _tensor(member, *primals)
    if _zero(d_positions) and _zero(d_centres):
        return value, jnp.zeros_like(value)
    lead = 1 if member.has_centres else 0
    bra = jnp.moveaxis(_tensor(member.raised(), *primals), lead, 0)
    # The ket derivative is the bra derivative of the exchanged member, exchanged back. Its new
    # axis is the first of the ket axes.
    if member.bra == member.ket:
        ket = _exchange(_tensor(member.raised(), *primals), member.raised())
    else:
        raised = member.swapped().raised()
        ket = _exchange(_tensor(raised, *primals), raised)
    new = lead + member.bra + member.n_components
    ket = jnp.moveaxis(ket, new, 0)
    tangent = jnp.zeros_like(value)
    if not _zero(d_positions):
        moved = d_positions[ao_atom]  # (nao, 3): how each AO's centre moves
        tangent -= einsum("x...ij,ix->...ij", bra, moved)
        tangent -= einsum("x...ij,jx->...ij", ket, moved)
    if not _zero(d_centres) and member.has_centres:
        tangent += einsum("xc...,cx->c...", bra + ket, d_centres)
    return value, tangent


_tensor.defjvp(_tensor_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _potential(member, numbers, ao_atom, positions, table, centres, zetas, charges) -> Array:
    """``sum_C q_C T_C``, summed on the host so that values need no array per centre."""
    return _callback(member, numbers, positions, table, centres, zetas, charges)


def _potential_jvp(member: _Member, primals, tangents):
    *arrays, charges = primals
    _, ao_atom, *_ = arrays
    _, _, d_positions, d_table, d_centres, d_zetas, d_charges = tangents
    _constant(d_table, "exponents and coefficients")
    _constant(d_zetas, "widths")
    value = _potential(member, *primals)
    tangent = jnp.zeros_like(value)
    if not _zero(d_charges):
        tangent += einsum("c,cij->ij", d_charges, _tensor(member, *arrays))
    if not (_zero(d_positions) and _zero(d_centres)):
        bra = _tensor(member.raised(), *arrays)
        half = jnp.zeros_like(value)
        if not _zero(d_positions):
            total = einsum("c,cxij->xij", charges, bra)
            half -= einsum("xij,ix->ij", total, d_positions[ao_atom])
        if not _zero(d_centres):
            half += einsum("cx,cxij->ij", charges[:, None] * d_centres, bra)
        tangent += half + half.T
    return value, tangent


_potential.defjvp(_potential_jvp, symbolic_zeros=True)


def _evaluate(operator: str, structure, basis: Basis, layout, centres=None, zetas=None, q=None):
    """One operator of a molecule or of each of a batch."""
    require_x64("driver='libcint'")
    member = _Member(operator, 0, 0, layout.nao, basis.spec)
    table = jnp.concatenate(basis.flat())
    single = isinstance(structure, Structure)
    if isinstance(layout, AOLayout):
        ao_atom = layout.atom
    else:  # padding points at the last atom; its integrals are zero
        slots = jnp.minimum(layout.ao_slot, structure.n_atoms * basis.spec.n_slots - 1)
        ao_atom = slots // basis.spec.n_slots
    lead = () if single else (structure.n_structures,)
    if centres is None:
        centres, zetas = jnp.zeros((*lead, 1, 3)), jnp.zeros((*lead, 1))
    arrays = [
        jnp.asarray(structure.numbers, jnp.int32),
        jnp.asarray(ao_atom),
        jnp.asarray(structure.positions, float),
        table,
        jnp.asarray(centres, float),
        zetas,
    ]
    function = functools.partial(_tensor, member)
    if q is not None:
        function, arrays = functools.partial(_potential, member), [*arrays, q]
    if single:
        return function(*arrays)
    axes = [None if k == 3 else 0 for k in range(len(arrays))]
    return jax.vmap(function, in_axes=axes)(*arrays)


def matrix(operator: str, structure, basis: Basis, layout) -> Array:
    """``"ovlp"``, ``"kin"`` (..., nao, nao) ``"r"`` (..., 3, nao, nao), ``"rr"`` (3, 3)."""
    return _evaluate(operator, structure, basis, layout)


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
    zetas = jnp.where(widths > 0, 0.5 / jnp.where(widths > 0, widths, 1.0) ** 2, 0.0)
    return _evaluate("rinv", structure, basis, layout, centres, zetas, charges)
