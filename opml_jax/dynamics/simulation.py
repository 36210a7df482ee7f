"""Molecular dynamics: jax-md's integrators inside one jitted loop over steps, frames and replicas.

The loop counts at run time, so one program serves every time step, temperature, stride and length,
and how a run is cut into chunks changes no number. Replicas are spread over all devices of the
process.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..data.sampling import internal_motion
from ..errors import (
    ConfigError,
    OpmlError,
    PrecisionError,
    StructureError,
    at_least,
    one_of,
    to_install,
)
from ..models import Model
from ..numerics import Array, require_x64
from ..operators import map_molecules
from ..structures import Structure, in_float64
from ..units import (
    EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    FEMTOSECOND_PER_ATOMIC_TIME,
    HARTREE_PER_KELVIN,
)
from .domain import check_domain
from .trajectory import Frames, Recorder, Trajectory

CAPACITY = 500
"""Most frames of a chunk: the device holds so many."""
CHUNK_SECONDS = 5.0
"""What a chunk should take: that much work a kill may cost."""

SINGLE_MOST = 5.0
"""meV/Angstrom: what single precision may change a force by. Models whose weights are large and
cancel each other magnify its rounding."""

COMPILING = "compiling, usually a minute or two, longer for large molecules"
"""What is said before the first step."""

Properties = Callable[[Any, Structure], dict[str, Array]]
"""Pure function of parameters and a molecule: ``energy``, maybe more. :meth:`Op2Prop.apply`."""


class Clock(NamedTuple):
    """What an integrator needs, atomic units: ``coupling`` is a friction, or a chain's period."""

    timestep: float
    kT: float
    coupling: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to simulate.

    Attributes:
      steps: number of time steps, a multiple of ``stride``.
      timestep_fs: of a step. 0.5 fs suits molecules with hydrogen.
      temperature: Kelvin, of the starting velocities and of the thermostat.
      ensemble: ``"nve"``, by velocity Verlet without net translation or rotation, or ``"nvt"``.
      thermostat: of ``"nvt"``: ``"langevin"`` (BAOAB; Leimkuhler and Matthews, J. Chem. Phys. 138,
        174102 (2013)), which turns and moves the molecule too, or ``"nose-hoover"`` (chains;
        Martyna, Klein, Tuckerman, J. Chem. Phys. 97, 2635 (1992)), of internal motion alone.
      coupling_fs: of the thermostat: inverse friction, or period of the chain.
      warmup_fs: of Langevin dynamics before the first frame.
      stride: steps between frames.
      seed: of velocities and thermostat; those of replica i depend on seed and i only.
      forces: record forces.
      dtype: ``"float64"``, or ``"float32"``: what energies and forces are computed in; positions
        and velocities are added up in float64 always.
      max_uncertainty_mev: of models with standard deviations: stop when that of the
        energy per atom exceeds it.

    Raises:
      ConfigError: a setting out of range.
    """

    steps: int = 10_000
    timestep_fs: float = 0.5
    temperature: float = 300.0
    ensemble: str = "nve"
    thermostat: str = "langevin"
    coupling_fs: float = 100.0
    warmup_fs: float = 0.0
    stride: int = 4
    seed: int = 0
    forces: bool = False
    dtype: str = "float64"
    max_uncertainty_mev: float | None = None

    def __post_init__(self):
        one_of("ensemble", self.ensemble, ("nve", "nvt"))
        one_of("thermostat", self.thermostat, ("langevin", "nose-hoover"))
        one_of("dtype", self.dtype, ("float64", "float32"))
        at_least("settings", self, ("steps", "stride"), 1)
        at_least("settings", self, ("temperature", "warmup_fs", "seed"))
        for name in ("timestep_fs", "coupling_fs"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, got=getattr(self, name), expected="positive")
        if self.steps % self.stride:
            expected = f"a multiple of the stride, {self.stride}"
            raise ConfigError("steps", got=self.steps, expected=expected)

    @property
    def scheme(self) -> str:
        """The integrator. Langevin dynamics without friction are velocity Verlet."""
        return self.thermostat if self.ensemble == "nvt" else "langevin"

    @property
    def rigid(self) -> bool:
        """Whether molecules also move and turn as a whole."""
        return self.ensemble == "nvt" and self.thermostat == "langevin"

    @property
    def clock(self) -> Clock:
        """Of the integrator."""
        coupling = self.coupling_fs / FEMTOSECOND_PER_ATOMIC_TIME
        if self.scheme == "langevin":
            coupling = 1 / coupling if self.ensemble == "nvt" else 0.0
        step = self.timestep_fs / FEMTOSECOND_PER_ATOMIC_TIME
        return Clock(step, self.temperature * HARTREE_PER_KELVIN, coupling)


def simulate(
    model: Model | Properties,
    start: Structure | Sequence[Structure],
    settings: Settings = Settings(),
    *,
    replicas: int | None = None,
    params: Any = None,
    output: str | os.PathLike | None = None,
    restart: bool = False,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Trajectory:
    """Run molecular dynamics of a molecule, or of several replicas of it at once.

    Args:
      model: a trained model of energies, or a pure function ``properties(params, structure)`` that
        gives ``energy`` ``()``, and maybe ``dipole`` ``(3,)`` and ``energy_members``.
      start: geometry, or one for each replica, of a charge and spin that the model was trained
        for; its masses are those that move.
      settings: what to simulate.
      replicas: how many, of one starting geometry.
      params: of ``model``. Default: the model's own.
      output: HDF5 file. An unfinished run of the same model, start and settings goes on, and is bit
        for bit what it would have been; more steps make a finished one longer. When the run ends
        early, by an error or by Ctrl-C, the file holds what there is.
      restart: begin anew.
      on_progress: called with steps done, steps in all, and a note on speed; before the first
        step, which takes the longest, too.

    Returns:
      The trajectory; its first frame is the start.

    Raises:
      DomainError: the trajectory left what the model can know.
      OpmlError: a model without energies; an element, charge or spin the model has not seen; jax-md
        is not installed; ``output`` of another run; an uncertainty of a model without one.
      StructureError: a single atom, or replicas of several molecules.
      PrecisionError: x64 is off, or single precision is not enough for the model.
    """
    require_x64("molecular dynamics")
    starts = _replicas(start, replicas)
    engine = _engine(model, params, starts, settings)
    about = {
        "numbers": starts[0].numbers,
        "charge": starts[0].charge,
        "spin": starts[0].spin,
        "masses": starts[0].atomic_masses.tolist(),
        "timestep_fs": settings.timestep_fs,
        "degrees_of_freedom": engine.degrees,
        "settings": dataclasses.asdict(settings),
    }
    if output is None:
        parts = [frames for frames, _ in _chunks(engine, starts, settings, (-1, []), on_progress)]
        return Trajectory.of(about, {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    recorder = Recorder(Path(output), about, _fingerprint(model, engine, starts, settings))
    if restart:
        recorder.forget()
    try:
        for frames, state in _chunks(engine, starts, settings, recorder.last(), on_progress):
            recorder.write(frames, [np.asarray(x) for x in jax.tree.leaves(state)])
    finally:
        recorder.join()
    return Trajectory.read(recorder.path)


def _chunks(
    engine: _Engine,
    starts: list[Structure],
    settings: Settings,
    last: tuple[int, list[np.ndarray]],
    on_progress: Callable[[int, int, str], None],
) -> Iterator[tuple[Frames, Any]]:
    """Frames and the state after them, chunk by chunk.

    Args:
      engine: the jitted loop.
      starts: one a replica.
      settings: what to simulate.
      last: the step to go on from and the arrays of its state; -1 begins.
      on_progress: as of :func:`simulate`, called before the first chunk and after each.
    """
    done, leaves = last
    if done < settings.steps:
        on_progress(max(done, 0), settings.steps, COMPILING)
    if done < 0:
        done = 0
        state, frames = engine.begin(starts, settings)
        yield {"step": np.zeros(1, int), **frames}, state
    else:
        state = engine.restore(settings.clock, leaves, len(starts))
    n = 1
    while done < settings.steps:
        n = min(n, CAPACITY, (settings.steps - done) // settings.stride)
        started = time.monotonic()
        state, frames = engine.advance(state, settings.clock, n, settings.stride)
        frames = {"step": done + settings.stride * np.arange(1, n + 1), **frames}
        check_domain(frames, starts, settings.timestep_fs, settings.max_uncertainty_mev)
        yield frames, state
        done = int(frames["step"][-1])
        seconds = time.monotonic() - started
        note = _speed(n * settings.stride / seconds, settings, len(starts))
        on_progress(done, settings.steps, note)
        n = max(1, int(n * min(2.0, CHUNK_SECONDS / seconds)))


@dataclasses.dataclass(frozen=True)
class _Engine:
    """The jitted loop for one model and molecule.

    Attributes:
      apply: the model's pure function.
      params: its parameters.
      molecule: in any geometry.
      scheme: the integrator.
      degrees: of freedom.
      forces: record them.
    """

    apply: Properties
    params: Any
    molecule: Structure
    scheme: str
    degrees: int
    forces: bool

    def state(self, clock: Clock, positions: Array, velocities: Array, keys: Array) -> Any:
        """jax-md's state of all replicas; forces are still zero."""
        init, _ = _integrator(self.scheme, jnp.zeros_like, clock)
        mass = jnp.asarray(self.molecule.atomic_masses)

        def one(x, v, key):
            state = init(key, x, mass=mass, momenta=mass[:, None] * v)
            if self.scheme == "nose-hoover":  # jax-md counts translations and rotations too
                state = state.set(chain=state.chain.set(degrees_of_freedom=self.degrees))
            return state

        return jax.vmap(one)(positions, velocities, keys)

    def restore(self, clock: Clock, leaves: list[np.ndarray], n_replicas: int) -> Any:
        """A state from its arrays."""
        x = jax.ShapeDtypeStruct((n_replicas, self.molecule.n_atoms, 3), float)
        key = jax.ShapeDtypeStruct((n_replicas, 2), np.uint32)
        blank = jax.eval_shape(self.state, clock, x, x, key)
        return jax.tree.unflatten(jax.tree.structure(blank), leaves)

    def advance(self, state: Any, clock: Clock, n: int, stride: int) -> tuple[Any, Frames]:
        """State after ``n`` times ``stride`` steps, and the frame after every ``stride``."""
        state = jax.tree.map(np.asarray, state)  # on no device yet: one program, wherever it was
        static = (self.apply, self.scheme, self.forces, _mesh(len(state.position)))
        molecule = self.molecule.replace(masses=None)  # those are in the state: one program
        state, buffers = _run(*static, self.params, molecule, clock, state, n, stride)
        frames = {k: np.moveaxis(np.asarray(v), 0, 1)[:n] for k, v in buffers.items()}
        return state, {k: np.ascontiguousarray(v) for k, v in frames.items()}

    def begin(self, starts: list[Structure], settings: Settings) -> tuple[Any, Frames]:
        """State and frame at the start, after warming up."""
        positions = np.array([s.positions for s in starts])
        velocities = _thermal(starts, settings)
        if settings.warmup_fs:
            warm = dataclasses.replace(self, scheme="langevin")
            clock = settings.clock._replace(
                coupling=FEMTOSECOND_PER_ATOMIC_TIME / settings.coupling_fs
            )
            state = warm.state(clock, positions, velocities, _keys(settings.seed, 0, len(starts)))
            steps = round(settings.warmup_fs / settings.timestep_fs)
            _, frames = warm.advance(state, clock, 1, steps)
            positions, velocities = frames["positions"][0], frames["velocities"][0]
            if not settings.rigid:
                velocities = _internal(self.molecule, positions, velocities)
        keys = _keys(settings.seed, 1, len(starts))
        state = self.state(settings.clock, positions, velocities, keys)
        # A step of no length moves nothing and computes the forces, by the program there is.
        return self.advance(state, settings.clock._replace(timestep=0.0), 1, 1)


def _integrator(scheme: str, force: Callable[[Array], Array], clock: Clock):
    """jax-md's ``(init, step)``."""
    from jax_md import simulate, space

    _, shift = space.free()
    if scheme == "nose-hoover":
        return simulate.nvt_nose_hoover(force, shift, clock.timestep, clock.kT, tau=clock.coupling)
    return simulate.nvt_langevin(force, shift, clock.timestep, clock.kT, gamma=clock.coupling)


def _mesh(n_replicas: int) -> Mesh | None:
    """This process's devices, no more than replicas; None for one device, or a chosen one."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    devices = jax.local_devices()[:n_replicas]
    if len(devices) == 1 or chosen is not None:
        return None
    return Mesh(np.array(devices), ("replicas",))


def _spread(function: Callable[[Any], Any], mesh: Mesh | None, tree: Any) -> Any:
    """A function of replicas, the first axis, each device with its share."""
    if mesh is None:
        return function(tree)
    n = len(jax.tree.leaves(tree)[0])
    missing = -n % mesh.size
    # the last one again where they do not divide: what a device would else have waited
    full = jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * missing]), tree)
    return jax.tree.map(lambda x: x[:n], map_molecules(function, mesh)(full))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    apply: Properties,
    scheme: str,
    forces: bool,
    mesh: Mesh | None,
    params: Any,
    molecule: Structure,
    clock: Clock,
    state: Any,
    n: Array,
    stride: Array,
) -> tuple[Any, dict[str, Array]]:
    """The state after ``n * stride`` steps, and buffers with ``n`` frames, replicas first.

    On a CPU replicas move one after the other, each through all steps: what a step needs stays in
    the cache, and no number depends on how many there are. Accelerators move all at once.
    """

    def force(positions, **unused):
        def energy(x):
            return apply(params, molecule.replace(positions=x))["energy"]

        return -jax.grad(energy)(positions)

    def frame(state):
        predicted = apply(params, molecule.replace(positions=state.position))
        kinetic = jnp.sum(state.momentum**2 / state.mass) / 2
        recorded = {"energy": predicted["energy"], "kinetic": kinetic}
        recorded |= {"positions": state.position, "velocities": state.velocity}
        if forces:
            recorded["forces"] = state.force
        recorded |= {k: predicted[k] for k in ("dipole", "energy_uncertainty") if k in predicted}
        if "energy_members" in predicted:
            scales = params.get("calibration", {}) if isinstance(params, dict) else {}
            spread = jnp.std(predicted["energy_members"], axis=-1)
            recorded["energy_uncertainty"] = scales.get("energy", 1.0) * spread
        return recorded

    step = _integrator(scheme, force, clock)[1]

    def one(state):
        def next_frame(i, carry):
            state, buffers = carry
            state = jax.lax.fori_loop(0, stride, lambda _, s: step(s), state)
            return state, jax.tree.map(lambda b, x: b.at[i].set(x), buffers, frame(state))

        shapes = jax.eval_shape(frame, state)
        buffers = jax.tree.map(lambda x: jnp.zeros((CAPACITY, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, n, next_frame, (state, buffers))

    def all_of(states):
        if jax.default_backend() == "cpu":
            return jax.lax.map(one, states)
        return jax.vmap(one)(states)

    return _spread(all_of, mesh, state)


def _engine(
    model: Model | Properties, params: Any, starts: list[Structure], settings: Settings
) -> _Engine:
    """Checked: the model knows the molecule, and jax-md is there."""
    molecule = starts[0]
    apply, params = properties_of(model, params, starts)
    try:
        import jax_md  # noqa: F401
    except ImportError as err:
        raise OpmlError(
            f"molecular dynamics need jax-md, which is not installed: {to_install('md')}"
        ) from err
    if settings.dtype == "float32":
        _check_single(apply, params, molecule)
        apply = _Single(apply)
    if settings.max_uncertainty_mev is not None:
        known = tuple(jax.eval_shape(apply, params, molecule))
        if not {"energy_members", "energy_uncertainty"} & set(known):
            expected = "an ensemble or one with a last layer, for max_uncertainty_mev"
            raise OpmlError("model", got=f"one of {', '.join(known)}", expected=expected)
    degrees = 3 * molecule.n_atoms
    if not settings.rigid:
        degrees = internal_motion(molecule, molecule.atomic_masses).shape[1]
    return _Engine(apply, params, molecule, settings.scheme, degrees, settings.forces)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """A definition's ``apply``; equal for equal definitions, so that a reloaded model is known."""

    definition: Any

    def __call__(self, params: Any, structure: Structure) -> dict[str, Array]:
        return self.definition.apply(params, structure)


@dataclasses.dataclass(frozen=True)
class _Single:
    """What a pure function gives when it computes in float32."""

    apply: Properties

    def __call__(self, params: Any, structure: Structure) -> dict[str, Array]:
        def single(x):
            return x.astype(np.float32) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x

        x = jnp.asarray(structure.positions)
        out = self.apply(jax.tree.map(single, params), structure.replace(positions=single(x)))
        return {k: v.astype(x.dtype) for k, v in out.items()}


def _check_single(apply: Properties, params: Any, start: Structure) -> None:
    """Refuse single precision where a model needs double."""

    def forces(apply, x):
        return -jax.grad(lambda x: apply(params, start.replace(positions=x))["energy"])(x)

    @jax.jit
    def change(x):
        return forces(_Single(apply), x) - forces(apply, x)

    most = 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE * np.abs(change(start.positions)).max()
    if not most < SINGLE_MOST:
        raise PrecisionError(
            "dtype",
            got=f"float32, which changes a force of this model by {most:.2g} meV/Angstrom",
            expected=f"float64, or a model that it changes by less than {SINGLE_MOST:g}",
        )


def properties_of(
    model: Model | Properties, params: Any, starts: Sequence[Structure]
) -> tuple[Properties, Any]:
    """The pure function of a model and its parameters, after the model has checked the starts.

    Raises:
      OpmlError: no model of energies, or one that was not trained for the molecule.
    """
    if callable(model):
        return model, params
    if not hasattr(model, "definition"):
        raise OpmlError("model", got=repr(model), expected="a model of energies")
    model.require("energy")
    model.check_structures(starts)
    return _Apply(model.definition), model.params if params is None else params


def _replicas(start: Structure | Sequence[Structure], n: int | None) -> list[Structure]:
    """One start for each replica, checked."""
    if isinstance(start, Structure):
        starts = [start] * (1 if n is None else n)
    else:
        starts = list(start)
        if n is not None and n != len(starts):
            raise OpmlError("replicas", got=n, expected=f"{len(starts)}, one a start")
    if not starts:
        raise OpmlError("replicas", got="none", expected="at least one")
    starts = [in_float64(s) for s in starts]
    if len({(s.numbers, s.charge, s.spin, s.masses) for s in starts}) > 1:
        raise StructureError(
            "start", got="several molecules", expected="geometries of one molecule"
        )
    if starts[0].n_atoms < 2:
        raise StructureError("start", got=repr(starts[0]), expected="of two atoms or more")
    return starts


def _thermal(starts: list[Structure], settings: Settings) -> np.ndarray:
    """Velocities of a Maxwell-Boltzmann distribution; replica i depends on seed and i only."""
    mass = starts[0].atomic_masses[:, None]
    width = (settings.temperature * HARTREE_PER_KELVIN / mass) ** 0.5
    draws = [
        np.random.default_rng([settings.seed, i]).normal(size=(len(mass), 3))
        for i in range(len(starts))
    ]
    velocities = width * np.array(draws)
    if settings.rigid:
        return velocities
    return _internal(starts[0], np.array([s.positions for s in starts]), velocities)


def _internal(molecule: Structure, positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Velocities without net translation and rotation."""
    mass = molecule.atomic_masses
    root = mass[:, None] ** 0.5
    out = []
    for x, v in zip(positions, velocities, strict=True):
        modes = internal_motion(molecule.replace(positions=x), mass)
        out.append((modes @ (modes.T @ (root * v).ravel())).reshape(v.shape) / root)
    return np.array(out)


def _keys(seed: int, phase: int, n: int) -> Array:
    """``(n, 2)`` keys of the thermostat's random numbers, one a replica."""
    key = jax.random.fold_in(jax.random.PRNGKey(seed), phase)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(n))


def _fingerprint(
    model: Model | Properties, engine: _Engine, starts: list[Structure], settings: Settings
) -> str:
    """Hash of all that decides the trajectory but its length."""
    decisive = dataclasses.asdict(settings) | {"steps": 0}
    if settings.dtype == "float64":
        del decisive["dtype"]  # runs of versions that knew no other go on
    molecule = [starts[0].numbers]
    special = [starts[0].charge, starts[0].spin, starts[0].masses]
    if any(special):  # runs of versions that had none of these go on
        molecule += special
    digest = hashlib.sha256(json.dumps([decisive, *molecule], sort_keys=True).encode())
    if callable(model):
        digest.update(getattr(model, "__qualname__", type(model).__qualname__).encode())
    else:
        digest.update(repr((model.definition.config, model.definition.basis.spec)).encode())
    arrays = [*jax.tree.leaves(engine.params), *(s.positions for s in starts)]
    for x in arrays:
        digest.update(np.asarray(x).tobytes())
    return digest.hexdigest()[:16]


def _speed(rate: float, settings: Settings, n_replicas: int) -> str:
    """Progress in words."""
    nanoseconds = rate * settings.timestep_fs * 1e-6 * 86400
    each = f", {n_replicas} replicas" * (n_replicas > 1)
    return f"{rate:.0f} steps/s, {nanoseconds:.2g} ns/day{each}"
