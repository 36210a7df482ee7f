"""Integrals of two orbitals and a function of an atom, against libcint's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyscf.df import incore

import opml_jax as opml
from opml_jax.basis import Basis, Shell
from opml_jax.data.reference import molecule
from opml_jax.integrals import (
    Shells,
    local_densities,
    local_potentials,
    packed,
    three_center,
    unpacked,
)
from opml_jax.structures.elements import symbol
from opml_jax.testing import assert_grad_matches_fd

ROUNDING = 1e-12  # relative to the largest
FEW = (Shells(0, (0.2,)), Shells(0, (2.0, 20.0), heavy=True), Shells(1, (0.7,)))
FEW = (*FEW, Shells(2, (0.4, 1.5)), Shells(3, (0.9,), heavy=True))


def auxiliary(numbers, functions):
    """The same functions as a basis: on an atom ascending in l, then as they come."""
    return Basis.from_shells(
        "functions",
        {
            z: [
                Shell(f.l, np.array([a]), np.array([1.0]))
                for f in functions
                if z > 2 or not f.heavy
                for a in f.exponents
            ]
            for z in set(numbers)
        },
    )


def in_our_order(structure, functions):
    """Rows of the auxiliary basis' integrals in the order of the functions."""
    out, offsets, n = [], {}, 0
    for a, z in enumerate(structure.numbers):
        for f in functions:
            if z > 2 or not f.heavy:
                offsets[a, f] = n
                n += (2 * f.l + 1) * len(f.exponents)
    for heavy in (False, True):
        for a, z in enumerate(structure.numbers):
            for f in (f for f in functions if f.heavy == heavy and (z > 2 or not heavy)):
                rows = offsets[a, f] + np.arange((2 * f.l + 1) * len(f.exponents))
                out.append(rows.reshape(len(f.exponents), -1).T.reshape(-1))
    return np.concatenate(out)


def of_libcint(structure, basis, functions, kind):
    """Integrals over three centres, in the order of the functions and of pairs i >= j."""
    wanted = three_center(structure, basis, auxiliary(structure.numbers, functions), kind)
    i, j = np.tril_indices(wanted.shape[-1])
    return wanted[in_our_order(structure, functions)][:, i, j]


@pytest.fixture(scope="module")
def methanol():
    positions = [[0, 0, 0], [2.6, 0.2, 0.1], [-0.8, 1.9, 0.3], [-0.7, -1.1, 1.5]]
    positions += [[-0.6, -0.8, -1.8], [3.2, -1.4, 0.6]]
    return opml.Structure([6, 8, 1, 1, 1, 1], positions)


def sorted_by_l(functions):
    return tuple(sorted(functions, key=lambda f: f.l))


@pytest.mark.parametrize("name", ["def2-svp", "6-31g"])
def test_potentials_of_charges_are_libcints(methanol, name):
    """libcint's charges have another norm: that of the functions."""
    basis, functions = opml.load_basis(name, [1, 6, 8]), sorted_by_l(FEW)
    found, real = local_potentials(methanol, basis, functions)
    assert np.all(real)
    wanted = of_libcint(methanol, basis, functions, "coulomb")
    factor = np.sum(found * wanted, axis=1) / np.sum(found * found, axis=1)
    left = np.abs(factor[:, None] * found - wanted).max()
    assert left < ROUNDING * np.abs(wanted).max()
    assert np.all(factor > 0)
    s = functions[0].exponents[0]  # a charge of 1 against a normalised function
    assert factor[0] == pytest.approx((2 * s / np.pi) ** 0.75 * (np.pi / s) ** 1.5, rel=1e-12)


@pytest.mark.parametrize("name", [pytest.param("def2-svp", marks=pytest.mark.slow), "6-31g"])
def test_densities_are_libcints(methanol, name):
    basis, functions = opml.load_basis(name, [1, 6, 8]), sorted_by_l(FEW)
    found, real = local_densities(methanol, basis, functions)
    assert np.all(real)
    wanted = of_libcint(methanol, basis, functions, "overlap")
    np.testing.assert_allclose(found, wanted, atol=1e-11 * np.abs(wanted).max())


def test_gradients_of_densities_move_the_first_orbital(methanol):
    """Of orbitals on one atom with functions on others: nothing else moves."""
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    aux = auxiliary(methanol.numbers, sorted_by_l(FEW))
    found = -three_center(methanol, basis, aux, "overlap_gradient")
    own = opml.basis.layout_of(methanol, basis).atom == 1
    others = opml.basis.layout_of(methanol, aux).atom != 1

    def on_others(x):
        positions = np.array(methanol.positions)
        positions[1, 2] += x
        q = three_center(methanol.replace(positions=positions), basis, aux, "overlap")
        return q[np.ix_(others, own, ~own)]

    step = 1e-3
    slope = 8 * (on_others(step) - on_others(-step)) - on_others(2 * step) + on_others(-2 * step)
    slope = slope / (12 * step)
    np.testing.assert_allclose(found[2][np.ix_(others, own, ~own)], slope, atol=1e-9)


@pytest.mark.parametrize("name", [pytest.param("def2-svp", marks=pytest.mark.slow), "6-31g"])
def test_potentials_between_gradients_are_libcints(methanol, name):
    """Of charges without p, whose order is another there, on any scale: that of the other test."""
    functions = tuple(f for f in sorted_by_l(FEW) if f.l != 1)
    basis = opml.load_basis(name, [1, 6, 8])
    mol = molecule(methanol, name)
    aux = mol.copy()
    aux.basis = {
        symbol(z): [[f.l, [a, 1.0]] for f in functions if z > 2 or not f.heavy for a in f.exponents]
        for z in {*methanol.numbers}
    }
    aux.build()
    order = in_our_order(methanol, functions)
    rows = []
    for kind in ("int3c2e", "int3c2e_ipvip1"):
        wanted = incore.aux_e2(mol, aux, kind)
        wanted = wanted if wanted.ndim == 3 else wanted[[0, 4, 8]].sum(axis=0)  # xx + yy + zz
        rows.append([packed(opml.from_pyscf(m, methanol, basis), 1.0) for m in wanted.T[order]])
    values, gradients = map(np.array, rows)
    found, _ = local_potentials(methanol, basis, functions)
    factor = np.sum(found * values, axis=1) / np.sum(found * found, axis=1)
    found, _ = local_potentials(methanol, basis, functions, of_gradients=True)
    left = np.abs(factor[:, None] * found - gradients).max()
    assert left < ROUNDING * np.abs(gradients).max()


@pytest.mark.slow
def test_a_batch_is_its_molecules(methanol):
    water = opml.Structure([8, 1, 1], [[0, 0, 0.2], [0, 1.4, -0.9], [0, -1.4, -0.9]])
    basis = opml.load_basis("sto-3g", [1, 6, 8])
    batch = opml.batch([water, methanol], basis)
    found, real = local_potentials(batch, basis, FEW)
    i, j = np.tril_indices(batch.layout.nao)
    for rows, there, s in zip(found, np.asarray(real), (water, methanol), strict=True):
        alone, _ = local_potentials(s, basis, FEW)
        n = int(np.sqrt(2 * alone.shape[1]))
        inside = (i < n) & (j < n)
        assert there.sum() == len(alone)
        assert np.abs(rows[there][:, inside] - alone).max() < ROUNDING * np.abs(alone).max()
        assert not np.any(rows[~there])
        assert not np.any(rows[:, ~inside])


@pytest.mark.slow
def test_gradient_by_finite_differences():
    water = opml.Structure([8, 1, 1], [[0, 0, 0.2], [0, 1.4, -0.9], [0, -1.4, -0.9]])
    basis = opml.load_basis("sto-3g", [1, 8])
    shape = local_potentials(water, basis, FEW)[0].shape
    weights = np.random.default_rng(0).normal(size=shape)

    def total(positions):
        moved = water.replace(positions=positions)
        return jnp.sum(weights * local_potentials(moved, basis, FEW)[0])

    assert_grad_matches_fd(jax.jit(total), water.positions, rtol=1e-7)


def test_packed_elements_are_those_of_the_matrix():
    x = np.random.default_rng(0).normal(size=(2, 5, 5))
    x = x + x.transpose(0, 2, 1)
    assert np.array_equal(unpacked(packed(x, 1.0)), x)
    y = np.random.default_rng(1).normal(size=(5, 5))
    y = y + y.T
    assert float(packed(x[0], 2.0) @ packed(y, 1.0)) == pytest.approx(np.sum(x[0] * y), rel=1e-13)
