"""From a data set and a configuration to a model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from ..basis import load_basis
from ..data import Dataset
from ..errors import DataError, refusal
from ..models import Model, Op2Prop
from ..numerics import require_x64
from ..structures.elements import symbol
from .cache import Cache, build_cache, rounding_noise
from .closed_form import fit_closed_form
from .config import TrainConfig, to_mapping
from .metrics import LEVEL_KEYS
from .residual import make_inputs, train_residual

Reporter = Callable[[str, int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Trained:
    """Result of :func:`train`.

    Attributes:
      model: the model.
      history: one row per epoch.
      seconds: wall time per stage.
      caches: descriptors of ``train`` and ``validation``.
      labels: targets of ``train`` and ``validation`` as arrays.
      noise: rounding noise of the invariants.
    """

    model: Model
    history: list[dict[str, float]]
    seconds: dict[str, float]
    caches: dict[str, Cache]
    labels: dict[str, dict[str, np.ndarray]]
    noise: np.ndarray


def padded_labels(dataset: Dataset, targets: tuple[str, ...], n_atoms: int) -> dict[str, Any]:
    """Targets as arrays with structures first, forces padded to ``n_atoms``.

    Raises:
      DataError: a target the data lacks, or a dipole of an ion (it depends on the origin).
    """
    labels: dict[str, Any] = {}
    for name in targets:
        if name not in dataset:
            have = ", ".join(dataset.labels) or "no labels"
            raise DataError(
                refusal(
                    "targets",
                    got=f"{name!r}, which the data set lacks",
                    expected=f"labels it has: {have}",
                )
            )
        if name == "dipole" and any(s.charge for s in dataset.structures):
            raise DataError(
                refusal(
                    "targets",
                    got="'dipole' for charged molecules",
                    expected="neutral ones: an ion's dipole depends on the origin",
                )
            )
        values = dataset.labels[name]
        if name == "forces":
            padded = np.zeros((len(dataset), n_atoms, 3))
            for i, f in enumerate(values):
                padded[i, : len(f)] = f
            labels[name] = padded
        else:
            labels[name] = np.array(values)
    return labels


def train(
    dataset: Dataset,
    splits: dict[str, list[int]],
    config: TrainConfig,
    *,
    on_progress: Reporter = lambda stage, done, total, note: None,
) -> Trained:
    """Train Op2Prop: closed form first, then networks on what it leaves.

    Args:
      dataset: labelled structures in atomic units.
      splits: ``train`` and ``validation`` indices (``test`` is not touched here).
      config: model and training.
      on_progress: called with (stage, done, total, note).

    Raises:
      DataError: targets the data lacks, or splits that do not fit.
      BasisError: an element the input basis lacks.
      PrecisionError: x64 is off.
    """
    require_x64("training")
    parts = {k: dataset.subset(splits[k]) for k in ("train", "validation")}
    unseen = set(parts["validation"].elements) - set(parts["train"].elements)
    if unseen:
        raise DataError(
            refusal(
                "validation split",
                expected="only elements of the training split",
                got=", ".join(symbol(z) for z in sorted(unseen)),
            )
        )
    basis = load_basis(config.model.basis, parts["train"].elements)
    definition = Op2Prop(config.model, basis)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = now - clock, now

    n = len(parts["train"])
    structures = parts["train"].structures + parts["validation"].structures
    for part in parts.values():  # refuse what cannot be learned before computing anything
        padded_labels(part, config.targets, max(s.n_atoms for s in structures))
    cache = build_cache(
        definition,
        structures,
        derivatives="forces" in config.targets,
        on_progress=lambda done, total: on_progress("descriptors", done, total, ""),
    )
    caches = {"train": cache.subset(range(n)), "validation": cache.subset(range(n, len(cache)))}
    labels = {k: padded_labels(p, config.targets, cache.x.shape[1]) for k, p in parts.items()}
    noise = rounding_noise(definition, structures, cache, derivatives="forces" in config.targets)
    lap("descriptors")
    on_progress("closed form", 0, 1, "")
    fit = fit_closed_form(
        definition,
        caches["train"],
        caches["validation"],
        labels["train"],
        labels["validation"],
        config.optim,
        noise,
    )
    lap("closed form")
    on_progress("closed form", 1, 1, f"lambda {fit.energy.lam:.0e}")
    params, history = fit.params, []
    if config.optim.epochs:
        inputs = {k: make_inputs(fit.params, caches[k], labels[k]) for k in parts}
        params, history = train_residual(
            definition,
            fit.params,
            inputs["train"],
            inputs["validation"],
            config.optim,
            config.seed,
            lambda epoch, row: on_progress(
                "epochs",
                epoch,
                config.optim.epochs,
                f"best validation loss {row['best_validation_loss']:.4f}",
            ),
        )
    lap("network")
    card = {
        "model": "Op2Prop: closed form plus residual networks",
        "elements": [symbol(z) for z in basis.elements],
        "targets": list(config.targets),
        "n_train": n,
        "n_validation": len(parts["validation"]),
        "reference": {k: dataset.meta[k] for k in LEVEL_KEYS if k in dataset.meta},
        "source": dataset.meta.get("source", ""),
        "energy_lambda": fit.energy.lam,
        "dipole_lambda": fit.dipole.lam if fit.dipole else None,
        "n_invariants": definition.n_invariants,
        "config": to_mapping(config),
        "versions": {p: version(p) for p in ("opml_jax", "jax", "pyscf", "pyscfad")},
    }
    return Trained(Model(definition, params, card), history, seconds, caches, labels, noise)
