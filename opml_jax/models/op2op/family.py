"""The family of models that predict Fock and density matrices from operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...basis import layout_of, load_basis
from ...data import Dataset
from ...data.functionals import exact_exchange, functional_of, is_meta_gga
from ...data.plausibility import check_finite
from ...errors import Code, ConventionError, DataError, ModelFileError
from ..family import Evaluated, Family, Fit, Picture
from .config import ObservablesFit, Op2OpConfig
from .functions import Op2Op
from .legacy import BEFORE_PROJECTION, OF_MATRIX_NETWORK
from .model import Op2OpModel, check_closed_shells

if TYPE_CHECKING:
    from ...learn.run import Run

READ = ("overlap", "kinetic energy", "potential of neutral atoms")
"""Operators that words are made of, in words."""

SHOWN = ("orbital_similarity", "dm_mae", "electron_number_error", "idempotency_error")
"""Errors that tables have no column for."""


class Op2OpFamily(Family):
    """Op2Op: see :class:`Family`."""

    name = "op2op"
    about = "Op2Op: exchange and correlation by block and irrep in closed form, self-consistent"
    Config = Op2OpConfig
    Functions = Op2Op
    Model = Op2OpModel
    starts = True
    spreads = True

    def define(self, config: Op2OpConfig, elements: Sequence[int]) -> Op2Op:
        """The pure functions of a configuration, with bases loaded for ``elements``."""
        names = config.basis, config.input_basis
        return Op2Op(config, *(load_basis(name, elements) for name in names if name))

    def check(self, definition: Op2Op, config: Op2OpConfig, sets: Mapping[str, Dataset]) -> None:
        """Refuse data without Fock matrices in the model's basis, and open shells."""
        observables = config.fit and config.fit.observables
        for name, part in sets.items():
            _check_labels(name, part, observables)
            if observables is None:
                _check_basis(definition, part)
                _check_functional(config, part)

    def fit(
        self, definition: Op2Op, config: Op2OpConfig, sets: Mapping[str, Dataset], run: Run
    ) -> Fit:
        """Solve the closed form, then fit to observables or train a network, if there is one."""
        from .fit import fit

        return fit(definition, config, sets, run)

    def learned(self, config: Op2OpConfig, dataset: Dataset) -> list[str]:
        """The matrices that there are, and polarizabilities that are learned."""
        names = ["fock", "dm"]
        if "polarizability" in config.targets:
            names.append("polarizability")
        return [name for name in names if name in dataset]

    def errors(
        self, predicted: Mapping[str, np.ndarray], dataset: Dataset, model: Op2OpModel
    ) -> dict[str, float]:
        """Errors of quantities and of matrices, or of observables of a larger basis' matrices."""
        from .metrics import all_errors

        return all_errors(predicted, dataset)

    def details(
        self,
        predicted: Mapping[str, np.ndarray],
        dataset: Dataset,
        model: Op2OpModel,
        metrics: Mapping[str, float],
    ) -> list[str]:
        """Errors that tables have no column for, and in which irreps they are."""
        from .metrics import describe, errors_by_key

        if "dm_mae" not in metrics:
            return []
        shares = errors_by_key(predicted, dataset, model.definition.basis)
        worst = [f"{describe(k)} {100 * share:.0f} %" for k, share in [*shares.items()][:5]]
        matrix = "F" if "fock" in predicted else "P"
        return [
            *(f"{k.replace('_', ' '):<24}{metrics[k]:>12.3g}" for k in SHOWN if k in metrics),
            f"squared error of {matrix} by irrep: {'; '.join(worst)}",
        ]

    def describe(self, config: Op2OpConfig) -> str:
        """What a model card says that the model is."""
        if config.fit and config.fit.observables:
            return "Op2Op: an effective matrix, fitted to observables of a larger basis"
        return self.about

    def summary(self, model: Op2OpModel) -> str:
        """What a model reads, in words, for the report."""
        definition = model.definition
        basis = definition.input_basis or definition.basis
        return f"{', '.join(READ)} in {basis.name}"

    def parity(self, evaluated: Evaluated) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
        """Occupied levels, of models of Fock matrices."""
        from .pictures import occupied_levels

        if "fock" not in evaluated.dataset or "fock" not in evaluated.predicted:
            return []
        return [occupied_levels(evaluated)]

    def worst(self, evaluated: Evaluated) -> dict[str, tuple[np.ndarray, str]]:
        """Mean errors of the matrix (effective: of occupied levels) of each structure."""
        from .metrics import MICRO, errors_by_structure

        if "fock" not in evaluated.dataset:
            return {}
        errors = errors_by_structure(evaluated.predicted, evaluated.dataset)
        unit = "μHartree" if "fock" in evaluated.predicted else "1e-6"
        return {"matrix": (MICRO * errors, "{:.3g} " + unit)}

    def pictures(self, model: Op2OpModel, evaluated: Evaluated) -> list[Picture]:
        """The matrix of the worst structure, where data have matrices."""
        from .pictures import matrix_picture

        return [matrix_picture(model, evaluated)] if "fock" in evaluated.dataset else []

    def read_config(self, values: Mapping[str, Any]) -> Op2OpConfig:
        """The configuration in a model file; networks of version 0.1 had a kind."""
        values = {**BEFORE_PROJECTION, **values}
        if (network := values.get("network")) is not None:
            if (kind := network.get("kind", "gated")) != "gated":
                raise ModelFileError(
                    "model",
                    got=f"an Op2Op model with a network of kind {kind!r}, which was removed",
                    expected="one with a gated network, or none",
                    hint="Version 0.1 of opml_jax reads it.",
                )
            sizes = {k: v for k, v in network.items() if k not in OF_MATRIX_NETWORK}
            values["network"] = {**sizes, "fit": None}
        config = super().read_config(values)
        assert isinstance(config, Op2OpConfig)
        return config


FAMILY = Op2OpFamily()
"""The family."""


def _check_labels(name: str, part: Dataset, observables: ObservablesFit | None) -> None:
    """Refuse labels (or, for observables, their basis) that are not there, open shells, NaN."""
    labels = ["fock"]
    if observables and "polarizability" in observables.targets:
        labels.append("polarizability")
    has_basis = observables is None or "basis" in part.meta
    if any(label not in part for label in labels) or not has_basis or not len(part):
        basis = ", and the name of their basis" if observables else ""
        raise DataError(
            name,
            got=repr(part),
            expected=f"structures with the label {' and '.join(labels)}{basis}",
            hint="opml generate makes files with Fock matrices.",
            code=Code.LABEL,
        )
    check_closed_shells(name, part.structures, DataError)
    check_finite(name, {label: part.labels[label] for label in labels})


def _check_functional(config: Op2OpConfig, part: Dataset) -> None:
    """Refuse matrices of a functional with a part that the model can neither compute nor learn."""
    if not config.is_local or "method" not in part.meta:
        return
    method = functional_of(str(part.meta["method"]), part.meta.get("pyscf_version"))
    wanted = exact_exchange(method)
    if wanted is not None and abs(wanted - config.exchange) > 1e-6:
        raise DataError(
            "model.exchange",
            got=config.exchange,
            expected=f"{wanted:g}, as {method} has, whose exchange is computed and not learned",
            hint="Or learn all of it, with model.projection=none.",
            code=Code.LEVEL_OF_THEORY,
        )
    if is_meta_gga(method) and config.projected_on != "meta_gga":
        raise DataError(
            "model.projection",
            got=config.projection,
            expected=f"meta_gga, as {method} is",
            hint="Its matrices have a potential between gradients of orbitals.",
            code=Code.LEVEL_OF_THEORY,
        )


def _check_basis(definition: Op2Op, part: Dataset) -> None:
    """Refuse matrices of another basis, by the layouts in the data or by their sizes."""
    part.check_layout(definition.basis)
    for structure, fock in zip(part.structures, part.labels["fock"], strict=True):
        if len(fock) != (nao := layout_of(structure, definition.basis).nao):
            raise ConventionError(
                f"Fock matrix of {structure!r}",
                got=f"{len(fock)} functions",
                expected=f"{nao}, as {definition.basis!r} has",
                hint="Set model.basis to the basis of the labels.",
                code=Code.LAYOUT,
            )
