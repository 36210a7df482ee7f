"""The trained model of densities that energies are learned on."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ...errors import Code, ConfigError, refusal
from ...structures.elements import symbol
from ..base import Model
from ..family import family_of
from ..files import load_model
from ..op2density import FAMILY, Op2Density, Op2DensityModel


def read_density(path: str | os.PathLike, elements: Sequence[int]) -> Op2DensityModel:
    """A model of densities, without what only its uncertainty needs.

    The last one is kept in memory: defining, checking and fitting read a file once.

    Args:
      path: model file or run directory.
      elements: of the training set of energies.

    Raises:
      ConfigError: another kind of model, or one of other elements.
      ModelFileError: no readable model.
    """
    model = _load(os.fspath(path), _written(path))
    if family_of(model) is not FAMILY:
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
    definition = cast(Op2Density, model.definition)
    config = dataclasses.replace(definition.config, uncertainty=False)
    params = {
        z: {k: v for k, v in of_element.items() if k != "variance"}
        for z, of_element in model.params.items()
    }
    return Op2DensityModel(dataclasses.replace(definition, config=config), params, model.card)


@functools.lru_cache(maxsize=1)
def _load(path: str, written: tuple[int, int] | None) -> Model:
    """The model of a path, whose file was ``written`` so."""
    return load_model(path)


def _written(path: str | os.PathLike) -> tuple[int, int] | None:
    """Time and size of the file of a model; None where there is none, which loading refuses."""
    file = Path(path, "model.safetensors") if Path(path).is_dir() else Path(path)
    return (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
