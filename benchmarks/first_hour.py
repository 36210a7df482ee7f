"""What does a newcomer's first hour cost, and how long is it silent?

    python benchmarks/first_hour.py --json >> benchmarks/results/first_hour.jsonl

The path of README and the ten-minute start, as commands in a folder of its own: ``quickstart``; a
geometry of the user's own (formamide) displaced, labelled and checked; a model trained on it,
evaluated and asked; ASE; dynamics and a spectrum; ``doctor``. Of each step CPU seconds of all its
processes, seconds of wall clock, and the longest stretch in which nothing appeared on standard
output or standard error. ``--only STEP ...`` leaves the others out (what they need must be in
``--folder``), ``--package`` installs into a fresh environment first and uses that, ``--cache``
keeps compiled programs from an earlier call: by default each call begins with none.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from environment import environment

FORMAMIDE = """6

C  -0.16  0.39  0.02
O  -1.19 -0.25 -0.01
N   1.08 -0.15  0.03
H  -0.15  1.50 -0.02
H   1.14 -1.16 -0.06
H   1.94  0.37  0.05
"""
SIGMA = 0.045
"""Angstrom, of a coordinate: what the notebook on one's own molecule recommends."""

ASE = """
import ase.io, jax
jax.config.update("jax_enable_x64", True)
from ase.optimize import BFGS
from opml_jax.interfaces.ase import OPMLCalculator
atoms = ase.io.read("formamide.xyz")
atoms.calc = OPMLCalculator("own")
print(atoms.get_potential_energy(), flush=True)
BFGS(atoms).run(fmax=0.01, steps=50)
"""


def steps(folder: Path, python: str, n: int, dynamics: int) -> Iterator[tuple[str, list[str]]]:
    """Names and commands, in their order."""
    opml = [python, "-m", "opml_jax.cli"]
    n_validation, n_test = max(1, n // 12), max(1, n // 12)
    displaced = folder / "displaced.xyz"
    sizes = {"n_train": n - n_validation - n_test, "n_validation": n_validation}
    yield "quickstart", [*opml, "quickstart"]
    yield "generate", [*opml, "generate", displaced.name, "-o", "own.h5"]
    yield "data check", [*opml, "data", "check", "own.h5"]
    settings = [f"--set=data.{k}={v}" for k, v in sizes.items()]
    yield "train", [*opml, "train", "own.yaml", "-o", "own", "--set=data.path=own.h5", *settings]
    yield "evaluate", [*opml, "evaluate", "own", "own.h5"]
    predict = [*opml, "predict", "pretrained:water", "water.xyz", "-o"]
    yield "predict one water", [*predict, "one.extxyz"]
    yield "predict it again", [*predict, "two.extxyz"]
    yield "predict a list", [*opml, "predict", "own", displaced.name, "-o", "own.extxyz"]
    yield "ase", [python, "-c", ASE]
    yield "ase again", [python, "-c", ASE]
    run = ["--warmup-fs", "200", "--steps", str(dynamics)]
    yield "md", [*opml, "md", "own", "formamide.xyz", "-o", "own_md.h5", *run]
    yield "spectrum", [*opml, "spectrum", "own_md.h5", "-o", "ir"]
    yield "doctor", [*opml, "doctor"]


def prepare(folder: Path, python: str, n: int) -> None:
    """Geometries, and the configuration that the template prints."""
    atoms = [line.split() for line in FORMAMIDE.splitlines()[2:]]
    x = np.array([[float(v) for v in atom[1:]] for atom in atoms])
    moved = x + np.random.default_rng(0).normal(scale=SIGMA, size=(n, *x.shape))
    frames = []
    for frame in moved:
        rows = zip(atoms, frame, strict=True)
        frames.append("6\n\n" + "".join(f"{z[0]} {a} {b} {c}\n" for z, (a, b, c) in rows))
    (folder / "displaced.xyz").write_text("".join(frames))
    (folder / "formamide.xyz").write_text(FORMAMIDE)
    water = "3\n\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
    (folder / "water.xyz").write_text(water)
    template = [python, "-m", "opml_jax.cli", "config", "template", "own"]
    done = subprocess.run(template, capture_output=True, text=True, check=True)
    (folder / "own.yaml").write_text(done.stdout)


def measure(command: Sequence[str], folder: Path, env: dict[str, str]) -> dict[str, float]:
    """Run a command; CPU seconds with those of its children, wall clock, longest silence."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    last, silent, lines, tail = start, 0.0, 0, b""
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                text = os.read(key.fd, 65536)
                if not text:
                    selector.unregister(key.fileobj)
                    continue
                now = time.monotonic()
                silent, last = max(silent, now - last), now
                lines += text.count(b"\n")
                tail = (tail + text)[-2000:]
    code, end = process.wait(), time.monotonic()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        sys.stderr.write(tail.decode(errors="replace"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_seconds": cpu,
        "wall_seconds": end - start,
        "longest_silence_seconds": max(silent, end - last),
        "lines": lines,
        "exit_code": code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--geometries", type=int, default=24, help="of formamide (default: 24)")
    parser.add_argument("--steps", type=int, default=4000, help="of dynamics (default: 4000)")
    parser.add_argument("--package", help="what pip installs into a fresh environment first")
    parser.add_argument("--cache", help="folder of compiled programs (default: a new one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        cache = args.cache or f"{temporary}/compiled"
        env = {**os.environ, "OPML_CACHE": cache, "PYTHONUNBUFFERED": "1"}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
        python, facts = sys.executable, environment()

        def line(name: str, found: dict[str, float]) -> None:
            if args.json:
                row = {"name": name, **found, "load": os.getloadavg()[0], **facts}
                print(json.dumps(row), flush=True)
            else:
                parts = (found[k] for k in ("cpu_seconds", "longest_silence_seconds"))
                print("{:<20}{:8.1f} CPU s{:8.1f} s silent".format(name, *parts), flush=True)

        if args.package:
            venv.create(f"{temporary}/venv", with_pip=True)
            python = f"{temporary}/venv/bin/python"
            install = [python, "-m", "pip", "install", args.package]
            line("install", measure(install, folder, env))
        prepare(folder, python, args.geometries)
        for name, command in steps(folder, python, args.geometries, args.steps):
            if args.only is None or name in args.only:
                line(name, measure(command, folder, env))


if __name__ == "__main__":
    main()
