"""Physical constants and conversions (CODATA 2022). Inside the library: atomic units.

Multiply by a constant to leave atomic units, divide by it to enter them::

    positions_bohr = positions_angstrom / ANGSTROM_PER_BOHR
"""

ANGSTROM_PER_BOHR = 0.529177210544
EV_PER_HARTREE = 27.211386245981
KCAL_MOL_PER_HARTREE = 627.5094740631
KJ_MOL_PER_HARTREE = 4.184 * KCAL_MOL_PER_HARTREE
DEBYE_PER_EBOHR = 2.541746473
ELECTRON_MASS_PER_DALTON = 1822.888486283
HARTREE_PER_KELVIN = 3.1668115634564e-6
WAVENUMBER_PER_HARTREE = 219474.63136314  # cm^-1
FEMTOSECOND_PER_ATOMIC_TIME = 0.024188843265864
SPEED_OF_LIGHT = 137.035999177  # in atomic units: the inverse fine-structure constant
KILOMETRE_PER_MOL_PER_BOHR = ANGSTROM_PER_BOHR * 1e-13 * 6.02214076e23
EV_PER_ANGSTROM_PER_ATOMIC_FORCE = EV_PER_HARTREE / ANGSTROM_PER_BOHR

LENGTH = {"bohr": 1.0, "angstrom": 1.0 / ANGSTROM_PER_BOHR, "nm": 10.0 / ANGSTROM_PER_BOHR}
"""Factor from a named unit of length to Bohr."""

ENERGY = {
    "hartree": 1.0,
    "ev": 1.0 / EV_PER_HARTREE,
    "kcal/mol": 1.0 / KCAL_MOL_PER_HARTREE,
    "kj/mol": 1.0 / KJ_MOL_PER_HARTREE,
    "mev": 1e-3 / EV_PER_HARTREE,
    "rydberg": 0.5,
}
"""Factor from a named unit of energy to Hartree."""
