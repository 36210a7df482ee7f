r"""Networks that add to the kernels of Op2Density: irreps mixed by functions of scalars.

Coefficients of degree l on an atom are increased by

.. math::
    c_{inlm} \mathrel{+}= \sum_{gk} (1, g(s_i))_g\, x^l_{ikm}\, R^l_{gk,n},

x being the leading principal components of the irreps that the kernels compare (at l = 0 and a
constant), s the scalars among them, and g bounded functions of s, a network of each element: the
matrix that maps irreps to coefficients depends on the environment. R is zero before training, so
that an untrained model is the closed form. The form is that of
:mod:`opml_jax.models.op2op_network`; only scalars are gates, so O(3) holds by construction.

With ``widths`` the functions themselves depend on the environment (the "flexible basis" of DenSNet:
Bogojeski et al., arXiv:2604.24563): the exponents of every shell are multiplied by

.. math::
    w_{inl} = \exp\Big(\omega \tanh \sum_{gk} (1, g(s_i))_g\, (1, s_{ik})_k\, W^l_{gk,n}\Big),

W being zero before training. Coefficients of degree l are multiplied by
:math:`w^{(l + 3/2) / 2}`, so that a width leaves the moment of its function (the charge of an s
function, the dipole of a p function) as it was: what kernels know of electrons and dipoles stays.
Scales of functions need no parameters of their own: coefficients are free already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ..basis import scale_of_coefficients
from ..errors import ConfigError, at_least, refusal
from ..numerics import Array, einsum
from .op2op_network import SATURATION, Gates

Params = dict[str, Any]

LARGEST = 1.0
"""Logarithm of a factor of exponents that makes sense: sets have one every factor of 2 to 3."""


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
      widths: largest logarithm of the factor of a shell's exponents, which then depend on the
        environment and are learned from true densities on the points; 0: a fixed basis. Below half
        the logarithm of the ratio of neighbouring exponents (2: 0.35) functions cannot meet.
    """

    alone: bool = False
    components: int = 8
    hidden: tuple[int, ...] = (32,)
    gates: int = 8
    dipole_weight: float = 0.0
    real_space_weight: float = 0.0
    points: int = 500
    widths: float = 0.0

    def __post_init__(self):
        at_least("density.network", self, ("components", "gates", "points"), 1)
        at_least("density.network", self, ("dipole_weight", "real_space_weight"))
        if not 0 <= self.widths <= LARGEST:
            raise ConfigError(
                refusal(
                    "density.network.widths",
                    got=self.widths,
                    expected=f"from 0 (a fixed basis) to {LARGEST:g}",
                )
            )


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


def widths_of(
    config: Op2DensityNetworkConfig, readout: Params, gated_scalars: Array
) -> dict[str, Array]:
    """Factors of exponents ``{l: (n_atoms, n_shells)}``.

    Args:
      config: with the largest logarithm.
      readout: ``{l: (n_columns, n_shells)}``.
      gated_scalars: ``(n_atoms, 1, n_columns)``, what :func:`gated` has of l = 0.
    """
    return {
        l: jnp.exp(config.widths * jnp.tanh(einsum("nf,fr->nr", gated_scalars[:, 0], r)))
        for l, r in readout.items()
    }


def with_moments(
    coefficients: Mapping[int, Array], widths: Mapping[int, Array]
) -> dict[int, Array]:
    """Coefficients ``{l: (n_atoms, n, 2 l + 1)}`` of functions that keep their moments."""
    return {
        l: c * scale_of_coefficients(l, widths[l])[..., None] if l in widths else c
        for l, c in coefficients.items()
    }


def network_outputs(
    config: Op2DensityNetworkConfig, params: Params, x: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What is added for atoms of one element, and the widths of its functions.

    Args:
      config: sizes.
      params: ``columns``, ``learned``, ``readout`` ``{l: (n_columns, n)}`` and if the basis is
        flexible ``widths`` ``{l: (n_columns, n)}``.
      x: components, from :func:`opml_jax.models.density.reduced`.

    Returns:
      Coefficients ``{l: (n_atoms, n, 2 l + 1)}``; factors of exponents ``{l: (n_atoms, n)}``,
      empty for a fixed basis.
    """
    f = gated(config, params["learned"], inputs(params, x))
    added: dict[str, Array] = {
        l: einsum("nmf,fr->nrm", f[l], r) for l, r in params["readout"].items()
    }
    return added, widths_of(config, params.get("widths", {}), f["0"])
