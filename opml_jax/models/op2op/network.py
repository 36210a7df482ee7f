r"""Networks that add to the closed form of Op2Op: irreps of blocks times functions of invariants.

For every kind of block and irrep (key k) a network makes equivariant features f, and a linear map
reads what is to be added to the matrix off them,

.. math:: y_k \mathrel{+}= \sigma_k\, f_k\, R_k, \qquad f = (1, g(s)) \otimes \tilde X,

with R zero before training, so that an untrained model is the closed form. :math:`\tilde X` are
the leading equivariant components of the block's irreps (principal components, each L on its own)
and g bounded functions of the block's invariants s; so the map of the irreps, a matrix, depends on
s. With ``gates = 0`` it is :math:`y = \sigma\, G(s) \odot (\tilde X R)`, one gate an output, the
form of Nigam, Smidt, Dusson (arXiv:2602.15345, Op2Op).

Invariants are the scalars among the components and scalar products of the leading others, of the
block and of its atoms, symmetric in two atoms of one element. Weights are those of a kind of
block, whichever atoms it belongs to, and features of a pair vanish with its irreps, so what is
added is size-extensive like the closed form.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ...features.couple import key_name, uncouple_species
from ...learn.gates import Gates, dense, saturate
from ...numerics import Array, einsum
from ...operators.species import SpeciesTable, scatter_species
from ..base.definition import Params
from .config import Op2OpNetworkConfig
from .inputs import Irreps

LEADING = 4
"""Components of an irrep above L = 0 whose scalar products are invariants."""


def group_name(key: tuple[int, ...]) -> str:
    """Blocks that share their gates: ``"1_8_8"`` for kinds 1 and -1 of two oxygens."""
    return "_".join(map(str, (abs(key[0]), *key[1:3])))


def to_matrix(y: Irreps, table: SpeciesTable, n_structures: int, nao: int) -> Array:
    """The matrices of irreps, ``(n_structures, nao, nao)``."""
    return scatter_species(uncouple_species(y, table.spec), table, n_structures, nao)


def compress(columns: Params, x: Irreps) -> Irreps:
    """Leading components ``{key: (n_blocks, 2 L + 1, n_components)}`` of keys in ``columns``."""
    out = {}
    for key in sorted(x):
        if (of_key := columns.get(key_name(key))) is not None:
            centred = x[key] - of_key["mean"] if "mean" in of_key else x[key]
            out[key] = einsum("nmc,ca->nma", centred, of_key["components"])
    return out


def invariants(x: Irreps, table: SpeciesTable, n_structures: int, nao: int) -> dict[str, Array]:
    """Invariants of blocks and of their atoms, ``{group: (n_blocks, n_invariants)}``.

    Unchanged when the two atoms of a pair of one element are exchanged.
    """
    scalars = _scalars(x)

    def of_atoms(z: int, which: dict, group) -> Array:
        values, atoms = scalars[0, z, z], (0, z, z)
        at_first = jnp.zeros((n_structures, nao, values.shape[-1]), values.dtype)
        here = table.molecule[atoms], table.rows[atoms][:, 0]
        at_first = at_first.at[here].set(values, mode="drop")
        return at_first.at[table.molecule[group], which[group][:, 0]].get(mode="fill", fill_value=0)

    out = {}
    for group, values in scalars.items():
        kind, first, second = group
        if kind and ((0, first, first) not in scalars or (0, second, second) not in scalars):
            continue
        if kind:
            a = of_atoms(first, table.rows, group)
            b = of_atoms(second, table.columns, group)
            ends = (a, b) if kind == 2 else (a + b, (a - b) ** 2)
            values = jnp.concatenate([values, *ends], axis=-1)
        out[group_name(group)] = values
    return out


def _scalars(x: Irreps) -> dict[tuple[int, int, int], Array]:
    """Scalars and scalar products of the blocks themselves, by kind and elements."""
    parts: dict[tuple[int, int, int], list[Array]] = {}
    for key in sorted(x):
        kind, first, second, l, _ = key
        if l == 0 and kind != -1:
            values = x[key][:, 0]
        else:
            lead = x[key][..., :LEADING]
            i, j = np.triu_indices(lead.shape[-1])
            values = einsum("nma,nmb->nab", lead, lead)[:, i, j]
        parts.setdefault((abs(kind), first, second), []).append(values)
    return {group: jnp.concatenate(values, axis=-1) for group, values in parts.items()}


def saturated(inputs: Params, s: dict[str, Array]) -> dict[str, Array]:
    """Inputs of gates, ``{group: (n_blocks, n_inputs)}``, of groups that have some."""
    out = {}
    for group, values in s.items():
        if group in inputs:
            centred = values - inputs[group]["mean"]
            out[group] = saturate(einsum("ni,iq->nq", centred, inputs[group]["components"]))
    return out


class GatedFeatures(nn.Module):
    """Components times gates; see the module."""

    config: Op2OpNetworkConfig

    @nn.compact
    def __call__(self, fixed: Params, data: Params) -> tuple[Irreps, Irreps]:
        """Features ``(n, 2 L + 1, n_features)``, and gates of outputs ``(n, 1, n_outputs)``."""
        c, features, gates = self.config, {}, {}
        hidden = Gates(c.hidden, c.gates)(data["z"])
        for key, x in data["x"].items():
            if (group := group_name(key)) not in hidden:
                continue
            if c.gates:
                g = jnp.tanh(hidden[group])
                g = jnp.concatenate([jnp.ones_like(g[:, :1]), g], axis=-1)
                features[key] = einsum("ng,nmc->nmgc", g, x).reshape(*x.shape[:2], -1)
            else:
                n_outputs = len(fixed["scale"][key_name(key)])
                features[key] = x
                gates[key] = 2 * nn.sigmoid(dense(n_outputs, key_name(key))(hidden[group]))[:, None]
        return features, gates


def network_data(
    fixed: Params, x: Irreps, table: SpeciesTable, n_structures: int, nao: int
) -> Params:
    """What a network sees: ``x`` components of columns, and ``z`` inputs of gates by group."""
    data: Params = {"x": compress(fixed["columns"], x)}
    data["z"] = saturated(fixed["inputs"], invariants(data["x"], table, n_structures, nao))
    return data


def gated_features(
    config: Op2OpNetworkConfig, fixed: Params, learned: Params, data: Params
) -> tuple[Irreps, Irreps]:
    """Features and gates of outputs of :class:`GatedFeatures` with learned weights."""
    # Flax's types do not tell that without mutable state there is the output alone
    return GatedFeatures(config).apply({"params": learned}, fixed, data)  # pyright: ignore[reportReturnType]


def network_irreps(config: Op2OpNetworkConfig, params: Params, data: Params) -> Irreps:
    """What a network adds to the irreps of a matrix, ``{key: (n_blocks, 2 L + 1, n_outputs)}``."""
    features, gates = gated_features(config, params["fixed"], params.get("learned", {}), data)
    out = {}
    for key, f in features.items():
        name = key_name(key)
        y = einsum("nmf,fo->nmo", f, params["readout"][name]) * params["fixed"]["scale"][name]
        out[key] = y * gates[key] if key in gates else y
    return out
