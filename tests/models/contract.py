"""What every family of models promises; each family's test inherits it with a small real model."""

import contextlib
import dataclasses
import json
import logging
import re

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.basis import layout_of
from opml_jax.conventions import rotation_to_e3nn
from opml_jax.errors import (
    Code,
    ConfigError,
    DataError,
    DataWarning,
    OpmlError,
    PrecisionError,
    StructureError,
)
from opml_jax.interfaces.ase import OPMLCalculator
from opml_jax.models.family import family, family_of
from opml_jax.quantities import SIZES, quantity
from opml_jax.training import TrainConfig, train

SPLITS = {"train": [*range(24)], "validation": [*range(24, 32)]}

EQUIVARIANT = 1e-9  # relative: rotated integrals are the same sums in another order
SINGLES = 1e-10  # relative: padded shapes are compiled to sums in another order


NO_WORSE = 1.1  # what validation judges is a weighted sum of these errors, not each of them


class Contract:
    """Tests of one family.

    Attributes:
      config: A configuration of the family that trains within a minute.
      equivariant: Tolerance of rotations and permutations, relative to the largest number.
      judged: Errors that are not to grow when training starts from the model.
    """

    config = None
    equivariant = EQUIVARIANT
    judged = ("energy_mae_mev", "forces_mae_mev_per_angstrom", "fock_mae", "density_error_percent")

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls):
        """Labels; 36 structures, the last of which the model has not seen."""
        return opml.read_dataset(opml.bundled("water"), limit=36)

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, data):
        return train(data, SPLITS, TrainConfig(model=cls.config)).model

    @pytest.fixture
    def structures(self, data):
        return data.structures[32:35]

    def test_the_registry_knows_it(self, model):
        own = family_of(model)
        assert own is family(self.config.family) is family_of(model.definition)
        assert isinstance(model.definition, own.Functions)
        asked, known = (vars(c) for c in (self.config.functions, model.definition.config))
        assert known == {k: known[k] if v is None else v for k, v in asked.items()}

    def test_a_baseline_predicts_what_the_model_does(self, model, structures):
        """In the same shapes, and worse: nothing of it was learned from an operator."""
        baseline, predicted = model.baseline(structures), model.predict(structures)
        assert set(baseline) <= set(predicted)
        for name, values in baseline.items():
            assert values.shape == predicted[name].shape, name
            assert np.isfinite(values).all(), name

    def test_files_lose_nothing(self, model, structures, tmp_path):
        opml.save_model(tmp_path / "m.safetensors", model)
        again = opml.load_model(tmp_path / "m.safetensors")
        assert type(again) is type(model)
        assert again.definition == model.definition
        assert hash(again.definition) == hash(model.definition)
        assert again.card == json.loads(json.dumps(model.card))
        before, after = model.predict(structures), again.predict(structures)
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])

    def test_a_model_that_is_loaded_again_compiles_nothing(self, model, structures, tmp_path):
        opml.save_model(tmp_path / "m.safetensors", model)
        opml.load_model(tmp_path / "m.safetensors").predict(structures)
        again = opml.load_model(tmp_path / "m.safetensors")
        with jax.log_compiles(), _compilations() as names:
            again.predict(structures)
        assert names == []

    def test_a_list_equals_singles(self, model, structures):
        together = model.predict(structures)
        for i, structure in enumerate(structures):
            alone = model.predict(structure)
            for name, value in alone.items():
                cut = tuple(map(slice, np.shape(value)))
                # what is left of a fixed point, or out of it, is a difference of matrices as large
                scale = alone["fock"] if name in ("residual", "nonlocality") else value
                close(together[name][i][cut], value, SINGLES, scale)

    def test_arrays_are_what_the_table_of_quantities_says(self, model, structures):
        predicted = model.predict(structures)
        for name, value in predicted.items():
            if name in SIZES.values() or (of_name := quantity(name)) is None:
                continue
            lengths = [max(predicted[SIZES[a]]) if a in SIZES else a for a in of_name.axes]
            assert value.shape == (len(structures), *lengths), name

    def test_rotations(self, model, structures, rng, random_rotation):
        """Of vectors, matrices and coefficients, improper ones too."""
        for s in structures[:2]:
            r = random_rotation(rng, improper=s is structures[1])
            turned = s.replace(positions=np.asarray(s.positions) @ r.T)
            turns = {axis: wigner(layout, r) for axis, layout in _layouts(model, s)} | {3: r}
            self._transforms(model, s, turned, turns)

    def test_permutations(self, model, structures):
        s, order = structures[0], [2, 0, 1]
        numbers = [s.numbers[i] for i in order]
        moved = opml.Structure(numbers, np.asarray(s.positions)[order])
        rows = {"atom": order}
        for axis, layout in _layouts(model, s):
            rows[axis] = np.concatenate([np.flatnonzero(layout.atom == i) for i in order])
        self._transforms(model, s, moved, {axis: np.eye(len(i))[i] for axis, i in rows.items()})

    def _transforms(self, model, before, after, maps):
        """What is predicted of ``after`` is that of ``before`` with axes mapped by matrices."""
        together = model.predict([before, after, before])  # the program of other tests
        for name, (value, found, _) in together.items():
            axes = () if quantity(name) is None else quantity(name).axes
            for axis, kind in enumerate(axes if axes != ("ao",) else ()):  # levels stay
                if kind in maps:
                    value = np.moveaxis(np.tensordot(maps[kind], value, (1, axis)), 0, axis)
            close(found, value, self.equivariant)

    def test_an_empty_list(self, model):
        with pytest.raises(OpmlError) as caught:
            model.predict([])
        assert caught.value.code == Code.EMPTY

    def test_an_element_never_seen(self, model):
        with pytest.raises(OpmlError, match="only elements seen in training") as caught:
            model.predict(opml.Structure([2], [[0.0, 0, 0]]))
        assert caught.value.code == Code.UNSEEN_ELEMENT

    def test_the_card_says_which_molecules_it_was_trained_for(self, model):
        assert model.card["trained_for"] == {
            "electrons": [{"charge": 0, "spin": 0, "compositions": ["H2O"]}],
            "coordinations": ["H(O)", "O(H2)"],
            "surroundings": ["ec2b1b61", "f6e06ed9"],
        }

    def test_a_charge_or_spin_never_seen(self, model, structures):
        """Whether the model says what it was trained on or, as one of version 0.1, does not."""
        water = structures[0]
        for known in (model, dataclasses.replace(model, card={})):
            for change in ({"charge": 2}, {"charge": -2}, {"spin": 2}):
                other = water.replace(**change)
                for door in (known.predict, *_pure(known)):
                    with pytest.raises(OpmlError, match="charge 0, spin 0") as caught:
                        door(other)
                    assert caught.value.code == Code.ELECTRONS

    def test_atoms_bonded_as_none_was_in_training(self, model, structures):
        """One warning for a call, whose other molecules are like those of training."""
        water = structures[0]
        oxygen = opml.Structure([8], [[0.0, 0.0, 0.0]])
        with pytest.warns(DataWarning, match="atoms are bonded as none was") as caught:
            model.check_structures([water, oxygen, oxygen])
        assert len(caught) == 1
        assert "O() (atom 0 of structure 1)" in str(caught[0].message)

    def test_positions_in_float32_are_promoted(self, model, structures):
        """The numbers are those of the rounded positions, in float64."""
        single = np.asarray(structures[0].positions, np.float32)
        low = structures[0].replace(positions=jnp.asarray(single))
        rounded = structures[0].replace(positions=single.astype(np.float64))
        for values in model.predict([low, rounded, low]).values():
            np.testing.assert_array_equal(values[0], values[1])
        for function in _pure(model):
            assert jax.eval_shape(function, low) == jax.eval_shape(function, rounded)
            computed = str(jax.make_jaxpr(function)(low))
            assert re.search(r":f32\[[\d,]*\] = (?!pjit|jit)", computed) is None
            with jax.enable_x64(False), pytest.raises(PrecisionError):
                function(low)

    def test_isotopologues_compile_nothing(self, model, structures):
        expected = model.predict(structures[0])
        with jax.log_compiles(), _compilations() as names:
            found = model.predict(structures[0].replace(masses=(15.999, 2.014, 2.014)))
        assert names == []
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])

    def test_charges_that_no_model_tells_apart(self, data):
        """Of one composition: in the training set, or between it and another."""
        for i, error in ((0, DataError), (SPLITS["validation"][0], StructureError)):
            mixed = [*data.structures]
            mixed[i] = mixed[i].replace(charge=2)
            other = opml.Dataset(mixed, data.labels, data.meta)
            with pytest.raises(error, match="H2O with charge") as caught:
                train(other, SPLITS, TrainConfig(model=self.config))
            assert caught.value.code == Code.ELECTRONS

    def test_standard_deviations_it_does_not_have(self, model, structures):
        if model.doubted or self.config.doubts:
            pytest.skip("it has some")
        with pytest.raises(OpmlError) as caught:
            model.predict(structures, uncertainty=True)
        assert caught.value.code == Code.CAPABILITY

    def test_a_killed_fit_goes_on(self, model, data, tmp_path, monkeypatch):
        """Killed at every stage that it tells of; the parameters are those of one go."""
        monkeypatch.setattr("opml_jax.learn.descent.SAVE_EVERY", 0.0)
        config, seen = TrainConfig(model=self.config), []

        def fit(on_progress):
            return train(data, SPLITS, config, folder=tmp_path, on_progress=on_progress)

        for stop in (2, 5, 9, 14, None):
            try:
                again = fit(_killed_at(stop, seen))
                break
            except KeyboardInterrupt:
                continue
        assert seen  # it was killed
        again = again.model
        assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
        for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(model.params), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_training_starts_from_it(self, model, data):
        """On the labels that it knows: validation takes nothing that is worse."""
        config = TrainConfig(model=self.config)
        if not family_of(model).starts:
            with pytest.raises(ConfigError, match="one that can start from a model"):
                train(data, SPLITS, config, origin=model)
            return
        again = train(data, SPLITS, config, origin=model).model
        assert again.definition == model.definition
        assert again.card["origin"]["data_hash"] == model.card["data_hash"]
        assert again.card["data_hash"] != model.card["data_hash"]  # it says where it started
        judged = data.subset(SPLITS["validation"])
        before, after = (opml.training.evaluate(m, judged) for m in (model, again))
        for name in before.keys() & {*self.judged}:
            assert after[name] <= NO_WORSE * before[name], name

    def test_it_is_refused_where_it_has_no_energies(self, model, structures):
        """At the door of ASE and of dynamics; tests/interfaces/test_doors.py has the others."""
        if model.has("energy"):
            assert jax.eval_shape(model.energy_fn(), structures[0]).shape == ()
            return
        for door in (OPMLCalculator, lambda m: opml.dynamics.relax(m, structures[0])):
            with pytest.raises(OpmlError) as caught:
                door(model)
            assert caught.value.code == Code.CAPABILITY

    def test_it_is_judged_by_its_own_errors(self, model, data):
        found = opml.training.evaluate(model, data.subset([32, 33, 34]))
        assert found.pop("n_structures") == 3
        assert found
        assert all(np.isfinite(v) for v in found.values())


def _pure(model):
    """The pure functions that a model hands out."""
    names = ("energy_fn", "dipole_fn", "fock_fn", "density_fn")
    for name in names:
        if hasattr(model, name) and (name != "energy_fn" or model.has("energy")):
            with contextlib.suppress(OpmlError):  # of a dipole that it was not trained on
                yield getattr(model, name)()


def wigner(layout, r) -> np.ndarray:
    """How functions of a molecule turn with it, ``(nao, nao)``."""
    irreps = e3nn.Irreps([ir for i in range(len(layout.atom_ls)) for ir in layout.irreps(i)])
    return np.asarray(irreps.D_from_matrix(rotation_to_e3nn(r)))


def _layouts(model, structure):
    """The axes of functions, and what functions they are of this molecule."""
    definition = model.definition
    for axis, name in (("ao", "basis"), ("aux", "aux_basis")):
        if hasattr(definition, name):
            yield axis, layout_of(structure, getattr(definition, name))


def close(actual, expected, tolerance, scale=None):
    """Equal but for ``tolerance`` times the largest number, of these or of those of a scale."""
    largest = np.nanmax(np.abs(expected if scale is None else scale), initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(largest, 1e-3))


def _killed_at(stop, seen):
    """A reporter that kills the training at its ``stop``-th report, and notes what that was."""
    reports = []

    def report(*facts):
        reports.append(facts)
        if len(reports) == stop:
            seen.append(facts)
            raise KeyboardInterrupt

    return report


@contextlib.contextmanager
def _compilations():
    """Names of the programs that JAX compiles meanwhile."""
    names, handler = [], logging.Handler()

    def note(record):
        if record.getMessage().startswith("Compiling"):
            names.append(record.getMessage().split()[1])

    handler.emit = note
    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    yield names
    logger.removeHandler(handler)
