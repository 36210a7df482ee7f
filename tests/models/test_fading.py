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
from opml_jax.models import Op2Op, Op2OpConfig, OperatorModel
from opml_jax.models.fading import faded
from opml_jax.testing import assert_grad_matches_fd
from opml_jax.training import op2op as training
from opml_jax.training.op2op import fit_op2op, level_error

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
    assert np.linalg.eigvalsh(s)[0] < training.SMALL_OVERLAP
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


@pytest.fixture(scope="module")
def parts(superposed_waters):
    return [superposed_waters.subset(i) for i in (range(12), range(12, 24))]


def test_validation_chooses(parts, monkeypatch):
    """Not judged where overlaps are large; else the best of those tried, which models apply."""
    basis = opml.load_basis("sto-3g", [1, 8])
    definition = Op2Op(ONE_SHOT, basis)
    plain = fit_op2op(definition, *parts)
    assert not plain.fades
    assert "fade" not in plain.params
    monkeypatch.setattr(training, "SMALL_OVERLAP", 1.0)
    monkeypatch.setattr(training, "FADES", (0.3, 0.1, 0.2))  # 0 would be best here
    fit = fit_op2op(definition, *parts)
    assert set(fit.fades) == {0.3, 0.1, 0.2}
    best = min(fit.fades, key=fit.fades.get)
    assert best == 0.1 == fit.params["fade"]
    assert fit.fades[best] == level_error(definition, fit.params, parts[1])
    s = parts[1].structures[0]
    without, found = (OperatorModel(definition, f.params).predict(s) for f in (plain, fit))
    mol = molecule(s, "sto-3g")
    base = opml.from_pyscf(mol.intor("int1e_kin") + mol.intor("int1e_nuc"), s, basis)
    wanted = base + faded(without["fock"] - base, without["overlap"], best)
    assert np.abs(found["fock"] - wanted).max() < 1e-11  # Hartree: rounding of solves
    assert np.abs(found["fock"] - without["fock"]).max() > 1e-3


def test_files_keep_it(parts, tmp_path):
    basis = opml.load_basis("sto-3g", [1, 8])
    definition = Op2Op(ONE_SHOT, basis)
    params = fit_op2op(definition, *parts).params
    meta = {"elements": ["H", "O"]}
    model = OperatorModel(definition, {**params, "fade": np.float64(0.1)}, meta)
    s = parts[1].structures[0]
    opml.save_model(tmp_path / "model.safetensors", model)
    again = opml.load_model(tmp_path / "model.safetensors")
    assert np.array_equal(again.predict(s)["fock"], model.predict(s)["fock"])
    plain = dataclasses.replace(model, params=params)
    assert not np.array_equal(plain.predict(s)["fock"], model.predict(s)["fock"])
