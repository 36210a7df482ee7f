"""Op2Prop as a family: properties of molecules from a potential."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...basis import load_basis
from ...data import Dataset
from ...learn.run import Run
from ...learn.schema import from_mapping
from ..base import ModelConfig
from ..family import Evaluated, Family, Fit, Picture
from .config import Op2PropConfig
from .functions import Op2Prop
from .model import Op2PropModel

OF_DENSITIES = ("density", "density_beside")
"""Settings in files of version 0.1 that belong to Density2Prop."""


class Op2PropFamily(Family):
    """Energies, forces, moments and polarizabilities as functions of an operator."""

    name = "op2prop"
    about = "Op2Prop: properties from an operator, closed form plus residual networks"
    Config = Op2PropConfig
    Functions = Op2Prop
    Model = Op2PropModel
    spreads = True
    refits = True
    starts = True

    def define(self, config: Op2PropConfig, elements: Sequence[int]) -> Op2Prop:
        """The pure functions of a configuration; see :meth:`Family.define`."""
        return Op2Prop(config, load_basis(config.basis, elements))

    def check(self, definition: Op2Prop, config: Op2PropConfig, sets: Mapping[str, Dataset]):
        """Refuse labels that are not there, or cannot be learned; see :meth:`Family.check`."""
        from .descriptors import check_labels

        check_labels(sets, config.targets)

    def fit(
        self, definition: Op2Prop, config: Op2PropConfig, sets: Mapping[str, Dataset], run: Run
    ) -> Fit:
        """Train a model; see :meth:`Family.fit`."""
        from .fit import fit_atomwise

        settings = config.training
        fit = fit_atomwise(definition, settings, sets, run, lambda: definition.draw(run.seed))
        if settings.field_dipole_sigma:
            fit.facts["field_dipole_sigma"] = settings.field_dipole_sigma
        return fit

    def summary(self, model: Any) -> str:
        """The operators a model reads, in words."""
        return summary(model.definition)

    def pictures(self, model: Any, evaluated: Evaluated) -> list[Picture]:
        """The operator that a model reads, and forces."""
        from .pictures import forces_picture, operator_picture

        return [operator_picture(model.definition, evaluated), *forces_picture(evaluated)]

    def read_config(self, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration in a model file, of version 0.1 too."""
        read = {k: v for k, v in values.items() if k not in OF_DENSITIES}
        return from_mapping(Op2PropConfig, {**read, "fit": None}, "model")


def summary(definition: Op2Prop) -> str:
    """The operators that are read, in words."""
    config = definition.config
    names = ", ".join((config.operator, *config.others)).replace("_", " ")
    return f"{names} in {config.basis}, powers {', '.join(map(str, config.powers))}"


FAMILY = Op2PropFamily()
