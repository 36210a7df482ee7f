"""Self-consistent Fock matrices in def2-SVP: how many molecules they take, and of what they are.

    opml generate small.xyz -o small.h5 --basis def2-svp --method pbe --grid-level 1 \\
        --density-fit --no-forces
    python benchmarks/op2op_svp.py small.h5 --n-train 74 300 --seeds 0 1 2 \\
        --others seven=seven.h5 nine=nine.h5 --json

``small.xyz`` are molecules of QM7 (``qm7_small.py``). One permutation (seed 0) of those in the file
puts ``--n-validation`` and ``--n-test`` molecules aside; each seed draws the training molecules of
the rest. ``--others`` are labelled files that are judged alone, larger molecules say. ``--models``
are the model as it is, and without the projection (which then fades). Labels of a hybrid functional
have its part of exact exchange computed, those of a meta-GGA are projected on potentials between
gradients too.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from environment import record
from op2op_qm7 import judged, read

import opml_jax as opml
from opml_jax.data.functionals import exact_exchange, is_meta_gga
from opml_jax.errors import DataWarning
from opml_jax.learn.run import Run
from opml_jax.models.op2op import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.config import Op2OpFit
from opml_jax.quantities import N_ITERATES, iterate

MODELS = {
    "projected": {},
    "faded": {"projection": "none", "extrapolation": "difference"},
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, nargs="+", help="HDF5 with Fock matrices")
    parser.add_argument("--n-train", type=int, nargs="+", default=[74])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=["projected"])
    parser.add_argument("--iterates", type=float, default=0.0, help="weight, where files have them")
    parser.add_argument("--n-validation", type=int, default=10)
    parser.add_argument("--n-test", type=int, default=24)
    parser.add_argument("--others", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--scf", type=int, default=0, help="molecules of each set for PySCF")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", DataWarning)  # rare pairs of elements
    elements, names = ["H", "C", "N", "O"], ["fock"]
    if args.iterates:
        there = opml.read_dataset(args.labels[0]).labels
        cycles = [c for c in range(1, N_ITERATES + 1) if iterate("dm", c) in there]
        names += [iterate(kind, c) for c in cycles for kind in ("dm", "fock")]
    data = read(args.labels, elements, tuple(names))
    order = np.random.default_rng(0).permutation(len(data))
    cuts = np.cumsum([args.n_validation, args.n_test])
    validation, test, rest = np.split(order, cuts)
    sets = {"test": data.subset(test)}
    for name, path in (pair.split("=", 1) for pair in args.others):
        sets[name] = read([Path(path)], elements)
    basis = opml.load_basis(data.meta["basis"], data.elements)
    functional = {"exchange": exact_exchange(data.meta["method"]) or 0.0}
    if is_meta_gga(data.meta["method"]):
        functional["projection"] = "meta_gga"
    for kind in args.models:
        config = Op2OpConfig(basis=basis.name, **{**functional, **MODELS[kind]})
        definition = Op2Op(config, basis)
        for n in args.n_train:
            for seed in args.seeds:
                drawn = np.random.default_rng(seed).permutation(rest)[:n]
                parts = {"train": data.subset(drawn), "validation": data.subset(validation)}
                start = time.process_time()
                fit = fit_closed_form(definition, parts, Run(), Op2OpFit(iterates=args.iterates))
                line = {"name": kind, "n_train": len(drawn), "seed": seed, "basis": basis.name}
                line |= {"method": data.meta["method"], "iterates": args.iterates}
                line |= {"fit_cpu_seconds": time.process_time() - start}
                line["floors"] = {f"{k:.0e}": v for k, v in fit.floors.items()}
                model = Op2OpModel(definition, fit.params)
                line |= {name: judged(model, part, args.scf) for name, part in sets.items()}
                record(line, "op2op_svp", args.json)


if __name__ == "__main__":
    main()
