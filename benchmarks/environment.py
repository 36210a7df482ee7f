"""Where a benchmark ran: part of every line it prints."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import jax


def environment() -> dict[str, str]:
    """Where this ran, at which commit."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = device.platform if device.platform == "cpu" else device.device_kind
    return {
        "device": f"{name}, {cores} core(s), {platform.machine()}",
        "commit": commit,
        **{package: version(package) for package in ("jax", "pyscf", "pyscfad")},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "unset"),
    }


def record(line: dict, name: str, keep: bool) -> None:
    """Print a line with where it was measured; ``keep`` appends it to ``results/NAME.jsonl``."""
    text = json.dumps({**line, **environment()})
    print(text, flush=True)
    if keep:
        with open(Path(__file__).parent / "results" / f"{name}.jsonl", "a") as f:
            f.write(text + "\n")
