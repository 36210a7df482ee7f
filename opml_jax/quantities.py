"""The one table of what quantities are: axes and unit in arrays, unit and name where people read.

A label of a data set, an array of a prediction, the name of a metric, the heading of a column and
the unit in a file for ASE are all looked up here. ``<name>_uncertainty`` is the standard deviation
of a quantity and has its axes and units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from .units import (
    ANGSTROM_PER_BOHR,
    DEBYE_PER_EBOHR,
    EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    EV_PER_HARTREE,
)

SPREAD = "_uncertainty"
"""Ending of the name of a standard deviation."""

SIZES = {"atom": "n_atoms", "ao": "nao", "mo": "nao", "aux": "naux", "shell": "n_shells"}
"""Axes that grow with the molecule, and the array of a prediction that says how long they are.

Calculations have fewer levels (``mo``) than AOs where the basis is nearly linearly dependent, and
data sets as many as were found; predictions have one for every AO."""

Axis = str | int


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What a named array is.

    Attributes:
      axes: of one structure: names of :data:`SIZES`, or lengths.
      unit: of the numbers in arrays and HDF5 files, atomic units.
      text: what it is, in words.
      shown: unit in which people read errors of it.
      factor: how many of these are in an atomic unit.
      suffix: that unit in the names of metrics.
      heading: title of a column; empty: no column.
      metric: of the column; empty: ``<name>_mae_<suffix>``.
      ase: factor to ASE's units (eV, Angstrom); None: it is not written for ASE.
      label: whether data sets may hold it.
      doubted: whether data sets may hold its standard deviation.
    """

    axes: tuple[Axis, ...]
    unit: str
    text: str
    shown: str = ""
    factor: float = 1.0
    suffix: str = ""
    heading: str = ""
    metric: str = ""
    ase: float | None = None
    label: bool = True
    doubted: bool = False

    @property
    def fixed(self) -> tuple[int, ...]:
        """Lengths of the axes that have the same one in every structure."""
        return tuple(a for a in self.axes if isinstance(a, int))

    @property
    def symmetric(self) -> bool:
        """True for AO matrices, which are stored as packed lower triangles."""
        return self.axes == ("ao", "ao")


_MEV = {"shown": "meV", "factor": 1e3 * EV_PER_HARTREE, "suffix": "mev"}
_FORCE = {
    "shown": "meV/A",
    "factor": 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    "suffix": "mev_per_angstrom",
}
_DEBYE = {"shown": "D", "factor": DEBYE_PER_EBOHR, "suffix": "debye"}
_MICRO = {"shown": "uHa", "factor": 1e6, "suffix": "uha"}
_BOHR3 = {"shown": "Bohr^3", "factor": 1.0, "suffix": "bohr3"}

QUANTITIES: dict[str, Quantity] = {
    "density": Quantity(
        (),
        "norm",
        "electron density; its standard deviation in the metric's norm",
        shown="%",
        heading="density",
        metric="density_error_percent",
        ase=1.0,  # of its standard deviation: roots of Hartree in Coulomb's metric
        label=False,
        doubted=True,
    ),
    "density_self_energy": Quantity(
        (),
        "Hartree",
        "Coulomb energy of the error of a density with itself",
        **_MICRO,
        heading="self-energy",
        label=False,
    ),
    "atom_density": Quantity(
        ("atom",), "norm", "likewise, of an atom's functions", ase=1.0, label=False, doubted=True
    ),
    "fock": Quantity(
        ("ao", "ao"),
        "Hartree",
        "converged Fock (Kohn-Sham) matrix",
        **_MICRO,
        heading="Fock",
        doubted=True,
    ),
    "eigenvalue_occupied": Quantity(
        ("ao",), "Hartree", "occupied levels", **_MICRO, heading="occupied", label=False
    ),
    "eigenvalue_virtual": Quantity(
        ("ao",), "Hartree", "unoccupied levels", **_MICRO, heading="virtual", label=False
    ),
    "gap": Quantity(
        (),
        "Hartree",
        "lowest unoccupied less highest occupied level",
        **_MICRO,
        heading="gap",
        ase=EV_PER_HARTREE,
        label=False,
    ),
    "lowdin_charges": Quantity(
        ("atom",),
        "e",
        "Loewdin's charges",
        shown="e",
        suffix="e",
        heading="charges",
        ase=1.0,
        label=False,
    ),
    "mulliken_charges": Quantity(
        ("atom",), "e", "Mulliken's charges", shown="e", suffix="e", ase=1.0, label=False
    ),
    "dm": Quantity(("ao", "ao"), "1", "density matrix, occupation 2", heading="P"),
    "energy": Quantity(
        (), "Hartree", "total energy", **_MEV, heading="energy", ase=EV_PER_HARTREE, doubted=True
    ),
    "forces": Quantity(
        ("atom", 3),
        "Hartree/Bohr",
        "minus the energy gradient",
        **_FORCE,
        heading="forces",
        ase=EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
        doubted=True,
    ),
    "dipole": Quantity(
        (3,),
        "e Bohr",
        "dipole moment (x, y, z) about the coordinate origin",
        **_DEBYE,
        heading="dipole",
        ase=ANGSTROM_PER_BOHR,
    ),
    "field_dipole": Quantity(
        (3,), "e Bohr", "minus the derivative of the energy in a field", **_DEBYE, label=False
    ),
    "dipole_norm": Quantity((), "e Bohr", "length of the dipole moment", **_DEBYE),
    "quadrupole": Quantity(
        (3, 3),
        "e Bohr^2",
        "traceless quadrupole moment, sum q (3 r r - r^2) / 2 about the origin",
        shown="e Bohr^2",
        suffix="ebohr2",
        heading="quadrupole",
        ase=ANGSTROM_PER_BOHR**2,
    ),
    "polarizability": Quantity(
        (3, 3),
        "Bohr^3",
        "static dipole polarizability (x, y, z)",
        **_BOHR3,
        heading="polarizability",
        ase=ANGSTROM_PER_BOHR**3,
    ),
    "isotropic_polarizability": Quantity(
        (),
        "Bohr^3",
        "a third of the polarizability's trace",
        **_BOHR3,
        heading="isotropic",
        ase=ANGSTROM_PER_BOHR**3,
    ),
    "frame": Quantity((), "1", "index of the geometry in the trajectory it was taken from"),
    "mo_energy": Quantity(("mo",), "Hartree", "orbital energies", doubted=True),
    "mo_occ": Quantity(("mo",), "1", "orbital occupations"),
    "coefficients": Quantity(("aux",), "Bohr^-1.5", "density in the auxiliary basis ``aux_basis``"),
    "widths": Quantity(("shell",), "1", "factors of the exponents of the functions they are of"),
    "overlap": Quantity(("ao", "ao"), "1", "overlap matrix"),
    "certified_residual": Quantity(
        (),
        "Hartree",
        "largest element of the commutator of a predicted P and its F[P], orthogonalised",
        **_MICRO,
        ase=EV_PER_HARTREE,
    ),
    "fock_deviation": Quantity(
        (), "Hartree", "mean of |F - F[P]| of predicted F and P", **_MICRO, ase=EV_PER_HARTREE
    ),
    "energy_of_density": Quantity(
        (), "Hartree", "total energy of a predicted P, not minimised", **_MEV, ase=EV_PER_HARTREE
    ),
    "intruder": Quantity((), "1", "1 where an occupied orbital of a predicted F is wrong", ase=1.0),
    "kinetic": Quantity(("ao", "ao"), "Hartree", "kinetic energy matrix"),
    "external_potential": Quantity(("ao", "ao"), "Hartree", "nuclear attraction matrix"),
}
"""Every quantity the library knows, in the order of the columns of tables."""

N_ITERATES = 4
"""Iterates of an SCF that data sets may hold, at most."""


def iterate(name: str, cycle: int) -> str:
    """Name of the Fock (``"fock"``) or density (``"dm"``) matrix of a cycle of an SCF, from 1."""
    return f"{name}_cycle_{cycle}"


for _cycle in range(1, N_ITERATES + 1):
    QUANTITIES[iterate("dm", _cycle)] = Quantity(
        ("ao", "ao"), "1", f"density matrix of cycle {_cycle} of the SCF, which goes on from there"
    )
    QUANTITIES[iterate("fock", _cycle)] = Quantity(
        ("ao", "ao"), "Hartree", f"Fock matrix of the density of cycle {_cycle} of the SCF"
    )

LABELS: dict[str, Quantity] = {name: own for name, own in QUANTITIES.items() if own.label} | {
    name + SPREAD: dataclasses.replace(own, text=f"standard deviation: {own.text}")
    for name, own in QUANTITIES.items()
    if own.doubted
}
"""What data sets and their files may hold."""


def quantity(name: str) -> Quantity | None:
    """What an array of a prediction is: of a standard deviation, what it is of; else None."""
    return QUANTITIES.get(name.removesuffix(SPREAD))


def metric(name: str, kind: str = "mae") -> str:
    """Name of a mean absolute error (``mae``) or root mean square error (``rmse``)."""
    own = QUANTITIES[name]
    if own.metric and kind == "mae":
        return own.metric
    return "_".join(filter(None, (name, kind, own.suffix)))


def columns(metrics: Iterable[Iterable[str]]) -> list[tuple[str, str, str]]:
    """``(metric, heading, unit)`` of the columns that any of several rows of metrics has."""
    there = {key for row in metrics for key in row}
    return [
        (metric(name), own.heading, own.shown)
        for name, own in QUANTITIES.items()
        if own.heading and metric(name) in there
    ]


def in_ase_units(predicted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a prediction is written for ASE, in eV, Angstrom and e."""
    known = ((name, quantity(name), values) for name, values in predicted.items())
    return {name: values * q.ase for name, q, values in known if q and q.ase is not None}


def cut_rows(name: str, values: np.ndarray, sizes: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Rows of a padded prediction without their padding.

    Args:
      name: of the quantity.
      values: ``(n_structures, ...)``, each row padded to the largest structure.
      sizes: by the names of :data:`SIZES`' values, ``(n_structures,)``.
    """
    axes = QUANTITIES[name.removesuffix(SPREAD)].axes
    lengths = [sizes[SIZES[a]] if isinstance(a, str) and SIZES[a] in sizes else None for a in axes]
    return [
        row[tuple(slice(None if own is None else int(own[i])) for own in lengths)]
        for i, row in enumerate(values)
    ]
