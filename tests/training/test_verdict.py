"""Sentences about models, from errors that are good, overfitted, useless, or not there."""

import numpy as np
import pytest

from opml_jax.data import Dataset
from opml_jax.models.family import Evaluated
from opml_jax.training.verdict import verdict


def _rows(train, validation, baseline):
    names = ("energy_mae_mev", "forces_mae_mev_per_angstrom", "density_error_percent")
    rows = {"train": train, "validation": validation, "validation_baseline": baseline}
    return {k: dict(zip(names, v, strict=False)) for k, v in rows.items() if v}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # interpolated training data, and a hundredth of what there was to learn: nothing to say
        (_rows([1e-4, 1.0], [0.5, 9.0], [50.0, 900.0]), []),
        # superposed atoms have 11 %, the kernels 5.7 % outside of training and 0.018 % inside
        (_rows([0.1, 1.0, 0.018], [0.2, 2.0, 5.7], [50.0, 900.0, 11.0]), ["far above"]),
        (_rows([0.1, 1.0, 8.0], [0.2, 2.0, 11.3], [50.0, 900.0, 11.0]), ["no better than"]),
        (_rows([1.0, 1.0], [49.0, 500.0], [50.0, 900.0]), ["no better than", "far above"]),
        # no baseline is known: an error far above training's is still said
        (_rows([0.1], [50.0], []), ["far above"]),
        (_rows([], [50.0], []), []),
    ],
)
def test_verdicts(rows, said):
    found = verdict(rows)
    assert len(found) == len(said)
    for sentence, words in zip(found, said, strict=True):
        assert words in sentence
        assert sentence.endswith(".")


def test_what_failed_is_counted_and_named(water):
    part = Dataset([water] * 2, {"energy": np.zeros(2)}, {})
    (sentence,) = verdict({}, [Evaluated("test", part, {}, [3, 4], [17])])
    assert "1 of 3 structures of test" in sentence
    assert "(17 of the data file)" in sentence
