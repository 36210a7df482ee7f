"""What the errors of a trained model say that its user should not miss, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..models.family import Evaluated
from ..quantities import columns

Metrics = Mapping[str, Mapping[str, float]]
"""Errors by ``<set>``, and by ``<set>_<part>`` of parts of a model and of its baseline."""

OVERFITTED = 10.0
"""An error on validation that is so many times that on training is far above it."""
LITTLE = 0.02
"""Below this part of the baseline's error, what training hides does not matter."""
USELESS = 0.9
"""A model with more than this part of the baseline's error has learned nothing worth having."""


def verdict(metrics: Metrics, sets: Sequence[Evaluated] = ()) -> list[str]:
    """Sentences about a model, for its card, its report and the end of its training; often none.

    Errors on validation that are no better than the baseline's
    (:meth:`opml_jax.models.base.Model.baseline`), or far above those on training; structures that
    have no prediction. The rule is the same for every family and every column of its table.

    Args:
      metrics: of the sets, ``train`` and ``validation`` among them.
      sets: what was evaluated, which says what failed.
    """
    found = []
    train, validation = (metrics.get(name, {}) for name in ("train", "validation"))
    baseline = metrics.get("validation_baseline", {})
    for name, heading, unit in columns([validation]):
        error, without, seen = validation[name], baseline.get(name), train.get(name)
        if without is not None and error >= USELESS * without:
            found.append(
                f"The error of {heading} on validation, {error:.3g} {unit}, is no better than that "
                f"of the baseline, {without:.3g} {unit}: nothing useful was learned."
            )
        elif seen is not None and error > max(OVERFITTED * seen, LITTLE * (without or 0.0)):
            found.append(
                f"The error of {heading} on validation, {error:.3g} {unit}, is far above that on "
                f"training, {seen:.3g} {unit}: more structures are needed, or a stronger penalty."
            )
    for evaluated in sets:
        if n := len(evaluated.failed):
            whole = n + len(evaluated.dataset)
            named = ", ".join(map(str, evaluated.failed[:5])) + (", ..." if n > 5 else "")
            found.append(
                f"{n} of {whole} structures of {evaluated.name} have no self-consistent density "
                f"({named} of the data file); its errors are of the others."
            )
    return found
