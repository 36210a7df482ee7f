"""Op2Prop keeps the promises of every family."""

from contract import Contract

from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit


class TestOp2Prop(Contract):
    config = Op2PropConfig(
        basis="sto-3g",
        powers=(1,),
        gram_powers=(1,),
        hidden=(4,),
        fit=Op2PropFit(epochs=3, batch_size=8),
    )
