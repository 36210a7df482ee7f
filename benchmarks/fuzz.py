"""What do the readers make of damaged files? Each must read one or refuse it in the library's way.

    python benchmarks/fuzz.py --cases 20000 --json

Whole files of every kind the library reads are made from bundled water and damaged at random: bytes
flipped, cut, repeated, overwritten by large numbers, numbers in texts replaced by odd ones, a file
of one kind under the name of another. A case is a crash if its reader raises anything but
``OpmlError`` or its process dies, a hang if it takes more than ``LIMIT`` seconds, and greedy if the
process grows by more than ``MEMORY``. Cases are numbered: ``--first N --cases 1`` repeats case N.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import select
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

LIMIT = 10.0
"""Seconds a case may take."""

MEMORY = 2**30
"""Bytes a process may grow by in a case."""

ODD = (
    *("nan", "inf", "-inf", "1e999", "-1", "0", "1e-320", "99999999999999999999", "0x10", "1_0"),
    *(
        "",
        "true",
        "null",
        "[[[[",
        "}{",
        "É",
        "\\x00",
        "1,5",
        "!!python/object:os.system",
        "../../x",
    ),
)
"""What a number in a text may become."""

LARGE = tuple(n.to_bytes(k, "little") for k in (4, 8) for n in (2**31 - 1, 2 ** (8 * k) - 1, 2**24))


def samples(folder: Path) -> dict[str, tuple[Path, object]]:
    """A whole file of every kind by name, and the function that reads it."""
    import ase.io
    import h5py
    import jax

    jax.config.update("jax_enable_x64", True)
    import opml_jax as opml
    from opml_jax.data import read_splits
    from opml_jax.data.hdf5 import LIBVER
    from opml_jax.data.store import write_hdf5
    from opml_jax.dynamics import Trajectory, trajectory
    from opml_jax.features.couple import key_name
    from opml_jax.interfaces.ase import structure_to_ase
    from opml_jax.learn.states import load_state, save_state
    from opml_jax.models.op2op import Op2Op, Op2OpConfig, Op2OpModel
    from opml_jax.training import load_config
    from opml_jax.units import ANGSTROM_PER_BOHR

    water = opml.read_dataset(opml.bundled("water")).subset(range(3))
    positions = np.array([s.positions for s in water.structures])
    numbers = np.array(water.structures[0].numbers)
    found = {}

    def add(name, read):
        found[name] = (folder / name, read)
        return folder / name

    rows = [
        "3\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-2080.1\n"
        + "".join(
            f"{z} {x:.6f} {y:.6f} {w:.6f} 0.1 -0.2 0.3\n"
            for z, (x, y, w) in zip("OHH", r * ANGSTROM_PER_BOHR, strict=True)
        )
        for r in positions
    ]
    add("a.xyz", opml.read_dataset).write_text("".join(rows))
    np.savez(
        add("a.npz", opml.read_dataset),
        nuclear_charges=numbers,
        coords=positions * ANGSTROM_PER_BOHR,
        energies=np.full(3, -47900.0),
        forces=np.ones((3, 3, 3)),
    )
    write_hdf5(add("a.h5", opml.read_dataset), water)
    frames = [structure_to_ase(s) for s in water.structures]
    ase.io.write(add("a.traj", opml.read_dataset), frames)
    ase.io.write(add("ase.db", opml.read_dataset), frames)
    with h5py.File(add("spice.hdf5", opml.read_dataset), "w") as f:
        f["water/atomic_numbers"], f["water/conformations"] = numbers, positions
        f["water/dft_total_energy"] = np.full(3, -76.4)
    with sqlite3.connect(add("QH9Stable.db", opml.read_dataset)) as c:
        c.execute(
            "CREATE TABLE data (id INTEGER PRIMARY KEY, N INTEGER, Z BLOB, pos BLOB, Ham BLOB)"
        )
        basis = opml.load_basis("def2-svp", [1, 8])
        for i, (s, fock) in enumerate(zip(water.structures, water.labels["fock"], strict=True)):
            r, fock = s.positions * ANGSTROM_PER_BOHR, opml.to_pyscf(fock, s, basis)
            blobs = (numbers.astype(np.int32), np.asarray(r), np.asarray(fock))
            blobs = [x.tobytes() for x in blobs]
            c.execute("INSERT INTO data VALUES (?,?,?,?,?)", (i, 3, *blobs))
    c.close()
    add("splits.json", read_splits).write_text('{"train": [0, 1], "validation": [2], "test": []}')
    add("config.yaml", load_config).write_text(
        "data: {path: w.xyz, seed: 3}\n"
        "model: {family: op2prop, basis: sto-3g, powers: [1, 2],\n"
        "  fit: {epochs: 5, learning_rate: 0.001, targets: [energy, forces]}}\n"
    )
    basis = opml.load_basis("sto-3g", [1, 8])
    definition = Op2Op(Op2OpConfig("sto-3g", words=("S", "W"), density_words=()), basis)
    guess = {
        key_name(k): {"weights": np.zeros((x.shape[-1], definition.n_outputs(k)))}
        for k, x in definition.known_irreps(
            definition.operators(water.structures[0]), definition.table(water.structures[0])
        ).items()
    }
    path = add("model.safetensors", opml.load_model)
    opml.save_model(path, Op2OpModel(definition, {"guess": guess}))
    state = {"w": np.arange(12.0).reshape(3, 4), "step": np.array(3)}
    path = add("state.npz", lambda path: load_state(path, state, "0123"))
    save_state(path, state, {"fingerprint": "0123", "epoch": 3})
    about = {"numbers": numbers.tolist(), "masses": [29156.9, 1837.5, 1837.5], "timestep_fs": 0.5}
    about |= {"degrees_of_freedom": 3, "settings": {"steps": 9}}
    with h5py.File(add("md.h5", Trajectory.read), "w", libver=LIBVER) as f:
        f.attrs.update(format=trajectory.FORMAT, format_version=trajectory.FORMAT_VERSION)
        f.attrs["about"] = json.dumps(about)
        for name, values in (("step", np.arange(3)), ("positions", positions[:, None])):
            f.create_dataset(f"frames/{name}", data=values, fletcher32=True)
    return found


def damaged(data: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """One to four damages."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = int(rng.integers(0, len(out) + 1))
        n = int(rng.choice([1, 2, 4, 8, 64, 1024]))
        kind = rng.integers(0, 9)
        if kind == 0:
            out = out[:at]
        elif kind == 1:
            del out[at : at + n]
        elif kind == 2:
            out[at:at] = rng.bytes(n)
        elif kind == 3:
            out[at : at + n] = out[at : at + n] * int(rng.integers(2, 50))
        elif kind == 4:
            value = LARGE[rng.integers(len(LARGE))]
            out[at : at + len(value)] = value
        elif kind == 5:
            out[at : at + n] = bytes(min(n, len(out) - at))
        elif kind == 6:
            tokens = [*re.finditer(rb"-?\d+\.?\d*(e-?\d+)?", bytes(out[:10_000]))]
            if tokens:
                token = tokens[rng.integers(len(tokens))]
                out[token.start() : token.end()] = ODD[rng.integers(len(ODD))].encode()
        elif kind == 7 and rng.random() < 0.05:
            out = bytearray(others[rng.integers(len(others))])
        else:
            for i in rng.integers(0, max(len(out), 1), n):
                if i < len(out):
                    out[i] ^= 1 << int(rng.integers(8))
    return bytes(out)


def work(first: int, last: int) -> None:
    """Try cases, one line before and one after each."""
    from opml_jax.errors import OpmlError

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = samples(folder)
        whole = {kind: path.read_bytes() for kind, (path, _) in kinds.items()}
        for path, read in kinds.values():
            read(path)  # undamaged, each must be read
        print("ready", flush=True)
        for case in range(first, last):
            rng = np.random.default_rng(case)
            kind = [*kinds][case % len(kinds)]
            path, read = kinds[kind]
            print("case", case, kind, flush=True)
            path.write_bytes(damaged(whole[kind], rng, [*whole.values()]))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                read(path)
                end = "read"
            except OpmlError as err:
                end = str(err.code)
            except Exception as err:  # what is looked for
                end = f"crash {type(err).__name__}: {' '.join(str(err).split())[:200]}"
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            print("grown" if grown > MEMORY else "end", end, flush=True)


def fuzz(first: int, n: int) -> dict:
    """Cases from ``first`` on in a process of their own; a new one after each death or hang."""
    ends: Counter[str] = Counter()
    bad: list[dict] = []
    case, longest = first, 0.0
    while case < first + n:
        command = [sys.executable, __file__, "--work", str(case), str(first + n)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
            now, kind, start = None, "", time.monotonic()
            while True:
                wait = LIMIT if now is not None else 300.0
                ready, _, _ = select.select([process.stdout], [], [], wait)
                line = process.stdout.readline() if ready else ""
                if line.startswith("case"):
                    _, number, kind = line.split()
                    now, start = int(number), time.monotonic()
                elif line.startswith(("end", "grown")):
                    word, end = line.rstrip("\n").split(" ", 1)
                    longest = max(longest, time.monotonic() - start)
                    ends["crash" if end.startswith("crash") else end] += 1
                    if word == "grown" or end.startswith("crash"):
                        bad.append({"case": now, "kind": kind, "end": f"{word} {end}"})
                    case, now = now + 1, None
                elif not line and (now is not None or process.poll() is not None or not ready):
                    if now is None and case < first + n:
                        raise RuntimeError("the worker did not start")
                    if now is not None:
                        end = "hang" if not ready else f"died, {process.wait()}"
                        bad.append({"case": now, "kind": kind, "end": end})
                        ends["hang" if not ready else "crash"] += 1
                        case = now + 1
                    process.kill()
                    break
    return {"first": first, "cases": n, "ends": dict(ends), "longest_s": longest, "bad": bad}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="append a line to results")
    args = parser.parse_args()
    if args.work:
        work(*args.work)
        return
    from environment import record

    found = fuzz(args.first, args.cases)
    record(found, "fuzz", args.json)
    sys.exit(bool(found["bad"]))


if __name__ == "__main__":
    main()
