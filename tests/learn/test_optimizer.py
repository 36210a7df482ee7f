"""Learning rates, and when training stops before its last epoch."""

import jax
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.errors import ConfigError
from opml_jax.learn.config import DescentConfig
from opml_jax.learn.optimizer import LAST, is_over, learning_rates
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.training import TrainConfig, train


@pytest.mark.parametrize("warm_up", [0.0, 0.25])
@pytest.mark.parametrize("schedule", ["cosine", "exponential", "constant"])
def test_learning_rates_rise_and_fall(schedule, warm_up):
    config = DescentConfig(learning_rate=0.2, schedule=schedule, warm_up=warm_up)
    rates = np.array([learning_rates(config, 100)(i) for i in range(101)])
    top = int(100 * warm_up)
    assert rates[top] == pytest.approx(0.2)
    assert rates[0] == pytest.approx(0.0 if warm_up else 0.2)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert rates[100] == pytest.approx(0.2 if schedule == "constant" else 0.2 * LAST, rel=1e-5)
    assert (np.diff(rates[top:]) <= 0).all()


def test_patience_counts_epochs_without_a_better_one():
    rows = [{"best_validation_loss": x} for x in (5.0, 4.0, 4.0, 4.0)]
    assert is_over(rows, DescentConfig(patience=2))
    assert not is_over(rows, DescentConfig(patience=3))
    assert not is_over(rows[:3], DescentConfig(patience=2))
    assert not is_over(rows, DescentConfig(patience=0))
    assert not is_over(rows[:2], DescentConfig(patience=2))


@pytest.mark.parametrize("members", [1, 2])
def test_training_stops_and_stays_stopped(tmp_path, members):
    """A learning rate that soon does no good; called again, nothing more is done."""
    water = opml.read_dataset(opml.bundled("water"))
    rates = {"epochs": 400, "patience": 4, "learning_rate": 0.3, "schedule": "constant"}
    fit = Op2PropFit(targets=("energy", "forces"), **rates)
    sizes = {"powers": (1,), "gram_powers": (1,), "hidden": (8,), "members": members}
    config = TrainConfig(model=Op2PropConfig(basis="sto-3g", **sizes, fit=fit))
    splits = {"train": [*range(20)], "validation": [*range(20, 30)]}
    first = train(water, splits, config, folder=tmp_path)
    n = len(first.history)
    assert 5 <= n < 400
    best = [row["best_validation_loss"] for row in first.history]
    assert is_over(first.history, fit)
    assert not any(is_over(first.history[:i], fit) for i in range(n))
    again = train(water, splits, config, folder=tmp_path)
    assert [row["best_validation_loss"] for row in again.history] == best
    for one, other in zip(
        jax.tree.leaves(first.model.params), jax.tree.leaves(again.model.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_what_makes_no_sense_is_refused():
    for wrong in ({"schedule": "step"}, {"warm_up": 1.0}, {"patience": -1}):
        with pytest.raises(ConfigError, match=rf"fit\.{next(iter(wrong))}"):
            DescentConfig(**wrong)
