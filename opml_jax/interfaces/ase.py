"""ASE: a calculator, and structures to and from ``Atoms``.

In ASE's units: Angstrom, eV, e. Molecular dynamics, optimisers, vibrations and everything else
that takes a calculator work as they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ..basis.buckets import Bucket, smallest_bucket
from ..data.keys import state_of, states_charge_or_spin
from ..errors import Code, OpmlError, StructureError
from ..models import Model, load_model
from ..numerics import require_x64
from ..programs import keep_programs
from ..quantities import in_ase_units
from ..structures import Structure
from ..units import ANGSTROM_PER_BOHR

_RESULTS = {
    "energy": "energy",
    "free_energy": "energy",
    "forces": "forces",
    "dipole": "dipole",
    "energy_std": "energy_uncertainty",
    "forces_std": "forces_uncertainty",
}
"""Names of ASE's results and of the predictions they are."""


class OPMLCalculator(Calculator):
    """ASE calculator of a trained model.

    Shapes are padded to a capacity, which grows in round steps: a run of one composition compiles
    once, and a molecule that fits what came before compiles nothing. What was compiled is kept on
    disk for the next process (:mod:`opml_jax.programs`; ``OPML_CACHE=off`` in the environment turns
    that off).

    Args:
      model: a :class:`opml_jax.Model` of energies, or the path of a model file or run directory.
      uncertainty: also predict standard deviations, at the price of a gradient for each member of
        an ensemble, or a derivative in each coordinate.
      capacity: formula of the largest molecule to come (``"C9H20"``); everything up to it shares
        one program. Default: the capacity starts with the first molecule.
      kwargs: ASE's own (``atoms``, ``label``, ``directory``).

    Attributes:
      results: ``energy`` and ``free_energy`` (the same number, eV), ``forces`` ``(n_atoms, 3)``
        (eV/Angstrom), ``dipole`` ``(3,)`` (e Angstrom) of models trained on it; with
        ``uncertainty`` also ``energy_std`` (eV) and ``forces_std`` ``(n_atoms, 3)`` (eV/Angstrom).

    Raises:
      ModelFileError: a path without a readable model.
      OpmlError: a model that predicts no energies, or a capacity that is no formula.
      StructureError: when calculating: periodic atoms, a charge or spin that the model was not
        trained for, or positions that cannot be meant.
      OpmlError: when calculating: an element the model has not seen, or an uncertainty of a model
        that has none.
      PrecisionError: x64 is off.
    """

    implemented_properties = ["energy", "free_energy", "forces", "dipole"]  # noqa: RUF012
    ignored_changes = {"cell"}  # noqa: RUF012  (a box around a molecule; pbc is refused)

    def __init__(
        self,
        model: Model | str | os.PathLike,
        *,
        uncertainty: bool = False,
        capacity: str | None = None,
        **kwargs: Any,
    ):
        require_x64("a float64 model")
        keep_programs()
        self.model = load_model(model) if isinstance(model, str | os.PathLike) else model
        self.model.require("energy")
        self.uncertainty = uncertainty
        self._largest: list[tuple[int, ...]] = []  # compositions that made the capacity grow
        if capacity is not None:
            self._largest.append(_composition(capacity))
        if not self.model.has("dipole"):
            self.implemented_properties = ["energy", "free_energy", "forces"]
        super().__init__(**kwargs)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation, charge and spin in ``info`` among it."""
        changes = super().check_state(atoms, tol)
        if self.atoms is not None and _said(self.atoms) != _said(atoms):
            changes.append("info")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; every property comes from one evaluation, whichever is asked for."""
        super().calculate(atoms, properties, system_changes)
        if not system_changes and self.results:
            return
        self.results = {}
        assert self.atoms is not None  # ASE has kept what it was given
        structure = structure_from_ase(self.atoms)
        self.model.check_species([structure])  # before a bucket is sought for it
        bucket = self._grow(structure.numbers)
        predicted = self.model.predict(structure, uncertainty=self.uncertainty, bucket=bucket)
        shown = in_ase_units(predicted)
        self.results = {name: shown[key] for name, key in _RESULTS.items() if key in shown}

    def _grow(self, numbers: tuple[int, ...]) -> Bucket:
        """The capacity, grown if a molecule does not fit."""
        spec = self.model.definition.basis.spec
        if self._largest:
            bucket = smallest_bucket(spec, self._largest).rounded()
            if bucket.covers(smallest_bucket(spec, [numbers])):
                return bucket
        self._largest.append(numbers)
        return smallest_bucket(spec, self._largest).rounded()


def _composition(formula: str) -> tuple[int, ...]:
    try:
        return tuple(Atoms(formula).numbers.tolist())
    except (KeyError, ValueError) as err:
        raise OpmlError(
            "capacity", got=repr(formula), expected="a formula such as 'C9H20'"
        ) from err


def structure_from_ase(atoms: Atoms) -> Structure:
    """A molecule from ``ase.Atoms``.

    Charge and spin are what ``info``, initial charges and initial magnetic moments say, under the
    names of :mod:`opml_jax.data.keys`; 0 where they say nothing. Masses that ASE holds are kept
    where they are not standard weights. A cell without periodicity is only a box, and dropped.

    Raises:
      StructureError: periodic atoms, a charge that is no integer, or a geometry or electron count
        that cannot be meant.
    """
    if atoms.pbc.any():
        raise StructureError(
            "atoms",
            got=f"pbc {atoms.pbc.tolist()}",
            expected="a molecule",
            hint="Set atoms.pbc = False if the cell is only a box.",
            code=Code.PERIODIC,
        )
    state = state_of(atoms.info, atoms.arrays, atoms.numbers)
    masses = atoms.get_masses() if atoms.has("masses") else None
    x = atoms.positions / ANGSTROM_PER_BOHR
    return Structure(atoms.numbers, x, state.charge or 0, state.spin or 0, masses)


def _said(atoms: Atoms) -> dict[str, str]:
    """What ``info`` says of charge and spin, as it is written."""
    return {k: repr(v) for k, v in atoms.info.items() if states_charge_or_spin(k)}


def structure_to_ase(structure: Structure) -> Atoms:
    """``ase.Atoms`` of a molecule, positions in Angstrom; a charge goes to ``info["charge"]``.

    The inverse of :func:`structure_from_ase`; spin becomes a moment on the first atom, and masses
    are set if they are not standard weights.
    """
    positions = np.asarray(structure.positions) * ANGSTROM_PER_BOHR
    atoms = Atoms(structure.numbers, positions, masses=structure.masses)
    if structure.charge:
        atoms.info["charge"] = structure.charge
    if structure.spin:
        atoms.set_initial_magnetic_moments([structure.spin] + [0] * (structure.n_atoms - 1))
    return atoms
