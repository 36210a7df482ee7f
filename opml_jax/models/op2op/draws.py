r"""What the last linear map of an Op2Op model reads, and how far it can be trusted there.

Weights of a kind of block and irrep (key k) are those of a ridge, :math:`W = (X^T X + \lambda
n)^{-1} X^T Y`, so as in Bayesian linear regression the posterior of every output is a normal
distribution with the covariance :math:`\sigma_o^2 (X^T X + \lambda n)^{-1}`. The full matrix of a
key would be larger than the model; kept are vectors drawn with it,

.. math::
    a_{kd} \sim N\big(0, (X^T X + \lambda n)^{-1}\big), \qquad
    \Delta W_{kd} = a_{kd}\, (\sigma_o \epsilon_{od})^T, \quad \epsilon = \pm 1,

whose mean squares over d are the variances (:mod:`opml_jax.models.op2op.variance`). Each draw is
a change of the weights, so it makes an equivariant change of the matrix, and what follows from the
changed matrices spreads as an observable does.
"""

from __future__ import annotations

import dataclasses

import jax

from ...errors import OpmlError
from ...features.couple import key_name
from ...numerics import Array, einsum
from ...operators.species import SpeciesTable
from ...structures import Structure, StructureBatch
from ..base.definition import Params
from .filters import sensible
from .functions import Op2Op
from .inputs import Irreps, Operators, joined
from .network import to_matrix


def up_to(definition: Op2Op, stages: int) -> Op2Op:
    """The same model with its first stages only; 0: the first guess alone."""
    parts = {"stages": stages} if stages else {"stages": 0, "density_words": (), "network": None}
    parts |= {} if stages else {"exchange": 0.0}
    parts |= {"uncertainty": False, "projection": definition.config.projected_on}
    return dataclasses.replace(definition, config=dataclasses.replace(definition.config, **parts))


def last_map(definition: Op2Op, params: Params) -> Params:
    """Those of a model's parameters that hold its last linear map."""
    n = definition.config.stages
    return params["stages"][str(n - 1)] if n else params


def with_last_map(definition: Op2Op, params: Params, last: Params) -> Params:
    """Parameters with another last linear map, as :func:`last_map` gives it."""
    n = definition.config.stages
    return {**params, "stages": {**params["stages"], str(n - 1): last}} if n else last


def last_columns(
    definition: Op2Op,
    params: Params,
    structures: Structure | StructureBatch,
    table: SpeciesTable,
    dm: Array | None = None,
) -> tuple[Operators, Irreps]:
    """Operators, and the columns of every key that the last linear map of a model reads.

    Of a model that makes it self-consistent the density matrix ``dm`` ``(n_structures, nao, nao)``
    is read, of one with stages the parameters of all but the last.
    """
    operators, config = definition.operators(structures, table), definition.config
    known = definition.known_irreps(operators, table)
    if not config.density_words:
        return operators, known
    if config.stages:
        before = up_to(definition, config.stages - 1)
        dm = before.apply(params, structures, table)["dm"]
        dm = dm[None] if isinstance(structures, Structure) else dm
    if dm is None:
        raise OpmlError("dm", got=None, expected="the self-consistent density matrix")
    operators = definition.with_density(structures, operators, dm)
    return operators, joined(known, definition.density_irreps(operators, table))


def drawn_changes(
    definition: Op2Op,
    params: Params,
    structures: Structure | StructureBatch,
    table: SpeciesTable,
    dm: Array,
) -> Array:
    """Changes of F as large as its errors, ``(n_draws, n_structures, nao, nao)`` at ``dm``."""
    operators, x = last_columns(definition, params, structures, table, dm)
    s, y = operators["S"], {}
    for key, columns in x.items():
        if (draws := params["draws"].get(key_name(key))) is not None:
            moved = einsum("nmc,cd->dnm", columns, draws["directions"])
            if "constant" in draws:
                moved = moved + draws["constant"][:, None, None]
            y[key] = einsum("dnm,od->dnmo", moved, draws["scales"])
    changes = jax.vmap(lambda irreps: to_matrix(irreps, table, *s.shape[:2]))(y)
    last = last_map(definition, params)
    fade = "functional_fade" if definition.config.density_words else "fade"
    return sensible(changes, operators, last, fade)[0]
