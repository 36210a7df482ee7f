"""Does anything finished get lost when processes are killed without warning?

    python benchmarks/kills.py --kills 100 --json

``opml generate``, ``opml train`` and ``opml md`` are killed (SIGKILL, the whole process group) at
moments drawn evenly from the time that an undisturbed run takes, and started again by the same
command, until there were ``--kills`` of each. After every kill all that had been finished must be
there and readable. A run that gets to its end is compared with the undisturbed one, bit for bit,
and another is begun.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from environment import record

import opml_jax as opml
from opml_jax.dynamics import Trajectory
from opml_jax.learn.states import STATES
from opml_jax.models import load_model

N_GEOMETRIES, N_EPOCHS, N_STEPS = 30, 3000, 60_000
"""So that a run takes some ten seconds besides its start."""

TRAINING = f"""
data: {{n_train: 30, n_validation: 10, n_test: 0}}
model:
  {{family: op2prop, basis: sto-3g, powers: [1], gram_powers: [1], hidden: [8], members: 2,
    fit: {{targets: [energy, forces], epochs: {N_EPOCHS}, batch_size: 4}}}}
"""


@dataclass
class Job:
    """A command, and what it leaves.

    Attributes:
      command: of a fresh or begun run in a folder.
      finished: names of all that is finished in a folder, read to see that it can be.
      result: arrays of a complete run.
      complete: file that a complete run has.
    """

    command: Callable[[Path], list[str]]
    finished: Callable[[Path], set[str]]
    result: Callable[[Path], list[np.ndarray]]
    complete: str


def npz(folder: Path, pattern: str) -> set[str]:
    """Names of whole npz files; one that cannot be read is an error."""
    names = set()
    for path in folder.glob(pattern):
        with np.load(path, allow_pickle=False) as f:
            for name in f.files:
                f[name]
        names.add(path.name)
    return names


def labels(folder: Path) -> list[np.ndarray]:
    """All that was calculated."""
    data = opml.read_dataset(folder / "out.h5")
    return [np.asarray(x) for name in sorted(data.labels) for x in data.labels[name]]


def frames(folder: Path) -> list[np.ndarray]:
    """All that a simulation recorded."""
    found = Trajectory.read(folder / "out.h5").frames
    return [found[name] for name in sorted(found)]


def jobs(start: Path) -> dict[str, Job]:
    """The three commands; ``start`` has what they start from."""
    cli = [sys.executable, "-m", "opml_jax.cli"]
    generate = ("--method", "hf", "--basis", "6-31g", "--workers", "1")
    md = ("--steps", str(N_STEPS), "--ensemble", "nvt")
    return {
        "generate": Job(
            lambda f: [*cli, "generate", f"{start}/w.xyz", "-o", f"{f}/out.h5", *generate],
            lambda f: npz(f, "out.h5.parts/*.npz"),
            labels,
            "out.h5",
        ),
        "train": Job(
            lambda f: [*cli, "train", f"{start}/c.yaml", "-o", f"{f}/run"],
            lambda f: npz(f, f"run/{STATES}/*.npz"),
            lambda f: [np.asarray(x) for x in jax.tree.leaves(load_model(f / "run").params)],
            "run/model.safetensors",
        ),
        "md": Job(
            lambda f: [*cli, "md", f"{start}/run", f"{start}/one.xyz", "-o", f"{f}/out.h5", *md],
            lambda f: npz(f, "out.h5.parts/*.npz"),
            frames,
            "out.h5",
        ),
    }


def run(command: list[str], until: float | None = None) -> bool:
    """Whether a command came to its end; else it was killed ``until`` seconds after its start."""
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, error = process.communicate(timeout=until)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(error.decode()[-2000:])
    return True


def attacked(name: str, job: Job, folder: Path, kills: int, rng: np.random.Generator) -> dict:
    """One command, killed so many times."""
    whole, own = folder / name / "whole", folder / name / "killed"
    whole.mkdir(parents=True)
    run(job.command(whole))  # compiles
    shutil.rmtree(whole)
    whole.mkdir()
    start = time.monotonic()
    run(job.command(whole))
    seconds = time.monotonic() - start
    wanted = job.result(whole)
    done, completed, lost, different, kept = 0, 0, 0, 0, []
    shutil.rmtree(own, ignore_errors=True)
    while done < kills or own.exists():
        own.mkdir(exist_ok=True)
        before = job.finished(own)
        ended = run(job.command(own), rng.uniform(0, seconds) if done < kills else None)
        if not ended:
            done += 1
        if (own / job.complete).exists() or ended:
            if not ended:  # killed between its last rename and its end
                run(job.command(own))
            found = job.result(own)
            same = len(found) == len(wanted) and all(map(np.array_equal, found, wanted))
            completed, different = completed + 1, different + (not same)
            shutil.rmtree(own)
            continue
        after = job.finished(own)
        if name == "generate":
            lost += len(before - after)
        kept.append(len(after))
    return {
        "name": name,
        "kills": done,
        "seconds_undisturbed": seconds,
        "completed": completed,
        "different": different,
        "finished_and_lost": lost,
        "kills_with_something_finished": sum(n > 0 for n in kept),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="of each command")
    parser.add_argument("--jobs", nargs="*", default=["generate", "train", "md"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rng, bad = np.random.default_rng(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
        start = folder / "start"
        start.mkdir()
        (start / "c.yaml").write_text(TRAINING)
        water = opml.read_dataset(opml.bundled("water"))
        texts = []
        for s in water.structures[:N_GEOMETRIES]:
            rows = zip("OHH", s.positions * opml.units.ANGSTROM_PER_BOHR, strict=True)
            texts.append("3\n\n" + "".join(f"{z} {x} {y} {w}\n" for z, (x, y, w) in rows))
        (start / "w.xyz").write_text("".join(texts))
        (start / "one.xyz").write_text(texts[0])
        known = jobs(start)
        run(known["train"].command(start))
        for job in args.jobs:
            line = attacked(job, known[job], folder, args.kills, rng)
            record({**line, "seed": args.seed}, "kills", args.json)
            bad += line["different"] + line["finished_and_lost"]
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
