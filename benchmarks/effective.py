"""How close does a minimal-basis operator, trained on observables, come to a large basis?

    python benchmarks/effective.py LABELS.h5 --json

LABELS.h5 comes from ``opml generate --no-forces`` in a large basis. A random split (seed 0) of
``--n-train``, ``--n-validation`` and the rest; Op2Op in ``--basis`` (STO-3G) is fitted to orbital
energies, dipoles and Löwdin's charges. Beside its errors are those of the small basis itself: a
PySCF calculation of every test structure in it, with the same functional.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from environment import record
from op2op_qm7 import read

import opml_jax as opml
from opml_jax.data import Dataset, random_split
from opml_jax.data.reference import Method, calculate
from opml_jax.models.op2op import ObservablesFit, Op2OpConfig, Op2OpFit
from opml_jax.training import TrainConfig, train
from opml_jax.training.metrics import errors


def small_basis(test: Dataset, basis) -> dict[str, np.ndarray]:
    """What PySCF gives in the small basis, in the form of predictions."""
    meta = test.meta
    method = Method(meta["method"], basis.name, int(meta["grid_level"]), 1e-9, forces=False)
    found = [calculate(s, method) for s in test.structures]
    charges = [
        opml.observables.lowdin_charges(f["dm"], f["overlap"], s, basis)
        for f, s in zip(found, test.structures, strict=True)
    ]
    sizes = np.array([len(f["fock"]) for f in found])

    def padded(rows):
        rows = [np.asarray(row) for row in rows]
        out = np.zeros((len(rows), *np.max([r.shape for r in rows], axis=0)))
        for own, row in zip(out, rows, strict=True):
            own[tuple(map(slice, row.shape))] = row
        return out

    out = {k: padded([f[k] for f in found]) for k in ("fock", "dm", "overlap", "mo_energy")}
    out["dipole"] = np.array([f["dipole"] for f in found])
    return {**out, "lowdin_charges": padded(charges), "nao": sizes}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, nargs="+", help="HDF5, Fock matrices in a large basis")
    parser.add_argument("--basis", default="sto-3g", help="of the effective operator")
    parser.add_argument("--input-basis", help="of the operators that make the words")
    parser.add_argument("--stages", type=int, default=0, help="0: the first guess alone")
    parser.add_argument("--components", type=int, default=ObservablesFit.components)
    parser.add_argument("--elements", nargs="*", help="leave molecules of others out")
    parser.add_argument("--n-train", type=int, default=400)
    parser.add_argument("--n-validation", type=int, default=50)
    parser.add_argument("--n-test", type=int, default=50, help="at most")
    parser.add_argument("--steps", type=int, default=ObservablesFit.steps)
    parser.add_argument("--virtuals", type=int, default=0, help="that count; 0: all")
    parser.add_argument("--virtual-weight", type=float, default=ObservablesFit.virtual_weight)
    parser.add_argument("--quick", action="store_true", help="20 structures, 20 steps")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    if args.quick:
        args.n_train, args.n_validation, args.n_test, args.steps = 20, 5, 5, 20
    jax.config.update("jax_enable_x64", True)
    data = read(args.labels, args.elements, ("fock", "dipole"))
    n_test = min(args.n_test, len(data) - args.n_train - args.n_validation)
    splits = random_split(len(data), args.n_train, args.n_validation, n_test, seed=0)
    observables = ObservablesFit(
        components=args.components,
        steps=args.steps,
        virtuals=args.virtuals,
        virtual_weight=args.virtual_weight,
    )
    config = Op2OpConfig(
        basis=args.basis,
        input_basis=args.input_basis,
        density_words=Op2OpConfig.density_words if args.stages else (),
        stages=args.stages,
        fit=Op2OpFit(observables),
    )
    start = time.process_time()
    trained = train(data, splits, TrainConfig(model=config))
    seconds = time.process_time() - start
    model, test = trained.model, data.subset(splits["test"])
    predicted, small = model.predict(test.structures), small_basis(test, model.definition.basis)
    level = f"{data.meta['method']}/{data.meta['basis']}"
    for name, found in (("effective", predicted), (args.basis, small)):
        line = {"name": name, "target": level, "elements": data.elements}
        line |= {k: len(v) for k, v in splits.items()} | errors(found, test, model)
        line |= {"fit_cpu_seconds": seconds, "steps": len(trained.history)}
        line |= {
            "input_basis": args.input_basis,
            "stages": args.stages,
            "components": args.components,
            "virtuals": args.virtuals,
            "virtual_weight": args.virtual_weight,
        }
        record(line, "effective", args.json and not args.quick)


if __name__ == "__main__":
    main()
