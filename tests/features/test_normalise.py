import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from opml_jax import operators
from opml_jax.basis import batch, load_basis
from opml_jax.conventions import rotation_to_e3nn
from opml_jax.errors import OpmlError
from opml_jax.features import AtomFeatures, Normalisation, fit_normalisation, structure_features

# Means of some 100 numbers of order 1
ROUND_OFF = 1e-12
# The same in features that are 1e6 times their spread, and so have 10 digits of it
OFFSET = 1e-9
# D matrices of e3nn
ROTATION = 1e-11

IRREPS = e3nn.Irreps("3x0e+2x0o+2x1o+1x1e+2x2e")


@pytest.fixture
def features(rng):
    """200 atoms of three elements, every irrep on a scale of its own, and elements of each."""
    element = rng.integers(0, 3, size=200)
    scale = 10.0 ** rng.uniform(-3, 3, size=(3, IRREPS.num_irreps))
    x = rng.normal(size=(200, IRREPS.dim))
    x = x * np.repeat(scale, [ir.dim for n, ir in IRREPS for _ in range(n)], axis=1)[element]
    x[:, :3] += scale[element, :3] * [0, 5, -100]  # scalars with a mean
    return e3nn.IrrepsArray(IRREPS, jnp.asarray(x)), element


def _each(x):
    """``(..., n, dim)`` values of every block of irreps, and the irrep."""
    return [(ir, np.asarray(c)) for (_, ir), c in zip(x.irreps, x.chunks, strict=True)]


def test_scalars_have_no_mean_and_unit_variance_and_irreps_unit_norm(features):
    x, element = features
    y = fit_normalisation(x, element, 3)(x, element)
    assert y.irreps == IRREPS
    for e in range(3):
        for ir, chunk in _each(y[element == e]):
            norm = (chunk**2).sum(axis=-1).mean(axis=0)  # over atoms, for each irrep
            np.testing.assert_allclose(norm, 1, atol=OFFSET)
            if ir == "0e":
                np.testing.assert_allclose(chunk.mean(axis=0), 0, atol=OFFSET)


def test_only_true_scalars_lose_their_mean(features):
    x, element = features
    norm = fit_normalisation(x, element, 3)
    assert norm.mean.shape == norm.inverse_scale.shape == (3, IRREPS.num_irreps)
    assert not np.asarray(norm.mean[:, 3:]).any()
    plus, minus = (norm(e3nn.IrrepsArray(IRREPS, s * x.array), element) for s in (1, -1))
    for (ir, a), (_, b) in zip(_each(plus), _each(minus), strict=True):
        assert np.array_equal(b, -a) == (ir != "0e")


@pytest.mark.parametrize("improper", [False, True])
def test_equivariance_is_kept(features, rng, random_rotation, improper):
    x, element = features
    norm = fit_normalisation(x, element, 3)
    r = rotation_to_e3nn(random_rotation(rng, improper))
    ours = norm(x.transform_by_matrix(r), element).array
    expected = norm(x, element).transform_by_matrix(r).array
    np.testing.assert_allclose(ours, expected, rtol=0, atol=ROTATION * np.abs(expected).max())


def test_fitted_on_turned_molecules_it_is_the_same(features, rng, random_rotation):
    x, element = features
    turned = x.transform_by_matrix(rotation_to_e3nn(random_rotation(rng)))
    a, b = (fit_normalisation(f, element, 3) for f in (x, turned))
    np.testing.assert_allclose(a.mean, b.mean, rtol=OFFSET)
    np.testing.assert_allclose(a.inverse_scale, b.inverse_scale, rtol=OFFSET)


def test_every_element_is_normalised_by_its_own(features):
    x, element = features
    together = fit_normalisation(x, element, 3)
    for e in range(3):
        own = x[element == e]
        alone = fit_normalisation(own, np.zeros(len(own.array), int), 1)
        ours = together(x, element).array[element == e]
        theirs = alone(own, np.zeros(len(own.array), int)).array
        np.testing.assert_allclose(ours, theirs, rtol=OFFSET, atol=OFFSET)


def test_elements_never_seen_become_zero(features):
    x, element = features
    norm = fit_normalisation(x, element, 5)
    assert not np.asarray(norm(x, np.full(len(element), 4)).array).any()


def test_constant_channels_become_zero(features, rng):
    x, element = features
    values = np.array(x.array)
    values[:, 0] = 7.0
    values[:, 1] = 7.0 * (1 + 1e-15 * rng.normal(size=len(values)))  # constant but for rounding
    values[:, 5:8] = 0.0  # the first vector
    y = fit_normalisation(e3nn.IrrepsArray(IRREPS, values), element, 3)
    found = np.asarray(y(e3nn.IrrepsArray(IRREPS, values), element).array)
    dead = np.isin(np.arange(IRREPS.dim), [0, 1, 5, 6, 7])
    assert not found[:, dead].any()
    assert np.isfinite(found).all()
    assert (np.abs(found[:, ~dead]).max(axis=0) > 0.5).all()


def test_a_single_atom_has_no_variance():
    x = e3nn.IrrepsArray("2x0e+1x1o", jnp.arange(1.0, 6.0)[None])
    y = fit_normalisation(x, np.zeros(1, int), 1)(x, np.zeros(1, int))
    np.testing.assert_array_equal(y.array[:, :2], 0)
    np.testing.assert_allclose(np.linalg.norm(y.array[:, 2:]), 1, rtol=ROUND_OFF)


@pytest.fixture(scope="module")
def padded(molecules):
    """Features of a padded batch of water, hydrogen cyanide and carbon dioxide."""
    basis = load_basis("sto-3g", [1, 6, 7, 8])
    chosen = [molecules[n] for n in ("water", "hydrogen_cyanide", "carbon_dioxide", "formamide")]
    structures = batch(chosen, basis)
    recipe = AtomFeatures(basis.spec, (1, 2))
    x = jax.jit(lambda s: recipe(operators.external_potential(s, basis)))(structures)
    assert not structures.mask.all()
    return basis, chosen, structures, x


def test_padding_takes_no_part_in_a_fit(padded):
    """The element of padded atoms is that of hydrogen: counted, they would be hydrogens."""
    _, _, structures, x = padded
    element, mask = structures.layout.element, structures.mask
    ours = fit_normalisation(x, element, 4, mask=mask)
    theirs = fit_normalisation(e3nn.IrrepsArray(x.irreps, x.array[mask]), element[mask], 4)
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    np.testing.assert_array_equal(ours.inverse_scale, theirs.inverse_scale)
    careless = fit_normalisation(x, element, 4)
    assert np.abs(careless.mean[0] - ours.mean[0]).max() > 0.1


def test_a_batch_is_normalised_like_its_atoms(padded):
    _, _, structures, x = padded
    element, mask = structures.layout.element, structures.mask
    norm = fit_normalisation(x, element, 4, mask=mask)
    y = jax.jit(lambda n, x, e: n(x, e))(norm, x, element)
    assert y.shape == x.shape
    alone = norm(e3nn.IrrepsArray(x.irreps, x.array[mask]), element[mask])
    np.testing.assert_allclose(y.array[mask], alone.array, rtol=0, atol=OFFSET)


def test_padding_stays_nothing(padded):
    """Sums over the atoms of normalised features are those of each molecule alone."""
    basis, chosen, structures, x = padded
    element, mask = structures.layout.element, structures.mask
    norm = fit_normalisation(x, element, 4, mask=mask)
    together = structure_features(norm(x, element), structures, basis)
    for n, s in enumerate(chosen):
        own = e3nn.IrrepsArray(x.irreps, x.array[n, : s.n_atoms])
        alone = structure_features(norm(own, element[n, : s.n_atoms]), s, basis)
        np.testing.assert_allclose(together.array[n], alone.array, rtol=0, atol=OFFSET)


def test_what_vanishes_by_symmetry_stays_silent(molecules, random_rotation):
    """On the carbon of methane all but scalars is rounding, below 1e-13 of the scalars."""
    rng, s = np.random.default_rng(1), molecules["methane"]
    basis = load_basis("sto-3g", s.numbers)
    turned = [s.replace(positions=s.positions @ random_rotation(rng).T) for _ in range(8)]
    recipe = AtomFeatures(basis.spec, (1, 2), pair=False)
    x = jax.jit(lambda s: recipe(operators.external_potential(s, basis)))(batch(turned, basis))
    carbon, element = x[:, 0], np.ones(8, int)
    vector, scalar = (np.abs(carbon.filter(ir).array) for ir in ("1o", "0e"))
    assert 0 < vector.max() < 1e-13 * scalar.max()
    y = fit_normalisation(carbon, element, 2)(carbon, element)
    assert np.abs(y.array).max() < 1e-3


def test_files_keep_everything(features, tmp_path):
    x, element = features
    norm = fit_normalisation(x, element, 3)
    norm.save(tmp_path / "norm.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["norm.safetensors"]
    back = Normalisation.load(tmp_path / "norm.safetensors")
    assert back.irreps == norm.irreps
    np.testing.assert_array_equal(back.mean, norm.mean)
    np.testing.assert_array_equal(back.inverse_scale, norm.inverse_scale)
    np.testing.assert_array_equal(back(x, element).array, norm(x, element).array)


def test_files_of_other_kinds_are_refused(tmp_path):
    text, other, missing = (tmp_path / n for n in ("notes.txt", "model.safetensors", "none"))
    text.write_text("not a normalisation")
    save_file({"mean": np.zeros(3)}, other, {"format": "opml-model-1"})
    for path in (text, other, missing):
        with pytest.raises(OpmlError, match=rf"path must be a normalisation.*{path.name}"):
            Normalisation.load(path)


def test_features_of_other_irreps_are_refused(features):
    x, element = features
    norm = fit_normalisation(x, element, 3)
    with pytest.raises(OpmlError, match=r"features must be 3x0e\+2x0o.*; got 3x0e\."):
        norm(x.filter("0e"), element)
