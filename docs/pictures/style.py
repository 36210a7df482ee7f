"""How the pictures look, and the molecules they show. Run a script to draw its pictures anew."""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import opml_jax as opml

jax.config.update("jax_enable_x64", True)
plt.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "opml_jax",  # the same picture is the same file
        "image.interpolation": "nearest",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

WATER = opml.Structure([8, 1, 1], [[0, 0, 0.22], [0, 1.43, -0.88], [0, -1.43, -0.88]])


def alkane(n: int) -> opml.Structure:
    """A straight alkane of ``n`` carbons with ideal angles and bonds, Bohr."""
    carbon, hydrogen = 1.54, 1.09  # Angstrom
    half = np.arccos(-1 / 3) / 2
    along, across = carbon * np.sin(half), carbon * np.cos(half)
    numbers, positions = [], []
    for i in range(n):
        side = (-1) ** i
        c = np.array([along * i, across / 2 * side, 0.0])
        bonds = [[0.0, np.cos(half) * side, np.sin(half) * s] for s in (1, -1)]
        if i in (0, n - 1):
            out = -1 if i == 0 else 1
            bonds.append([np.sin(half) * out, -np.cos(half) * side, 0.0])
        numbers += [6] + [1] * len(bonds)
        positions += [c, *(c + hydrogen * np.array(b) for b in bonds)]
    return opml.Structure(numbers, np.array(positions) / opml.units.ANGSTROM_PER_BOHR)


def save(figure, name: str) -> None:
    """Write ``name.svg`` beside the scripts."""
    path = Path(__file__).with_name(f"{name}.svg")
    figure.savefig(path, format="svg", metadata={"Date": None}, transparent=False)
    plt.close(figure)
    assert path.stat().st_size < 100_000, path
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
