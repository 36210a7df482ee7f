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


def inputs(columns: Params, x: Mapping[str, Array]) -> dict[str, Array]:
    """Leading components in units of their spread, ``{l: (n_atoms, 2 l + 1, n_components)}``."""
    out = {}
    for l, of_degree in columns.items():
        leading = jnp.moveaxis(x[l][:, : len(of_degree["scale"])], 1, 2)
        centred = leading - of_degree["mean"] if "mean" in of_degree else leading
        out[l] = centred * of_degree["scale"]
    return out


def gated(
    config: Op2DensityNetworkConfig, learned: Params, x: Mapping[str, Array]
) -> dict[str, Array]:
    """What the readout is linear in, ``{l: (n_atoms, 2 l + 1, n_columns)}``, of :func:`inputs`."""
    gates, scalars = Gates(config.hidden, config.gates), saturate(x["0"][:, 0])
    g = gates.apply({"params": learned}, {"s": scalars})
    g = jnp.tanh(g["s"])  # pyright: ignore[reportCallIssue, reportArgumentType]  # no state beside it
    g = jnp.concatenate([jnp.ones_like(g[:, :1]), g], axis=-1)
    out = {}
    for l, irreps in x.items():
        if l == "0":
            irreps = jnp.concatenate([jnp.ones_like(irreps[..., :1]), irreps], axis=-1)
        f = einsum("ng,nmk->nmgk", g, irreps).reshape(*irreps.shape[:2], -1)
        out[l] = f / f.shape[-1] ** 0.5
    return out


def outputs(
    config: Op2DensityNetworkConfig, params: Params, x: Mapping[str, Array]
) -> tuple[dict[int, Array], dict[int, Array]]:
    """Coefficients ``{l: (n_atoms, n, 2 l + 1)}`` and widths ``{l: (n_atoms, n)}``, if there are.

    Of ``params``, ``learned``, ``readout`` and ``widths``, and what they read, :func:`inputs`.
    """
    f = gated(config, params["learned"], x)
    added: dict[int, Array] = {
        int(l): einsum("nmf,fr->nrm", f[l], r) for l, r in params["readout"].items()
    }
    widths: dict[int, Array] = {
        int(l): jnp.exp(config.widths * jnp.tanh(einsum("nf,fr->nr", f["0"][:, 0], r)))
        for l, r in params.get("widths", {}).items()
    }
    return added, widths


def with_moments(
    coefficients: Mapping[int, Array], widths: Mapping[int, Array]
) -> dict[int, Array]:
    """Coefficients ``{l: (n_atoms, n, 2 l + 1)}`` of functions that keep their moments."""
    return {
        l: c * scale_of_coefficients(l, widths[l])[..., None] if l in widths else c
        for l, c in coefficients.items()
    }
