"""The model that a training starts from: what must agree, and what it adds to a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..data import Dataset
from ..errors import Code, ConfigError
from ..learn.schema import flat, to_mapping
from ..learn.states import fingerprint
from ..models.base import Model, ModelConfig
from ..models.family import family, family_of
from ..models.files import load_model
from ..structures.elements import symbol
from ..structures.trained_for import UNSAID, union_of

REMEMBERED = ("source", "data_hash", "reference", "n_train", "origin")
"""What a card keeps of an earlier model's: where its labels are from, and where it started."""


def filled(model: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The ``model`` section of a configuration, with keys it leaves out as the origin has them.

    Raises:
      ModelFileError: no readable model at ``path``.
    """
    origin = load_model(path)
    written = {"family": family_of(origin).name, **_written(origin)}
    return _over(written, model)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys of both, those of the second where both have one."""
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _over(out[key], value) if both else value
    return out


def _written(origin: Model) -> dict[str, Any]:
    """Keys and values of the functions of a model, as a configuration has them."""
    return _without_fits(family_of(origin).written(origin))


def _without_fits(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: _without_fits(v) if isinstance(v, Mapping) else v for k, v in tree.items() if k != "fit"
    }


def check_origin(origin: Model, config: ModelConfig, sets: Mapping[str, Dataset]) -> None:
    """Refuse to start from a model of other functions, or without these elements or targets.

    Raises:
      ConfigError: another family, other keys under ``model``, targets that it does not predict, or
        elements that it lacks (``UNSEEN_ELEMENT``).
    """
    earlier, own = family_of(origin), family(config.family)
    if earlier is not own or not own.starts:
        got = f"a model of {earlier.name}, and one of {own.name} that is to be trained"
        expected = "of the same family, one that can start from a model"
        raise ConfigError("origin", got=got, expected=expected)
    there, wanted = flat(_written(origin)), flat(_without_fits(to_mapping(config)))
    for name in config.chosen:  # which was chosen then
        wanted[name] = there[name] if wanted[name] is None else wanted[name]
    if other := [k for k in {**there, **wanted} if there.get(k) != wanted.get(k)]:
        raise ConfigError(
            "model",
            got=", ".join(f"{k} {wanted.get(k)} (not {there.get(k)})" for k in other),
            expected="that of the model it starts from",
            hint="Leave these keys out: they are taken from there.",
        )
    elements = {z for part in sets.values() for z in part.elements}
    if missing := sorted(elements - set(origin.elements)):
        got, known = (" ".join(map(symbol, x)) for x in (missing, origin.elements))
        expected = f"elements of the model that training starts from ({known})"
        raise ConfigError("structures", got=got, expected=expected, code=Code.UNSEEN_ELEMENT)
    if "calibration" in sets and not (config.doubts or origin.doubted):
        got = "some, and a model without standard deviations"
        raise ConfigError("data.n_calibration", got=got, expected="0")
    learned = [*origin.card.get("targets", config.targets)]
    if more := [name for name in config.targets if name not in learned and not origin.has(name)]:
        expected = f"what the model that training starts from learned ({', '.join(learned)})"
        raise ConfigError("model.fit.targets", got=", ".join(more), expected=expected)


def hash_of(origin: Model) -> str:
    """Hash of a model's weights."""
    leaves = jax.tree_util.tree_leaves_with_path(origin.params)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return fingerprint({"names": names}, [], [np.asarray(x) for _, x in leaves])


def card_with(origin: Model, card: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a model that started from ``origin``: what both were trained for.

    If its weights did not stay (``start``: ``scaling``) that is what the second was trained for.

    Raises:
      DataError: a composition that has another charge or spin in both.
    """
    earlier = origin.card
    about = {
        "weights": hash_of(origin),
        **{k: earlier[k] for k in REMEMBERED if k in earlier},
    }
    if not _stays(card):
        return {**card, "origin": about}
    closest = [c.get("closest_bohr", {}) for c in (earlier, card)]
    pairs = {**closest[0], **closest[1]}
    return {
        **{k: earlier[k] for k in ("density", "field_dipole_sigma") if k in earlier},
        **card,
        "growth": {**earlier.get("growth", {}), **card.get("growth", {})},
        "targets": [*dict.fromkeys((*earlier.get("targets", ()), *card["targets"]))],
        "closest_bohr": {
            name: min(c[name] for c in closest if name in c) for name in sorted(pairs)
        },
        "trained_for": union_of(earlier.get("trained_for", UNSAID), card["trained_for"]),
        "origin": about,
    }


def _stays(card: Mapping[str, Any]) -> bool:
    """Whether anything that the earlier model learned is in the later one."""
    return card.get("start") != "scaling"


def with_largest_doubt(origin: Model, model: Model) -> Model:
    """The model whose card's largest standard deviation is at least that of its origin."""
    both = [m.card["largest_doubt"] for m in (origin, model) if "largest_doubt" in m.card]
    if "largest_doubt" not in model.card or not _stays(model.card):
        return model
    return dataclasses.replace(model, card={**model.card, "largest_doubt": max(both)})
