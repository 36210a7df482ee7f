"""Standard deviations on molecules that training lacked, of alkanes that grow."""

import dataclasses

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import DataWarning
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit, novelty
from opml_jax.structures.trained_for import novel
from opml_jax.training import TrainConfig, train
from opml_jax.training.calibration import calibrated, grown, reliability, shares

ROUNDING = 1e-11  # atomic units: a list may be padded to another shape than before
FIT = Op2PropFit(targets=("energy", "forces"), epochs=0)
CONFIG = Op2PropConfig(basis="sto-3g", channels=8, components=12, last_layer=True, fit=FIT)


@pytest.mark.slow
def test_left_out_compositions_say_how_large_errors_are(monkeypatch):
    """Trained on methane to butane, judged on hexane: few of its errors are within the plain ones.

    Four compositions are fewer than a model is asked for otherwise.
    """
    monkeypatch.setattr(novelty, "FEWEST", 4)
    data = opml.read_dataset(opml.bundled("alkanes"))
    carbons = np.array([s.numbers.count(6) for s in data.structures])
    few = np.concatenate([np.flatnonzero(carbons == n)[:14] for n in (1, 2, 3, 4)])
    longer = data.subset(np.flatnonzero(carbons == 6)[:12].tolist())
    splits = {
        "validation": few[::7].tolist(),
        "train": np.delete(few, slice(None, None, 7)).tolist(),
    }
    model = train(data, splits, TrainConfig(model=CONFIG)).model

    known = model.card["trained_for"]
    assert novel(longer.structures, known).all()
    assert not novel([data.structures[i] for i in splits["validation"]], known).any()
    growth = model.card["growth"]
    assert {*growth} == {"energy", "forces"}
    bare = dataclasses.replace(model, card={**model.card, "growth": {}})
    plain, better = (shares(reliability(m, longer)) for m in (bare, model))
    assert better["energy_within_sigma_percent"] > plain["energy_within_sigma_percent"]
    # of the kind that left-out molecules had: about 68 are due, 12 molecules are no more exact
    taught = shares(reliability(grown(bare, longer), longer))
    assert taught["forces_within_sigma_percent"] == pytest.approx(68, abs=1)

    inside = data.subset(splits["validation"])
    for name, (error, sigma) in reliability(bare, inside).items():
        again = reliability(model, inside)[name]
        np.testing.assert_allclose(again, [error, sigma], rtol=0, atol=ROUNDING)
    sets = {"validation": inside, "calibration": longer}
    held = calibrated(bare, sets)
    assert held.card["growth"]["energy"] == grown(bare, longer).card["growth"]["energy"]
    with pytest.warns(DataWarning, match="two bonds far"):
        model.predict(longer.structures[0])
