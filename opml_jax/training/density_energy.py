"""The trained model of densities that energies are learned on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from ..errors import Code, ConfigError, refusal
from ..models import DensityModel, load_model
from ..structures.elements import symbol


def read_density(path: str | os.PathLike, elements: Sequence[int]) -> DensityModel:
    """A model of densities, without what only its uncertainty needs.

    Args:
      path: model file or run directory.
      elements: of the training set of energies.

    Raises:
      ConfigError: another kind of model, or one of other elements.
      ModelFileError: no readable model.
    """
    model = load_model(path)
    if not isinstance(model, DensityModel):
        raise ConfigError(
            refusal(
                "model.density",
                got=f"{path}, {model!r}",
                expected="an Op2Density model",
                hint="opml config template density prints a configuration of one.",
            )
        )
    if set(model.elements) != set(elements):
        got, wanted = (" ".join(map(symbol, sorted(x))) for x in (model.elements, elements))
        raise ConfigError(
            refusal(
                "model.density",
                got=f"{path}, a model of {got}",
                expected=f"one of the elements of the training set, {wanted}",
            ),
            code=Code.UNSEEN_ELEMENT,
        )
    definition = model.definition
    plain = dataclasses.replace(definition.config, uncertainty=False)
    params = {
        z: {k: v for k, v in own.items() if k != "variance"} for z, own in model.params.items()
    }
    return dataclasses.replace(
        model, definition=dataclasses.replace(definition, config=plain), params=params
    )
