"""Heats of formation of QM7 from the external potential: learning curves of Op2Prop.

    python benchmarks/qm7.py QM7.extxyz --cache DIR --json [--picture FILE]

Features of the screened potential (``even-tempered`` basis): invariants of its powers (``v``), or
products of random mixtures (``products``, blocks damped by the overlap of their atoms;
``lifted``, far blocks lifted instead). On them the closed form (linear; linear with a sparse
Gaussian kernel) and networks on what it leaves. The split is that of ``soap.py``, and so are the
metrics; validation is a tenth of the training set. Descriptors are kept in ``--cache``, where a
killed run goes on. ``--picture`` draws the last lines of ``results/`` beside SOAP's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from environment import record
from qm7_split import LABEL, TRAIN, errors, qm7_split

import opml_jax as opml
from opml_jax.data import read_dataset
from opml_jax.learn.run import Run
from opml_jax.models.op2prop import Op2Prop, Op2PropConfig, Op2PropFit
from opml_jax.models.op2prop.closed_form import fit_closed_form
from opml_jax.models.op2prop.descriptors import Labelled, Wanted, build_cache, rounding_noise
from opml_jax.models.op2prop.residual import make_inputs, train_residual

KCAL = 627.5094740631
MODEL = Op2PropConfig(
    basis="even-tempered", powers=(1, 2, 3), components=200, hidden=(64, 64), vectors=0
)
PRODUCTS = dataclasses.replace(
    MODEL, metric="damped", others=("overlap",), powers=(1,), channels=64
)
LIFTED = dataclasses.replace(PRODUCTS, metric="lifted", channels=32)
MODELS = {"v": MODEL, "products": PRODUCTS, "lifted": LIFTED}
RESULTS = Path(__file__).parent / "results"
SHOWN = {
    "soap_linear": ("SOAP, linear", "C1--"),
    "soap_kernel": ("SOAP, kernel", "C1-"),
    "v_kernel": ("powers of V, linear + kernel", "C2-"),
    "products_linear": ("products, linear", "C0--"),
    "products_kernel": ("products, linear + kernel", "C0-"),
}
"""Names of lines, what a picture calls them, and how it draws them."""
NETWORKS = Op2PropFit(
    targets=("energy",), batch_size=32, weight_decay=1e-2, loss="mae", force_precision=0.0
)
CLOSED_FORM = dataclasses.replace(NETWORKS, epochs=0)
"""Of this validation joins the training set once it has chosen lambda."""


def predicted(definition: Op2Prop, params, part: Labelled) -> np.ndarray:
    """Predictions, Hartree."""
    inputs = make_inputs(params, part)
    residual = inputs["energy"]
    if "residual" in params:
        local, _ = definition.networks(
            params["residual"], inputs["z"], inputs["one_hot"], dipole=False
        )
        mask = inputs["one_hot"].sum(axis=-1)
        of_networks = np.asarray((local * mask).sum(-1)).mean(axis=0)
        residual = residual - params["scale"]["energy"] * of_networks
    return part.labels["energy"] - residual


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="QM7 extxyz")
    parser.add_argument("--cache", type=Path, help="folder for descriptors")
    parser.add_argument("--json", action="store_true", help="append lines to results/qm7.jsonl")
    parser.add_argument("--quick", action="store_true", help="1000 molecules for training at most")
    parser.add_argument("--sizes", type=int, nargs="*", default=TRAIN)
    parser.add_argument("--seeds", type=int, default=3, help="of the networks")
    parser.add_argument(
        "--models", nargs="*", choices=[*MODELS], default=["v", "products"], help="default: both"
    )
    parser.add_argument("--references", type=int, default=1500, help="atoms per element")
    parser.add_argument("--picture", type=Path, help="PNG of learning curves")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    dataset = read_dataset(args.path, labels={"energy": (LABEL, "kcal/mol")})
    for name in args.models:
        run(name, dataset, args)
    if args.picture:
        picture(args.picture)


def picture(path: Path) -> None:
    """Learning curves: of every model the last lines kept."""
    from matplotlib.figure import Figure

    curves = {name: {} for name in SHOWN}
    for file in ("soap_qm7.jsonl", "qm7.jsonl"):
        for line in map(json.loads, (RESULTS / file).read_text().splitlines()):
            if line["name"] in curves:
                curves[line["name"]][line["n_train"]] = line["mae_kcal_per_mol"]
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, (label, style) in SHOWN.items():
        n, mae = zip(*sorted(curves[name].items()), strict=True)
        axis.loglog(n, mae, style, marker="o", ms=4, label=label)
    ticks = [0.3, 0.5, 1, 2, 3]
    axis.set_yticks(ticks, [str(t) for t in ticks])
    axis.set_xticks(TRAIN, [str(n) for n in TRAIN])
    axis.minorticks_off()
    axis.set(xlabel="molecules for training", ylabel="MAE of 1401 others, kcal/mol")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def run(model: str, dataset, args) -> None:
    """Learning curves of one kind of features."""
    config = MODELS[model]
    pool, test = qm7_split(len(dataset))
    dataset = dataset.subset(np.concatenate([pool, test]))  # what is picked below is a view
    definition = Op2Prop(config, opml.load_basis(config.basis, dataset.elements))
    drawn, wanted = definition.draw(0), Wanted()
    stem = f"{config.basis}_{config.metric}_{config.channels}"
    on_disk = Run(args.cache and args.cache / stem)
    cache = build_cache(definition, dataset.structures, wanted, drawn, run=on_disk)
    noise = rounding_noise(definition, dataset.structures, cache, wanted, drawn)
    every = Labelled(cache, {"energy": np.array(dataset.labels["energy"])})
    judged = every.subset(np.arange(len(pool), len(dataset)))

    def report(name: str, n: int, prediction: np.ndarray, **more) -> None:
        reference = judged.labels["energy"]
        difference = (prediction - reference) * KCAL
        worst = np.argsort(-np.abs(difference))[:10]
        line = {"name": name, "n_train": n, "n_test": len(test)}
        line |= {**errors(prediction * KCAL, reference * KCAL), **more}
        line["worst_ten"] = [[int(test[i]), round(float(difference[i]), 2)] for i in worst]
        line |= {"metric": config.metric, "channels": config.channels}
        line["invariants"] = definition.n_invariants
        record(line, "qm7", args.json and not args.quick)

    for n in args.sizes:
        if args.quick and n > 1000:
            continue
        parts = {"train": np.arange(n // 10, n), "validation": np.arange(n // 10)}
        sets = {k: every.subset(i) for k, i in parts.items()}
        for kind, m in (("linear", 0), ("kernel", args.references)):
            with_kernel = dataclasses.replace(config, references=m)
            of_kind = dataclasses.replace(definition, config=with_kernel)
            fit = fit_closed_form(of_kind, CLOSED_FORM, sets, noise, drawn)
            prediction = predicted(of_kind, fit.params, judged)
            report(f"{model}_{kind}", n, prediction, energy_lambda=fit.energy.lam, references=m)
        if not args.seeds:
            continue
        start = fit_closed_form(definition, NETWORKS, sets, noise, drawn).params
        inputs = {k: make_inputs(start, part) for k, part in sets.items()}
        runs = []
        for seed in range(args.seeds):
            params = train_residual(definition, NETWORKS, start, inputs, Run(seed=seed)).params
            runs.append(predicted(definition, params, judged))
            report(f"{model}_linear_network", n, runs[-1], seed=seed)
        report(f"{model}_linear_networks_mean", n, np.mean(runs, axis=0), seeds=args.seeds)


if __name__ == "__main__":
    main()
