"""Op2Op keeps the promises of every family."""

import pytest
from contract import Contract

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.models.op2op import Op2OpConfig


class TestOp2Op(Contract):
    config = Op2OpConfig(
        "sto-3g",
        ("S", "W", "W S", "W W", "E"),
        density_words=("P", "S P S", "U", "U S", "U P S"),
        exponents=(0.6,),
    )
    # the self-consistent density is iterated to 1e-7 Hartree of its equation
    equivariant = 1e-6

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls):
        """T + V + J + K of superposed atoms: real matrices, made at once."""
        water = opml.read_dataset(opml.bundled("water"), limit=36).structures
        basis, fock = opml.load_basis("sto-3g", [1, 8]), []
        for s in water:
            mf = molecule(s, "sto-3g").RHF()
            guess = mf.get_fock(dm=mf.get_init_guess(key="atom"))
            fock.append(opml.from_pyscf(guess, s, basis))
        return opml.Dataset(water, {"fock": fock}, {"basis": "sto-3g"})
