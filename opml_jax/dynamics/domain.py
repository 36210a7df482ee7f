"""Where a trajectory has left what its model can know; checked on the host, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import Code, OpmlError
from ..structures import Structure
from ..structures.contacts import bonds
from ..units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

STRETCH = 2.0
"""Bonds longer than this times their length at the start are broken."""
CLOSEST = 0.5 / ANGSTROM_PER_BOHR
"""Closest two nuclei may come, Bohr; no bond is shorter than 0.74 Angstrom (H2)."""


class DomainError(OpmlError):
    """A simulation that left the domain of its model.

    Attributes:
      structure: the geometry where it did.
    """

    code = Code.DOMAIN

    def __init__(self, message: str, structure: Structure):
        super().__init__(message)
        self.structure = structure


def check_domain(
    frames: Mapping[str, np.ndarray],
    starts: list[Structure],
    timestep_fs: float,
    max_uncertainty_mev: float | None,
) -> None:
    """Refuse frames of a trajectory outside of what its model can know.

    Args:
      frames: as :class:`opml_jax.dynamics.Trajectory` has them.
      starts: each replica's starting geometry, whose bonds count.
      timestep_fs: of a step, for the message.
      max_uncertainty_mev: largest standard deviation of the energy per atom, meV.

    Raises:
      DomainError: numbers that are not finite, nuclei closer than :data:`CLOSEST`, a bond more than
        :data:`STRETCH` times its starting length, or an ensemble that disagrees. The message says
        which replica, when, what, and what to do.
    """
    positions = frames["positions"]
    first, second = np.triu_indices(positions.shape[2], 1)
    distance = _distances(positions, first, second)
    finite = np.isfinite(positions).all(axis=(2, 3)) & np.isfinite(frames["energy"])
    found = [(f, r, "numbers are not finite") for f, r in np.argwhere(~finite)[:1]]
    for f, r, p in np.argwhere(distance < CLOSEST)[:1]:
        found.append((f, r, _pair(int(first[p]), int(second[p]), float(distance[f, r, p]))))
    for r, start in enumerate(starts):
        pairs, lengths = bonds(start)
        now = _distances(positions[:, r], *pairs.T)
        for f, p in np.argwhere(now > STRETCH * lengths)[:1]:
            text = _pair(*pairs[p], distance=float(now[f, p]))
            found.append((f, r, f"{text}, {now[f, p] / lengths[p]:.1f} times their bond"))
    if max_uncertainty_mev is not None:
        doubt = 1e3 * EV_PER_HARTREE * frames["energy_uncertainty"] / positions.shape[2]
        for f, r in np.argwhere(doubt > max_uncertainty_mev)[:1]:
            found.append((f, r, f"networks disagree by {doubt[f, r]:.1f} meV per atom"))
    if found:
        frame, replica, what = min(found, key=lambda x: x[0])
        when = frames["step"][frame] * timestep_fs
        raise DomainError(
            f"the simulation left the domain of the model at {when:g} fs in replica {replica}: "
            f"{what}. Train on geometries like these, lower the temperature, or shorten the time "
            "step.",
            starts[replica].replace(positions=positions[frame, replica]),
        )


def _distances(positions: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.linalg.norm(positions[..., first, :] - positions[..., second, :], axis=-1)


def _pair(i: int, j: int, distance: float) -> str:
    return f"atoms {i} and {j} are {distance * ANGSTROM_PER_BOHR:.2f} Angstrom apart"
