import jax
import numpy as np
import pytest

from opml_jax import operators
from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import OpmlError
from opml_jax.operators import chebyshev, lowdin, spectral_bounds

# Eigenvalues of matrices of norm 1 after up to three products
ROUND_OFF = 1e-12

ALL = ["water", "methane", "carbon_dioxide", "hydrogen_cyanide", "fluoromethane"]
ALL += ["hydrogen_sulfide", "formamide"]
# bounds are computed atom by atom, each compiled: few elements where one potential is enough
CASES = {
    "screened_potential": ([1, 6, 7, 8, 9, 16], ALL),
    "neutral_atom_potential": ([1, 8], ["water"]),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, molecules):
    """Molecules, their potential in Löwdin's basis (in one program), and its bounds."""
    name, (elements, names) = request.param, CASES[request.param]
    basis, chosen = load_basis("sto-3g", elements), [molecules[n] for n in names]

    @jax.jit
    def compiled(s):
        overlap = operators.overlap(s, basis, padding=1)
        return lowdin(getattr(operators, name)(s, basis), overlap)

    return chosen, compiled(batch(chosen, basis)), spectral_bounds(basis, name), basis


@pytest.mark.slow
def test_bounds_hold_for_every_molecule(case):
    chosen, potential, (low, high), basis = case
    lowest = []
    for s, v in zip(chosen, np.asarray(potential.to_dense()), strict=True):
        nao = layout_of(s, basis).nao
        spectrum = np.linalg.eigvalsh(v[:nao, :nao])
        assert low < spectrum[0]
        assert spectrum[-1] < high == 0
        lowest.append(spectrum[0])
    # a molecule of the heaviest element comes as near as the margin
    heaviest = [max(s.numbers) for s in chosen]
    assert heaviest[np.argmin(lowest)] == max(basis.elements)
    assert min(lowest) < low + 3


def test_lighter_elements_have_narrower_bounds(case):
    """Those of oxygen alone hold for molecules in which it is the heaviest."""
    chosen, potential, (low, _), basis = case
    name = next(n for n, (elements, _) in CASES.items() if elements == [*basis.elements])
    alone, _ = spectral_bounds(load_basis("sto-3g", [8]), name)
    assert low <= alone
    assert (low < alone) == (max(basis.elements) > 8)
    for s, v in zip(chosen, np.asarray(potential.to_dense()), strict=True):
        if max(s.numbers) == 8:
            assert alone < np.linalg.eigvalsh(v)[0] < alone + 3


@pytest.mark.parametrize("degree", [1, 2, 3, 7, 8])
def test_chebyshev_polynomials_stay_within_one(case, degree):
    _, potential, bounds, _ = case
    (t,) = chebyshev(potential, (degree,), bounds)
    largest = np.abs(np.linalg.eigvalsh(t.to_dense())).max(axis=1)
    assert (largest <= 1 + ROUND_OFF).all()
    assert (largest > 0.5).all()


def test_bounds_that_are_too_narrow_would_be_noticed(case):
    _, potential, (low, high), _ = case
    (t,) = chebyshev(potential, (8,), (low / 2, high))
    assert np.abs(np.linalg.eigvalsh(t.to_dense())).max() > 10


def test_the_margin_is_taken_off():
    basis = load_basis("sto-3g", [1])
    low, high = spectral_bounds(basis)
    assert spectral_bounds(basis, margin=5.0) == pytest.approx((low - 2, high), rel=ROUND_OFF)


def test_operators_without_bound_are_refused():
    basis = load_basis("sto-3g", [1])
    for name in ("external_potential", "kinetic", "screend_potential"):
        with pytest.raises(OpmlError, match=rf"operator must be one of .*; got '{name}'.*bound"):
            spectral_bounds(basis, name)
