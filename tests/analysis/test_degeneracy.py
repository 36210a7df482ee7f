import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from opml_jax.analysis import DegeneratePair, degeneracy, degenerate_pairs
from opml_jax.basis import load_basis
from opml_jax.errors import OpmlError
from opml_jax.features import AtomFeatures
from opml_jax.operators import external_potential, powers

# Relative differences: zeros are rounding in sums over equal sets in another order
ZERO = 1e-12
# Bohr: coordinates are rounded to 1e-16 of themselves, and Gram matrices and volumes are of order
# 10; what is different is so by 0.1 or more.
EQUAL = 1e-10
DIFFERENT = 0.05

PAIRS = {pair.name: pair for pair in degenerate_pairs()}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def _invariants(structure, order):
    """Of every ordered choice of ``order`` neighbours (with repetition) of atom 0.

    Their elements, distances, scalar products and, of three, the volume with its sign: what is
    left of them under rotations about the centre. A density invariant of this order is a sum over
    these choices.
    """
    z = np.array(structure.numbers[1:])
    x = structure.positions[1:] - structure.positions[0]
    chosen = np.array([*itertools.product(range(len(x)), repeat=order)])
    gram = np.einsum("nix,njx->nij", x[chosen], x[chosen])
    columns = [z[chosen], gram.reshape(len(chosen), -1)]
    if order == 3:
        columns.append(np.linalg.det(x[chosen])[:, None])
    return np.concatenate(columns, axis=1)


def _mismatch(a, b):
    """Largest distance between partners, when two sets of points are paired as well as can be."""
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return distance[linear_sum_assignment(distance)].max()


def _distances(structure):
    return np.linalg.norm(structure.positions[:, None] - structure.positions, axis=-1)


def _incongruence(pair):
    """Least difference of the distance matrices over all permutations of equal atoms."""
    numbers = np.array(pair.first.numbers)
    own = [np.flatnonzero(numbers == z) for z in np.unique(numbers)]
    orders = np.empty((1, len(numbers)), int)
    for atoms in own:
        ways = np.array([*itertools.permutations(atoms)])
        orders = np.repeat(orders, len(ways), axis=0)
        orders[:, atoms] = np.tile(ways, (len(orders) // len(ways), 1))
    b = _distances(pair.second)
    permuted = b[orders[:, :, None], orders[:, None, :]]
    return np.abs(_distances(pair.first) - permuted).max(axis=(1, 2)).min()


@every_pair
def test_the_two_are_of_the_same_atoms_and_not_congruent(pair):
    assert pair.first.numbers == pair.second.numbers
    assert _incongruence(pair) > DIFFERENT


def test_congruent_molecules_would_be_noticed():
    pair = PAIRS["planar CH4"]
    moved = pair.first.replace(positions=-pair.first.positions[[0, 3, 1, 2, 4]] + 1.0)
    assert _incongruence(DegeneratePair("one twice", 2, pair.first, moved)) < EQUAL


@every_pair
def test_density_invariants_of_the_centre_are_equal_up_to_nu(pair):
    for order in range(1, pair.nu + 1):
        ours, theirs = (_invariants(s, order) for s in (pair.first, pair.second))
        assert _mismatch(ours, theirs) < EQUAL


@pytest.mark.parametrize("name", ["planar CH4", "tetrapod CH4"])
def test_density_invariants_beyond_nu_are_not(name):
    pair = PAIRS[name]
    ours, theirs = (_invariants(s, pair.nu + 1) for s in (pair.first, pair.second))
    assert _mismatch(ours, theirs) > DIFFERENT


def _power_spectrum(structure, atom=0):
    """Sums over pairs of neighbours: a density invariant of order 2, by hand."""
    x = np.delete(structure.positions, atom, axis=0) - structure.positions[atom]
    z = np.delete(structure.numbers, atom)
    r = np.linalg.norm(x, axis=1)
    cosine = x @ x.T / np.outer(r, r)
    weight = np.outer(z * np.exp(-r), z * np.exp(-r))
    return np.array([(weight * cosine**k).sum() for k in range(4)])


def test_features_by_atom_give_centre_and_structure():
    def featuriser(s):
        return np.stack([_power_spectrum(s, a) for a in range(s.n_atoms)])

    found = degeneracy(featuriser)
    assert [*found] == [*PAIRS]
    for name, row in found.items():
        assert {*row} == {"centre", "structure"}
        assert row["centre"] < ZERO
        a, b = (featuriser(s) for s in (PAIRS[name].first, PAIRS[name].second))
        difference = np.linalg.norm((a - b).sum(axis=0)) / np.linalg.norm(a.sum(axis=0))
        np.testing.assert_allclose(row["structure"], difference, atol=ZERO)
    assert found["planar CH4"]["structure"] > 1e-3


def test_features_of_structures_give_structure_alone():
    """Traces of powers of the distance matrix; any featuriser and any pairs will do."""
    chosen = [PAIRS["rings B8"], PAIRS["tetrapod CH4"]]

    def featuriser(s):
        return [np.trace(np.linalg.matrix_power(_distances(s), k)) for k in (2, 3)]

    found = degeneracy(featuriser, chosen)
    assert [*found] == ["rings B8", "tetrapod CH4"]
    assert all({*row} == {"structure"} for row in found.values())
    a, b = (np.array(featuriser(s)) for s in (chosen[1].first, chosen[1].second))
    expected = np.linalg.norm(a - b) / np.linalg.norm(a)
    np.testing.assert_allclose(found["tetrapod CH4"]["structure"], expected)
    assert expected > 1e-3


def test_a_featuriser_that_sees_nothing_tells_nothing():
    found = degeneracy(lambda s: np.zeros((s.n_atoms, 2)))
    assert all(row == {"centre": 0.0, "structure": 0.0} for row in found.values())


@pytest.mark.parametrize("shape", [(), (4, 2), (5, 2, 2)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(OpmlError, match=r"featuriser must be \(n,\) or \(n_atoms, n\) for 5 atoms"):
        degeneracy(lambda s: np.ones(shape), [PAIRS["planar CH4"]])


# Published (Nigam, Smidt, Dusson, arXiv:2602.15345): what the central atom's on-site block of V^k
# tells of two molecules, external potential in def2-SVP; 0 where the power cannot tell
TABLE = {
    "planar CH4": {1: 0, 2: 1.4e-4, 3: 1.4e-3},
    "tetrapod CH4": {1: 0, 2: 8.4e-5, 3: 7.4e-4},
    "rings CH6O": {1: 0, 2: 0, 3: 2.8e-7},
    "rings B8": {1: 0, 2: 0, 3: 1.2e-6},
}


@pytest.mark.parametrize(
    "name", [n if n.endswith("CH4") else pytest.param(n, marks=pytest.mark.slow) for n in TABLE]
)
def test_powers_of_the_potential_tell_what_was_published(name):
    found = {}
    for structure in (PAIRS[name].first, PAIRS[name].second):
        basis = load_basis("def2-svp", sorted(set(structure.numbers)))
        recipe = AtomFeatures(basis.spec, (1,), pair=False)
        v = powers(external_potential(structure, basis), (1, 2, 3))
        found[id(structure)] = [recipe(x).filter("0e").array for x in v]
    for k, published in TABLE[name].items():
        row = degeneracy(lambda s, k=k: found[id(s)][k - 1], [PAIRS[name]])[name]
        if published:
            assert f"{row['centre']:.1e}" == f"{published:.1e}", k
        else:
            assert row["centre"] < ZERO, k
