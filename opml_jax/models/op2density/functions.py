r"""Operator to density: coefficients of an auxiliary basis by symmetry-adapted kernels.

Coefficients of degree l on an atom are a baseline and a kernel expansion over reference
environments of its element (SALTED: Grisafi, Lewis, Rossi, Ceriotti, arXiv:2206.14087; Lewis,
Grisafi, Ceriotti, Rossi, J. Chem. Theory Comput. 17, 7203 (2021)),

.. math::
    c_{inl m} = \delta_{l0}\, \bar c_n + \sum_{j m'} k^l_{m m'}(i, j)\, w_{j m' n}, \qquad
    k^l_{m m'}(i, j) = \kappa(i, j) \sum_q x^l_{i q m} x^l_{j q m'},

x being irreps of natural parity, of blocks of powers of V around an atom, in principal components
of their element, and kappa a function of the scalars among them: a Gaussian of their distance, or a
power of their scalar product, all irreps then being of unit length. One kernel serves all radial
channels n.

With ``network.widths`` the exponents of every shell depend on the environment too (see
:mod:`.network`): predictions then hold ``widths``, and coefficients, the exact number of
electrons and the dipole belong to these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ... import density
from ...basis import AOLayout, Basis, layout_of
from ...errors import OpmlError
from ...features import atom_features
from ...numerics import Array, einsum, pytree
from ...structures import Structure, StructureBatch
from ..base import Definition, Params
from .config import Op2DensityConfig, Op2DensityNetworkConfig
from .network import inputs, outputs, with_moments


@pytree
class OnAtoms:
    """A density atom by atom, before electrons are counted; a batch adds a leading axis.

    Attributes:
      coefficients: ``{l: (n_atoms, n, 2 l + 1)}``, n of the element with most functions of degree
        l; zero where others have none, and for padding.
      widths: ``{l: (n_atoms, n)}`` factors of exponents; one where there is no function. Empty
        for a fixed basis.
      fixed: coefficients of the functions of the basis as it is: the same, or with widths what
        :func:`opml_jax.density.on_own_atom` makes of them.
    """

    coefficients: dict[int, Array]
    widths: dict[int, Array]
    fixed: dict[int, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Op2Density(Definition):
    """Pure functions of an Op2Density model.

    Args:
      config: settings.
      basis: of the operator that is read.
      aux_basis: of the density.
    """

    config: Op2DensityConfig
    aux_basis: Basis

    bases: ClassVar[tuple[str, ...]] = ("basis", "aux_basis")

    @property
    def network(self) -> Op2DensityNetworkConfig:
        """Settings of the network, of a model that has one."""
        assert self.config.network is not None
        return self.config.network

    @property
    def flexible(self) -> bool:
        """Whether predictions have widths."""
        return self.config.network is not None and self.config.network.widths > 0

    def features(self, structure: Structure | StructureBatch) -> dict[int, Array]:
        """Irreps of natural parity around every atom.

        Args:
          structure: molecule or batch, of elements that the basis covers.

        Returns:
          ``{l: (n_atoms, n_channels, 2 l + 1)}``, l up to the highest of the auxiliary basis or
          of the features; a batch adds a leading axis.

        Raises:
          OpmlError: blocks of the basis have no irreps of degrees that the auxiliary basis has.
        """
        lmax = self.aux_basis.spec.lmax
        operators = {self.config.operator: self.config.powers}
        irreps = atom_features(structure, self.basis, operators, lmax=lmax)
        chunks = zip(irreps.irreps, irreps.chunks, strict=True)
        natural = {ir.l: x for (_, ir), x in chunks if ir.p == (-1) ** ir.l}
        if (top := max(natural)) < lmax:
            got = f"{self.basis.name!r}, whose blocks have irreps up to {top}"
            expected = f"up to {lmax}, as {self.aux_basis.name!r}"
            raise OpmlError("basis", got=got, expected=expected)
        return natural

    def apply(self, params: Params, structure: Structure) -> dict[str, Array]:
        """Density of a molecule.

        Args:
          params: of the model.
          structure: a neutral molecule, positions in Bohr.

        Returns:
          ``coefficients`` ``(naux,)`` in the library's order, with the molecule's electrons;
          ``dipole`` ``(3,)`` in e Bohr about the centre of nuclear charge; if the model is
          :attr:`flexible` also ``widths`` ``(n_shells,)``, factors of exponents without which
          coefficients mean nothing. Differentiable.
        """
        return self.counted(self.on_atoms(params, structure), structure)

    def on_atoms(self, params: Params, structure: Structure | StructureBatch) -> OnAtoms:
        """A density atom by atom, before electrons are counted: nothing in it reaches far.

        Args:
          params: of the model.
          structure: molecule, or batch made for :attr:`basis`.
        """
        features = self.features(structure)
        if isinstance(structure, Structure):
            return self._joined(params, features, atoms_of(structure.numbers))
        flat = {l: x.reshape(-1, *x.shape[2:]) for l, x in features.items()}
        element = jnp.where(structure.mask, layout_of(structure, self.basis).element, -1)
        # which atoms are of an element is data: all are taken for each, and most set to zero
        every = dict.fromkeys(self.basis.elements, slice(None))
        on_atoms = self._joined(params, flat, every, element.reshape(-1))
        return jax.tree.map(lambda c: c.reshape(*element.shape, *c.shape[1:]), on_atoms)

    def _joined(
        self, params: Params, features: Mapping[int, Array], atoms: Mapping, element=None
    ) -> OnAtoms:
        """Atoms of each element, one below the other."""
        counts = dict(enumerate(self.aux_basis.spec.slot_counts))
        n, dtype = len(features[0]), features[0].dtype
        zeros = {l: jnp.zeros((n, k, 2 * l + 1), dtype) for l, k in counts.items()}
        sums = [zeros, {}, dict(zeros)]
        if any("widths" in of_element.get("network", {}) for of_element in params.values()):
            sums[1] = {l: jnp.zeros((n, k), dtype) for l, k in counts.items()}
        for e, z in enumerate(self.basis.elements):
            if z not in atoms:
                continue
            x = {l: x[atoms[z]] for l, x in features.items()}
            c, widths = self.of_element(params[str(z)], x)
            fixed = density.on_own_atom(c, widths, self.aux_basis, z) if widths else c
            # widths less one, so that what is not there is zero among all three
            less_one = {l: w - 1 for l, w in widths.items()}
            for total, of_element in zip(sums, (c, less_one, fixed), strict=True):
                for l, values in of_element.items():
                    if element is not None:
                        here = (element == e).reshape(-1, *[1] * (values.ndim - 1))
                        values = jnp.where(here, values, 0.0)
                    total[l] = total[l].at[atoms[z], : values.shape[1]].add(values)
        coefficients, less_one, fixed = sums
        return OnAtoms(coefficients, {l: 1 + w for l, w in less_one.items()}, fixed)

    def counted(self, on_atoms: OnAtoms, structure: Structure) -> dict[str, Array]:
        """What :meth:`apply` returns, from what :meth:`on_atoms` does."""
        layout, aux = layout_of(structure, self.aux_basis), self.aux_basis
        c = jnp.zeros(layout.nao, on_atoms.coefficients[0].dtype)
        factors = jnp.ones(layout.n_shells, c.dtype)
        for atoms in atoms_of(structure.numbers).values():
            for l, of_degree in on_atoms.coefficients.items():
                at = channels(layout, atoms, l)
                c = c.at[at].set(of_degree[atoms, : at.shape[1]])
                if l in on_atoms.widths:
                    of_shells = on_atoms.widths[l][atoms, : at.shape[1]]
                    factors = factors.at[layout.shell[at[..., 0]]].set(of_shells)
        widths = factors if on_atoms.widths else None
        metric = density.metric_matrix(structure, aux, self.config.metric, widths)
        charges = density.charges(structure, aux, widths)
        c = density.with_electrons(c, metric, charges, structure.n_electrons)
        out: dict[str, Array] = {"coefficients": c}
        out["dipole"] = density.dipole(c, structure, aux, widths)
        return out | ({"widths": factors} if self.flexible else {})

    def of_element(
        self, params: Params, features: Mapping[int, Array]
    ) -> tuple[dict[int, Array], dict[int, Array]]:
        """Coefficients ``{l: (n_atoms, n, 2 l + 1)}`` of atoms of one element, and widths.

        Widths are ``{l: (n_atoms, n)}``, empty for a fixed basis.
        """
        x = reduced(params["components"], features, self.config.kernel)
        out: dict[int, Array] = {0: params["baseline"][:, None]}
        for l, weights in params.get("weights", {}).items():
            c = kernel_coefficients(self.config, int(l), x, params["references"], weights)
            out[int(l)] = out.get(int(l), 0.0) + c
        widths: dict[int, Array] = {}
        if network := params.get("network"):
            added, widths = outputs(self.network, network, inputs(network["columns"], x))
            out |= {l: out.get(l, 0.0) + c for l, c in added.items()}
        out = {l: jnp.broadcast_to(c, (len(x["0"]), *c.shape[-2:])) for l, c in out.items()}
        return with_moments(out, widths), widths

    def variances(self, params: Params, structure: Structure) -> Array:
        r"""Variances of the densities of single atoms, by the Gaussian process of the kernels.

        :math:`\mathrm{tr}\, M_{ii} \Sigma_{ii}`, M between functions of one atom and Sigma the
        covariance of its coefficients: that of the weights, and what of the prior the references
        do not span, which grows away from them (the deterministic training conditional:
        Quinonero-Candela, Rasmussen, J. Mach. Learn. Res. 6, 1939 (2005)).

        Args:
          params: of a model trained with ``uncertainty``.
          structure: a molecule, positions in Bohr.

        Returns:
          ``(n_atoms,)`` squares of the metric's norm (Hartree for coulomb).
        """
        features = self.features(structure)
        out = jnp.zeros(structure.n_atoms, features[0].dtype)
        for z, atoms in atoms_of(structure.numbers).items():
            x = {l: x[atoms] for l, x in features.items()}
            out = out.at[atoms].set(self.variances_of_element(params[str(z)], x))
        return out

    def variances_of_element(self, params: Params, features: Mapping[int, Array]) -> Array:
        """:meth:`variances` ``(n_atoms,)`` of atoms of one element."""
        x = reduced(params["components"], features, self.config.kernel)
        out = jnp.zeros(len(x["0"]))
        for l, process in params["variance"].items():
            k = kernel(self.config, int(l), x, params["references"])
            k = k.reshape(*k.shape[:2], -1)
            prior = jnp.sum(x[l] * x[l], axis=(1, 2)) if l != "0" else jnp.ones(len(out))
            missing = prior - jnp.sum((k @ process["basis"]) ** 2, axis=(1, 2))
            out += process["prior"] * jnp.maximum(missing, 0.0)
            out += jnp.sum((k @ process["weights"]) ** 2, axis=(1, 2))
        return out


def atoms_of(numbers: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Atoms of every element of a molecule."""
    z = np.array(numbers)
    return {int(e): np.flatnonzero(z == e) for e in np.unique(z)}


def channels(layout: AOLayout, atoms: np.ndarray, l: int) -> np.ndarray:
    """``(n_atoms, n, 2 l + 1)`` functions of degree l of atoms of one element."""
    at = [np.flatnonzero((layout.atom == a) & (layout.l == l)) for a in atoms]
    return np.array(at).reshape(len(atoms), -1, 2 * l + 1)


def reduced(components: Params, features: Mapping[int, Array], kind: str) -> dict[str, Array]:
    """Principal components of features, ``{l: (n_atoms, n_components, 2 l + 1)}``.

    For the polynomial kernel they are of unit length, and scalars keep their mean.
    """
    out = {}
    for l, c in components.items():
        x = features[int(l)]
        if "mean" in c:
            x = x - c["mean"][:, None]
        x = einsum("iqm,qk->ikm", x, c["matrix"])
        if kind == "polynomial":
            x = x / jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True) + 1e-300)
        out[l] = x
    return out


def kernel(config: Op2DensityConfig, l: int, a: Params, b: Params) -> Array:
    """Kernel ``(n_a, 2 l + 1, n_b, 2 l + 1)`` between :func:`reduced` features, of degree l."""
    scalar = _scalar_kernel(config, l, a, b)[:, None, :, None]
    return scalar * einsum("ikm,jkp->imjp", a[str(l)], b[str(l)]) if l else scalar


def _scalar_kernel(config: Op2DensityConfig, l: int, a: Params, b: Params) -> Array:
    """What multiplies products of irreps of degree l (at l = 0 all there is), ``(n_a, n_b)``."""
    za, zb = a["0"][..., 0], b["0"][..., 0]
    if config.kernel == "gaussian":
        assert config.length is not None  # validation has chosen it
        # squares of differences, not of sums: close environments differ in the last digits
        d2 = jnp.sum((za[:, None] - zb[None]) ** 2, axis=-1)
        return jnp.exp(-0.5 / config.length**2 * d2)
    return einsum("ik,jk->ij", za, zb) ** (config.zeta if l == 0 else config.zeta - 1)


def kernel_coefficients(
    config: Op2DensityConfig, l: int, a: Params, b: Params, weights: Array
) -> Array:
    """:func:`kernel` times weights ``(n_b, 2 l + 1, n)``: ``(n_a, n, 2 l + 1)``."""
    scalar = _scalar_kernel(config, l, a, b)
    if l == 0:
        return einsum("ij,jpn->inp", scalar, weights)
    # without a kernel for every m and m'
    mixed = einsum("jkp,jpn->jkn", b[str(l)], weights)
    return einsum("ikm,ikn->inm", a[str(l)], einsum("ij,jkn->ikn", scalar, mixed))
