"""Errors against the number of training structures, for the closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..data import Dataset
from ..errors import Code, OpmlError
from .config import TrainConfig
from .metrics import evaluate
from .run import Trained


def closed_form_learning_curve(
    trained: Trained, test: Dataset, config: TrainConfig, sizes: Sequence[int] = ()
) -> list[dict[str, float]]:
    """Refit the closed form on the first structures of a shuffled training set, judge on ``test``.

    Args:
      trained: result of :func:`opml_jax.training.train`.
      test: labelled structures.
      config: the configuration of the run; its seed shuffles.
      sizes: numbers of training structures. Default: all, and halves of it down to ten. Sets whose
        structures lack an element have no row.

    Returns:
      One row per size: ``n_train`` and the metrics of :func:`opml_jax.training.metrics.errors`.

    Raises:
      OpmlError: a family that cannot solve its closed form once more.
    """
    if trained.fit.refit is None:
        expected = "a model whose closed form can be solved for fewer structures"
        got = repr(trained.model)
        raise OpmlError("learning curve", got=got, expected=expected, code=Code.CAPABILITY)
    order = np.random.default_rng(config.seed).permutation(trained.model.card["n_train"])
    halves = [len(order) >> k for k in range(len(order).bit_length())]
    rows = []
    for n in sizes or [n for n in reversed(halves) if n >= 10]:
        params = trained.fit.refit(np.sort(order[:n]))
        if params is None:
            continue
        model = dataclasses.replace(trained.model, params=params)
        closed_form = model.parts.get("linear", model)
        rows.append({"n_train": int(n), **evaluate(closed_form, test)})
    return rows
