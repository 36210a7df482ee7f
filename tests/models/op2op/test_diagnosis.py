"""A density that does not become self-consistent has a reason, which is named."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

import opml_jax as opml
from opml_jax.data.reference import Method, converge, mean_field
from opml_jax.errors import ConvergenceError, DataWarning
from opml_jax.learn.run import Run
from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.diagnosis import BEYOND, GAP, Fault, counted_by_kind, fault_of
from opml_jax.observables.aufbau import SHARE, SINGULAR, gap_of, intruder
from opml_jax.structures.contacts import closest_pairs
from opml_jax.structures.trained_for import trained_for
from opml_jax.units import ANGSTROM_PER_BOHR

GOLDEN = Path(__file__).parents[1] / "golden" / "op2op_self_consistent.safetensors"
QUICK = Method(grid_level=1, conv_tol=1e-8, forces=False)


def angstrom(numbers, positions):
    return opml.Structure(numbers, np.array(positions, float) / ANGSTROM_PER_BOHR)


WATER = angstrom([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
PEROXIDE = angstrom([8, 8, 1, 1], [[0, 0.8, 0], [0, -0.8, 0], [0.9, 1, 0.5], [-0.9, -1, 0.5]])
ETHYNE = angstrom([6, 6, 1, 1], [[0, 0, 0.6], [0, 0, -0.6], [0, 0, 1.67], [0, 0, -1.67]])
METHANE = angstrom(
    [6, 1, 1, 1, 1],
    [
        [0, 0, 0],
        [0.63, 0.63, 0.63],
        [-0.63, -0.63, 0.63],
        [-0.63, 0.63, -0.63],
        [0.63, -0.63, -0.63],
    ],
)


def matrices_of(structure, basis="def2-svp"):
    """Fock, overlap and density matrix of a converged calculation, PySCF's AO order."""
    mf, _ = converge(mean_field(structure, dataclasses.replace(QUICK, basis=basis)))
    dm = mf.make_rdm1()
    return mf.get_fock(dm=dm), mf.get_ovlp(), dm


@pytest.fixture(scope="module")
def golden():
    """A model of water alone, PBE/STO-3G, as it was saved."""
    return opml.load_model(GOLDEN)


def test_a_bond_that_training_lacked_comes_first():
    matrices = matrices_of(PEROXIDE, "sto-3g")
    apart = {**closest_pairs([WATER]), "O-O": 2.8 / ANGSTROM_PER_BOHR}
    for closest, training in ((closest_pairs([WATER]), "never"), (apart, "2.80 A")):
        fault = fault_of(PEROXIDE, *matrices, {"closest_bohr": closest})
        assert fault.kind == "contact"
        assert fault.text.endswith(f"as short as O-O at 1.60 A (training: {training})")
    assert (
        fault_of(PEROXIDE, *matrices, {"closest_bohr": closest_pairs([PEROXIDE])}).kind != "contact"
    )
    assert fault_of(PEROXIDE, *matrices, {}).kind == "residual"


def test_a_matrix_that_is_far_from_local_is_named_after_what_explains_it():
    card = {"largest_nonlocality": 1e-4}
    matrices = matrices_of(WATER, "sto-3g")
    for nonlocality, kind in ((0.9 * BEYOND * 1e-4, "residual"), (6e-4, "potential")):
        assert fault_of(WATER, *matrices, card, nonlocality).kind == kind
        assert fault_of(WATER, *matrices, {}, nonlocality).kind == "residual"
    text = fault_of(WATER, *matrices, card, 6e-4).text
    assert "600 microhartree" in text
    assert "at most 100" in text
    without = {**card, "closest_bohr": closest_pairs([METHANE])}
    assert fault_of(WATER, *matrices, without, 6e-4).kind == "contact"


@pytest.mark.slow
def test_a_bond_that_training_lacked_is_named(golden):
    """It keeps two oxygens at 1.6 Angstrom from a density, and the sentence says so."""
    with (
        pytest.warns(DataWarning, match="O-O"),
        pytest.raises(ConvergenceError, match=r"as short as O-O at 1.60 A \(training: never\)\. "),
    ):
        golden.predict(PEROXIDE)


@pytest.mark.slow
def test_others_that_fail_are_counted(golden):
    """After two cycles nothing is self-consistent."""
    config = dataclasses.replace(golden.definition.config, cycles=2)
    model = Op2OpModel(dataclasses.replace(golden.definition, config=config), golden.params)
    said = r"\(structure 0\) did not become self-consistent: its bonds, levels and gap \(0\.\d\d Ha"
    with pytest.raises(ConvergenceError, match=said):
        model.predict(WATER)
    several = [WATER, PEROXIDE, WATER]
    with pytest.warns(DataWarning, match="O-O") as caught:
        found = dataclasses.replace(model, card=golden.card).predict(
            several, allow_unconverged=True
        )
    said = r"\(structure 1\) did not .* O-O at .* after 2 cycles\. 2 more: 2 residuals\. Their"
    assert re.search(said, str(caught[-1].message))
    assert np.isnan(found["fock"]).all()
    assert (found["residual"] > 1e-5).all()


def test_kinds_are_counted():
    faults = [Fault("residual", ""), Fault("contact", ""), Fault("residual", "")]
    assert counted_by_kind(faults) == "1 contact, 2 residuals"


@pytest.mark.parametrize("basis", ["def2-svp", "6-311++g**"])
def test_orbitals_of_molecules_avoid_what_the_overlap_nearly_lacks(basis):
    """And levels of a matrix that is wrong by rounding to 0.3 mHartree may lie in it."""
    fock, overlap, dm = matrices_of(ETHYNE, basis)
    assert np.linalg.eigvalsh(overlap)[0] < SINGULAR
    assert intruder(ETHYNE, fock, overlap) == ""
    card = {"closest_bohr": closest_pairs([ETHYNE]), "trained_for": trained_for([ETHYNE])}
    assert fault_of(ETHYNE, fock, overlap, dm, card).text.endswith("give no reason")
    if basis == "def2-svp":
        return
    wrong = np.round(fock, 3)
    levels = scipy.linalg.eigvalsh(wrong, overlap)
    text = intruder(ETHYNE, wrong, overlap)
    assert "% of its orbital in functions that the overlap nearly lacks" in text
    assert levels[0] > -18  # not the other criterion
    assert fault_of(ETHYNE, wrong, overlap, dm, card) == Fault("level", text)


def test_levels_below_those_of_nuclei_are_named():
    """Oxygen binds to -32 Hartree; of cations the charge pulls too."""
    fock, overlap, _ = matrices_of(WATER, "sto-3g")
    assert intruder(WATER, fock, overlap) == ""
    root = overlap @ np.linalg.eigh(fock)[1][:, :1]
    low = fock - 20 * root @ root.T
    assert "below any that its nuclei can bind (-32.0)" in intruder(WATER, low, overlap)
    side = 0.9 / ANGSTROM_PER_BOHR
    trihydrogen = opml.Structure(
        [1, 1, 1], [[0, 0, 0], [side, 0, 0], [side / 2, side * 0.75**0.5, 0]], charge=1
    )
    fock, overlap, _ = matrices_of(trihydrogen)
    assert scipy.linalg.eigvalsh(fock, overlap)[0] < -0.5
    assert intruder(trihydrogen, fock, overlap) == ""


def test_gaps():
    """None of singlet oxygen; that of orbitals which are occupied out of order is negative."""
    oxygen = angstrom([8, 8], [[0, 0, 0], [0, 0, 1.2]])
    mf = mean_field(oxygen, dataclasses.replace(QUICK, basis="sto-3g"))
    overlap, dm = mf.get_ovlp(), mf.get_init_guess(key="hcore")
    fock = mf.get_fock(dm=dm)
    levels, orbitals = scipy.linalg.eigh(fock, overlap)
    occupied = orbitals[:, :8]
    own = 2 * occupied @ occupied.T
    assert gap_of(fock, overlap, own) == pytest.approx(levels[8] - levels[7], abs=1e-9)
    promoted = orbitals[:, [*range(7), 9]]
    turned = gap_of(fock, overlap, 2 * promoted @ promoted.T)
    assert turned == pytest.approx(min(levels[7], levels[8]) - levels[9], abs=1e-9)
    fock = mf.get_fock(dm=mf.get_init_guess(key="atom"))  # spherical atoms: pi* are degenerate
    levels, orbitals = scipy.linalg.eigh(fock, overlap)
    own = 2 * orbitals[:, :8] @ orbitals[:, :8].T
    assert gap_of(fock, overlap, own) < GAP
    assert fault_of(oxygen, fock, overlap, own, {}).kind == "gap"


def test_atoms_bonded_as_none_was_are_named():
    apart = WATER.replace(positions=1.6 * np.asarray(WATER.positions))
    card = {"closest_bohr": closest_pairs([WATER]), "trained_for": trained_for([WATER])}
    fault = fault_of(apart, *matrices_of(apart, "sto-3g"), card)
    assert fault.kind == "coordination"
    assert "O()" in fault.text


@pytest.mark.slow
def test_a_real_intruder():
    """A first guess that neither fades nor is local, for a molecule it was not trained on."""
    rng = np.random.default_rng(0)
    moved = [
        s.replace(positions=s.positions + rng.normal(0, 0.1, s.positions.shape))
        for s in (ETHYNE, METHANE) * 4
    ]
    basis = opml.load_basis("def2-svp", [1, 6])
    focks = [opml.from_pyscf(matrices_of(s)[0], s, basis) for s in moved]
    data = opml.Dataset(moved, {"fock": focks}, QUICK.meta())
    parts = {"train": data.subset(range(6)), "validation": data.subset([6, 7])}
    config = Op2OpConfig(words=("W", "W S", "T W"), density_words=(), exponents=())
    definition = Op2Op(config, basis)
    params = fit_closed_form(definition, parts, Run()).params
    propyne = angstrom(
        [6, 6, 6, 1, 1, 1, 1],
        [
            *([0, 0, 0], [0, 0, 1.21], [0, 0, -1.46], [0, 0, 2.28]),
            *([1.03, 0, -1.83], [-0.51, 0.89, -1.83], [-0.51, -0.89, -1.83]),
        ],
    )
    unfaded = Op2OpModel(definition, {k: v for k, v in params.items() if k != "fade"})
    out = unfaded.predict(propyne)
    orbitals = scipy.linalg.eigh(out["fock"], out["overlap"])[1]
    values, vectors = np.linalg.eigh(out["overlap"])
    near = values < SINGULAR
    shares = (values[near, None] * (vectors[:, near].T @ orbitals[:, :11]) ** 2).sum(axis=0)
    assert shares.max() > SHARE
    assert "functions that the overlap nearly lacks" in intruder(
        propyne, out["fock"], out["overlap"]
    )
