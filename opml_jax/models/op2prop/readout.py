"""Pure functions from descriptors of atoms to properties of molecules."""

from __future__ import annotations

import jax.numpy as jnp

from ...conventions import e3nn_to_cartesian, e3nn_to_matrix
from ...numerics import Array, einsum
from ..base import Params
from .config import PROPERTIES


def head_of(name: str, l: int) -> str:
    """Name of the head that has the irreps L of a property: the property's, if it has one L."""
    if len(PROPERTIES[name]) == 1:
        return name
    return f"{'an' * (l > 0)}isotropic_{name}"


HEADS = {head_of(name, l): l for name, ls in PROPERTIES.items() for l in ls}
"""Parts of the properties beside the energy, each a set of irreps of one L and parity (-1)^L."""


def standardise(scaler: Params, x: Array, one_hot: Array) -> Array:
    """Invariants minus the element's mean, over its standard deviation (0 where constant)."""
    mean = einsum("...e,ek->...k", one_hot, scaler["mean"])
    inverse = einsum("...e,ek->...k", one_hot, scaler["inverse_std"])
    return (x - mean) * inverse


def linear_energy(linear: Params, x: Array, one_hot: Array) -> Array:
    """Sum over atoms of the element's offset and weights times standardised invariants."""
    weights = einsum("...e,ek->...k", one_hot, linear["weights"])
    return jnp.sum(weights * x, axis=(-1, -2)) + einsum("...ie,e->...", one_hot, linear["offsets"])


def closed_form_energy(params: Params, x: Array, one_hot: Array) -> Array:
    """Energy without the networks: the linear part, and the kernel's if there is one."""
    energy = linear_energy(params["linear"], x, one_hot)
    return energy + kernel_energy(params["kernel"], x, one_hot) if "kernel" in params else energy


def kernel_energy(kernel: Params, x: Array, one_hot: Array) -> Array:
    r"""``(...)``: weights times :math:`\sum_i \exp(-|y_i - y_m|^2 / 2)`, :math:`y = C_Z \hat x`.

    Sparse kernel regression (Bartok, Csanyi, Int. J. Quantum Chem. 115, 1051 (2015)).
    """
    y = project(kernel["components"], x, one_hot)
    y2, m2 = jnp.sum(y**2, axis=-1), jnp.sum(kernel["references"] ** 2, axis=-1)
    cross = einsum("...ik,emk->...iem", y, kernel["references"])
    value = jnp.exp(cross - 0.5 * (y2[..., None, None] + m2))
    features = einsum("...ie,...iem->...em", one_hot, value)
    return einsum("...em,em->...", features, kernel["weights"])


def project(components: Array, x: Array, one_hot: Array) -> Array:
    """Network inputs: the element's principal components ``(n_elements, n_invariants, k)``."""
    every = einsum("...k,eko->...eo", x, components)
    return einsum("...eo,...e->...o", every, one_hot)


def element_sums(z: Array, one_hot: Array) -> Array:
    """``(..., n_elements (k + 1))``: for each element sums of network inputs, number of atoms."""
    one = jnp.ones((*z.shape[:-1], 1), z.dtype)
    sums = einsum("...ie,...ik->...ek", one_hot, jnp.concatenate([z, one], axis=-1))
    return sums.reshape(*sums.shape[:-2], -1)


def whitened(last_layer: Params, z: Array, one_hot: Array) -> Array:
    """:func:`element_sums` in units in which training leaves each a variance of one."""
    return einsum("...f,fg->...g", element_sums(z, one_hot), last_layer["factor"])


def linear_irreps(head: Params, v: Array, one_hot: Array) -> Array:
    """Sum over atoms of the element's weights times its irreps of one L, ``(..., 2 L + 1)``."""
    weights = einsum("...e,ec->...c", one_hot, head["weights"])
    return einsum("...ic,...icm->...m", weights, v)


def linear_heads(params: Params, x: Array, v: dict[int, Array], one_hot: Array) -> dict[str, Array]:
    """The closed-form part of every head of :data:`HEADS` that has parameters."""
    return {
        name: linear_irreps(params[name], v[l], one_hot)
        if l
        else linear_energy(params[name], x, one_hot)
        for name, l in HEADS.items()
        if name in params
    }


def cartesian(parts: dict[str, Array]) -> dict[str, Array]:
    """Properties in x, y, z from the irreps of :data:`HEADS`."""
    return {
        name: _in_axes({l: parts[head_of(name, l)] for l in ls})
        for name, ls in PROPERTIES.items()
        if all(head_of(name, l) in parts for l in ls)
    }


def _in_axes(irreps: dict[int, Array]) -> Array:
    """A number, vector or matrix from its irreps by L."""
    if 1 in irreps:
        return e3nn_to_cartesian(irreps[1])
    if 2 not in irreps:
        return irreps[0]
    traceless = e3nn_to_matrix(irreps[2])
    return irreps[0][..., None, None] * jnp.eye(3) + traceless if 0 in irreps else traceless


def gated_vectors(dipole: Params, v: Array, one_hot: Array) -> Array:
    """The element's principal vectors, ``(..., n_atoms, k, 3)``."""
    mix = einsum("...e,eck->...ck", one_hot, dipole["mixing"])
    return einsum("...cm,...ck->...km", v, mix)
