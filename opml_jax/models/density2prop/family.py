"""Density2Prop as a family: properties of molecules from a predicted electron density."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from ...basis import Basis
from ...data import Dataset
from ...errors import Code, ConfigError
from ...learn.run import Run
from ...learn.schema import from_mapping, to_mapping
from ...structures.elements import symbol
from ..base import Model
from ..family import Evaluated, Family, Fit, Picture, family_of
from ..files import load_model
from ..op2density import FAMILY as DENSITIES
from ..op2density import Op2Density, Op2DensityModel
from ..op2prop.family import summary
from . import legacy
from .config import Density2PropConfig
from .functions import Density2Prop
from .model import Density2PropModel

Sets = Mapping[str, Dataset]


def read_density(path: str | os.PathLike, elements: Sequence[int]) -> Op2DensityModel:
    """A model of densities for these elements, without what only its uncertainty needs.

    The last one is kept in memory: defining, checking and fitting read a file once.

    Raises:
      ConfigError: another kind of model, or one of other elements.
      ModelFileError: no readable model.
    """
    file = Path(path, "model.safetensors") if Path(path).is_dir() else Path(path)
    written = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
    model = _load(os.fspath(path), written)
    if family_of(model) is not DENSITIES:
        got, expected = f"{path}, {model!r}", "an Op2Density model"
        hint = "opml config template density prints a configuration of one."
        raise ConfigError("model.density", got=got, expected=expected, hint=hint)
    if set(model.elements) != set(elements):
        got, wanted = (" ".join(map(symbol, sorted(x))) for x in (model.elements, elements))
        expected = f"one of the elements of the training set, {wanted}"
        raise ConfigError(
            "model.density",
            got=f"{path}, a model of {got}",
            expected=expected,
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


class Density2PropFamily(Family):
    """Density2Prop: see :class:`Family`."""

    name = "density2prop"
    about = "Density2Prop: closed form plus residual networks on a predicted density"
    Config = Density2PropConfig
    Functions = Density2Prop
    Model = Density2PropModel
    spreads = True
    refits = True
    starts = True

    def define(self, config: Density2PropConfig, elements: Sequence[int]) -> Density2Prop:
        """The pure functions of a configuration, on the model of densities that it names."""
        density = read_density(config.density, elements).definition
        return Density2Prop(config, density.basis, density)

    def check(self, definition: Density2Prop, config: Density2PropConfig, sets: Sets) -> None:
        """Refuse labels that are not there, or cannot be learned; see :meth:`Family.check`."""
        from ..op2prop.descriptors import check_labels

        check_labels(sets, config.targets)

    def fit(
        self, definition: Density2Prop, config: Density2PropConfig, sets: Sets, run: Run
    ) -> Fit:
        """Train as Op2Prop does, on the descriptors of the density; see :meth:`Family.fit`."""
        from ..op2prop.fit import fit_atomwise

        if run.origin is not None:  # which has a density of its own
            return fit_atomwise(definition, config.training, sets, run, dict)
        model = read_density(config.density, definition.elements)
        structures = sets["train"].structures
        draw = functools.partial(definition.draw, run.seed, structures, model.params)
        fit = fit_atomwise(definition, config.training, sets, run, draw)
        return dataclasses.replace(fit, facts={**fit.facts, "density": model.card})

    def written(self, model: Any) -> dict[str, Any]:
        """What a configuration says of a model's functions, and where their density was read."""
        read = model.card.get("config", {}).get("model", {}).get("density", "")
        return {**super().written(model), "density": read}

    def fingerprint_arrays(self, definition: Any, config: Any) -> list[np.ndarray]:
        """Parameters of the model of densities."""
        return jax.tree.leaves(read_density(config.density, definition.elements).params)

    def summary(self, model: Density2PropModel) -> str:
        """The density that a model reads, and the operators beside it, in words."""
        definition = model.definition
        density = f"predicted density in {definition.aux_basis.name}"
        return f"{density}; {summary(definition.beside)}" if definition.beside else density

    def pictures(self, model: Density2PropModel, evaluated: Evaluated) -> list[Picture]:
        """The predicted density."""
        from ..op2density.pictures import density_picture

        return [density_picture(model.density, evaluated)]

    def header(self, definition: Density2Prop) -> dict[str, Any]:
        """The configuration of the density's functions."""
        return {"density_config": to_mapping(definition.density.config)}

    def read_config(self, values: Mapping[str, Any]) -> Density2PropConfig:
        """The configuration in a model file, of version 0.1 too."""
        if "density_beside" in values:
            values = legacy.functions(values)
        return from_mapping(Density2PropConfig, {**values, "fit": None}, "model")

    def restore(self, header: Mapping[str, Any], bases: Mapping[str, Basis]) -> Density2Prop:
        """The definition in a model file, around that of the density."""
        density = cast(Op2Density, DENSITIES.restore({"config": header["density_config"]}, bases))
        return Density2Prop(self.read_config(header["config"]), bases["basis"], density)


FAMILY = Density2PropFamily()
