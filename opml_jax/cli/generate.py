"""``opml generate``: labels from PySCF."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .options import add_geometry_options, read_geometries


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("structures", help="xyz, extxyz, npz or HDF5 file")
    p.add_argument("-o", "--output", required=True, help="HDF5 file to write or to complete")
    p.add_argument("--method", default="pbe", help="hf or an exchange-correlation functional")
    p.add_argument("--basis", default="def2-svp", help="basis set of PySCF's library")
    p.add_argument("--grid-level", type=int, default=4, help="PySCF integration grid, 0 to 9")
    p.add_argument("--conv-tol", type=float, default=1e-10, help="energy convergence, Hartree")
    p.add_argument("--max-cycle", type=int, default=60, help="SCF cycles of the first attempt")
    p.add_argument(
        "--no-forces",
        action="store_true",
        help="operators and energies only, in about half the time",
    )
    p.add_argument(
        "--density-fit",
        action="store_true",
        help="Coulomb matrices by density fitting, several times faster in large bases",
    )
    p.add_argument(
        "--iterates",
        type=int,
        default=0,
        metavar="N",
        help="also density and Fock matrices of the first N cycles (at most 4): self-consistent "
        "models learn from them what densities on the way need",
    )
    p.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    p.add_argument(
        "--limit", type=int, metavar="N", help="label only the first N structures (default: all)"
    )
    add_geometry_options(p)
    p.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="relax the first structure and label N geometries of its harmonic modes instead "
        "(default: those of the file)",
    )
    p.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="Dask scheduler (address or scheduler file) whose workers calculate, instead of "
        "processes of this machine (default: these)",
    )
    p.add_argument("--temperature", type=float, default=300.0, help="of --sample, Kelvin")
    p.add_argument(
        "--seed", type=int, default=0, help="of --sample: another one draws other geometries"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..basis import load_basis
    from ..data.generate import generate
    from ..data.reference import Method
    from ..data.sampling import check_temperature
    from ..data.workers import Workers, dask_workers
    from ..errors import OpmlError
    from .progress import Progress

    method = Method(
        args.method,
        args.basis,
        args.grid_level,
        args.conv_tol,
        args.max_cycle,
        forces=not args.no_forces,
        density_fit=args.density_fit,
        iterates=args.iterates,
    )
    if args.limit is not None and args.limit < 1:
        raise OpmlError("--limit", got=args.limit, expected="at least 1")
    if args.sample is not None:
        if args.sample < 1:
            raise OpmlError("--sample", got=args.sample, expected="at least 1")
        check_temperature(args.temperature)
    structures = _read(args)
    meta = {"source": os.path.basename(args.structures)}
    load_basis(method.basis, {z for s in structures for z in s.numbers})
    state = Path(args.output + ".minimum.npz")
    if args.sample:
        structures, sampled = _sample(structures[0], method, args, state)
        meta |= sampled
    if args.limit is not None:
        structures = structures[: args.limit]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    workers = max(1, min(args.workers or cores, len(structures)))
    threads = max(1, cores // workers)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(limit)) if limit.isdigit() and int(limit) else threads
    own = dask_workers(args.scheduler) if args.scheduler else Workers(workers, threads)
    with own as executor, Progress("labels") as progress:
        outcome = generate(
            structures,
            args.output,
            method,
            executor=executor,
            extra_meta=meta,
            on_progress=progress.update,
        )
    state.unlink(missing_ok=True)  # the file says by now what it said
    print(
        f"{args.output}: {outcome.done} labelled, {outcome.found} found, "
        f"{len(outcome.failed)} failed ({method.method}/{method.basis})"
    )
    if outcome.failed:
        print(f"see {args.output}.failed.txt")
    return 0


def _read(args):
    """The structures; bonds in another unit are a question here, because labels take hours."""
    import warnings

    from ..errors import Code, DataError, UnitWarning

    with warnings.catch_warnings():
        if args.length_unit is None:
            warnings.simplefilter("error", UnitWarning)
        try:
            return read_geometries(args.structures, args)
        except UnitWarning as warning:
            raise DataError(str(warning), code=Code.UNIT) from warning


def _sample(start, method, args, state):
    """Thermal geometries around the relaxed start, with the record of how they were made."""
    import numpy as np

    from ..data.generate import labelled_before
    from ..data.sampling import sample_thermal

    # the minimum is found once: a restart, and one that asks for more, samples the same geometries
    known = labelled_before(Path(args.output), method).meta.get("sampling", {})
    begun = [list(start.numbers), np.asarray(start.positions).tolist()]
    if [known.get("numbers"), known.get("start_bohr")] != begun:
        minimum, matrix = _minimum(start, method, state)
        known = {
            "how": "classical Boltzmann distribution of harmonic normal modes, random orientation",
            "minimum_bohr": np.asarray(minimum.positions).tolist(),
            "hessian": matrix.tolist(),
            "numbers": begun[0],
            "start_bohr": begun[1],
        }
    structures = sample_thermal(
        start.replace(positions=np.array(known["minimum_bohr"])),
        np.array(known["hessian"]),
        temperature=args.temperature,
        n=args.sample,
        seed=args.seed,
    )
    drawn = {"temperature_kelvin": args.temperature, "seed": args.seed}
    return structures, {"sampling": known | drawn}


def _minimum(start, method, state):
    """Relaxed start and its force constants, a line each step."""
    from ..data.files import locked
    from ..data.minima import Journal, hessian, relax
    from ..structures.elements import formula
    from ..units import EV_PER_ANGSTROM_PER_ATOMIC_FORCE
    from .progress import Progress

    name = f"{formula(start.numbers)} ({method.method}/{method.basis})"
    with locked(state):
        journal = Journal(state, start, method)
        with Progress(f"relaxing {name}", "ten to forty steps, usually") as progress:

            def say(step: int, energy: float, force: float) -> None:
                largest = f"{EV_PER_ANGSTROM_PER_ATOMIC_FORCE * force:.4f} eV/Angstrom"
                progress.say(f"step {step}: energy {energy:.6f} Hartree, largest force {largest}")

            minimum = relax(start, method, journal=journal, on_step=say)
        with Progress(f"normal modes of {name}", "second derivatives of integrals") as progress:
            matrix = hessian(minimum, method, journal=journal, on_progress=progress.update)
    return minimum, matrix
