"""Integrals of single functions against libcint, and their derivatives against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax import integrals
from opml_jax.basis import Basis, Shell, layout_of
from opml_jax.data.reference import molecule
from opml_jax.errors import OpmlError
from opml_jax.testing import assert_grad_matches_fd

CONTRACTED = Basis.from_shells(
    "contracted",
    {
        1: [Shell(0, np.array([3.0, 0.8]), np.array([0.3, 0.7])), Shell(1, np.ones(1), np.ones(1))],
        8: [
            Shell(0, np.array([40.0, 6.0, 0.5]), np.array([0.2, 0.5, 0.6])),
            Shell(5, np.array([1.4]), np.ones(1)),
            Shell(6, np.array([0.9]), np.ones(1)),
        ],
    },
)
"""A contraction, and the highest angular momenta."""


@pytest.fixture(scope="module", params=["def2-universal-jkfit", "contracted"])
def case(request, water):
    basis = CONTRACTED
    if request.param != "contracted":
        basis = opml.load_basis(request.param, water.numbers)
    index = layout_of(water, basis).from_pyscf_index
    return water, basis, molecule(water, basis), index


def test_metrics_are_libcints(case):
    structure, basis, mol, index = case
    for function, name in (
        (integrals.coulomb_metric, "int2c2e"),
        (integrals.overlap_metric, "int1e_ovlp"),
    ):
        theirs = mol.intor(name)[index][:, index]
        ours = jax.jit(function)(structure, basis)
        # rounding of a sum of some ten terms as large as the largest element
        np.testing.assert_allclose(ours, theirs, atol=3e-14 * np.abs(theirs).max())


def test_values_and_potentials_are_libcints(case, rng):
    from pyscf import gto

    structure, basis, mol, index = case
    points = rng.normal(size=(20, 3)) * 2
    points[0] = structure.positions[1]  # a nucleus
    values = mol.eval_gto("GTOval_sph", points)[:, index]
    np.testing.assert_allclose(integrals.values(structure, basis, points), values, atol=1e-13)
    charges = gto.fakemol_for_charges(points)  # Gaussians as narrow as makes no difference
    potentials = gto.intor_cross("int2c2e", charges, mol)[:, index]
    ours = integrals.potentials(structure, basis, points)
    np.testing.assert_allclose(ours, potentials, atol=1e-11)


def test_derivatives_in_positions_and_exponents(water):
    basis = CONTRACTED
    weights = np.random.default_rng(1).normal(size=(layout_of(water, basis).nao,) * 2)

    def scalar(positions, factor):
        shells = jax.tree.map(lambda x: x, basis.shells)
        scaled = tuple(
            tuple(Shell(s.l, s.exponents * factor, s.coefficients) for s in own) for own in shells
        )
        moved = water.replace(positions=positions)
        return jnp.sum(weights * integrals.coulomb_metric(moved, basis.replace(shells=scaled)))

    assert_grad_matches_fd(lambda x: scalar(x, 1.0), jnp.asarray(water.positions))
    assert_grad_matches_fd(lambda f: scalar(jnp.asarray(water.positions), f), jnp.asarray(1.0))


def test_on_one_atom_metrics_have_derivatives():
    """Distances of zero: every function of an atom with every other."""
    atom = opml.Structure((8,), np.zeros((1, 3)))

    def trace(x):
        return jnp.sum(integrals.coulomb_metric(atom.replace(positions=x), CONTRACTED))

    slope = jax.jit(jax.grad(trace))(jnp.zeros((1, 3)))
    np.testing.assert_allclose(slope, 0.0, atol=1e-10)


def test_three_centres_are_pyscfs(water):
    from pyscf import df

    basis = opml.load_basis("sto-3g", water.numbers)
    aux = opml.load_basis("def2-universal-jfit", water.numbers)
    mol, aux_mol = molecule(water, basis), molecule(water, aux)
    i, p = (layout_of(water, b).from_pyscf_index for b in (basis, aux))
    for kind, name in (("coulomb", "int3c2e"), ("overlap", "int3c1e")):
        theirs = df.incore.aux_e2(mol, aux_mol, name).transpose(2, 0, 1)[p][:, i[:, None], i]
        ours = integrals.three_center(water, basis, aux, kind)
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_refusals(water):
    basis = opml.load_basis("sto-3g", water.numbers)
    with pytest.raises(OpmlError, match="one Structure"):
        integrals.coulomb_metric(opml.batch([water], basis), basis)
    with pytest.raises(OpmlError, match="no derivatives"):
        jax.grad(lambda x: integrals.three_center(water.replace(positions=x), basis, basis).sum())(
            jnp.asarray(water.positions)
        )
    with pytest.raises(OpmlError, match="one of coulomb, overlap"):
        integrals.three_center(water, basis, basis, "gravity")
