"""The family of models that predict electron densities from an operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...basis import load_basis
from ...data import Dataset
from ..base import ModelConfig
from ..base.metrics import quantity_errors
from ..family import Evaluated, Family, Fit, Picture
from .config import Op2DensityConfig
from .functions import Op2Density
from .legacy import OF_LOSS, OF_SOLVER
from .model import Op2DensityModel

if TYPE_CHECKING:
    from ...learn.run import Run


class Op2DensityFamily(Family):
    """Op2Density: see :class:`Family`."""

    name = "op2density"
    about = "Op2Density: symmetry-adapted kernels, in closed form"
    Config = Op2DensityConfig
    Functions = Op2Density
    Model = Op2DensityModel
    starts = True

    def define(self, config: Op2DensityConfig, elements: Sequence[int]) -> Op2Density:
        """The pure functions of a configuration, with bases loaded for ``elements``."""
        bases = (load_basis(name, elements) for name in (config.basis, config.aux_basis))
        return Op2Density(config, *bases)

    def check(
        self, definition: Op2Density, config: Op2DensityConfig, sets: Mapping[str, Dataset]
    ) -> None:
        """Refuse data without matrices that a density follows from, and ions."""
        from .labels import check_densities

        for dataset in sets.values():
            check_densities(definition, dataset)

    def fit(
        self,
        definition: Op2Density,
        config: Op2DensityConfig,
        sets: Mapping[str, Dataset],
        run: Run,
    ) -> Fit:
        """Solve for the kernels, then train a network and widths, if there are."""
        from .fit import fit

        return fit(definition, config, sets, run)

    def learned(self, config: Op2DensityConfig, dataset: Dataset) -> list[str]:
        """The matrices that there are: densities follow from either."""
        return [name for name in ("fock", "dm") if name in dataset]

    def errors(
        self, predicted: Mapping[str, np.ndarray], dataset: Dataset, model: Op2DensityModel
    ) -> dict[str, float]:
        """Errors of dipoles and of densities, units in their names."""
        from .metrics import density_errors

        errors = quantity_errors(predicted, dataset)
        return errors | density_errors(predicted, dataset, model.definition)

    def details(
        self,
        predicted: Mapping[str, np.ndarray],
        dataset: Dataset,
        model: Op2DensityModel,
        metrics: Mapping[str, float],
    ) -> list[str]:
        """Errors of densities that tables have no column for."""
        percents = ("density_error_percent_max", "density_error_total_percent")
        shown = (*percents, "density_rmse_percent", "dipole_fit_mae_debye")
        return [f"{name.replace('_', ' '):<28}{metrics[name]:>12.3g}" for name in shown]

    def summary(self, model: Op2DensityModel) -> str:
        """What a model reads, in words, for the report."""
        config = model.definition.config
        powers = ", ".join(map(str, config.powers))
        return f"{config.operator.replace('_', ' ')} in {config.basis}, powers {powers}"

    def pictures(self, model: Op2DensityModel, evaluated: Evaluated) -> list[Picture]:
        """A predicted density, and its difference from the baseline."""
        from .pictures import density_picture

        return [density_picture(model, evaluated)]

    def read_config(self, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration in a model file; those of version 0.1 also hold some of training."""
        values = {k: v for k, v in values.items() if k not in OF_SOLVER}
        if (network := values.get("network")) is not None:
            sizes = {k: v for k, v in network.items() if k not in OF_LOSS}
            values["network"] = {**sizes, "fit": None}
        return super().read_config(values)


FAMILY = Op2DensityFamily()
"""The family."""
