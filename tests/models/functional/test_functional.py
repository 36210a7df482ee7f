"""The learned functional: derivatives, symmetry, rows, and the closed form, at random weights."""

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import opml_jax as opml
from opml_jax import integrals
from opml_jax.data.reference import atomic_densities
from opml_jax.density import atomic_grids
from opml_jax.errors import OpmlError
from opml_jax.mean_field import kohn_sham
from opml_jax.models.functional import Words, learned_functional, superposed
from opml_jax.models.functional.baseline import Baseline
from opml_jax.models.functional.fit import Labelled, normal_equations
from opml_jax.models.functional.rows import projected, rows_of
from opml_jax.models.functional.words import fit_maps
from opml_jax.observables import density_matrix, purify

WORDS = Words(cubic=3, quartic=2, prior=0.1)


@pytest.fixture(scope="module", params=["sto-3g", pytest.param("6-31g*", marks=pytest.mark.slow)])
def basis(request):
    return opml.load_basis(request.param, [1, 8])


@pytest.fixture(scope="module")
def atoms(basis):
    return atomic_densities(basis)


@pytest.fixture(scope="module")
def waters():
    rng = np.random.default_rng(0)
    flat = np.array([[0, 0, 0.2], [0, 1.4, -0.9], [0, -1.4, -0.9]])
    return [opml.Structure([8, 1, 1], flat + 0.05 * rng.normal(size=(3, 3))) for _ in range(6)]


def density(structure, basis):
    fock = integrals.kinetic(structure, basis) + integrals.neutral_atom_potential(structure, basis)
    return np.asarray(density_matrix(fock, integrals.overlap(structure, basis), 10))


def labelled(structure, basis, atoms, differences):
    dms = [density(structure, basis)]
    dms.append(0.9 * dms[0] + 0.1 * superposed(atoms, structure, basis))
    return projected(structure, basis, dms, differences, superposed(atoms, structure, basis))


@pytest.fixture(scope="module")
def geometries(waters, basis, atoms):
    nothing = [np.zeros((basis_size(waters[0], basis),) * 2)] * 2
    return [labelled(s, basis, atoms, nothing) for s in waters]


def basis_size(structure, basis):
    return opml.basis.layout_of(structure, basis).nao


@pytest.fixture(scope="module")
def params(geometries, basis):
    element = np.searchsorted(basis.elements, np.concatenate([g.numbers for g in geometries]))
    change = np.concatenate([g.change[0] for g in geometries])
    maps = fit_maps(WORDS, change, np.concatenate([g.atoms for g in geometries]), element)
    weights = 0.01 * np.random.default_rng(1).normal(size=(2, WORDS.size))
    return {"maps": maps, "weights": weights}


def functional_of(params, structure, basis, atoms, free=None):
    """Energy and matrix of densities at positions, compiled."""
    free = superposed(atoms, structure, basis) if free is None else free

    @jax.jit
    def called(dm, positions=structure.positions):
        moved = structure.replace(positions=positions)
        return learned_functional(params, moved, basis, free)(dm)

    return called


def test_the_matrix_is_the_derivative_of_the_energy(params, waters, basis, atoms):
    own, dm = functional_of(params, waters[0], basis, atoms), density(waters[0], basis)
    x = np.random.default_rng(2).normal(size=dm.shape)
    change = 0.1 * (x + x.T)
    step = 1e-3
    found = [own(dm + s * step * change)[0] for s in (-2, -1, 1, 2)]
    slope = (8 * (found[2] - found[1]) - (found[3] - found[0])) / (12 * step)
    assert float(slope) == pytest.approx(float(np.sum(own(dm)[1] * change)), rel=1e-9)


def test_energies_do_not_turn(params, waters, basis, atoms):
    turn = Rotation.random(random_state=3).as_matrix()
    turned = waters[0].replace(positions=np.asarray(waters[0].positions) @ turn.T)
    called = functional_of(params, waters[0], basis, atoms)
    energies = [called(density(s, basis), s.positions)[0] for s in (waters[0], turned)]
    assert float(energies[0]) == pytest.approx(float(energies[1]), rel=1e-11)


def test_a_batch_is_its_molecules(params, waters, basis, atoms):
    hydrogen = opml.Structure([1, 1], [[0, 0, 0.7], [0, 0, -0.7]])
    together = opml.batch([waters[0], hydrogen], basis)
    nao = together.layout.nao
    free = np.stack([superposed(atoms, s, basis, nao) for s in (waters[0], hydrogen)])
    sizes = [len(superposed(atoms, s, basis)) for s in (waters[0], hydrogen)]
    energies, matrices = functional_of(params, together, basis, atoms, free)(1.1 * free)
    for i, structure in enumerate((waters[0], hydrogen)):
        n = sizes[i]
        energy, matrix = functional_of(params, structure, basis, atoms)(1.1 * free[i, :n, :n])
        assert float(energies[i]) == pytest.approx(float(energy), rel=1e-11)
        np.testing.assert_allclose(matrices[i, :n, :n], matrix, atol=1e-11)
        assert not np.any(np.asarray(matrices)[i, n:])


def test_rows_are_what_the_functional_does(params, waters, basis, atoms):
    """Matrices in their space, energies, and the derivative where P stays idempotent."""
    structure, weights = waters[1], params["weights"].reshape(-1)
    dm = density(structure, basis)
    x = np.random.default_rng(4).normal(size=dm.shape)
    wanted = x + x.T
    own = labelled(structure, basis, atoms, [wanted, wanted])
    matrices, energy, gradient = rows_of(params["maps"], basis.elements, own)
    computed = functional_of(params, structure, basis, atoms)(dm)
    assert energy @ weights == pytest.approx(float(computed[0]), rel=1e-11)
    along, size = matrices[0] @ weights, len(dm) ** 2
    matrix = np.asarray(computed[1])
    assert along @ along == pytest.approx(np.sum(matrix**2) / size, rel=1e-9)
    # what is asked of directions that the metric hardly has is lost
    most = np.linalg.norm(matrix) * np.linalg.norm(wanted) / size
    product = np.sum(matrix * wanted) / size
    assert along @ own.wanted[0] == pytest.approx(product, abs=1e-5 * most)

    called = functional_of(params, structure, basis, atoms)

    def moved(positions):
        at = structure.replace(positions=positions)
        return called(purify(dm, integrals.overlap(at, basis)), positions)[0]

    slope = jax.grad(moved)(np.asarray(structure.positions))
    scale = np.abs(slope).max()
    np.testing.assert_allclose(gradient @ weights, slope.reshape(-1), atol=1e-8 * scale)


def test_the_closed_form_finds_a_functional(params, geometries, waters, basis, atoms):
    """Labels of known weights; the sum of squares is that of the rows."""
    weights = params["weights"].reshape(-1)
    known = []
    for own in geometries:
        matrices, energy, gradient = rows_of(params["maps"], basis.elements, own)
        wanted = np.array([m @ weights for m in matrices])
        moved = own.__class__(**{**own.__dict__, "wanted": wanted})
        known.append(Labelled(moved, float(energy @ weights), gradient @ weights))
    system = normal_equations(params["maps"], basis.elements, known[:5])
    found = system.solve(1e-10, energy=1.0, gradient=1.0)
    matrices, energy, gradient = rows_of(params["maps"], basis.elements, known[5].projected)
    assert energy @ found == pytest.approx(known[5].energy, rel=1e-4)  # a geometry never seen
    scale = np.abs(known[5].gradient).max()
    np.testing.assert_allclose(gradient @ found, known[5].gradient, atol=1e-2 * scale)
    other = np.random.default_rng(5).normal(size=weights.shape)
    rows = [rows_of(params["maps"], basis.elements, g.projected)[1] @ other for g in known[:5]]
    mean = np.mean((np.array(rows) - [g.energy for g in known[:5]]) ** 2)
    assert system.loss(other)["energy"] == pytest.approx(mean, rel=1e-9)


@pytest.mark.slow
def test_the_baseline_of_a_batch_is_the_calculation_of_a_molecule(waters):
    """At the self-consistent density: energies, matrices and forces."""
    basis = opml.load_basis("sto-3g", [1, 8])
    structure, baseline = waters[0], Baseline(basis, "lda", 0)
    grids = atomic_grids(structure, 0)

    def energy(positions):
        found = kohn_sham(structure.replace(positions=positions), basis, grids, tolerance=1e-9)
        return found["energy"], found

    slope, found = jax.jit(jax.grad(energy, has_aux=True))(structure.positions)
    hydrogen = opml.Structure([1, 1], [[0, 0, 0.7], [0, 0, -0.7]])
    together, grids = baseline.laid_out([structure], baseline.room([structure, hydrogen]))
    n = together.layout.nao
    dms = np.pad(found["dm"], (0, n - len(found["dm"])))[None, None]
    energies, gradients, focks = baseline.of_densities(together, grids, dms)
    assert energies[0] == pytest.approx(float(found["energy"]), abs=1e-10)
    np.testing.assert_allclose(gradients[0, :3], slope, atol=1e-9)
    np.testing.assert_allclose(focks[0, 0, :7, :7], found["fock"], atol=1e-7)


@pytest.mark.slow
def test_forces_are_the_derivative_of_self_consistent_energies(params, waters, basis, atoms):
    structure = waters[2]
    grids, free = atomic_grids(structure, 0), superposed(atoms, structure, basis)
    # random weights of whole Hartrees have no self-consistent density
    params = {**params, "weights": 5e-3 * params["weights"]}

    def energy(positions):
        moved = structure.replace(positions=positions)
        correction = learned_functional(params, moved, basis, free)
        found = kohn_sham(moved, basis, grids, correction=correction, tolerance=1e-9)
        return found["energy"], (found["residual"], correction(found["dm"])[0])

    start = np.asarray(structure.positions)
    along = np.random.default_rng(6).normal(size=start.shape)
    calculated = jax.jit(jax.value_and_grad(energy, has_aux=True))
    (_, (left, learned)), slope = calculated(start)
    assert left < 1e-9
    assert abs(learned) > 1e-3
    energies = [float(calculated(start + s * 4e-3 * along)[0][0]) for s in (-2, -1, 1, 2)]
    wanted = (8 * (energies[2] - energies[1]) - (energies[3] - energies[0])) / 0.048
    assert wanted == pytest.approx(float(np.sum(slope * along)), abs=1e-6)  # Hartree/Bohr


def test_elements_without_weights_are_refused(params, waters, geometries, atoms):
    wider = opml.load_basis("sto-3g", [1, 6, 8])
    with pytest.raises(OpmlError, match="weights"):
        learned_functional(params, waters[0], wider, np.eye(7))
    change, free = geometries[0].change[0], geometries[0].atoms
    with pytest.raises(OpmlError, match="no atom of number 1"):
        fit_maps(WORDS, change, free, np.array([2, 0, 0]))


def test_channels_of_words_are_counted(params):
    assert params["maps"]["scale"].shape == (2, WORDS.size)
    assert Words().size == 1302  # 1 constant, 22 scalars, 367 squares, 480 cubic, 432 quartic
