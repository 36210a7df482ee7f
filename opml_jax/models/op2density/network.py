r"""Networks that add to the kernels of Op2Density: irreps mixed by functions of scalars.

Coefficients of degree l on an atom are increased by

.. math::
    c_{inlm} \mathrel{+}= \sum_{gk} (1, g(s_i))_g\, x^l_{ikm}\, R^l_{gk,n},

x being the leading principal components of the irreps that the kernels compare (at l = 0 and a
constant), s the scalars among them, and g bounded functions of s, a network of each element: the
matrix that maps irreps to coefficients depends on the environment. R is zero before training, so
that an untrained model is the closed form. Only scalars are gates, so O(3) holds by construction.

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

from collections.abc import Mapping

import jax.numpy as jnp

from ...basis import scale_of_coefficients
from ...learn.gates import Gates, saturate
from ...numerics import Array, einsum
from ..base import Params
from .config import Op2DensityNetworkConfig


def gates_of(config: Op2DensityNetworkConfig) -> Gates:
    """The network that makes the gates of one element; a Linen module."""
    return Gates(config.hidden, config.gates)


def inputs(params: Params, x: dict[str, Array]) -> dict[str, Array]:
    """Leading components in units of their spread, ``{l: (n_atoms, 2 l + 1, n_components)}``.

    Args:
      params: ``columns``: ``{l: {"scale", "mean" (of scalars)}}``.
      x: components, from :func:`opml_jax.models.op2density.kernels.reduced`.
    """
    out = {}
    for l, columns in params["columns"].items():
        leading = jnp.moveaxis(x[l][:, : len(columns["scale"])], 1, 2)
        centred = leading - columns["mean"] if "mean" in columns else leading
        out[l] = centred * columns["scale"]
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
    scalars = saturate(x["0"][:, 0])
    g = gates_of(config).apply({"params": learned}, {"s": scalars})
    g = jnp.tanh(g["s"])  # pyright: ignore[reportCallIssue, reportArgumentType]  # no state beside it
    g = jnp.concatenate([jnp.ones_like(g[:, :1]), g], axis=-1)
    out = {}
    for l, irreps in x.items():
        if l == "0":
            irreps = jnp.concatenate([jnp.ones_like(irreps[..., :1]), irreps], axis=-1)
        f = einsum("ng,nmk->nmgk", g, irreps).reshape(*irreps.shape[:2], -1)
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
      x: components, from :func:`opml_jax.models.op2density.kernels.reduced`.

    Returns:
      Coefficients ``{l: (n_atoms, n, 2 l + 1)}``; factors of exponents ``{l: (n_atoms, n)}``,
      empty for a fixed basis.
    """
    f = gated(config, params["learned"], inputs(params, x))
    added: dict[str, Array] = {
        l: einsum("nmf,fr->nrm", f[l], r) for l, r in params["readout"].items()
    }
    return added, widths_of(config, params.get("widths", {}), f["0"])
