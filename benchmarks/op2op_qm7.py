"""One model of Fock matrices for molecules of mixed composition, and F against P as its target.

    opml generate small.xyz -o small.h5 --basis sto-3g --no-forces --grid-level 1  # and large
    python benchmarks/op2op_qm7.py small.h5 large.h5 --json

``small.xyz`` and ``large.xyz`` come from ``qm7_small.py`` (``--n-large 784``). Molecules of
elements other than ``--elements`` are left out (few small ones have sulphur). A random split (seed
0) of those below ``--large-from`` heavy atoms trains, validates and tests; the others, sizes never
seen, test too.
The models: one-shot Fock matrices (``fock``), one-shot density matrices from the same words
(``dm``, target P), in stages, and self-consistent ones. Dipoles and Löwdin's charges are
compared with those of the reference's Fock matrix. A density matrix has no levels: for ``--scf``
molecules of each test set PySCF makes the Fock matrix of the predicted density, whose levels are
compared (``rebuilt``), and starts from it (``scf_cycles``, beside minao's). Molecules whose density
does not become self-consistent are counted (``unconverged``) and left out of the errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import scipy.linalg
from environment import record

import opml_jax as opml
from opml_jax.data import Dataset, random_split
from opml_jax.data.reference import Method, mean_field, reference_observables
from opml_jax.errors import DataWarning
from opml_jax.interfaces.pyscf import pyscf_guesses, scf_ends
from opml_jax.learn.run import Run
from opml_jax.models.op2op import Op2Op, Op2OpConfig, Op2OpModel
from opml_jax.models.op2op.closed_form import fit_closed_form
from opml_jax.models.op2op.metrics import paired_levels
from opml_jax.structures.elements import atomic_number
from opml_jax.training.metrics import errors
from opml_jax.units import DEBYE_PER_EBOHR

MODELS = {
    "fock": {"density_words": ()},
    "dm": {"density_words": (), "target": "dm"},
    "one stage": {"stages": 1},
    "two stages": {"stages": 2},
    "self-consistent": {},
}
MICRO = 1e6


def read(
    paths: list[Path], elements: list[str] | None = None, labels: tuple[str, ...] = ("fock",)
) -> Dataset:
    """Molecules of these elements only (None: all), and these labels of theirs."""
    found = [opml.read_dataset(p) for p in paths]
    rows = [
        row
        for data in found
        for row in zip(data.structures, *(data[k] for k in labels), strict=True)
        if not elements or {atomic_number(e) for e in elements} >= {*row[0].numbers}
    ]
    structures, *columns = map(list, zip(*rows, strict=True))
    return Dataset(structures, dict(zip(labels, columns, strict=True)), found[0].meta)


def in_pyscf(part: Dataset, dms: list[np.ndarray], basis) -> dict[str, float]:
    """What PySCF makes of predicted density matrices; see the module."""
    method = Method.from_meta(part.meta, conv_tol=1e-9)
    cycles: dict[str, list[int]] = {"model": [], "minao": []}
    levels, gaps, excess, failures = [], [], [], 0
    for structure, fock, dm in zip(part.structures, part.labels["fock"], dms, strict=True):
        mf = mean_field(structure, method)
        start, n = np.asarray(opml.to_pyscf(dm, structure, basis)), sum(structure.numbers) // 2
        s = mf.get_ovlp()
        wanted = scipy.linalg.eigh(opml.to_pyscf(fock, structure, basis), s, eigvals_only=True)
        left = scipy.linalg.eigh(mf.get_fock(dm=start), s, eigvals_only=True) - wanted
        levels.append(np.abs(left[:n]))
        gaps.append(abs(left[n] - left[n - 1]))
        above = mf.energy_tot(dm=start)
        ends = scf_ends(mf, {"model": start, **pyscf_guesses(mf, ("minao",))})
        if np.isnan([e for _, e in ends.values()]).any():
            failures += 1
            continue
        for name, (count, _) in ends.items():
            cycles[name].append(count)
        excess.append(above - min(e for _, e in ends.values()))
    return {
        "rebuilt_occupied_mae_uha": MICRO * float(np.concatenate(levels).mean()),
        "rebuilt_gap_mae_uha": MICRO * float(np.mean(gaps)),
        "energy_of_density_mae_uha": MICRO * float(np.mean(np.abs(excess))),
        **{f"scf_cycles_{name}": float(np.mean(n)) for name, n in cycles.items()},
        "n_scf": len(part),
        "scf_failures": failures,
    }


def judged(model: Op2OpModel, part: Dataset, n_scf: int) -> dict[str, float]:
    """Errors of matrices and of what follows from them, and the worth of the first ``n_scf``."""
    model.predict(part.structures, allow_unconverged=True)  # compiles
    start = time.process_time()
    found = model.predict(part.structures, allow_unconverged=True)
    seconds = (time.process_time() - start) / len(part)
    converged = np.setdiff1d(range(len(part)), model.failed(found))
    out = {"unconverged": len(part) - len(converged)}
    if not len(converged):
        return out
    part, found = part.subset(converged), {k: v[converged] for k, v in found.items()}
    wanted = reference_observables(part, ("dipole", "lowdin_charges"))
    charges = [
        np.abs(found["lowdin_charges"][i, : len(q)] - q)
        for i, q in enumerate(wanted["lowdin_charges"])
    ]
    dipoles = np.linalg.norm(found["dipole"] - np.array(wanted["dipole"]), axis=-1)
    out |= errors(found, part, model)
    if "fock" in found:
        each = [
            np.abs(found["fock"][i, : len(f), : len(f)] - f).mean()
            for i, f in enumerate(part.labels["fock"])
        ]
        out["fock_median_uha"] = MICRO * float(np.median(each))
        out["fock_worst_uha"] = MICRO * float(np.max(each))
        levels = [
            (np.abs(b - a)[:n].mean(), abs((b - a)[n] - (b - a)[n - 1]))
            for a, b, n in paired_levels(found, part)
        ]
        occupied, gap = MICRO * np.median(levels, axis=0)
        out["eigenvalue_occupied_median_uha"] = float(occupied)
        out["gap_median_uha"] = float(gap)
    out |= {
        "dipole_error_debye": float(dipoles.mean()) * DEBYE_PER_EBOHR,
        "lowdin_charges_mae_e": float(np.concatenate(charges).mean()),
        "cpu_ms_per_molecule": 1e3 * seconds,
    }
    if n_scf:
        index = np.linspace(0, len(part) - 1, min(n_scf, len(part))).astype(int)
        sizes = [len(part.labels["fock"][i]) for i in index]
        dms = [found["dm"][i, :n, :n] for i, n in zip(index, sizes, strict=True)]
        out |= in_pyscf(part.subset(index), dms, model.definition.basis)
    return out


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, nargs="+", help="HDF5 with Fock matrices")
    parser.add_argument("--large-from", type=int, default=7, help="heavy atoms")
    parser.add_argument("--n-train", type=int, help="default: all that the others leave")
    parser.add_argument("--elements", nargs="*", default=["H", "C", "N", "O"])
    parser.add_argument("--models", nargs="*", choices=[*MODELS], default=["fock", "dm"])
    parser.add_argument("--baseline", help="what first guesses start from, see Op2OpConfig")
    parser.add_argument("--n-validation", type=int, default=20)
    parser.add_argument("--n-test", type=int, default=40)
    parser.add_argument("--n-large", type=int, default=60, help="at most")
    parser.add_argument("--scf", type=int, default=10, help="molecules of each set for PySCF")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", DataWarning)  # rare pairs of elements
    data = read(args.labels, args.elements)
    heavy = np.array([sum(z > 1 for z in s.numbers) for s in data.structures])
    below, above = np.flatnonzero(heavy < args.large_from), np.flatnonzero(heavy >= args.large_from)
    n_train = args.n_train or len(below) - args.n_validation - args.n_test
    splits = random_split(len(below), n_train, args.n_validation, args.n_test, seed=0)
    parts = {name: data.subset(below[index]) for name, index in splits.items()}
    if len(above):
        parts["large"] = data.subset(np.random.default_rng(0).permutation(above)[: args.n_large])
    name = data.meta["basis"]
    basis = opml.load_basis(name, data.elements)
    for kind in args.models:
        config = Op2OpConfig(basis=name, **MODELS[kind])
        if args.baseline:
            config = dataclasses.replace(config, baseline=args.baseline)
        definition = Op2Op(config, basis)
        start = time.process_time()
        fit = fit_closed_form(definition, parts, Run())
        line = {"name": kind, "basis": name, "elements": data.elements}
        line |= {"baseline": config.baseline, "large_from": args.large_from}
        line |= {"n_train": n_train, "fit_cpu_seconds": time.process_time() - start}
        if "functional_fade" in fit.params:
            line["functional_fade"] = fit.params["functional_fade"]
        for what, tried in (("floors", fit.floors), ("fades", fit.fades)):
            line |= {what: {f"{k:.0e}": v for k, v in tried.items()}} if tried else {}
        for which in ("test", "large"):
            if which in parts:
                model = Op2OpModel(definition, fit.params)
                line[which] = judged(model, parts[which], args.scf)
        record(line, "op2op_qm7", args.json)


if __name__ == "__main__":
    main()
