"""Op2Density keeps the promises of every family."""

from contract import Contract

from opml_jax.models.op2density import Op2DensityConfig, Op2DensityFit


class TestOp2Density(Contract):
    config = Op2DensityConfig(
        aux_basis="demon",
        basis="6-31g**",
        components=6,
        references=8,
        fit=Op2DensityFit(penalty=1e-6),
    )
