"""A trained Density2Prop model: an Op2Prop model that holds a model of densities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...structures import Structure
from ..op2density import Op2DensityModel
from ..op2prop import Op2PropModel
from .functions import Density2Prop


@dataclasses.dataclass(frozen=True, repr=False)
class Density2PropModel(Op2PropModel):
    """A :class:`Density2Prop` model ready for use; see :class:`Model` for its attributes."""

    definition: Density2Prop

    @property
    def density(self) -> Op2DensityModel:
        """The model of densities inside."""
        return Op2DensityModel(self.definition.density, self.params["density"])

    def has(self, name: str) -> bool:
        """Whether the model predicts a quantity."""
        return name == "dipole" or super().has(name)

    def predict(
        self, structures: Structure | Sequence[Structure], **options: Any
    ) -> dict[str, np.ndarray]:
        """As :meth:`EnergyModel.predict`, and the ``dipole`` of the density.

        For the latter one compilation for each composition, as :meth:`Op2DensityModel.predict`.

        Raises:
          OpmlError: as there; ions.
        """
        out = super().predict(structures, **options)
        if "dipole" not in out:
            out["dipole"] = self.density.predict(structures)["dipole"]
        return out
