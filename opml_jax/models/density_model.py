"""A trained Op2Density model: coefficients of electron densities, and what follows from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ..basis import layout_of
from ..errors import OpmlError, refusal
from ..numerics import Array, require_x64
from ..structures import Structure
from .density import Op2Density, Params
from .model import Model

SIZES = ("naux", "n_atoms", "n_shells")
"""What a list's predictions have, and one molecule's need not."""


@dataclasses.dataclass(frozen=True, repr=False)
class DensityModel(Model):
    """An Op2Density model ready for use; see :class:`Model` for its attributes."""

    definition: Op2Density

    without = ""  # nothing to leave out

    def energy_fn(self, params: Params | None = None) -> Callable[[Structure], Array]:
        """Refused: the model predicts densities, and an energy needs a functional of them."""
        raise OpmlError(
            refusal(
                "model",
                got="an Op2Density model, which predicts densities",
                expected="a model of energies",
                hint="Use opml_jax.interfaces.density.energies, which takes a PySCF calculation.",
            )
        )

    def density_fn(self, params: Params | None = None) -> Callable[[Structure], dict[str, Array]]:
        """A pure function for ``jax.grad`` and friends: ``coefficients``, ``dipole``, ``widths``.

        Args:
          params: parameters to use. Default: the model's own.

        Returns:
          ``density(structure) -> dict``, see :meth:`Op2Density.apply`.
        """
        return functools.partial(self.definition.apply, self.params if params is None else params)

    @property
    def doubted(self) -> tuple[str, ...]:
        """None: standard deviations of densities are in the norm of a metric, and no label is."""
        return ()

    def predict(  # type: ignore[override]
        self, structures: Structure | Sequence[Structure], *, uncertainty: bool = False
    ) -> dict[str, np.ndarray]:
        """Densities of neutral molecules; one compilation for each composition.

        Args:
          structures: one molecule or several (any mix of compositions the model knows).
          uncertainty: also standard deviations of densities, in the norm of the model's metric
            (root of Hartree for coulomb: half their squares are Coulomb energies of the error with
            itself), by the Gaussian process of the kernels, whatever a network adds:
            ``atom_density_uncertainty`` of the functions on each atom, and
            ``density_uncertainty``, the root of the sum of their squares (correlations of atoms
            are left out).

        Returns:
          ``coefficients`` ``(naux,)`` in the library's order of the auxiliary basis and ``dipole``
          ``(3,)`` in e Bohr about the centre of nuclear charge; for a list a leading axis, padded
          with zeros to the largest molecule, and ``naux`` and ``n_atoms``. A model whose basis is
          flexible has ``widths`` ``(n_shells,)`` beside them, factors of exponents in the order of
          the shells (padded likewise, with ``n_shells``): coefficients belong to them, and every
          function of :mod:`opml_jax.density` takes both.

        Raises:
          OpmlError: an empty list, an ion, an element the model has not seen, an uncertainty of a
            model trained without.
          PrecisionError: x64 is off.
        """
        require_x64("an Op2Density model")
        if isinstance(structures, Structure):
            out = self.predict([structures], uncertainty=uncertainty)
            return {k: v[0] for k, v in out.items() if k not in SIZES}
        structures = list(structures)
        if not structures:
            raise OpmlError(refusal("structures", got="an empty list", expected="at least one"))
        self.check_structures(structures)
        if ions := [s for s in structures if s.charge]:
            raise OpmlError(refusal("structures", got=repr(ions[0]), expected="neutral molecules"))
        if uncertainty and not self.definition.config.uncertainty:
            raise OpmlError(
                refusal(
                    "uncertainty",
                    got="a model trained without",
                    expected="one that holds the covariance of its weights",
                    hint="Train with density.uncertainty=true.",
                )
            )
        layouts = [layout_of(s, self.definition.aux_basis) for s in structures]
        naux, n_shells = ([getattr(x, k) for x in layouts] for k in ("nao", "n_shells"))
        c = np.zeros((len(structures), max(naux)))
        widths = np.zeros((len(structures), max(n_shells)))
        dipoles = np.zeros((len(structures), 3))
        for i, s in enumerate(structures):
            found = _apply(self.definition, self.params, s)
            c[i, : naux[i]], dipoles[i] = found["coefficients"], found["dipole"]
            widths[i, : n_shells[i]] = found.get("widths", 1.0)
        n_atoms = np.array([s.n_atoms for s in structures])
        out = {"coefficients": c, "dipole": dipoles, "naux": np.array(naux), "n_atoms": n_atoms}
        if self.definition.flexible:
            out |= {"widths": widths, "n_shells": np.array(n_shells)}
        if uncertainty:
            variances = np.zeros((len(structures), max(n_atoms)))
            for i, s in enumerate(structures):
                variances[i, : s.n_atoms] = _variances(self.definition, self.params, s)
            out["density_uncertainty"] = np.sqrt(variances.sum(axis=1))
            out["atom_density_uncertainty"] = np.sqrt(variances)
        return out


@functools.partial(jax.jit, static_argnums=0)
def _apply(definition: Op2Density, params: Params, structure: Structure) -> dict[str, Array]:
    return definition.apply(params, structure)


@functools.partial(jax.jit, static_argnums=0)
def _variances(definition: Op2Density, params: Params, structure: Structure) -> Array:
    return definition.variances(params, structure)
