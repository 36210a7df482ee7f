"""From a data set and a configuration to a model."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..basis import load_basis
from ..data import Dataset, check_splits
from ..data.moments import centred_quadrupoles
from ..data.plausibility import check_finite
from ..errors import Code, ConfigError, DataError, refusal
from ..models import (
    Density2Prop,
    Density2PropModel,
    DensityModel,
    Model,
    Op2Density,
    Op2Op,
    Op2Prop,
    OperatorModel,
    OperatorNetwork,
)
from ..numerics import require_x64
from ..structures.contacts import closest_pairs
from ..structures.elements import symbol
from ..units import DEBYE_PER_EBOHR, EV_PER_ANGSTROM_PER_ATOMIC_FORCE, EV_PER_HARTREE
from .cache import Cache, build_cache, rounding_noise
from .calibration import recalibrated, with_largest_doubt
from .checkpoint import NETWORK, STATE, STRUCTURES, TURNED, WIDTHS, History, fingerprint
from .closed_form import TENSORS, fit_closed_form
from .config import TrainConfig, to_mapping
from .density import (
    calibrated,
    check_densities,
    free_atoms,
    label_dataset,
    problem_of,
    solve_problem,
    subtract_baselines,
)
from .density_energy import read_density
from .density_network import train_density_network
from .density_widths import train_density_widths, true_densities
from .effective import check_observables, fit_effective
from .last_layer import fit_last_layer
from .metrics import LEVEL_KEYS
from .op2op import check_operators, fit_op2op
from .op2op_network import train_op2op_network
from .operator_network import train_network
from .parallel import is_first, of_first
from .residual import make_inputs, train_residual

Reporter = Callable[[str, int, int, str], None]

UNITS = {
    "energy": ("mev", "meV", 1e3 * EV_PER_HARTREE),
    "forces": ("mev_per_angstrom", "meV/A", 1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE),
    "dipole": ("debye", "D", DEBYE_PER_EBOHR),
    "field_dipole": ("debye", "D in a field", DEBYE_PER_EBOHR),
}
"""Units of validation errors: in names, for people, and their number in an atomic unit."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """Result of :func:`train`.

    Attributes:
      model: the model.
      seconds: wall time per stage.
      history: one row per epoch.
      caches: descriptors of ``train`` and ``validation``, of an Op2Prop model.
      labels: targets of ``train`` and ``validation`` as arrays, likewise.
      noise: rounding noise of the invariants, likewise.
    """

    model: Model
    seconds: dict[str, float]
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    caches: dict[str, Cache] = dataclasses.field(default_factory=dict)
    labels: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    noise: np.ndarray | None = None


def padded_labels(dataset: Dataset, targets: tuple[str, ...], n_atoms: int) -> dict[str, Any]:
    """Targets as arrays with structures first, forces padded to ``n_atoms``.

    Raises:
      DataError: a target the data lacks, or moments of an ion (they depend on the origin).
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
                ),
                code=Code.LABEL,
            )
        if name in ("dipole", "quadrupole") and any(s.charge for s in dataset.structures):
            raise DataError(
                refusal(
                    "targets",
                    got=f"{name!r} for charged molecules",
                    expected=f"neutral ones: an ion's {name} depends on the origin",
                )
            )
        values = dataset.labels[name]
        if name == "forces":
            padded = np.zeros((len(dataset), n_atoms, 3))
            for i, f in enumerate(values):
                padded[i, : len(f)] = f
            labels[name] = padded
        elif name == "quadrupole":
            labels[name] = centred_quadrupoles(dataset)
        else:
            labels[name] = np.array(values)
    return labels


def train(
    dataset: Dataset,
    splits: dict[str, list[int]],
    config: TrainConfig,
    *,
    folder: str | os.PathLike | None = None,
    tensorboard: bool = False,
    on_progress: Reporter = lambda stage, done, total, note: None,
) -> Trained:
    """Train a model: closed form first, then networks on what it leaves (Op2Op: closed form).

    Descriptors and networks of energies are spread over all devices, of one process or of several
    (:mod:`opml_jax.training.parallel`); batches must then divide evenly among them.

    Args:
      dataset: labelled structures in atomic units.
      splits: ``train`` and ``validation`` indices, and perhaps ``calibration``, which scales the
        standard deviations of models that have them (``test`` is not touched here).
      config: model and training.
      folder: run directory that keeps descriptors, states of the networks and ``history.jsonl``
        as they come: after a kill the same call goes on from there, to the same weights.
        Several processes share one, and keep no descriptors. Default: nothing is kept.
      tensorboard: also write the history for TensorBoard, into the folder's ``tensorboard``.
      on_progress: called with (stage, done, total, note).

    Raises:
      DataError: targets the data lacks, NaN among them, or splits that do not fit.
      BasisError: an element the input basis lacks.
      ModelFileError: the folder holds the state of another training.
      PrecisionError: x64 is off.
    """
    require_x64("training")
    check_trainable(dataset, splits, config)
    parts = {k: dataset.subset(splits[k]) for k in ("train", "validation")}
    apart = dataset.subset(splits["calibration"]) if splits.get("calibration") else None
    definition = define(config, parts["train"].elements)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage], clock = now - clock, now

    def inside(name: str) -> Path | None:
        return None if folder is None else Path(folder, name)

    n = len(parts["train"])
    structures = parts["train"].structures + parts["validation"].structures
    log = None
    if folder is not None and is_first():
        log = History(Path(folder, "history.jsonl"), tensorboard=tensorboard)

    flexible = isinstance(definition, Op2Density) and definition.flexible
    total = config.optim.epochs * (2 if flexible else 1)  # widths are descended after the network

    def on_epoch(epoch: int, row: dict[str, float]) -> None:
        row = in_physical_units(row)
        if log is not None:
            log.append(row)
        on_progress("epochs", epoch, total, _note(row))

    read = config.targets
    if isinstance(definition, Op2Op | Op2Density):
        read = [k for k in ("fock", "dm") if k in dataset]
    learned = [v for p in parts.values() for k in read for v in p.labels[k]]
    inner, known = None, {}
    if isinstance(definition, Density2Prop):
        inner = read_density(config.model.density, parts["train"].elements)
        known["density"] = inner.params
        learned += jax.tree.leaves(inner.params)
    card_of = functools.partial(
        _card, definition, dataset, parts, config, fingerprint({}, structures, learned)
    )
    source = fingerprint({"config": to_mapping(config), "n_train": n}, structures, learned)
    resume = {"state": inside(STATE), "fingerprint": source}
    if isinstance(definition, Op2Density):
        labelled = {"train": label_dataset(definition, parts["train"], on_progress)}
        atoms = free_atoms(definition, parts["train"])
        solved, history = {}, []
        network = definition.config.network
        if network is not None and network.alone:
            params, _ = subtract_baselines(definition, labelled["train"], atoms)
        else:
            problem, bases = problem_of(definition, labelled["train"], atoms)
            params, solution = solve_problem(definition, problem, bases, on_progress, **resume)
            solved |= {"cg_steps": solution.steps, "cg_residual": solution.residual}
        lap("closed form")
        if network is not None or definition.config.uncertainty:
            labelled["validation"] = label_dataset(definition, parts["validation"], on_progress)
        if network is not None:
            on_progress("network", 0, 1, "")
            found = train_density_network(
                definition,
                params,
                labelled["train"],
                labelled["validation"],
                config.optim,
                config.seed,
                on_epoch=on_epoch,
                **{**resume, "state": inside(NETWORK)},
            )
            params, history = found.params, found.history
            kept = any("network" in own for own in params.values())
            solved["network"] = "kept" if kept else "no better than the closed form"
            solved |= {f"network_{k}": v for k, v in found.chosen.items()}
            lap("network")
            on_progress("network", 1, 1, solved["network"])
        if flexible:
            on_progress("widths", 0, 1, "")
            sets = {
                k: (labelled[k], true_densities(definition, p, config.seed + i, on_progress))
                for i, (k, p) in enumerate(parts.items())
            }
            before = len(history)
            found = train_density_widths(
                definition,
                params,
                sets,
                config.optim,
                config.seed,
                on_epoch=lambda epoch, row: on_epoch(
                    before + epoch, {**row, "epoch": before + epoch}
                ),
                **{**resume, "state": inside(WIDTHS)},
            )
            params = found.params
            history = history + [{**r, "epoch": before + r["epoch"]} for r in found.history]
            kept = found.chosen["widths"] < 1
            solved["widths"] = "kept" if kept else "no better than the fixed basis"
            solved["widths_validation"] = found.chosen["widths"]
            lap("widths")
            on_progress("widths", 1, 1, solved["widths"])
        if definition.config.uncertainty:
            if apart is not None:
                labelled["calibration"] = label_dataset(definition, apart, on_progress)
            held_out = labelled.get("calibration", labelled["validation"])
            params, factor = calibrated(definition, params, held_out)
            solved["uncertainty_calibration"] = factor
        card = card_of(solved)
        return Trained(DensityModel(definition, params, card), seconds, history)
    if isinstance(definition, Op2Op):
        sets = definition, parts["train"], parts["validation"]
        report = {"on_progress": lambda stage, done, total: on_progress(stage, done, total, "")}
        history, solved = [], {}
        if config.effective:
            found = fit_effective(*sets, config.targets, config.effective, **report)
            params, history = found.params, found.history
        else:
            params = fit_op2op(*sets, calibration=apart, **report).params
        lap("closed form")
        if definition.config.network is not None:
            on_progress("network", 0, 1, "")
            found = train_op2op_network(
                definition,
                params,
                *sets[1:],
                config.optim,
                config.losses,
                config.seed,
                on_epoch=on_epoch,
                **resume,
            )
            params, history = found.params, found.history
            solved["network"] = "kept" if "network" in params else "no better than the closed form"
            solved |= {f"network_{k}": v for k, v in found.chosen.items()}
            lap("network")
            on_progress("network", 1, 1, solved["network"])
        card = card_of(solved)
        model = OperatorModel(definition, params, card)
        model = with_largest_doubt(model, apart or parts["validation"])
        return Trained(model, seconds, history)
    in_field = config.optim.field_dipole_sigma > 0
    built = {
        "derivatives": "forces" in config.targets,
        "field": in_field,
        "irreps": tuple(sorted({TENSORS[t] for t in config.targets if t in TENSORS})),
        "params": definition.draw(config.seed, parts["train"].structures, known),
    }
    alone = jax.process_count() == 1  # what is kept of descriptors is one process' own
    cache = build_cache(
        definition,
        structures,
        **built,
        folder=inside(STRUCTURES) if alone else None,
        on_progress=lambda done, total: on_progress("descriptors", done, total, ""),
    )
    caches = {"train": cache.subset(range(n)), "validation": cache.subset(range(n, len(cache)))}
    labels = {k: padded_labels(p, config.targets, cache.one_hot.shape[1]) for k, p in parts.items()}
    if isinstance(definition, OperatorNetwork):
        lap("descriptors")
        params, history = train_network(
            definition,
            caches["train"],
            caches["validation"],
            labels["train"],
            labels["validation"],
            config.optim,
            config.seed,
            on_epoch=on_epoch,
            **resume,
        )
        history = [in_physical_units(row) for row in history]
        lap("network")
        card = card_of({})
        return Trained(Model(definition, params, card), seconds, history, caches, labels)
    if in_field:
        labels = {k: {**own, "field_dipole": own["dipole"]} for k, own in labels.items()}
    turned = inside(TURNED) if alone else None
    noise = rounding_noise(definition, structures, cache, **built, folder=turned)
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
        built["params"],
    )
    lap("closed form")
    on_progress("closed form", 1, 1, f"lambda {fit.energy.lam:.0e}")
    params, history = of_first(fit.params), []
    if config.optim.epochs:
        inputs = {k: make_inputs(params, caches[k], labels[k]) for k in parts}
        params, history = train_residual(
            definition,
            params,
            inputs["train"],
            inputs["validation"],
            config.optim,
            config.seed,
            on_epoch=on_epoch,
            **resume,
        )
        history = [in_physical_units(row) for row in history]
    lap("network")
    if config.model.last_layer:
        sets = caches["train"], caches["validation"], parts["validation"]
        found = fit_last_layer(definition, params, *sets, config.optim, forces=built["derivatives"])
        params = {**params, "last_layer": found}
        lap("last layer")
    solved: dict[str, Any] = {
        f"{k}_lambda": r.lam for k, r in {"energy": fit.energy, **fit.heads}.items()
    }
    if inner is not None:
        solved["density"] = inner.card
    card = card_of(solved)
    if isinstance(definition, Density2Prop):
        model = Density2PropModel(definition, params, card)
    else:
        model = Model(definition, params, card)
    if apart is not None and model.doubted:
        model = dataclasses.replace(model, params=recalibrated(model, apart))
    model = with_largest_doubt(model, apart or parts["validation"])
    return Trained(model, seconds, history, caches, labels, noise)


def define(config: TrainConfig, elements) -> Op2Prop | OperatorNetwork | Op2Op | Op2Density:
    """The pure functions of a configuration's model, with its basis loaded for ``elements``."""
    if config.operator is not None:
        names = config.operator.basis, config.operator.input_basis
        return Op2Op(config.operator, *(load_basis(n, elements) for n in names if n))
    if config.density is not None:
        bases = (load_basis(n, elements) for n in (config.density.basis, config.density.aux_basis))
        return Op2Density(config.density, *bases)
    if config.network is None and config.model.density:
        inner = read_density(config.model.density, elements).definition
        own = dataclasses.replace(config.model, basis=inner.basis.name)
        return Density2Prop(own, inner.basis, inner)
    if config.network is None:
        return Op2Prop(config.model, load_basis(config.model.basis, elements))
    if not {"energy", "forces"} == set(config.targets):
        raise ConfigError(
            refusal(
                "targets",
                got=config.targets,
                expected="energy and forces, which is what an operator network learns",
                hint="Set targets: [energy, forces].",
            )
        )
    return OperatorNetwork(config.network, load_basis(config.network.basis, elements))


def check_trainable(dataset: Dataset, splits: dict[str, list[int]], config: TrainConfig) -> None:
    """Refuse what cannot be learned, before anything is computed or written.

    Raises:
      DataError: targets the data lacks, NaN among them, or splits that do not fit.
      BasisError: an element the input basis lacks.
    """
    check_splits(dataset, splits)
    definition = define(config, dataset.subset(splits["train"]).elements)
    if jax.process_count() > 1 and not isinstance(definition, Op2Prop):
        raise ConfigError(
            refusal(
                "processes",
                got=f"{jax.process_count()} for {type(definition).__name__}",
                expected="one: only models of energies (model:) train on several",
            )
        )
    if isinstance(definition, Op2Density):
        check_densities(definition, dataset)
        return
    if isinstance(definition, Op2Op):
        for name in (k for k in ("train", "validation", "calibration") if splits.get(k)):
            part = dataset.subset(splits[name])
            if config.effective:
                check_observables(name, part, config.targets)
            else:
                check_operators(definition, name, part)
        return
    n_atoms = max(s.n_atoms for s in dataset.structures)
    padded_labels(dataset, config.targets, n_atoms)
    check_finite("the data set", {k: dataset.labels[k] for k in config.targets})


def in_physical_units(row: dict[str, float]) -> dict[str, float]:
    """A row of the history with validation errors in meV, meV/Angstrom and Debye, said in names."""
    out = dict(row)
    for name, (unit, _, factor) in UNITS.items():
        if (key := f"validation_{name}_rmse") in out:
            out[f"{key}_{unit}"] = out.pop(key) * factor
    return out


def _note(row: dict[str, float]) -> str:
    """Validation errors of a row, for people."""
    keys = {f"validation_{name}_rmse_{unit}": shown for name, (unit, shown, _) in UNITS.items()}
    found = ", ".join(f"{row[k]:.3g} {u}" for k, u in keys.items() if k in row)
    return f"validation rmse {found}" if found else f"validation loss {row['validation_loss']:.3g}"


def _card(
    definition, dataset, parts, config: TrainConfig, data: str, solved: dict[str, Any]
) -> dict[str, Any]:
    """What a model file says about its training."""
    kinds = {
        OperatorNetwork: "OperatorNetwork: learned mixing of operators, linear readout in closed "
        "form",
        Op2Op: "Op2Op: an effective operator, fitted to observables of a larger basis"
        if config.effective
        else "Op2Op: exchange and correlation by block and irrep in closed form, self-consistent",
        Op2Density: "Op2Density: symmetry-adapted kernels, in closed form",
        Op2Prop: "Op2Prop: closed form plus residual networks",
        Density2Prop: "Density2Prop: closed form plus residual networks on a predicted density",
    }
    card = {
        "model": kinds[type(definition)],
        "elements": [symbol(z) for z in definition.basis.elements],
        "targets": list(config.targets),
        "closest_bohr": closest_pairs(parts["train"].structures),
        "n_train": len(parts["train"]),
        "n_validation": len(parts["validation"]),
        "data_hash": data,
        "reference": {k: dataset.meta[k] for k in LEVEL_KEYS if k in dataset.meta},
        "source": dataset.meta.get("source", ""),
        **solved,
        "config": to_mapping(config),
        "versions": {p: version(p) for p in ("opml_jax", "jax", "pyscf", "pyscfad")},
    }
    if isinstance(definition, Op2Prop):
        card["n_invariants"] = definition.n_invariants
    return card
