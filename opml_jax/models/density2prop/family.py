"""Density2Prop as a family: properties of molecules from a predicted electron density."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ...basis import Basis
from ...data import Dataset
from ...learn.schema import from_mapping, to_mapping
from ..base import Params
from ..family import Evaluated, Family, Fit, Picture, Template
from ..op2density import FAMILY as DENSITIES
from ..op2density import Op2Density
from ..op2prop.family import summary
from . import legacy
from .config import Density2PropConfig
from .functions import Density2Prop
from .model import Density2PropModel

if TYPE_CHECKING:
    from ...learn.run import Run


class Density2PropFamily(Family):
    """Density2Prop: see :class:`Family`."""

    name = "density2prop"
    about = "Density2Prop: closed form plus residual networks on a predicted density"
    Config = Density2PropConfig
    Functions = Density2Prop
    Model = Density2PropModel
    spreads = True
    refits = True

    def define(self, config: Density2PropConfig, elements: Sequence[int]) -> Density2Prop:
        """The pure functions of a configuration, on the model of densities that it names.

        Raises:
          ConfigError: another kind of model, or one of other elements.
          ModelFileError: no readable model.
        """
        from .density import read_density

        density = read_density(config.density, elements).definition
        return Density2Prop(config, density.basis, density)

    def check(
        self, definition: Density2Prop, config: Density2PropConfig, sets: Mapping[str, Dataset]
    ) -> None:
        """Refuse labels that are not there, or cannot be learned; see :meth:`Family.check`."""
        from ..op2prop.labels import check_labels

        check_labels(sets, config.targets)

    def fit(
        self,
        definition: Density2Prop,
        config: Density2PropConfig,
        sets: Mapping[str, Dataset],
        run: Run,
    ) -> Fit:
        """Train as Op2Prop does, on the descriptors of the density; see :meth:`Family.fit`."""
        from ..op2prop.fit import fit_atomwise
        from .density import read_density

        model = read_density(config.density, definition.elements)
        structures = sets["train"].structures

        def draw() -> Params:
            return definition.draw(run.seed, structures, model.params)

        fit = fit_atomwise(definition, config.training, sets, run, draw)
        return dataclasses.replace(fit, facts={**fit.facts, "density": model.card})

    def fingerprint_arrays(
        self, definition: Density2Prop, config: Density2PropConfig
    ) -> list[np.ndarray]:
        """Parameters of the model of densities."""
        import jax

        from .density import read_density

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

    def templates(self) -> dict[str, Template]:
        """Configurations to start from, by name."""
        from .templates import TEMPLATES

        return TEMPLATES

    def migrated(self, tree: Mapping[str, Any]) -> dict[str, Any] | None:
        """The ``model`` section for a configuration of version 0.1; see :meth:`Family.migrated`."""
        return legacy.migrated(tree)

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
