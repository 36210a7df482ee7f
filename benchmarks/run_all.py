"""Every benchmark in turn, on whatever device JAX finds: one JSON file, and a table.

    python benchmarks/run_all.py OUT.json --quick
    python benchmarks/run_all.py OUT.json --rmd17 DIR --qm7 FILE --op2op DIR --waters DIR \\
        --densnet DIR --threebpa DIR

Each runs in a process of its own; those whose data are not given are left out and named.
``--quick`` takes small cases. OUT.json is written after each, and a second call with the same file
does what is missing or failed at this commit. Benchmarks that need labels of one's own are not
among them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import environment

from opml_jax.data.files import write_text

HERE = Path(__file__).parent
DATA = {
    "rmd17": "folder of rMD17's splits (npz)",
    "qm7": "QM7 (extxyz)",
    "op2op": "folder of Fock matrices (npz)",
    "waters": "folder of rho_learn's waters",
    "densnet": "folder of DenSNet's waters",
    "threebpa": "folder of 3BPA's training sets",
}

RUNS = {
    "neutral_atoms": ("neutral_atoms.py", "--json", "--quick?"),
    "integrals": ("integrals.py", "--json", "--quick?"),
    "products": ("products.py", "--json", "--quick?"),
    "exchange_correlation": ("exchange_correlation.py", "--json", "--quick?"),
    "kohn_sham": ("kohn_sham.py", "--json", "--quick?"),
    "features": ("features.py", "--json", "--quick?"),
    "prediction": ("prediction.py", "--json", "--quick?"),
    "dimers": ("dimers.py", "--json", "--quick?"),
    "field": ("field.py", "--n-train", "100|380", "--n-test", "3|10"),
    "matrix_cutoff": ("matrix_cutoff.py", "--cutoffs", "4", "6"),
    "density ladder": (
        "density.py",
        "ladder",
        "bundled:water",
        "--train",
        "100|400",
        "--test",
        "20|100",
        "--energies",
        "2|20",
    ),
    "op2op": ("op2op.py", "{op2op}", "--quick?"),
    "op2op inference": ("op2op_inference.py", "{op2op}", "--n-train", "60|130", "--one-shot"),
    "density": ("density.py", "waters", "{waters}", "--alone", "--quick?"),
    "density energies": ("density_energy.py", "water", "{densnet}", "--sizes", "25|100"),
    "rmd17": ("rmd17.py", "{rmd17}", "--cache", "{cache}", "--models", "products", "--quick?"),
    "inference": ("inference.py", "{rmd17}", "--json", "--quick?"),
    "md": ("md.py", "{rmd17}", "--cache", "{cache}", "--parts", "speed", "--quick?"),
    "threebpa": ("threebpa.py", "{threebpa}", "--cache", "{cache}", "--quick?"),
    "qm7": ("qm7.py", "{qm7}", "--quick?"),
    "soap": ("soap.py", "{qm7}", "--json", "--quick?"),
    "fuzz": ("fuzz.py", "--cases", "200|20000"),
    "fuzz_meanings": ("fuzz_meanings.py", "--cases", "400|20000", "--writers", "1|20"),
    "kills": ("kills.py", "--kills", "2|100"),
}
"""Script and arguments: ``{data}`` by name, ``quick|whole`` sizes, and ``--quick?`` if quick."""


def command(name: str, given: dict[str, str], quick: bool) -> list[str] | None:
    """Arguments of one run; None if its data are not given."""
    out = []
    for part in RUNS[name]:
        if part == "--quick?":
            out += ["--quick"] * quick
        elif part.startswith("{"):
            if given.get(part[1:-1]) is None:
                return None
            out.append(str(given[part[1:-1]]))
        else:
            out.append(part.split("|")[0 if quick else -1])
    return out


def run(arguments: list[str], limit: float) -> dict:
    """One benchmark in a process of its own; its lines, CPU and wall seconds, and how it ended."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    script, *rest = arguments
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / script), *rest],
            capture_output=True,
            text=True,
            timeout=limit,
        )
        status, out = ("ok" if done.returncode == 0 else "failed"), done.stdout
        last = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired as err:
        status, last = "stopped", [f"after {limit:.0f} s"]
        out = err.stdout.decode() if isinstance(err.stdout, bytes) else err.stdout or ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [json.loads(text) for text in out.splitlines() if text.startswith("{")]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wall = time.monotonic() - start
    status = "failed" if status == "ok" and not lines else status
    return {
        "status": status,
        "why": " ".join(last),
        "cpu_seconds": cpu,
        "seconds": wall,
        "lines": lines,
    }


def table(runs: dict[str, dict]) -> str:
    """One row a benchmark."""
    rows = [f"{'benchmark':<18}{'status':<9}{'lines':>6}{'CPU s':>8}{'s':>8}"]
    for name, own in runs.items():
        cells = f"{len(own['lines']):>6}{own['cpu_seconds']:>8.0f}{own['seconds']:>8.0f}"
        rows.append(f"{name:<18}{own['status']:<9}{cells}  {own['why'][:80]}".rstrip())
    return "\n".join(rows)


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write or to complete")
    parser.add_argument("--quick", action="store_true", help="small cases")
    parser.add_argument("--only", nargs="*", choices=[*RUNS], default=[*RUNS])
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for each")
    for name, what in DATA.items():
        parser.add_argument(f"--{name}", type=Path, help=what)
    args = parser.parse_args()
    here = {**environment(), "quick": args.quick}
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    runs = found.get("runs", {}) if found.get("environment") == here else {}
    missing = []
    with tempfile.TemporaryDirectory() as cache:
        given = {**{name: getattr(args, name) for name in DATA}, "cache": cache}
        for name in args.only:
            arguments = command(name, given, args.quick)
            if arguments is None:
                missing.append(name)
            elif runs.get(name, {}).get("status") != "ok":
                print(f"{name}: {' '.join(arguments)}", flush=True)
                runs[name] = run(arguments, args.limit)
                text = json.dumps({"environment": here, "runs": runs}, indent=1)
                write_text(args.out, text + "\n")
    print(table(runs))
    if missing:
        print(f"without data: {', '.join(missing)}")
    sys.exit(any(own["status"] != "ok" for own in runs.values()))


if __name__ == "__main__":
    main()
