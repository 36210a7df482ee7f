import pytest
from scipy import constants

from opml_jax import units

# SciPy ships the CODATA of its release year; successive adjustments differ by less than this.
BETWEEN_CODATA_YEARS = 1e-8

CODATA = {name: constants.physical_constants[name][0] for name in (
    "Bohr radius",
    "Hartree energy in eV",
    "Hartree energy",
    "electron mass in u",
    "hartree-inverse meter relationship",
    "kelvin-hartree relationship",
    "atomic unit of electric dipole mom.",
    "atomic unit of time",
    "inverse fine-structure constant",
)}  # fmt: skip
DEBYE = 1e-21 / constants.c  # C m, by definition 1e-18 statcoulomb cm


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (units.ANGSTROM_PER_BOHR, CODATA["Bohr radius"] * 1e10),
        (units.EV_PER_HARTREE, CODATA["Hartree energy in eV"]),
        (units.KCAL_MOL_PER_HARTREE, CODATA["Hartree energy"] * constants.N_A / 4184.0),
        (units.DEBYE_PER_EBOHR, CODATA["atomic unit of electric dipole mom."] / DEBYE),
        (units.ELECTRON_MASS_PER_DALTON, 1 / CODATA["electron mass in u"]),
        (units.HARTREE_PER_KELVIN, CODATA["kelvin-hartree relationship"]),
        (units.WAVENUMBER_PER_HARTREE, CODATA["hartree-inverse meter relationship"] / 100),
        (units.FEMTOSECOND_PER_ATOMIC_TIME, CODATA["atomic unit of time"] * 1e15),
        (units.SPEED_OF_LIGHT, CODATA["inverse fine-structure constant"]),
        (units.KILOMETRE_PER_MOL_PER_BOHR, CODATA["Bohr radius"] * 1e-3 * constants.N_A),
        (
            units.EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
            CODATA["Hartree energy in eV"] / (CODATA["Bohr radius"] * 1e10),
        ),
        (units.LENGTH["bohr"], 1.0),
        (units.LENGTH["angstrom"], 1e-10 / CODATA["Bohr radius"]),
        (units.ENERGY["hartree"], 1.0),
        (units.ENERGY["ev"], 1 / CODATA["Hartree energy in eV"]),
        (units.ENERGY["kcal/mol"], 4184.0 / CODATA["Hartree energy"] / constants.N_A),
    ],
)
def test_constants_are_codata(ours, theirs):
    assert ours == pytest.approx(theirs, rel=BETWEEN_CODATA_YEARS)
