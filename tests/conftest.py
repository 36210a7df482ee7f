"""Fixtures shared by all rooms: a few small molecules, a seeded generator, random rotations."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Small problems: compiling costs more than running, and XLA's older emitters of fused loops compile
# twice as fast. Set XLA_FLAGS to test what users run.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

# Workers, notebooks and commands of one run compile much the same programs
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # goes with this process
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name

import jax
import numpy as np
import pytest

from opml_jax.structures import Structure
from opml_jax.units import ANGSTROM_PER_BOHR

jax.config.update("jax_enable_x64", True)

MOST_MAPS = 40_000
"""Linux lets a process have 65 530 areas of memory; every compiled program takes some."""


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """A process that runs many modules would end in a segmentation fault of the compiler."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


# Angstrom. Chosen to have H, C, N, O, F, S, an exactly tetrahedral and an exactly linear one; the
# others carry small displacements that leave no symmetry to hide a mistake behind.
_TETRAHEDRON = 1.089 / 3**0.5
_GEOMETRIES = {
    "water": ("OHH", [[0.01, -0.02, 0.118], [0.02, 0.771, -0.462], [-0.03, -0.748, -0.479]]),
    "methane": (
        "CHHHH",
        [
            [0.0, 0.0, 0.0],
            [_TETRAHEDRON, _TETRAHEDRON, _TETRAHEDRON],
            [-_TETRAHEDRON, -_TETRAHEDRON, _TETRAHEDRON],
            [-_TETRAHEDRON, _TETRAHEDRON, -_TETRAHEDRON],
            [_TETRAHEDRON, -_TETRAHEDRON, -_TETRAHEDRON],
        ],
    ),
    "carbon_dioxide": ("COO", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.162], [0.0, 0.0, -1.162]]),
    "hydrogen_cyanide": ("CHN", [[0.02, 0.0, -0.50], [-0.04, 0.03, -1.57], [0.01, -0.02, 0.66]]),
    "fluoromethane": (
        "CFHHH",
        [
            [0.01, -0.01, -0.63],
            [-0.02, 0.02, 0.76],
            [1.04, 0.02, -0.98],
            [-0.51, 0.88, -1.01],
            [-0.52, -0.91, -0.96],
        ],
    ),
    "hydrogen_sulfide": ("SHH", [[0.0, 0.01, 0.10], [0.02, 0.98, -0.83], [-0.01, -0.95, -0.85]]),
    "formamide": (
        "CONHHH",
        [
            [-0.16, 0.39, 0.02],
            [-1.19, -0.25, -0.01],
            [1.08, -0.15, 0.03],
            [-0.15, 1.50, -0.02],
            [1.14, -1.16, -0.06],
            [1.94, 0.37, 0.05],
        ],
    ),
}
_ATOMIC_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9, "S": 16}


def _structure(symbols, angstrom) -> Structure:
    numbers = [_ATOMIC_NUMBERS[s] for s in symbols]
    return Structure(numbers, np.array(angstrom) / ANGSTROM_PER_BOHR)


MOLECULES = {name: _structure(*geometry) for name, geometry in _GEOMETRIES.items()}


LONGEST = ("test_docs.py", "test_commands.py")


def pytest_collection_modifyitems(items):
    """The files of the longest single tests first: what starts last is waited for."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def molecules() -> dict[str, Structure]:
    return MOLECULES


@pytest.fixture(scope="session")
def water() -> Structure:
    return MOLECULES["water"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def random_rotation():
    """``random_rotation(rng, improper=False)``: uniform orthogonal matrix acting on (x, y, z)."""

    def draw(rng: np.random.Generator, improper: bool = False) -> np.ndarray:
        q, r = np.linalg.qr(rng.normal(size=(3, 3)))
        q = q * np.sign(np.diag(r))
        return q * np.sign(np.linalg.det(q)) * (-1 if improper else 1)

    return draw
