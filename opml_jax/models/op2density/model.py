"""A trained Op2Density model: coefficients of electron densities, and what follows from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ...basis import layout_of
from ...data import Dataset
from ...errors import Code, OpmlError
from ...learn.padding import padded
from ...numerics import Array
from ...structures import Structure
from ..base import Model, Params
from ..base.model import of_one
from .functions import Op2Density

SIZES = ("naux", "n_atoms", "n_shells")
"""What a list's predictions have, and one molecule's need not."""

_apply = jax.jit(Op2Density.apply, static_argnums=0)
_variances = jax.jit(Op2Density.variances, static_argnums=0)


@dataclasses.dataclass(frozen=True, repr=False)
class Op2DensityModel(Model):
    """An Op2Density model ready for use; see :class:`Model` for its attributes."""

    definition: Op2Density

    def has(self, name: str) -> bool:
        """Whether the model predicts a quantity: densities, but no energies."""
        flexible = self.definition.flexible and name == "widths"
        return name in ("density", "coefficients", "dipole") or flexible

    def baseline(self, structures: Sequence[Structure]) -> dict[str, np.ndarray]:
        """Superposed free atoms, or mean isotropic coefficients of elements."""
        kept = ("baseline", "components", "references")
        params = {z: {k: v for k, v in p.items() if k in kept} for z, p in self.params.items()}
        return dataclasses.replace(self, params=params).predict(structures)

    @property
    def instead(self) -> str:
        """What a user may do who asked for an energy, which needs a functional of densities."""
        return "Use opml_jax.interfaces.density.energies, which takes a PySCF calculation."

    def density_fn(self, params: Params | None = None) -> Callable[[Structure], dict[str, Array]]:
        """A pure function for ``jax.grad`` and friends: ``coefficients``, ``dipole``, ``widths``.

        Args:
          params: parameters to use. Default: the model's own.

        Returns:
          ``density(structure) -> dict``, see :meth:`Op2Density.apply`.
        """
        used = self.params if params is None else params
        return self.checked(functools.partial(self.definition.apply, used))

    def reference_coefficients(self, dataset: Dataset) -> list[np.ndarray]:
        """Fits to the densities of a data set, ``(naux,)`` each, as those the model learned from.

        Args:
          dataset: of neutral molecules, with density or Fock matrices.

        Raises:
          DataError: neither; ions.
        """
        from .labels import labelled_coefficients

        return labelled_coefficients(self.definition, dataset)

    def check_uncertainty(self) -> None:
        """Refuse standard deviations of a model that was trained without.

        They are in the norm of a metric, and no label is: :attr:`doubted` is empty all the same.

        Raises:
          OpmlError: it was.
        """
        if not self.definition.config.uncertainty:
            got, hint = "a model trained without", "Train with model.uncertainty=true."
            expected = "one that holds the covariance of its weights"
            code = Code.CAPABILITY
            raise OpmlError("uncertainty", got=got, expected=expected, hint=hint, code=code)

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
        if isinstance(structures, Structure):
            return of_one(self.predict([structures], uncertainty=uncertainty), SIZES)
        several = self.ready(structures, uncertainty)
        rows = [_apply(self.definition, self.params, s) for s in several]
        out = {name: padded([row[name] for row in rows]) for name in rows[0]}
        layouts = [layout_of(s, self.definition.aux_basis) for s in several]
        out["naux"] = np.array([layout.nao for layout in layouts])
        out["n_atoms"] = np.array([s.n_atoms for s in several])
        if self.definition.flexible:
            out["n_shells"] = np.array([layout.n_shells for layout in layouts])
        if uncertainty:
            variances = padded([_variances(self.definition, self.params, s) for s in several])
            out["density_uncertainty"] = np.sqrt(variances.sum(axis=1))
            out["atom_density_uncertainty"] = np.sqrt(variances)
        return out
