"""Learned matrices where functions hardly overlap with themselves: levels stay sensible."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import opml_jax as opml
from opml_jax import integrals
from opml_jax.data.reference import molecule
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op import selection
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.filters import faded
from opml_jax.models.op2op.selection import level_error
from opml_jax.testing import assert_grad_matches_fd

ONE_SHOT = Op2OpConfig(
    "sto-3g", words=("W", "W W", "W S"), density_words=(), exponents=(), baseline="hcore"
)
# a noise of spectral norm |N| moves no level by more than |N| max_s s^3 / (s^2 + eps^2)^2
BOUND = 3**1.5 / 16
ROUNDING = 1e-12


def noise(n, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, n))
    return (x + x.T) / np.linalg.norm(x + x.T, 2)


@pytest.fixture(scope="module")
def diffuse(water):
    """Overlap and core Hamiltonian of water with diffuse functions, by libcint."""
    mol = molecule(water, "aug-cc-pvdz")
    s, h = mol.intor("int1e_ovlp"), mol.intor("int1e_kin") + mol.intor("int1e_nuc")
    assert np.linalg.eigvalsh(s)[0] < selection.SMALL_OVERLAP
    return s, h


def test_the_filter_is_that_of_eigenvalues(diffuse):
    s, h = diffuse
    w, u = np.linalg.eigh(s)
    f = u * (w**2 / (w**2 + 0.03**2)) @ u.T
    assert np.abs(faded(h, s, 0.03) - f @ h @ f).max() < ROUNDING * np.abs(h).max()
    assert np.array_equal(faded(h, s, 0.0), h)


def test_padding_takes_no_part(diffuse):
    s, h = diffuse
    n = len(s)
    s_padded, h_padded = (np.pad(x, (0, 3)) for x in diffuse)
    found = faded(jnp.stack([h_padded, 2 * h_padded]), jnp.stack([s_padded, s_padded]), 0.03)
    assert np.abs(found[1, :n, :n] - 2 * faded(h, s, 0.03)).max() < ROUNDING * np.abs(h).max()
    assert not np.any(found[:, n:])


@pytest.mark.parametrize("scale", [0.01, 0.1])
def test_noise_moves_levels_by_no_more_than_its_bound(diffuse, scale):
    """Weyl's bound in orthonormal functions; without fading levels move by Hartrees."""
    s, h = diffuse
    size = 0.02
    n = size * noise(len(s))
    wanted = scipy.linalg.eigvalsh(h, s)
    plain = np.abs(scipy.linalg.eigvalsh(h + n, s) - wanted).max()
    left = np.abs(scipy.linalg.eigvalsh(h + np.asarray(faded(n, s, scale)), s) - wanted).max()
    assert left < BOUND * size / scale < 0.7
    assert plain > 3 * left


def test_derivatives(diffuse, water):
    _, h = diffuse
    basis = opml.load_basis("aug-cc-pvdz", [1, 8])
    m = np.asarray(opml.from_pyscf(h, water, basis))

    def trace(positions):
        s = integrals.overlap(water.replace(positions=positions), basis)
        return jnp.sum(m * faded(m, s, 0.03))

    assert_grad_matches_fd(jax.jit(trace), np.asarray(water.positions), rtol=1e-6)


CONVERGED = 1e-7  # Hartree, the tolerance of self-consistency


@pytest.fixture(scope="module")
def parts(superposed_waters):
    sets = {"train": range(12), "validation": range(12, 24)}
    return {name: superposed_waters.subset(i) for name, i in sets.items()}


@pytest.mark.slow
def test_validation_chooses(parts, monkeypatch):
    """Not judged where overlaps are large; else the best of those tried, which models apply."""
    basis = opml.load_basis("sto-3g", [1, 8])
    definition = Op2Op(ONE_SHOT, basis)
    plain = fit_closed_form(definition, parts, Run())
    assert not plain.fades
    assert "fade" not in plain.params
    monkeypatch.setattr(selection, "SMALL_OVERLAP", 1.0)
    monkeypatch.setattr(selection, "FADES", (0.3, 0.1, 0.2))  # 0 would be best here
    fit = fit_closed_form(definition, parts, Run())
    assert set(fit.fades) == {0.3, 0.1, 0.2}
    best = min(fit.fades, key=fit.fades.get)
    assert best == 0.1 == fit.params["fade"]
    assert fit.fades[best] == level_error(definition, fit.params, parts["validation"])
    s = parts["validation"].structures[0]
    without, found = (Op2OpModel(definition, f.params).predict(s) for f in (plain, fit))
    mol = molecule(s, "sto-3g")
    base = opml.from_pyscf(mol.intor("int1e_kin") + mol.intor("int1e_nuc"), s, basis)
    wanted = base + faded(without["fock"] - base, without["overlap"], best)
    assert np.abs(found["fock"] - wanted).max() < 1e-11  # Hartree: rounding of solves
    assert np.abs(found["fock"] - without["fock"]).max() > 1e-3


@pytest.mark.slow
def test_self_consistent_matrices_fade_too(parts, monkeypatch):
    """By the least scale with which validation converges; the rest of the matrix does not."""
    basis = opml.load_basis("sto-3g", [1, 8])
    plain = {"projection": "none", "extrapolation": "difference", "tolerance": CONVERGED}
    definition = Op2Op(dataclasses.replace(ONE_SHOT, density_words=("P",), **plain), basis)
    monkeypatch.setattr(selection, "SMALL_OVERLAP", 1.0)
    monkeypatch.setattr(selection, "FADES", (0.1,))
    monkeypatch.setattr(selection, "FUNCTIONAL_FADES", (0.05, 0.2, 0.3))
    monkeypatch.setattr(selection, "FADED_FLOORS", (1e-8, 1e-6))
    error, tried = selection.mean_error, []

    def least_fails(definition, params, data):
        tried.append(params["functional_fade"])
        return np.inf if tried[-1] == 0.05 else error(definition, params, data)

    monkeypatch.setattr(selection, "mean_error", least_fails)
    fit = fit_closed_form(definition, parts, Run())
    assert tried == [0.05, 0.05, 0.2, 0.2]
    assert fit.params["functional_fade"] == 0.2
    assert set(fit.floors) == {1e-8, 1e-6}

    predicted = Op2OpModel(definition, fit.params).predict(parts["validation"].structures)
    found = {name: predicted[name][0] for name in ("fock", "dm", "overlap")}
    s = parts["validation"].structures[0]
    table = definition.table(s)
    operators = definition.operators(s, table)
    known = definition.known_irreps(operators, table)
    operators = definition.with_density(s, operators, found["dm"][None])
    x = definition.density_irreps(operators, table)
    learned = definition.assemble(fit.params["known"], known, table, operators["S"])
    learned = learned + definition.assemble(fit.params["density"], x, table, operators["S"])
    w, u = np.linalg.eigh(found["overlap"])
    f = u * (w**2 / (w**2 + 0.2**2)) @ u.T
    rest = np.asarray(operators["T"] + operators["U"])[0]
    learned = np.asarray(learned)[0]
    assert np.abs(rest + f @ learned @ f - found["fock"]).max() < CONVERGED
    assert np.abs(rest + learned - found["fock"]).max() > 1e-2
