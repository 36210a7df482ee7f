"""Trajectories, in memory and in files: chunks written as they come, joined into one HDF5 file.

Every chunk is an npz file of its own in ``<file>.parts/``, written by an atomic rename, with the
state of the integrator at its end; a killed run goes on from the last of them. What is joined
keeps the last state too, so a finished run can be made longer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..data.files import atomic_path
from ..data.hdf5 import LIBVER, OVERHEAD, check_room, load, read_whole
from ..errors import Code, DataError, OpmlError
from ..quantities import QUANTITIES, SPREAD, in_ase_units
from ..structures import Structure
from ..units import (
    ANGSTROM_PER_BOHR,
    ELECTRON_MASS_PER_DALTON,
    FEMTOSECOND_PER_ATOMIC_TIME,
    HARTREE_PER_KELVIN,
)

FORMAT, FORMAT_VERSION = "opml_jax trajectory", 1
_PREDICTED = ("energy", "forces", "dipole")
UNITS = {
    "step": "1",
    "kinetic": "Hartree",
    "positions": "Bohr",
    "velocities": "Bohr Hartree / hbar",
    **{name: QUANTITIES[name].unit for name in _PREDICTED},
    "energy" + SPREAD: QUANTITIES["energy"].unit,
}
"""What a frame may have, and in which unit."""
Frames = dict[str, np.ndarray]
State = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Frames of one molecule, of one replica or several.

    Attributes:
      numbers: ``(n_atoms,)`` atomic numbers.
      masses: ``(n_atoms,)`` in electron masses.
      timestep_fs: of a step, in fs.
      degrees_of_freedom: that share the kinetic energy.
      settings: of the run, JSON-able.
      frames: arrays by name, atomic units: ``step`` ``(n_frames,)``; ``energy`` (potential),
        ``kinetic`` ``(n_frames, n_replicas)``; ``positions``, ``velocities`` and, if asked for,
        ``forces`` ``(n_frames, n_replicas, n_atoms, 3)``; of models that have them ``dipole``
        ``(n_frames, n_replicas, 3)`` and ``energy_uncertainty`` ``(n_frames, n_replicas)``.
        ``trajectory[name]`` is short for one of them.
      charge: of the molecule.
      spin: its number of unpaired electrons.
    """

    numbers: tuple[int, ...]
    masses: np.ndarray
    timestep_fs: float
    degrees_of_freedom: int
    settings: dict[str, Any]
    frames: Frames
    charge: int = 0
    spin: int = 0

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.frames:
            known = ", ".join(self.frames)
            raise DataError("trajectory", got=f"one of {known}", expected=f"with {name}")
        return self.frames[name]

    @property
    def n_replicas(self) -> int:
        """How many move at once."""
        return self["energy"].shape[1]

    @property
    def time_fs(self) -> np.ndarray:
        """``(n_frames,)`` times in fs."""
        return self["step"] * self.timestep_fs

    @property
    def interval(self) -> float:
        """Time between frames, atomic units."""
        step = self["step"]
        if len(step) < 2:
            raise DataError("trajectory", got="one frame", expected="two frames or more")
        return float(step[1] - step[0]) * self.timestep_fs / FEMTOSECOND_PER_ATOMIC_TIME

    @property
    def temperature(self) -> np.ndarray:
        """``(n_frames, n_replicas)`` kinetic temperatures in Kelvin."""
        return 2 * self["kinetic"] / (self.degrees_of_freedom * HARTREE_PER_KELVIN)

    @property
    def total_energy(self) -> np.ndarray:
        """``(n_frames, n_replicas)`` potential plus kinetic energy in Hartree."""
        return self["energy"] + self["kinetic"]

    def structure(self, frame: int, replica: int = 0) -> Structure:
        """The molecule in one frame, with the masses that moved."""
        masses = np.asarray(self.masses) / ELECTRON_MASS_PER_DALTON
        x = self["positions"][frame, replica]
        return Structure(self.numbers, x, self.charge, self.spin, masses)

    @classmethod
    def of(cls, about: dict[str, Any], frames: Frames) -> Trajectory:
        """From all that is not frames, JSON-able, and the frames."""
        arrays = {"numbers": tuple(about["numbers"]), "masses": np.array(about["masses"])}
        return cls(**{**about, **arrays}, frames=frames)

    @classmethod
    def read(cls, path: str | os.PathLike) -> Trajectory:
        """Read a trajectory that :func:`opml_jax.dynamics.simulate` wrote.

        Raises:
          DataError: no such file, or not one of these.
        """
        return _open(Path(path), _read)

    def write_extxyz(self, path: str | os.PathLike, replica: int = 0) -> None:
        """Write the frames of one replica for ASE and others, in eV and Angstrom.

        Velocities are in ASE's unit, sqrt(eV/Dalton).
        """
        from ase import Atoms, units
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.io import write

        results = in_ase_units({k: self[k][:, replica] for k in _PREDICTED if k in self.frames})
        speed = ANGSTROM_PER_BOHR / (FEMTOSECOND_PER_ATOMIC_TIME * units.fs)
        frames, masses = [], self.structure(0).masses
        for i, time in enumerate(self.time_fs):
            positions = self["positions"][i, replica] * ANGSTROM_PER_BOHR
            atoms = Atoms(self.numbers, positions, masses=masses)
            atoms.set_velocities(self["velocities"][i, replica] * speed)
            atoms.info["time_fs"] = float(time)
            if self.charge:
                atoms.info["charge"] = self.charge
            atoms.calc = SinglePointCalculator(atoms, **{k: v[i] for k, v in results.items()})
            frames.append(atoms)
        with atomic_path(path) as temporary:
            write(temporary, frames, format="extxyz")


def _open(path: Path, read):
    def checked(f):
        if f.attrs.get("format") != FORMAT or f.attrs["format_version"] != FORMAT_VERSION:
            raise KeyError(f"format {f.attrs.get('format', 'unknown')!r}")
        return read(f)

    return read_whole(path, checked, f"a trajectory of opml md, format {FORMAT_VERSION}")


def _read(f: h5py.File) -> Trajectory:
    group, path = f["frames"], Path(f.filename)
    frames = {name: load(group, name, path) for name in group}
    return Trajectory.of(json.loads(f.attrs["about"]), frames)


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A trajectory file as it grows.

    Attributes:
      path: of the HDF5 file.
      about: what the trajectory is of, JSON-able; see :class:`Trajectory`.
      fingerprint: of all that decides what follows from a state.
    """

    path: Path
    about: dict[str, Any]
    fingerprint: str

    @property
    def parts(self) -> Path:
        """Folder of the chunks that are not joined yet."""
        return self.path.with_name(self.path.name + ".parts")

    def _unjoined(self) -> Iterator[tuple[Frames, State]]:
        """Chunks in order, as far as they follow what is in the file and can be read."""
        last = self._joined()[0]
        for part in sorted(self.parts.glob("*.npz")):
            try:
                with open(part, "rb") as file, np.load(file, allow_pickle=False) as f:
                    arrays = {k: f[k] for k in f.files}
            except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
                return  # damaged from outside: computed again from here
            self._check(str(arrays["fingerprint"]))
            frames = {k: arrays[k] for k in UNITS if k in arrays}
            if frames["step"][-1] <= last:
                continue  # joined before a kill that came before it was deleted
            last = frames["step"][-1]
            yield frames, [arrays[f"state_{i}"] for i in range(int(arrays["n_state"]))]

    def _joined(self) -> tuple[int, State]:
        """The last step in the file and the state after it; -1 and nothing without a file."""
        if not self.path.exists():
            return -1, []

        def read(f):
            self._check(f.attrs["fingerprint"])
            state = f["state"]
            return int(f["frames/step"][-1]), [state[str(i)][()] for i in range(len(state))]

        return _open(self.path, read)

    def _check(self, found: str) -> None:
        if found != self.fingerprint:
            raise OpmlError(
                str(self.path),
                got="one of another model, start or setting",
                expected="new, or a trajectory to go on with",
                hint="Choose another file, or begin anew with --restart.",
                code=Code.OTHER_RUN,
            )

    def last(self) -> tuple[int, State]:
        """The last step there is and the state after it; -1 and nothing if there is none.

        Raises:
          OpmlError: the file is of another run.
          DataError: it is no trajectory.
        """
        last = self._joined()
        for frames, state in self._unjoined():
            last = int(frames["step"][-1]), state
        return last

    def write(self, frames: Frames, state: State) -> None:
        """Add a chunk, with the state at its end; atomic."""
        leaves = {f"state_{i}": x for i, x in enumerate(state)}
        part = self.parts / f"{frames['step'][-1]:015d}.npz"
        with atomic_path(part) as temporary, open(temporary, "wb") as f:
            extra = {"fingerprint": self.fingerprint, "n_state": len(state)}
            np.savez(f, **frames, **leaves, **extra)

    def join(self) -> None:
        """Move all chunks into the HDF5 file, in one atomic step, a chunk in memory at a time."""
        chunks = self._unjoined()
        first = next(chunks, None)
        if first is not None:
            there = [p for p in (self.path, *self.parts.glob("*.npz")) if p.exists()]
            written = sum(p.stat().st_size for p in there)
            check_room(self.path, int(OVERHEAD * written) + 2**20)
            with atomic_path(self.path) as temporary:
                if self.path.exists():
                    shutil.copyfile(self.path, temporary)
                mode = "a" if self.path.exists() else "w"
                with h5py.File(temporary, mode, libver=LIBVER) as f:
                    f.attrs["format"], f.attrs["format_version"] = FORMAT, FORMAT_VERSION
                    f.attrs["about"] = json.dumps(self.about)
                    f.attrs["fingerprint"] = self.fingerprint
                    _append(f, *first)
                    for frames, state in chunks:
                        _append(f, frames, state)
        shutil.rmtree(self.parts, ignore_errors=True)

    def forget(self) -> None:
        """Delete the trajectory."""
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)


def _append(f: h5py.File, frames: Frames, state: State) -> None:
    group = f.require_group("frames")
    for name, values in frames.items():
        if name not in group:
            shape = (None, *values.shape[1:])
            data = group.create_dataset(name, data=values, maxshape=shape, fletcher32=True)
            data.attrs["unit"] = UNITS[name]
        else:
            group[name].resize(len(group[name]) + len(values), axis=0)
            group[name][-len(values) :] = values
    if "state" in f:
        del f["state"]
    for i, leaf in enumerate(state):
        f[f"state/{i}"] = leaf
