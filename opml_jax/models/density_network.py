r"""Networks that add to the kernels of Op2Density: irreps mixed by functions of scalars.

Coefficients of degree l on an atom are increased by

.. math::
    c_{inlm} \mathrel{+}= \sum_{gk} (1, g(s_i))_g\, x^l_{ikm}\, R^l_{gk,n},

x being the leading principal components of the irreps that the kernels compare (at l = 0 and a
constant), s the scalars among them, and g bounded functions of s, a network of each element: the
matrix that maps irreps to coefficients depends on the environment. R is zero before training, so
that an untrained model is the closed form. The form is that of
:mod:`opml_jax.models.op2op_network`; only scalars are gates, so O(3) holds by construction.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from ..errors import at_least
from ..numerics import Array, einsum
from .op2op_network import SATURATION, Gates

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Op2DensityNetworkConfig:
    """A network on top of the kernels.

    Attributes:
      alone: leave the kernels out, but for the baseline, to see what the network is worth.
      components: of the irreps of one degree, most.
      hidden: widths of the gates' networks.
      gates: functions of the scalars of an atom.
      dipole_weight: of the squared error of dipoles in what is descended, beside the error in the
        metric; each counts in units of what it was at the start.
      real_space_weight: likewise of the absolute error of the density on points.
      points: how many for each structure, drawn from an atomic grid that is turned at random.
    """

    alone: bool = False
    components: int = 8
    hidden: tuple[int, ...] = (32,)
    gates: int = 8
    dipole_weight: float = 0.0
    real_space_weight: float = 0.0
    points: int = 500

    def __post_init__(self):
        at_least("density.network", self, ("components", "gates", "points"), 1)
        at_least("density.network", self, ("dipole_weight", "real_space_weight"))


def gates_of(config: Op2DensityNetworkConfig) -> Gates:
    """The network of one element's gates; a Linen module."""
    return Gates(config.hidden, config.gates)


def inputs(params: Params, x: dict[str, Array]) -> dict[str, Array]:
    """Leading components in units of their spread, ``{l: (n_atoms, 2 l + 1, n_components)}``.

    Args:
      params: ``columns``: ``{l: {"scale", "mean" (of scalars)}}``.
      x: components, from :func:`opml_jax.models.density.reduced`.
    """
    out = {}
    for l, own in params["columns"].items():
        leading = jnp.moveaxis(x[l][:, : len(own["scale"])], 1, 2)
        out[l] = (leading - own["mean"] if "mean" in own else leading) * own["scale"]
    return out


def gated(
    config: Op2DensityNetworkConfig, learned: Params, x: dict[str, Array]
) -> dict[str, Array]:
    """What the readout is linear in, ``{l: (n_atoms, 2 l + 1, n_columns)}``.

    Args:
      config: sizes.
      learned: weights of the gates' network.
      x: from :func:`inputs`.
    """
    scalars = SATURATION * jnp.tanh(x["0"][:, 0] / SATURATION)
    g = gates_of(config).apply({"params": learned}, {"s": scalars})
    g = jnp.tanh(g["s"])  # pyright: ignore[reportCallIssue, reportArgumentType]  # no state beside it
    g = jnp.concatenate([jnp.ones_like(g[:, :1]), g], axis=-1)
    out = {}
    for l, own in x.items():
        if l == "0":
            own = jnp.concatenate([jnp.ones_like(own[..., :1]), own], axis=-1)
        f = einsum("ng,nmk->nmgk", g, own).reshape(*own.shape[:2], -1)
        out[l] = f / f.shape[-1] ** 0.5
    return out


def network_coefficients(
    config: Op2DensityNetworkConfig, params: Params, x: dict[str, Array]
) -> dict[str, Array]:
    """What is added for atoms of one element, ``{l: (n_atoms, n, 2 l + 1)}``.

    Args:
      config: sizes.
      params: ``columns``, ``learned`` and ``readout`` ``{l: (n_columns, n)}``.
      x: components, from :func:`opml_jax.models.density.reduced`.
    """
    f = gated(config, params["learned"], inputs(params, x))
    return {l: einsum("nmf,fr->nrm", f[l], r) for l, r in params["readout"].items()}
