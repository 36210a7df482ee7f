"""What tests of operators share: large molecules, and which elements a cutoff keeps."""

import numpy as np
import pytest

from opml_jax.structures import Structure
from opml_jax.testing import random_rotation as rotation
from opml_jax.units import ANGSTROM_PER_BOHR


def _alkane(n: int) -> Structure:
    """All-trans C_n H_{2n+2}."""
    half = np.deg2rad(112.0) / 2
    step = 1.53 * np.array([np.sin(half), np.cos(half), 0.0])
    numbers, positions = [], []
    for k in range(n):
        carbon, up = step * [k, k % 2, 0], (-1) ** (k + 1)
        ends = [at for end, at in ((0, -1), (n - 1, 1)) if k == end]
        ways = [[0.0, up * 0.577, side * 0.816] for side in (1, -1)]
        ways += [step * [at, -up, 0] / np.linalg.norm(step) for at in ends]
        numbers += [6] + [1] * len(ways)
        positions += [carbon, *(carbon + 1.09 * np.array(way) for way in ways)]
    return Structure(numbers, np.array(positions) / ANGSTROM_PER_BOHR)


@pytest.fixture(scope="session")
def alkane():
    """``alkane(n)``: all-trans C_n H_{2n+2}, 3 n + 2 atoms."""
    return _alkane


@pytest.fixture(scope="session")
def waters(water):
    """``waters(n)``: n molecules turned at random, on the corners of a grid of 3 Angstrom."""

    def cluster(n: int) -> Structure:
        rng = np.random.default_rng(7)
        side = int(np.ceil(n ** (1 / 3)))
        corners = np.stack(np.unravel_index(np.arange(n), (side,) * 3), axis=1)
        corners = corners * 3.0 / ANGSTROM_PER_BOHR + 0.1 * rng.normal(size=(n, 3))
        x = np.concatenate([water.positions @ rotation(rng).T + c for c in corners])
        return Structure(water.numbers * n, x)

    return cluster


@pytest.fixture(scope="session")
def kept():
    """``kept(structure, layout, cutoff)``: ``(nao, nao)`` whether two AOs are close enough.

    By the distance of every pair of atoms, one at a time.
    """

    def elements(structure, layout, cutoff):
        x, width = structure.positions, np.diff(layout.offsets)
        near = np.array([[np.linalg.norm(a - b) <= cutoff for b in x] for a in x])
        return np.repeat(np.repeat(near, width, axis=0), width, axis=1)

    return elements
