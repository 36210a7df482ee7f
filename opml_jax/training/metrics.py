"""Errors of a model on labelled data, and the check that a comparison is meaningful."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from ..conventions import CONVENTION
from ..data import Dataset
from ..data.functionals import same_functional
from ..errors import Code, ConventionError, UnitWarning
from ..models.base import Model
from ..models.family import Evaluated, family_of
from .card import LEVEL


def errors(predicted: Mapping[str, np.ndarray], dataset: Dataset, model: Model) -> dict[str, float]:
    """Errors of what both sides have, with their units in their names, and ``n_structures``.

    Args:
      predicted: from ``model.predict(dataset.structures)``.
      dataset: references.
      model: what predicted it, whose family says what is compared and how.
    """
    of_family = family_of(model).errors(predicted, dataset, model)
    return {"n_structures": len(dataset), **of_family}


def judged(
    model: Model, dataset: Dataset, name: str = "data", indices: Sequence[int] | None = None
) -> tuple[dict[str, float], Evaluated]:
    """Errors of a model on a labelled set, and the predictions that they are of.

    A molecule whose prediction fails, such as one whose density does not become self-consistent, is
    in neither; how many there are is ``unconverged`` among the errors.

    Args:
      model: a model, or one of its ``parts``.
      dataset: references.
      name: of the set.
      indices: of its structures in the file they are from. Default: 0, 1, ...
    """
    predicted = model.predict(dataset.structures, **model.tolerant)
    failed = model.failed(predicted)
    there = np.setdiff1d(np.arange(len(dataset)), failed)
    places = np.asarray(range(len(dataset)) if indices is None else indices)
    evaluated = Evaluated(
        name,
        dataset.subset(there.tolist()),
        {k: np.asarray(v)[there] for k, v in predicted.items()},
        places[there].tolist(),
        places[failed].tolist(),
    )
    found: dict[str, float] = {"n_structures": 0}
    if len(there):
        found = errors(evaluated.predicted, evaluated.dataset, model)
    if len(failed):
        found["unconverged"] = len(failed)
    return found, evaluated


def baseline_errors(model: Model, evaluated: Evaluated) -> dict[str, float]:
    """Errors on a set of what a model would predict had it learned nothing; empty: it has none."""
    predicted = model.baseline(evaluated.dataset.structures) if len(evaluated.dataset) else {}
    return errors(predicted, evaluated.dataset, model) if predicted else {}


def check_compatible(model: Model, dataset: Dataset) -> None:
    """Refuse to compare a model with labels of another level of theory or convention.

    A data set that does not state its level only draws a warning, and so does a functional whose
    name can mean two (:func:`opml_jax.data.functionals.same_functional`).

    Raises:
      ConventionError: method, basis or convention of the labels differ.
      OpmlError: an element the model has not seen.
    """
    model.check_elements(dataset.structures)
    trained = model.card.get("reference", {})
    for key in LEVEL:
        expected = CONVENTION if key == "convention" else trained.get(key)
        got = dataset.meta.get(key)
        if expected is None or got is None:
            continue
        if key == "method":
            same = same_functional(trained, dataset.meta)
        else:
            same = _plain(got) == _plain(expected)
        if not same:
            wanted = f"{expected!r}, that of the model's labels"
            raise ConventionError(
                f"{key} of the data set", got=repr(got), expected=wanted, code=Code.LEVEL_OF_THEORY
            )
    if trained.get("method") and "method" not in dataset.meta:
        warnings.warn(
            f"the data set does not state its level of theory; the model's labels are "
            f"{trained['method']}/{trained.get('basis')}.",
            UnitWarning,
            stacklevel=2,
        )


def _plain(name: object) -> str:
    """PySCF reads def2-SVP, def2svp and def2_svp as one basis."""
    return str(name).lower().replace("-", "").replace("_", "")


def evaluate(model: Model, dataset: Dataset) -> dict[str, float]:
    """Errors of a model on a data set of the same level of theory; see :func:`judged`.

    Args:
      model: trained model, or one of its ``parts``.
      dataset: labelled structures.

    Raises:
      ConventionError: labels of another level of theory or convention.
    """
    check_compatible(model, dataset)
    return judged(model, dataset)[0]
