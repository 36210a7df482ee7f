"""Learned matrices are those of local potentials, and their densities are self-consistent."""

import dataclasses
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data.reference import molecule
from opml_jax.errors import ConfigError, ConvergenceError, DataError, DataWarning
from opml_jax.integrals import packed
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.base.doubt import FAR
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.config import ObservablesFit, Op2OpFit
from opml_jax.models.op2op.diagnosis import BEYOND
from opml_jax.models.op2op.draws import up_to
from opml_jax.models.op2op.family import FAMILY
from opml_jax.models.op2op.local import LARGEST_BIAS, check_local, projection_bias
from opml_jax.models.op2op.rows import labelled_batches
from opml_jax.units import ANGSTROM_PER_BOHR

GOLDEN = Path(__file__).parents[1] / "golden"
FEW = Op2OpConfig(words=("W", "W S"), density_words=("P", "U", "U S"), exponents=())
PBE = (
    1e-5  # Hartree: what the projection takes of PBE's matrices, and density fitting of J: 3, 5e-6
)
EXCHANGE = 2e-5  # Hartree: what density fitting leaves of J and of half of K, 5e-6 and 6e-6
META_GGA = 2e-5  # Hartree: what is left of r2SCAN's matrices: 6 to 10e-6 in molecules of QM7
SAME = 1e-6  # Hartree: two ways to one solution, both to 1e-8
SPANNED = 1e-9  # Hartree: what is left by a combination of 142 nearly dependent matrices


def test_matrices_that_are_made_self_consistent_are_local():
    assert Op2OpConfig().is_local
    for others in ({"density_words": ()}, {"stages": 1}, {"projection": "none"}):
        assert not Op2OpConfig(**others).is_local
    assert Op2OpConfig(density_words=(), projection="local").is_local


def test_the_first_guess_of_a_local_model_is_local():
    basis = opml.load_basis("sto-3g", [1, 8])
    config = dataclasses.replace(FEW, basis="sto-3g")
    assert up_to(Op2Op(config, basis), 0).config.is_local
    config = dataclasses.replace(config, projection="none")
    assert not up_to(Op2Op(config, basis), 0).config.is_local


def test_what_is_not_local_is_refused():
    with pytest.raises(ConfigError, match=r"model.projection"):
        Op2OpConfig(target="dm", density_words=(), projection="local")
    fit = Op2OpFit(ObservablesFit())
    with pytest.raises(ConfigError, match="no projection"):
        Op2OpConfig(density_words=(), projection="local", fit=fit).check()
    with pytest.raises(ConfigError, match=r"model.projection"):
        Op2OpConfig(projection="global")


def test_labels_of_a_hybrid_ask_for_its_exchange(water):
    matrices = {"fock": [np.eye(24)]}
    part = opml.Dataset(water.structures[:1], matrices, {"method": "pbe0", "basis": "def2-svp"})
    for exchange in (0.0, 0.2):
        config = Op2OpConfig(exchange=exchange)
        definition = FAMILY.define(config, [1, 8])
        with pytest.raises(DataError, match=r"exchange must be 0\.25, as pbe0 has"):
            FAMILY.check(definition, config, {"train": part})
    config = Op2OpConfig(exchange=0.25)
    FAMILY.check(FAMILY.define(config, [1, 8]), config, {"train": part})
    for wrong in ({"density_words": ()}, {"exchange": 1.5}):
        with pytest.raises(ConfigError, match=r"model.exchange"):
            Op2OpConfig(**{"exchange": 0.25, **wrong})


@pytest.mark.parametrize("method", ["r2scan", "tpss"])
def test_labels_of_a_meta_gga_ask_for_their_projection(water, method):
    meta = {"method": method, "basis": "def2-svp"}
    part = opml.Dataset(water.structures[:1], {"fock": [np.eye(24)]}, meta)
    definition = FAMILY.define(FEW, [1, 8])
    with pytest.raises(DataError, match=rf"projection must be meta_gga, as {method} is"):
        FAMILY.check(definition, FEW, {"train": part})
    for projection in ("meta_gga", "none"):
        config = dataclasses.replace(FEW, projection=projection)
        FAMILY.check(definition, config, {"train": part})


def test_files_from_before_are_neither_projected_nor_extrapolated_otherwise():
    model = opml.load_model(GOLDEN / "op2op_self_consistent.safetensors")
    config = model.definition.config
    assert (config.projection, config.extrapolation) == ("none", "difference")


@pytest.fixture(scope="module")
def water():
    return opml.read_dataset(opml.bundled("water")).subset(range(20))


@pytest.mark.slow
def test_a_model_says_when_it_is_far_from_what_it_knows():
    """Water with short bonds, whose F is wrong by 16, 670 and 207160 microhartree (PySCF)."""
    model = opml.load_model("pretrained:chno-fock")
    positions = np.array([[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]]) / ANGSTROM_PER_BOHR
    near, short, far = (opml.Structure([8, 1, 1], x * positions) for x in (1.0, 0.8, 0.7))
    with warnings.catch_warnings(action="error"):
        assert model.predict(near)["nonlocality"] < model.card["largest_nonlocality"]
    with pytest.warns(DataWarning) as caught:
        out = model.predict(short)
    assert any("no potential in the learned matrix" in str(w.message) for w in caught)
    assert FAR < out["nonlocality"] / model.card["largest_nonlocality"] < BEYOND
    with pytest.raises(ConvergenceError, match="none of a molecule"):
        model.predict(far)
    card = {"largest_nonlocality": out["nonlocality"] / (1.1 * BEYOND)}
    with pytest.raises(ConvergenceError, match=r"none of a molecule: .* no matrix of a potential"):
        dataclasses.replace(model, card=card).predict(short)
    limited = model.with_limits([near, short])
    assert limited.card["largest_nonlocality"] == pytest.approx(out["nonlocality"], rel=1e-6)
    unprojected = dataclasses.replace(model.definition.config, projection="none")
    assert not unprojected.judges_itself


@pytest.mark.slow
def test_exact_exchange_is_refused_unless_it_is_computed(water):
    """PBE's matrices stay, those of Hartree and Fock are named, or have nothing left to learn."""
    definition = Op2Op(FEW, opml.load_basis("def2-svp", [1, 8]))
    one = water.subset([0])
    mf = molecule(one.structures[0], "def2-svp").RHF()
    mf.kernel()
    fock = opml.from_pyscf(mf.get_fock(), one.structures[0], definition.basis)
    exact = opml.Dataset(one.structures, {"fock": [fock]})
    pbe, other = (
        projection_bias(definition, labelled_batches(definition, d, 1)) for d in (one, exact)
    )
    assert pbe[0] < PBE
    assert other[0] > LARGEST_BIAS
    check_local(definition, labelled_batches(definition, one, 1))
    computed = Op2Op(dataclasses.replace(FEW, exchange=1.0), definition.basis)
    left = projection_bias(computed, labelled_batches(computed, exact, 1))
    assert left[0] < EXCHANGE
    with pytest.raises(DataError, match=r"fock .*model.projection=none"):
        check_local(definition, labelled_batches(definition, exact, 1))


@pytest.mark.slow
def test_potentials_between_gradients_are_what_a_meta_gga_needs(water):
    """Local potentials alone miss r2SCAN's matrix of water by more than they may."""
    structure, bias = water.structures[0], {}
    mf = molecule(structure, "def2-svp").RKS(xc="r2scan")
    mf.grids.level = 3
    mf.kernel()
    fock = opml.from_pyscf(mf.get_fock(), structure, opml.load_basis("def2-svp", [1, 8]))
    data = opml.Dataset([structure], {"fock": [fock]})
    for projection in ("local", "meta_gga"):
        config = dataclasses.replace(FEW, projection=projection)
        definition = Op2Op(config, opml.load_basis("def2-svp", [1, 8]))
        bias[projection] = projection_bias(definition, labelled_batches(definition, data, 1))[0]
    assert bias["local"] > LARGEST_BIAS
    assert bias["meta_gga"] < META_GGA


@pytest.mark.slow
def test_predictions_are_local_and_self_consistent(water):
    """And the solution does not depend on what was made small on the way to it."""
    basis = opml.load_basis("def2-svp", [1, 8])
    definition = Op2Op(dataclasses.replace(FEW, tolerance=1e-8), basis)
    parts = {"train": water.subset(range(12)), "validation": water.subset(range(12, 16))}
    fit = fit_closed_form(definition, parts, Run())
    assert not {"fade", "functional_fade"} & set(fit.params)
    s = water.structures[18]
    out = Op2OpModel(definition, fit.params).predict(s)
    fock, dm, overlap = (out[k] for k in ("fock", "dm", "overlap"))
    w, u = np.linalg.eigh(overlap)
    root = (u / w**0.5) @ u.T
    half = root @ fock @ dm @ overlap @ root
    assert np.abs(half - half.T).max() < 1e-7  # Hartree; 1e-8 asked, of F[P] instead of F

    rest = fock - opml.integrals.kinetic(s, basis) - opml.integrals.external_potential(s, basis)
    rest = rest - opml.integrals.density_fit(s, basis).coulomb(jnp.asarray(dm))
    matrices = np.asarray(opml.integrals.density_fit(s, basis).integrals)
    assert matrices.shape == (24 + 24 + 94, 24 * 25 // 2)  # a proper part of all matrices
    matrices = matrices / np.linalg.norm(matrices, axis=1)[:, None]
    found = np.linalg.lstsq(matrices.T, np.asarray(packed(rest, 1.0)))[0]
    assert np.abs(matrices.T @ found - packed(rest, 1.0)).max() < SPANNED

    operators, table = definition.operators(s), definition.table(s)
    known = definition.known_irreps(operators, table)
    of_density = definition.with_density(s, operators, jnp.asarray(dm)[None])
    x = definition.density_irreps(of_density, table)
    learned = definition.assemble(fit.params["known"], known, table, operators["S"])
    learned = learned + definition.assemble(fit.params["density"], x, table, operators["S"])
    left_out = (learned - operators["projection"](learned)) ** 2
    assert out["nonlocality"] == pytest.approx(float(left_out.mean()) ** 0.5, rel=1e-6)

    by_difference = dataclasses.replace(definition.config, extrapolation="difference")
    other = Op2OpModel(Op2Op(by_difference, basis), fit.params).predict(s)
    assert np.abs(other["fock"] - fock).max() < SAME
