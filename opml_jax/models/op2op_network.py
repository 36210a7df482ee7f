r"""Networks that add to the closed form of Op2Op: irreps times gates, and products of operators.

For every kind of block and irrep (key k) a network makes equivariant features f, and a linear map
reads what is to be added to the matrix off them,

.. math:: y_k \mathrel{+}= \sigma_k\, f_k\, R_k

with R zero before training, so that an untrained model is the closed form. Two kinds:

- ``gated``: :math:`f = (1, g(s)) \otimes \tilde X`, the leading equivariant components of the
  block's irreps (principal components, each L on its own), times bounded functions g of the
  block's invariants s; so the map of the irreps, a matrix, depends on s. With ``gates = 0`` it is
  :math:`y = \sigma\, G(s) \odot (\tilde X R)`, one gate an output, the form of Nigam, Smidt, Dusson
  (arXiv:2602.15345, Op2Op).
- ``matrix``: known operators are mixed per irrep into hidden operators, gated, put together to
  matrices and multiplied by each other and by the potential of neutral atoms W; f are the irreps of
  the operators and of these products. In the spirit of matrix function networks (Batatia et al.,
  arXiv:2310.10434), of physical operators.

Invariants are the scalars among the components and scalar products of the leading others, of the
block and of its atoms, symmetric in two atoms of one element. Weights are those of a kind of
block, whichever atoms it belongs to, and features of a pair vanish with its irreps, so what is
added is size-extensive like the closed form.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ConfigError, one_of, refusal
from ..features.couple import IrrepKey, couple_species, key_name, uncouple_species
from ..numerics import Array, einsum, matmul
from ..operators.species import SpeciesTable, gather_species, scatter_species

Params = dict[str, Any]
Irreps = dict[IrrepKey, Array]

LEADING = 4
"""Components of an irrep above L = 0 whose scalar products are invariants."""

SATURATION = 3.0
"""Inputs of gates, of unit variance, saturate here."""

BOUND = 4.0
"""Irreps of hidden operators and of products saturate here."""

MATRIX_WORDS = ("S", "T", "W", "E")
"""Operators that the ``matrix`` kind mixes. The bare potential of the nuclei is not among them: its
reach is not that of the matrix, and W and its pieces E hold it."""


@dataclasses.dataclass(frozen=True)
class Op2OpNetworkConfig:
    """A network on top of the closed form.

    Attributes:
      kind: ``"gated"`` (irreps times functions of invariants) or ``"matrix"`` (learned products of
        matrices; only without density words).
      alone: leave the closed form out, but for the constants, to see what it is worth.
      components: of the irreps of one kind, most.
      inputs: of the gates, most.
      hidden: widths of the gates' networks.
      gates: for each kind of block; 0: one for each output of ``gated``.
      channels: hidden operators of ``matrix``.
      layers: of products of ``matrix``.
    """

    kind: str = "gated"
    alone: bool = False
    components: int = 12
    inputs: int = 12
    hidden: tuple[int, ...] = (32,)
    gates: int = 16
    channels: int = 4
    layers: int = 1

    def __post_init__(self):
        one_of("operator.network.kind", self.kind, ("gated", "matrix"))
        sizes = (self.components, self.inputs, self.channels, self.layers, *self.hidden)
        if min(sizes) < 1 or self.gates < (self.kind == "matrix"):
            raise ConfigError(
                refusal(
                    "operator.network",
                    got=f"sizes {sizes}, gates {self.gates}",
                    expected="positive numbers; gates may be 0 for kind gated",
                )
            )


def group_name(key: tuple[int, ...]) -> str:
    """Blocks that share their gates: ``"1_8_8"`` for kinds 1 and -1 of two oxygens."""
    return "_".join(map(str, (abs(key[0]), *key[1:3])))


def operator_irreps(matrices: Array, table: SpeciesTable) -> Irreps:
    """Irreps of several operators, ``{key: (n_blocks, 2 L + 1, n_operators * n_pairs)}``.

    Args:
      matrices: ``(n_operators, n_structures, nao, nao)``.
      table: of the molecules.
    """
    found = couple_species(gather_species(matrices, table), table.spec)
    return {  # channels before shell pairs
        k: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1) for k, x in found.items()
    }


def to_matrix(y: Irreps, table: SpeciesTable, n_structures: int, nao: int) -> Array:
    """The matrices of irreps, ``(n_structures, nao, nao)``."""
    return scatter_species(uncouple_species(y, table.spec), table, n_structures, nao)


def compress(columns: Params, x: Irreps) -> Irreps:
    """Leading components ``{key: (n_blocks, 2 L + 1, n_components)}`` of keys that have some.

    Args:
      columns: by :func:`key_name`, ``components`` and for scalars on an atom ``mean``.
      x: irreps.
    """
    out = {}
    for key in sorted(x):
        if (own := columns.get(key_name(key))) is not None:
            centred = x[key] - own["mean"] if "mean" in own else x[key]
            out[key] = einsum("nmc,ca->nma", centred, own["components"])
    return out


def invariants(x: Irreps, table: SpeciesTable, n_structures: int, nao: int) -> dict[str, Array]:
    """Invariants of blocks and of their atoms.

    Args:
      x: components, from :func:`compress`.
      table: of the molecules.
      n_structures: molecules.
      nao: of the padded matrices.

    Returns:
      ``{group: (n_blocks, n_invariants)}`` by :func:`group_name`; unchanged when the two atoms of a
      pair of one element are exchanged.
    """
    parts: dict[tuple[int, int, int], list[Array]] = {}
    for key in sorted(x):
        kind, first, second, l, _ = key
        own = parts.setdefault((abs(kind), first, second), [])
        if l == 0 and kind != -1:
            own.append(x[key][:, 0])
        else:
            lead = x[key][..., :LEADING]
            i, j = np.triu_indices(lead.shape[-1])
            own.append(einsum("nma,nmb->nab", lead, lead)[:, i, j])
    found = {group: jnp.concatenate(own, axis=-1) for group, own in parts.items()}

    def of_atoms(z: int, which: dict, group) -> Array:
        own, atoms = found[0, z, z], (0, z, z)
        at_first = jnp.zeros((n_structures, nao, own.shape[-1]), own.dtype)
        here = table.molecule[atoms], table.rows[atoms][:, 0]
        at_first = at_first.at[here].set(own, mode="drop")
        return at_first.at[table.molecule[group], which[group][:, 0]].get(mode="fill", fill_value=0)

    out = {}
    for group, own in found.items():
        kind, first, second = group
        if kind and ((0, first, first) not in found or (0, second, second) not in found):
            continue
        if kind:
            a = of_atoms(first, table.rows, group)
            b = of_atoms(second, table.columns, group)
            ends = (a, b) if kind == 2 else (a + b, (a - b) ** 2)
            own = jnp.concatenate([own, *ends], axis=-1)
        out[group_name(group)] = own
    return out


def saturated(inputs: Params, s: dict[str, Array]) -> dict[str, Array]:
    """Inputs of gates, ``{group: (n_blocks, n_inputs)}``, of groups that have some."""
    out = {}
    for group, own in s.items():
        if group in inputs:
            z = einsum("ni,iq->nq", own - inputs[group]["mean"], inputs[group]["components"])
            out[group] = SATURATION * jnp.tanh(z / SATURATION)
    return out


def bounded(x: Array) -> Array:
    """Irreps ``(n, 2 L + 1, c)`` smoothly limited in length, the identity near zero."""
    square = jnp.sum(x * x, axis=1, keepdims=True) / x.shape[1]
    return x / jnp.sqrt(1.0 + square / BOUND**2)


class Gates(nn.Module):
    """A network of each group.

    Attributes:
      hidden: widths.
      n_out: outputs; 0: the last hidden layer.
    """

    hidden: tuple[int, ...]
    n_out: int

    @nn.compact
    def __call__(self, z: dict[str, Array]) -> dict[str, Array]:
        """``{group: (n, n_inputs)}`` to ``{group: (n, n_out)}``."""
        out = {}
        for group, x in z.items():
            for i, width in enumerate(self.hidden):
                x = jax.nn.silu(_dense(width, f"{group}_{i}")(x))
            out[group] = _dense(self.n_out, f"{group}_last")(x) if self.n_out else x
        return out


def _dense(width: int, name: str, bias: bool = True) -> nn.Dense:
    return nn.Dense(width, use_bias=bias, name=name, param_dtype=jnp.float64)


class GatedFeatures(nn.Module):
    """Components times gates; see the module.

    Attributes:
      config: sizes.
    """

    config: Op2OpNetworkConfig

    @nn.compact
    def __call__(self, fixed: Params, data: Params, table: SpeciesTable) -> tuple[Irreps, Irreps]:
        """Features ``(n, 2 L + 1, n_features)``, and gates of outputs ``(n, 1, n_outputs)``."""
        c, features, gates = self.config, {}, {}
        found = Gates(c.hidden, c.gates)(data["z"])
        for key, x in data["x"].items():
            if (group := group_name(key)) not in found:
                continue
            if c.gates:
                own = jnp.tanh(found[group])
                own = jnp.concatenate([jnp.ones_like(own[:, :1]), own], axis=-1)
                features[key] = einsum("ng,nmc->nmgc", own, x).reshape(*x.shape[:2], -1)
            else:
                n_outputs = len(fixed["scale"][key_name(key)])
                features[key] = x
                gates[key] = 2 * nn.sigmoid(_dense(n_outputs, key_name(key))(found[group]))[:, None]
        return features, gates


class MatrixFeatures(nn.Module):
    """Irreps of learned products of operators; see the module.

    Attributes:
      config: sizes.
    """

    config: Op2OpNetworkConfig

    @nn.compact
    def __call__(self, fixed: Params, data: Params, table: SpeciesTable) -> tuple[Irreps, Irreps]:
        """Features ``(n, 2 L + 1, n_features)``, and no gates of outputs."""
        c, w = self.config, data["W"]
        found = Gates(c.hidden, c.gates)(data["z"])
        x = {k: v for k, v in data["x"].items() if group_name(k) in found}
        features: Irreps = x
        for layer in range(c.layers):
            hidden: Irreps = {}
            for key, columns in features.items():
                pairs = len(fixed["scale"][key_name(key)])
                y = _dense(c.channels * pairs, f"{key_name(key)}_{layer}", bias=False)(columns)
                gates = jnp.tanh(found[group_name(key)])
                gates = _dense(c.channels, f"{key_name(key)}_gates_{layer}")(gates)[
                    :, None, :, None
                ]
                y = y.reshape(*y.shape[:2], c.channels, pairs) * (1 + jnp.tanh(gates))
                hidden[key] = bounded(y.reshape(*y.shape[:2], -1))
            products = self.products(hidden, w, table)
            self.sow("intermediates", f"products_{layer}", products)
            scale = fixed["products"].get(str(layer), {})
            bound = {
                k: bounded(products[k] * scale[key_name(k)] if scale else products[k]) for k in x
            }
            features = {k: jnp.concatenate([x[k], hidden[k], bound[k]], axis=-1) for k in x}
        return features, {}

    def products(self, hidden: Irreps, w: Array, table: SpeciesTable) -> Irreps:
        """Irreps of the symmetrised products of hidden operators with each other and with W."""
        c = self.config.channels
        apart = {k: x.reshape(*x.shape[:2], c, -1) for k, x in hidden.items()}
        h = jax.vmap(lambda y: to_matrix(y, table, *w.shape[:2]), in_axes=2)(apart)
        i, j = np.triu_indices(c)
        whole = jnp.concatenate([matmul(h[i], h[j]), matmul(h, w)])
        return operator_irreps(0.5 * (whole + jnp.matrix_transpose(whole)), table)


def module(config: Op2OpNetworkConfig) -> nn.Module:
    """The network of a configuration."""
    return (GatedFeatures if config.kind == "gated" else MatrixFeatures)(config)


def read_out(fixed: Params, readout: Params, features: Irreps, gates: Irreps) -> Irreps:
    """What is added, ``{key: (n_blocks, 2 L + 1, n_outputs)}``."""
    out = {}
    for key, f in features.items():
        name = key_name(key)
        y = einsum("nmf,fo->nmo", f, readout[name]) * fixed["scale"][name]
        out[key] = y * gates[key] if key in gates else y
    return out


def prepare(
    config: Op2OpNetworkConfig,
    fixed: Params,
    x: Irreps,
    operators: dict[str, Array],
    table: SpeciesTable,
) -> Params:
    """What a network sees of molecules: ``x`` components, ``z`` inputs of gates, and ``W``.

    Args:
      config: sizes.
      fixed: ``columns`` and ``inputs``, what :func:`compress` and :func:`saturated` need.
      x: irreps of the words (``gated``) or of the operators (``matrix``), see :func:`columns_of`.
      operators: by letter, ``(n_structures, nao, nao)``.
      table: of the molecules.
    """
    s = operators["S"]
    data: Params = {"x": compress(fixed["columns"], x)}
    data["z"] = saturated(fixed["inputs"], invariants(data["x"], table, *s.shape[:2]))
    if config.kind == "matrix":
        data["W"] = operators["W"]
    return data


def columns_of(
    config: Op2OpNetworkConfig, x: Irreps, operators: dict[str, Array], table: SpeciesTable
) -> Irreps:
    """Irreps that a network starts from: those of the words, or of :data:`MATRIX_WORDS`."""
    if config.kind == "gated":
        return x
    letters = [operators[k] if k == "E" else operators[k][None] for k in MATRIX_WORDS]
    return operator_irreps(jnp.concatenate(letters), table)


def network_irreps(
    config: Op2OpNetworkConfig, params: Params, data: Params, table: SpeciesTable
) -> Irreps:
    """What a network adds to the irreps of a matrix.

    Args:
      config: sizes.
      params: ``fixed`` (components, inputs, scales), ``learned`` (weights), ``readout``.
      data: from :func:`prepare`.
      table: of the molecules.
    """
    fixed = params["fixed"]
    own = {"params": params.get("learned", {})}
    features, gates = module(config).apply(own, fixed, data, table)
    # Flax's types do not tell that without mutable state there is the output alone
    return read_out(fixed, params["readout"], features, gates)  # pyright: ignore[reportArgumentType]
