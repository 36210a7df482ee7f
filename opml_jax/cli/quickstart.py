"""``opml quickstart``: the whole path on water, from bundled labels to a tested model."""

from __future__ import annotations

import argparse

N_FRESH = 8
FRESH_SEED = 77
CURVE = (10, 20, 50, 100, 200, 400)


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("--out", default="quickstart", metavar="DIR", help="run directory to write")
    p.add_argument("--workers", type=int, default=0, help="PySCF processes (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from .runs import run_directory

    with run_directory(args.out):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    import json
    import time
    from pathlib import Path

    from ..data.files import write_text
    from ..interfaces.files import write_extxyz
    from ..report import text_table
    from ..training.config import DataConfig, TrainConfig
    from ..training.learning_curve import closed_form_learning_curve
    from .progress import working
    from .runs import evaluate_run, train_run

    clock = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = now - clock, now

    config = TrainConfig(data=DataConfig(path="bundled:water", splits="bundled:water"))
    trained, dataset, splits = train_run(config, args.out, restart=_begins(args.out, config))
    lap("training")
    fresh = _fresh(dataset, Path(args.out), args.workers)
    lap("fresh PySCF labels")
    test = dataset.subset(splits["test"])
    with working("learning curve"):
        curve = closed_form_learning_curve(trained, test, config, CURVE)
    lap("learning curve")
    metrics = evaluate_run(
        args.out, trained, dataset, splits, {"fresh": fresh}, curve=curve, quiet=True
    )
    lap("evaluation and report")
    structures = test.structures + fresh.structures
    with working("predictions"):
        predicted = trained.model.predict(structures)
    write_extxyz(Path(args.out) / "predictions.extxyz", structures, predicted)
    level = f"{dataset.meta['method'].upper()}/{dataset.meta['basis']}"
    print(
        f"Op2Prop on water, {level}: {len(splits['train'])} training, "
        f"{len(splits['validation'])} validation, {len(splits['test'])} test geometries; "
        f"fresh: {len(fresh)} geometries computed now by PySCF"
    )
    print(text_table({k: v for k, v in metrics.items() if k.startswith(("test", "fresh"))}))
    detail = {**{f"  {k}": v for k, v in trained.seconds.items()}}
    for stage, value in [
        ("training", seconds["training"]),
        *detail.items(),
        *[(k, v) for k, v in seconds.items() if k != "training"],
    ]:
        print(f"{stage:<22} {value:7.1f} s")
    write_text(Path(args.out) / "timings.json", json.dumps({**seconds, **trained.seconds}) + "\n")
    print(f"{args.out}: report.html, model.safetensors, card.md, metrics.json, predictions.extxyz")
    return 0


def _begins(output: str, config) -> bool:
    """Whether a run is begun anew: any but one of this configuration that was interrupted."""
    from pathlib import Path

    from ..errors import ConfigError
    from .runs import check_same, complete

    try:
        check_same(Path(output), config)
    except ConfigError:
        return True
    return complete(Path(output), curve=True)


def _fresh(dataset, folder, workers: int):
    """New geometries of the bundled distribution, labelled here and now at the bundled level."""
    import os

    import numpy as np

    from ..data import read_dataset
    from ..data.generate import generate
    from ..data.reference import Method
    from ..data.sampling import sample_thermal
    from ..data.workers import Workers
    from ..structures import Structure
    from .progress import Progress

    how = dataset.meta["sampling"]
    minimum = Structure(how["numbers"], how["minimum_bohr"])
    structures = sample_thermal(
        minimum,
        np.array(how["hessian"]),
        n=N_FRESH,
        seed=FRESH_SEED,
        temperature=how["temperature_kelvin"],
    )
    method = Method.from_meta(dataset.meta)
    workers = min(N_FRESH, workers or os.cpu_count() or 1)
    with Workers(workers) as executor, Progress("fresh PySCF labels") as progress:
        path = folder / "fresh.h5"
        generate(structures, path, method, executor=executor, on_progress=progress.update)
    return read_dataset(path)
