"""QM7 as the benchmarks here use it: how it is read and which molecules train and test.

The file is an extxyz with ``hof_pbe0_def2tzvp_kcalmol`` for each molecule (7101 molecules of H, C,
N, O and S from the tests of the qml package); its path is given by the user.
"""

from __future__ import annotations

import os

import ase
import ase.io
import numpy as np

TEST = 1401
TRAIN = (100, 300, 1000, 3000, 5700)
"""Training sets: so many of the first of the pool."""
LABEL = "hof_pbe0_def2tzvp_kcalmol"


def qm7_split(n_total: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices ``(pool, test)``: shuffled, the last 1401 test, a training set is ``pool[:N]``."""
    if n_total <= TEST:
        raise ValueError(f"n_total: got {n_total}, expected more than the {TEST} of the test set")
    order = np.random.default_rng(seed).permutation(n_total)
    return order[:-TEST], order[-TEST:]


def read_qm7(path: str | os.PathLike) -> tuple[list[ase.Atoms], np.ndarray]:
    """Molecules (Angstrom) and heats of formation ``(n,)`` in kcal/mol."""
    molecules = ase.io.read(path, ":")
    return molecules, np.array([m.info[LABEL] for m in molecules])


def element_counts(molecules: list[ase.Atoms]) -> np.ndarray:
    """Atoms of each element ``(n, n_elements)``, elements by atomic number."""
    numbers = [m.numbers for m in molecules]
    elements = np.unique(np.concatenate(numbers))
    return np.array([(z[:, None] == elements).sum(0) for z in numbers])


def errors(prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Metrics of predictions in kcal/mol."""
    difference = prediction - reference
    return {
        "mae_kcal_per_mol": float(np.abs(difference).mean()),
        "rmse_kcal_per_mol": float(np.sqrt((difference**2).mean())),
        "largest_error_kcal_per_mol": float(np.abs(difference).max()),
    }
