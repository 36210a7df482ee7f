"""``opml md``: molecular dynamics with a model."""

from __future__ import annotations

import argparse

from .options import add_geometry_options, read_geometries


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("run", metavar="RUN", help="run directory or model file")
    p.add_argument("start", metavar="START", help="xyz, extxyz, npz or HDF5 file; its first frame")
    p.add_argument(
        "-o", "--output", required=True, metavar="TRAJ", help="HDF5 file to write or to go on with"
    )
    p.add_argument("--steps", type=int, default=10_000, help="number of time steps")
    p.add_argument("--timestep-fs", type=float, default=0.5, help="of a step, fs")
    p.add_argument("--temperature", type=float, default=300.0, help="Kelvin")
    p.add_argument("--ensemble", default="nve", help="nve or nvt")
    p.add_argument("--thermostat", default="langevin", help="of nvt: langevin or nose-hoover")
    p.add_argument(
        "--coupling-fs",
        type=float,
        default=100.0,
        help="inverse friction, or period of the chain, fs",
    )
    p.add_argument(
        "--warmup-fs", type=float, default=0.0, help="Langevin dynamics before the first frame, fs"
    )
    p.add_argument("--stride", type=int, default=4, help="steps between frames")
    p.add_argument("--replicas", type=int, default=1, help="trajectories, on all devices or cores")
    p.add_argument("--seed", type=int, default=0, help="of velocities and thermostat")
    p.add_argument("--forces", action="store_true", help="record forces")
    p.add_argument("--dtype", default="float64", help="of energies and forces: float64 or float32")
    p.add_argument(
        "--max-uncertainty-mev",
        type=float,
        help="stop when the energy's standard deviation is more, meV per atom (ensembles and "
        "last layers; default: never)",
    )
    p.add_argument("--relax", action="store_true", help="start from the minimum near START")
    p.add_argument(
        "--extxyz",
        metavar="FILE",
        help="also write the first replica in eV, Angstrom (default: not)",
    )
    add_geometry_options(p)
    p.add_argument("--restart", action="store_true", help="begin anew, whatever TRAJ holds")


def every_core(replicas: int) -> None:
    """Let JAX see a CPU device for each core, up to one a replica; before it looks for devices.

    How many the user asked for stands, and accelerators come first if there are any.
    """
    import contextlib
    import os

    import jax

    chosen = jax.config.jax_num_cpu_devices >= 0  # pyright: ignore[reportAttributeAccessIssue]
    if replicas < 2 or chosen or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):  # called from Python that has used JAX before
        jax.config.update("jax_num_cpu_devices", min(cores or 1, replicas))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import dataclasses

    from ..data.files import locked
    from ..dynamics import DomainError, Settings, relax, simulate
    from ..errors import counted
    from ..interfaces.files import write_extxyz
    from ..models import load_model
    from ..units import EV_PER_HARTREE
    from .progress import Progress, working
    from .runs import enable_x64

    every_core(args.replicas)
    enable_x64()
    settings = Settings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Settings)})
    with working("loading the model"):
        model = load_model(args.run)
    start = read_geometries(args.start, args)[0]
    if args.relax:
        with working("relaxing", "compiles second derivatives, usually a minute or two"):
            start = relax(model, start)
    speed = ""

    def report(done: int, total: int, note: str) -> None:
        nonlocal speed
        speed = note
        progress.update(done, total, note=note)

    try:
        with locked(args.output), Progress("steps") as progress:
            trajectory = simulate(
                model,
                start,
                settings,
                replicas=args.replicas,
                output=args.output,
                restart=args.restart,
                on_progress=report,
            )
    except DomainError as err:
        path = f"{args.output}.left.extxyz"
        write_extxyz(path, [err.structure], {})
        raise DomainError(f"{err.message} The geometry is in {path}.", err.structure) from err
    if args.extxyz:
        trajectory.write_extxyz(args.extxyz)
    spread = (
        trajectory.total_energy.std(axis=0).mean() / len(trajectory.numbers) * 1e3 * EV_PER_HARTREE
    )
    frames = counted(len(trajectory["step"]), "frame")
    print(
        f"{args.output}: {frames} to {trajectory.time_fs[-1] / 1e3:g} ps, "
        f"{counted(trajectory.n_replicas, 'replica')}, {trajectory.temperature.mean():.0f} K"
        + (f", energy within {spread:.2g} meV/atom" if args.ensemble == "nve" else "")
        + (f" ({speed})" if speed else "")
    )
    return 0
