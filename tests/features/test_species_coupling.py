import functools

import e3nn_jax as e3nn
import jax
import numpy as np
import pytest

from opml_jax import operators
from opml_jax.basis import layout_of, load_basis
from opml_jax.conventions import rotation_to_e3nn
from opml_jax.features import (
    couple,
    couple_species,
    species_channels,
    species_coupling,
    species_irreps_norm,
    uncouple_species,
)
from opml_jax.operators import Operator, from_species_blocks, species_blocks

# Products of double precision Clebsch-Gordan coefficients, at most 9 terms
ORTHOGONAL = 1e-14
# Elements of order 1, coupled and uncoupled by orthogonal matrices
ROUND_TRIP = 1e-13
# Relative to the largest irrep: integrals, and e3nn's D matrices, in another frame
ROTATION = 1e-11

CASES = [("water", "def2-svp"), ("formamide", "sto-3g")]
every_case = pytest.mark.parametrize(("name", "basis_name"), CASES)
water_is_slow = pytest.mark.parametrize(
    ("name", "basis_name"), [pytest.param(*CASES[0], marks=pytest.mark.slow), CASES[1]]
)
both_sets = pytest.mark.parametrize("all_pairs", [False, True], ids=["reduced", "all pairs"])


def _layout(structure, basis_name):
    return layout_of(structure, load_basis(basis_name, structure.numbers))


def _random(layout, rng):
    a = rng.normal(size=(layout.nao, layout.nao))
    return Operator.from_dense(a + a.T, layout, symmetric=True)


@functools.partial(jax.jit, static_argnames="all_pairs")
def _irreps(operator, all_pairs=False):
    return couple_species(species_blocks(operator, all_pairs=all_pairs), operator.layout.spec)


@functools.partial(jax.jit, static_argnames="all_pairs")
def _operator(irreps, like, all_pairs=False):
    found = uncouple_species(irreps, like.layout.spec)
    return from_species_blocks(found, like.layout, all_pairs=all_pairs)


@functools.cache
def _potential(numbers, basis_name):
    basis = load_basis(basis_name, numbers)
    return jax.jit(lambda s: _irreps(operators.external_potential(s, basis)))


@pytest.mark.parametrize("pair", [(1, 1), (1, 8), (8, 1), (8, 8), (6, 16)])
def test_the_coupling_is_orthogonal(pair):
    spec = load_basis("def2-svp", [1, 6, 8, 16]).spec
    matrix, irreps = species_coupling(spec, *pair)
    n = spec.nao(pair[0]) * spec.nao(pair[1])
    assert matrix.shape == (n, n)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(n), rtol=0, atol=ORTHOGONAL)
    assert sum(2 * l + 1 for l, *_ in irreps) == n
    # sorted by L, proper tensors before pseudotensors, and named by what is coupled
    assert [*irreps] == sorted(irreps, key=lambda x: (x[0], -x[1], *x[2:]))
    ls = [spec.ls[spec.element_index(z)] for z in pair]
    for l, sigma, a, b in irreps:
        assert abs(ls[0][a] - ls[1][b]) <= l <= ls[0][a] + ls[1][b]
        assert sigma == (-1) ** (ls[0][a] + ls[1][b] + l)


@pytest.mark.parametrize(
    ("all_pairs", "name", "basis_name"),
    [
        pytest.param(False, *CASES[1], id="reduced-formamide-sto-3g"),
        pytest.param(True, *CASES[0], id="all pairs-water-def2-svp"),
        pytest.param(False, *CASES[0], id="reduced-water-def2-svp", marks=pytest.mark.slow),
        pytest.param(True, *CASES[1], id="all pairs-formamide-sto-3g", marks=pytest.mark.slow),
    ],
)
def test_irreps_hold_the_whole_operator(molecules, rng, name, basis_name, all_pairs):
    operator = _random(_layout(molecules[name], basis_name), rng)
    back = _operator(_irreps(operator, all_pairs), operator, all_pairs)
    np.testing.assert_allclose(back.to_dense(), operator.to_dense(), rtol=0, atol=ROUND_TRIP)


@every_case
def test_the_reduced_set_has_no_number_too_many(molecules, rng, name, basis_name):
    operator = _random(_layout(molecules[name], basis_name), rng)
    irreps, spec = _irreps(operator), operator.layout.spec
    assert sum(x.size for x in irreps.values()) == operator.nao * (operator.nao + 1) // 2
    for (*key, l, sigma), x in irreps.items():
        assert x.shape[1:] == (2 * l + 1, len(species_channels(spec, tuple(key))[l, sigma]))
        assert np.abs(x).max() > 1e-3


@water_is_slow
def test_norm_is_that_of_the_matrix(molecules, rng, name, basis_name):
    operator = _random(_layout(molecules[name], basis_name), rng)
    norm = species_irreps_norm(_irreps(operator), operator.layout.spec)
    np.testing.assert_allclose(norm, np.linalg.norm(operator.to_dense()), rtol=ROUND_TRIP)


@water_is_slow
def test_every_irrep_turns_with_the_molecule(molecules, rng, random_rotation, name, basis_name):
    """By e3nn's D of its L, and parity (-1)^(l1 + l2) = sigma (-1)^L."""
    s = molecules[name]
    irreps = _potential(s.numbers, basis_name)
    before = irreps(s)
    scale = max(np.abs(x).max() for x in before.values())
    for improper in (False, True):
        r = random_rotation(rng, improper)
        after = irreps(s.replace(positions=s.positions @ r.T))
        for (*key, l, sigma), x in before.items():
            d = e3nn.Irrep(l, sigma * (-1) ** l).D_from_matrix(rotation_to_e3nn(r))
            expected = np.einsum("mn,pnc->pmc", d, x)
            ours = after[*key, l, sigma]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=ROTATION * scale)
    inverted = irreps(s.replace(positions=-s.positions))
    for (*key, l, sigma), x in before.items():
        expected = sigma * (-1) ** l * x
        np.testing.assert_allclose(inverted[*key, l, sigma], expected, atol=ROTATION * scale)
    assert {sigma for *_, sigma in before} == {1, -1}


@pytest.mark.parametrize(("key", "n"), [((2, 1, 8), 1), ((0, 8, 8), 0), ((-1, 1, 1), 0)])
def test_the_same_numbers_as_of_one_block(water, rng, key, n):
    """Shell by shell with features.couple."""
    layout = _layout(water, "def2-svp")
    spec, operator = layout.spec, _random(layout, rng)
    block, irreps = species_blocks(operator)[key][n], _irreps(operator)
    shells = [spec.ls[spec.element_index(z)] for z in key[1:]]
    starts = [np.cumsum([0] + [2 * l + 1 for l in ls]) for ls in shells]
    seen = 0
    for a, l1 in enumerate(shells[0]):
        for b, l2 in enumerate(shells[1]):
            rows, columns = (slice(s[k], s[k + 1]) for s, k in zip(starts, (a, b), strict=True))
            for l, expected in couple(block[rows, columns], l1, l2).items():
                sigma = (-1) ** (l1 + l2 + l)
                kept = species_channels(spec, key).get((l, sigma), ())
                if (a, b) in kept:
                    ours = irreps[*key, l, sigma][n, :, kept.index((a, b))]
                    np.testing.assert_allclose(ours, expected, rtol=0, atol=ROUND_TRIP)
                    seen += 1
                elif a == b:  # the wrong symmetry for a shell with itself: nothing is lost
                    np.testing.assert_allclose(expected, 0, atol=ROUND_TRIP)
    assert seen == sum(len(v) for v in species_channels(spec, key).values())


def test_absent_irreps_are_zero(water, rng):
    """Scalars alone: blocks of shells of one l become multiples of the unit matrix."""
    operator = _random(_layout(water, "sto-3g"), rng)
    spec = operator.layout.spec
    scalars = {k: x for k, x in _irreps(operator).items() if k[3] == 0}
    oxygen = np.asarray(uncouple_species(scalars, spec)[0, 8, 8][0])
    whole = operator.to_dense()[:5, :5]
    expected = np.zeros((5, 5))
    expected[:2, :2] = whole[:2, :2]
    expected[2:, 2:] = np.eye(3) * np.trace(whole[2:, 2:]) / 3
    np.testing.assert_allclose(oxygen, expected, rtol=0, atol=ROUND_TRIP)


def test_derivatives_pass_unchanged(water, rng):
    """Of a symmetric matrix, forward and backward."""
    like = _random(_layout(water, "sto-3g"), rng)

    def there_and_back(matrix):
        operator = Operator(matrix, like.layout, symmetric=True)
        return _operator(_irreps(operator), operator).to_dense()

    m, direction, weight = (_random(like.layout, rng).to_dense() for _ in range(3))
    _, tangent = jax.jvp(there_and_back, (m,), (direction,))
    np.testing.assert_allclose(tangent, direction, rtol=0, atol=ROUND_TRIP)
    (slope,) = jax.vjp(there_and_back, m)[1](weight)
    np.testing.assert_allclose((slope + slope.T) / 2, weight, rtol=0, atol=ROUND_TRIP)
