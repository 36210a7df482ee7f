"""A self-contained HTML report of a model: errors, parity, curves, worst structures, matrices."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg

from .basis import layout_of
from .data import Dataset
from .data.files import write_text
from .data.reference import density_of
from .density import on_points
from .features.inputs import OPERATORS
from .models import Density2PropModel, DensityModel, Model, OperatorModel
from .training.operator_metrics import is_effective, paired_levels
from .units import (
    ANGSTROM_PER_BOHR,
    DEBYE_PER_EBOHR,
    EV_PER_ANGSTROM_PER_ATOMIC_FORCE,
    EV_PER_HARTREE,
)

BLUE, RED, GREY = "#1f4e8c", "#c8553d", "#8a8a8a"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .note { color: #555; font-size: .92rem; }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """One evaluated set.

    Attributes:
      name: of the set.
      dataset: structures and references.
      predicted: as ``Model.predict`` returns.
      indices: of the structures in the file they are from.
    """

    name: str
    dataset: Dataset
    predicted: Mapping[str, np.ndarray]
    indices: Sequence[int]


def write_report(
    path: str | os.PathLike,
    model: Model,
    sections: Sequence[Section],
    history: Sequence[Mapping[str, float]],
    metrics: Mapping[str, Mapping[str, float]],
    learning_curve: Sequence[Mapping[str, float]] = (),
    doubts: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> None:
    """Write the report, atomically; pictures are embedded.

    Args:
      path: HTML file.
      model: the model.
      sections: evaluated sets; the last is drawn on top of the parity plots.
      history: rows of the training history.
      metrics: errors by set name.
      learning_curve: rows with ``n_train`` and the metric names, closed form on the test split.
      doubts: of the last set or ``test``, by label, absolute errors and standard deviations.
    """
    shown = [s for s in sections if s.name != "train"] or list(sections)
    example = shown[-1]
    parts = [
        f"<h1>{html.escape(repr(model))}</h1>",
        f"<p class=note>{html.escape(_summary(model))}</p>",
        "<h2>Errors</h2>",
        _metrics_table(metrics),
        "<h2>Parity</h2>",
        _image(_parity(shown)),
    ]
    if learning_curve:
        parts += [
            "<h2>Learning curve</h2>",
            _image(_learning_curve(learning_curve)),
            "<p class=note>Mean absolute test errors of the closed form against the number "
            "of training geometries.</p>",
        ]
    if history:
        parts += [
            "<h2>Training</h2>",
            _image(_history(history)),
            "<p class=note>Loss, and root mean square errors on the validation set, by epoch.</p>",
        ]
    if doubts:
        parts += [
            "<h2>Standard deviations</h2>",
            _image(_reliability(doubts)),
            "<p class=note>Share of errors within so many standard deviations, and of a normal "
            "distribution (grey); root mean square errors of tenths of the data by their standard "
            "deviations, atomic units.</p>",
        ]
    worst = [s for s in shown if s.name == "test"] or shown[-1:]
    parts += [
        f"<h2>Worst structures of {html.escape(worst[0].name)}</h2>",
        _image(_worst(worst[0])),
        "<p class=note>Largest errors first, a row each for energies and forces where both are "
        "known: index in the data file, composition, error of the energy (predicted minus "
        "reference), largest error of the force on an atom; of matrices the mean absolute error of "
        "an element, of effective ones that of an occupied level, in atomic units.</p>",
    ]
    if isinstance(model, OperatorModel):
        parts += [
            "<h2>Predicted matrix and its error</h2>",
            _image(_operator(model, worst[0])),
            "<p class=note>Predicted matrix of the structure with the largest error, AO by AO, and "
            "predicted minus reference (an effective matrix has none).</p>",
        ]
    elif isinstance(model, DensityModel | Density2PropModel):
        parts += [
            "<h2>Predicted density</h2>",
            _image(_density(model, worst[0])),
            "<p class=note>In the plane that shows most of the molecule, of the structure with the "
            "largest error of the dipole: the density, and what the model adds to its baseline."
            "</p>",
        ]
    else:
        parts += [
            "<h2>The operator the model reads</h2>",
            _image(_matrices(model, example)),
            "<p class=note>The input operator and its square for one molecule, AO by AO. The "
            "square couples every pair of orbitals through all others: it sees three atoms at "
            "once.</p>",
            "<h2>Forces</h2>",
            _image(_forces(example)),
        ]
    write_text(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><title>opml_jax report"
        f"</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n",
    )


def _summary(model: Model) -> str:
    card, config = model.card, model.definition.config
    reference = card.get("reference", {})
    level = "/".join(str(reference[k]) for k in ("method", "basis") if k in reference)
    names = ", ".join(_operators(model)).replace("_", " ")
    powers = ", ".join(map(str, getattr(config, "powers", ())))
    powers = f", powers {powers}" if powers else ""
    read = f"{names} in {config.basis}{powers}"
    if isinstance(model, Density2PropModel):
        density = f"predicted density in {model.definition.aux_basis.name}"
        read = f"{density}; {read}" if model.definition.config.density_beside else density
    return (
        f"Input: {read}. Labels: {level or 'level not stated'}. "
        f"{card.get('n_train', '?')} training structures."
    )


def _operators(model: Model) -> tuple[str, ...]:
    """Names of the operators a model reads, the potential first."""
    config = model.definition.config
    if isinstance(model, OperatorModel):
        return ("overlap", "kinetic_energy", "potential_of_neutral_atoms")
    others = getattr(config, "others", ())
    return getattr(config, "operators", None) or (config.operator, *others)


def _metrics_table(metrics) -> str:
    columns = [
        ("energy_mae_mev", "energy MAE, meV"),
        ("forces_mae_mev_per_angstrom", "force MAE, meV/Å"),
        ("dipole_mae_debye", "dipole MAE, D"),
        ("fock_mae_uha", "Fock MAE, μHa"),
        ("eigenvalue_occupied_mae_uha", "occupied levels MAE, μHa"),
        ("eigenvalue_virtual_mae_uha", "virtual levels MAE, μHa"),
        ("gap_mae_uha", "gap MAE, μHa"),
        ("lowdin_charges_mae_e", "charges MAE, e"),
        ("dm_mae", "density matrix MAE"),
    ]
    columns = [c for c in columns if any(c[0] in m for m in metrics.values())]
    rows = []
    for name, row in metrics.items():
        label = name
        for suffix, text in (("_linear", ", closed form"), ("_guess", ", first guess")):
            label = label.replace(suffix, text) if label.endswith(suffix) else label
        cells = "".join(f"<td>{row[k]:.3g}</td>" if k in row else "<td>–</td>" for k, _ in columns)
        rows.append(f"<tr><td>{html.escape(label)}</td><td>{row['n_structures']}</td>{cells}</tr>")
    head = "".join(f"<th>{text}</th>" for _, text in columns)
    return f"<table><tr><th>set</th><th>structures</th>{head}</tr>{''.join(rows)}</table>"


def _figure(columns: int, rows: int = 1, *, width: float = 4.0, height: float = 3.4):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)  # no global state, no display
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _image(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="" src="data:image/png;base64,{data}"></p>'


def _columns(section: Section):
    """(name, unit, reference, predicted) flat arrays of everything both sides have."""
    ds, p = section.dataset, section.predicted
    if "energy" in ds and "energy" in p:
        shift = np.mean(ds.labels["energy"])
        yield (
            "energy",
            "meV",
            1e3 * EV_PER_HARTREE * (np.array(ds.labels["energy"]) - shift),
            1e3 * EV_PER_HARTREE * (p["energy"] - shift),
        )
    if "forces" in ds and "forces" in p:
        reference = np.concatenate([f.ravel() for f in ds.labels["forces"]])
        predicted = np.concatenate(
            [p["forces"][i, : s.n_atoms].ravel() for i, s in enumerate(ds.structures)]
        )
        unit = EV_PER_ANGSTROM_PER_ATOMIC_FORCE
        yield "force component", "eV/Å", unit * reference, unit * predicted
    if "dipole" in ds and "dipole" in p:
        yield (
            "dipole component",
            "D",
            DEBYE_PER_EBOHR * np.ravel(ds["dipole"]),
            DEBYE_PER_EBOHR * p["dipole"].ravel(),
        )
    if "fock" in ds and "fock" in p:
        levels = _levels(section)
        yield (
            "occupied level",
            "Hartree",
            np.concatenate([wanted[:k] for wanted, _, k in levels]),
            np.concatenate([found[:k] for _, found, k in levels]),
        )


def _parity(sections: Sequence[Section]):
    tables = [list(_columns(s)) for s in sections]
    figure, axes = _figure(max(len(t) for t in tables))
    colours = [GREY, BLUE, RED][-len(sections) :] if len(sections) <= 3 else None
    for k, axis in enumerate(axes):
        low, high = np.inf, -np.inf
        for i, (section, rows) in enumerate(zip(sections, tables, strict=True)):
            name, unit, reference, predicted = rows[k]
            axis.plot(
                reference,
                predicted,
                "o",
                ms=3.5,
                alpha=0.7,
                label=section.name,
                color=colours[i] if colours else None,
            )
            low, high = min(low, reference.min()), max(high, reference.max())
        axis.plot([low, high], [low, high], color="black", lw=0.7)
        axis.set(xlabel=f"reference {name} ({unit})", ylabel=f"predicted ({unit})")
    axes[0].legend(frameon=False)
    return figure


def _learning_curve(rows):
    names = [
        (k, t)
        for k, t in (
            ("energy_mae_mev", "energy, meV"),
            ("forces_mae_mev_per_angstrom", "forces, meV/Å"),
            ("dipole_mae_debye", "dipole, D"),
        )
        if k in rows[0]
    ]
    figure, axes = _figure(len(names))
    for axis, (key, text) in zip(axes, names, strict=True):
        axis.loglog([r["n_train"] for r in rows], [r[key] for r in rows], "o-", color=BLUE, ms=4)
        axis.set(xlabel="training geometries", ylabel=f"test MAE, {text}")
        axis.grid(which="both", alpha=0.2)
    return figure


def _history(history):
    errors = [
        (k, t)
        for k, t in (
            ("validation_energy_rmse_mev", "energy, meV"),
            ("validation_forces_rmse_mev_per_angstrom", "forces, meV/Å"),
            ("validation_dipole_rmse_debye", "dipole, D"),
        )
        if k in history[0]
    ]
    figure, (first, *axes) = _figure(1 + len(errors), width=3.4)
    axis_name = "epoch" if "epoch" in history[0] else "step"
    epochs = [r[axis_name] for r in history]
    for key, colour in (("loss", GREY), ("validation_loss", BLUE)):
        if key in history[0]:
            name = "validation" if "_" in key else "training"
            first.semilogy(epochs, [r[key] for r in history], color=colour, label=name)
    first.set(xlabel=axis_name, ylabel="loss")
    first.legend(frameon=False)
    for axis, (key, text) in zip(axes, errors, strict=True):
        axis.semilogy(epochs, [r[key] for r in history], color=BLUE)
        axis.set(xlabel="epoch", ylabel=f"validation RMSE, {text}")
    return figure


def _reliability(doubts: Mapping[str, tuple[np.ndarray, np.ndarray]]):
    """How many errors are within so many standard deviations, and how the two go together."""
    figure, (shares, sizes) = _figure(2)
    widths = np.linspace(0, 3, 61)
    normal = [math.erf(w / 2**0.5) for w in widths]
    shares.plot(widths, normal, color=GREY, linewidth=3)
    for (name, (error, sigma)), colour in zip(doubts.items(), (BLUE, RED), strict=False):
        within = [(error < w * sigma).mean() for w in widths]
        shares.plot(widths, within, color=colour, label=name.replace("_", " "))
        tenths = np.array_split(np.argsort(sigma), min(10, len(sigma)))
        x, y = (np.array([(v[t] ** 2).mean() ** 0.5 for t in tenths]) for v in (sigma, error))
        sizes.loglog(x, y, "o-", color=colour, markersize=4)
        sizes.plot(x, x, color=GREY, linewidth=1)
    shares.set(xlabel="standard deviations", ylabel="share of errors within")
    shares.legend(frameon=False)
    sizes.set(xlabel="standard deviation", ylabel="root mean square error")
    return figure


def _worst(section: Section, columns: int = 5):
    """The structures with the largest errors, drawn: a row by energy, a row by forces."""
    ds, p = section.dataset, section.predicted
    found = {}
    if "energy" in ds and "energy" in p:
        found["energy"] = 1e3 * EV_PER_HARTREE * (p["energy"] - np.array(ds.labels["energy"]))
    if "fock" in ds and "dm" in p:
        found["matrix"] = 1e6 * _operator_errors(section)
    if not found and "dipole" in ds and "dipole" in p:
        found["dipole"] = _dipole_errors(section)
    if "forces" in ds and "forces" in p:
        found["forces"] = (1e3 * EV_PER_ANGSTROM_PER_ATOMIC_FORCE) * np.array(
            [
                np.linalg.norm(p["forces"][i, : s.n_atoms] - ds.labels["forces"][i], axis=1).max()
                for i, s in enumerate(ds.structures)
            ]
        )
    chosen = [
        i
        for errors in found.values()
        for i in np.argsort(-np.abs(errors))[: columns * (3 - len(found))]
    ]
    rows = -(-len(chosen) // columns)
    figure, axes = _figure(columns, rows, width=2.2, height=2.4)
    units = {"energy": "{:+.3g} meV", "forces": "{:.3g} meV/Å", "matrix": "{:.3g} 1e-6"}
    units["dipole"] = "{:.3g} mD"
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, chosen, strict=False):
        errors = ", ".join(units[k].format(v[i]) for k, v in found.items())
        title = f"{section.indices[i]}: {_formula(ds.structures[i])}\n{errors}"
        _draw(axis, ds.structures[i])
        axis.set_title(title, fontsize=8)
    return figure


def _formula(structure) -> str:
    """Sum formula, carbon and hydrogen first."""
    count = Counter(structure.symbols)
    order = sorted(count, key=lambda x: ("CH".find(x) % 3, x))
    return "".join(x + (str(count[x]) if count[x] > 1 else "") for x in order)


def _draw(axis, structure) -> None:
    """Balls and sticks, seen along the direction in which the molecule is thinnest."""
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.patches import Circle

    x = np.asarray(structure.positions) * ANGSTROM_PER_BOHR
    centred = x - x.mean(axis=0)
    x = centred @ np.linalg.svd(centred)[2].T
    radii = covalent_radii[list(structure.numbers)]
    for i, z in enumerate(structure.numbers):
        options = {"facecolor": jmol_colors[z], "edgecolor": "#333333", "lw": 0.6}
        axis.add_patch(Circle(x[i, :2], 0.25 + 0.3 * radii[i], zorder=10 + x[i, 2], **options))
        for j in range(i):
            if np.linalg.norm(x[i] - x[j]) < 1.25 * (radii[i] + radii[j]):
                depth = 10 + min(x[i, 2], x[j, 2]) - 0.01
                axis.plot(*x[[i, j], :2].T, color="#777777", lw=2.5, zorder=depth)
    span = np.abs(x[:, :2]).max() + 0.7
    axis.set(xlim=(-span, span), ylim=(-span, span), aspect="equal")


def _levels(section: Section) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Levels of reference and prediction of each structure, and how many are occupied."""
    ds, p = section.dataset, section.predicted
    if is_effective(p, ds):
        return paired_levels(p, ds)
    own = [
        scipy.linalg.eigvalsh(f, p["overlap"][i, : len(f), : len(f)])
        for i, f in enumerate(ds.labels["fock"])
    ]
    return paired_levels(p, ds, own)


def _matrix_pairs(section: Section) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and reference matrix of each structure: of F, or of P where no F is predicted."""
    ds, p = section.dataset, section.predicted
    out = []
    for i, (structure, wanted) in enumerate(zip(ds.structures, ds.labels["fock"], strict=True)):
        n = len(wanted)
        if "fock" not in p:
            wanted = density_of(wanted, p["overlap"][i, :n, :n], structure)
        out.append((p["fock" if "fock" in p else "dm"][i, :n, :n], wanted))
    return out


def _operator_errors(section: Section) -> np.ndarray:
    """Mean absolute error of a matrix element (effective: occupied level) of each structure."""
    if is_effective(section.predicted, section.dataset):
        return np.array([np.abs(p - w)[:k].mean() for w, p, k in _levels(section)])
    return np.array([np.abs(found - wanted).mean() for found, wanted in _matrix_pairs(section)])


def _operator(model: OperatorModel, section: Section):
    i = int(np.argmax(_operator_errors(section)))
    structure, n = section.dataset.structures[i], section.predicted["nao"][i]
    if is_effective(section.predicted, section.dataset):
        named = {"F, Hartree": section.predicted["fock"][i, :n, :n]}
    else:
        found, wanted = _matrix_pairs(section)[i]
        name, unit = ("F, Hartree", " μHa") if "fock" in section.predicted else ("P", " 1e-6")
        named = {name: found, f"error,{unit}": 1e6 * (found - wanted)}
    return _heat_maps(named, structure, model)


def _dipole_errors(section: Section) -> np.ndarray:
    """Length of the error of each dipole, 1e-3 Debye; zero without labels."""
    if "dipole" not in section.dataset:
        return np.zeros(len(section.dataset))
    difference = section.predicted["dipole"] - section.dataset["dipole"]
    return 1e3 * DEBYE_PER_EBOHR * np.linalg.norm(difference, axis=-1)


def _density(
    model: DensityModel | Density2PropModel,
    section: Section,
    points: int = 80,
    margin: float = 3.5,
):
    """A density and its difference from the baseline, in a plane through the molecule."""
    from matplotlib.colors import LogNorm, SymLogNorm

    i = int(np.argmax(_dipole_errors(section)))
    structure, aux = section.dataset.structures[i], model.definition.aux_basis
    if isinstance(model, Density2PropModel):
        model = model.density
    layout = layout_of(structure, aux)
    baseline = np.zeros(layout.nao)
    for z, start in zip(structure.numbers, layout.offsets, strict=False):
        own = model.params[str(z)]["baseline"]
        baseline[start : start + len(own)] = own  # s functions come first
    found = model.predict(structure)
    x = np.asarray(structure.positions)
    centre = x.mean(axis=0)
    axes_of_plane = np.linalg.svd(x - centre, full_matrices=True)[2][:2]
    flat = (x - centre) @ axes_of_plane.T
    span = np.abs(flat).max() + margin
    line = np.linspace(-span, span, points)
    grid = centre + np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2) @ axes_of_plane
    rho = on_points(found["coefficients"], structure, aux, grid, found.get("widths"))
    base = on_points(baseline, structure, aux, grid)
    extent = np.array([-span, span, -span, span]) * ANGSTROM_PER_BOHR
    figure, axes = _figure(2, height=4.0)
    change = rho - base
    top = np.abs(change).max()
    pictures = (
        ("density, e/Bohr³", np.maximum(rho, 1e-4), "viridis", LogNorm(1e-3, rho.max())),
        ("minus baseline", change, "RdBu_r", SymLogNorm(0.01 * top, vmin=-top, vmax=top)),
    )
    for axis, (title, values, colours, norm) in zip(axes, pictures, strict=True):
        image = axis.imshow(
            values.reshape(points, points), origin="lower", extent=extent, cmap=colours, norm=norm
        )
        figure.colorbar(image, ax=axis, shrink=0.8)
        axis.plot(*(flat * ANGSTROM_PER_BOHR).T, "+", color="black", ms=5)
        axis.set(title=title, xlabel="Å", ylabel="Å")
    return figure


def _matrices(model: Model, section: Section):
    structure = section.dataset.structures[0]
    operator = OPERATORS[_operators(model)[0]](structure, model.definition.basis)
    named = {"V": operator, "V²": operator @ operator}
    return _heat_maps({k: np.asarray(v.to_dense()) for k, v in named.items()}, structure, model)


def _heat_maps(named: Mapping[str, np.ndarray], structure, model: Model):
    """AO matrices side by side, atoms divided by lines."""
    from matplotlib.colors import SymLogNorm

    layout = layout_of(structure, model.definition.basis)
    figure, axes = _figure(len(named), height=4.2)
    for axis, (name, values) in zip(axes, named.items(), strict=True):
        top = np.abs(values).max()
        image = axis.imshow(
            values, cmap="RdBu_r", norm=SymLogNorm(linthresh=1e-3 * top, vmin=-top, vmax=top)
        )
        figure.colorbar(image, ax=axis, shrink=0.8)
        axis.set_title(name)
        centres = (layout.offsets[:-1] + layout.offsets[1:] - 1) / 2
        names = [f"{s}{i}" for i, s in enumerate(structure.symbols)]
        axis.set_xticks(centres, names)
        axis.set_yticks(centres, names)
        for edge in layout.offsets[1:-1] - 0.5:
            axis.axhline(edge, color="black", lw=0.6)
            axis.axvline(edge, color="black", lw=0.6)
    return figure


def _forces(section: Section):
    """Forces of the structure with the largest ones, in the plane that shows most of it."""
    ds = section.dataset
    predicted = section.predicted["forces"]
    sizes = [np.abs(predicted[i, : s.n_atoms]).max() for i, s in enumerate(ds.structures)]
    i = int(np.argmax(sizes))
    s = ds.structures[i]
    x = np.asarray(s.positions) * ANGSTROM_PER_BOHR
    centre = x.mean(axis=0)
    _, _, axes3 = np.linalg.svd(x - centre)
    plane = axes3[:2].T
    figure, (axis,) = _figure(1, height=4.2)
    flat = (x - centre) @ plane
    axis.scatter(
        *flat.T,
        s=[420 if z > 1 else 240 for z in s.numbers],
        color="#e8e4da",
        edgecolor="black",
        zorder=5,
    )
    for point, name in zip(flat, s.symbols, strict=True):
        axis.annotate(name, point, ha="center", va="center", zorder=6)
    unit = EV_PER_ANGSTROM_PER_ATOMIC_FORCE
    sets = [(predicted[i, : s.n_atoms], BLUE, 0.011, "predicted")]
    if "forces" in ds:
        sets.insert(0, (ds.labels["forces"][i], RED, 0.022, "reference"))
    for forces, colour, width, label in sets:
        axis.quiver(
            *flat.T,
            *(forces @ plane * unit).T,
            color=colour,
            width=width,
            label=label,
            angles="xy",
            scale_units="xy",
            scale=4.0,
            alpha=0.8,
            zorder=4,
        )
    axis.set(xlabel="Å", ylabel="Å", title=f"{section.name}: structure {i}, 1 Å = 4 eV/Å")
    span = np.abs(flat).max() + 0.9
    axis.set(xlim=(-span, span), ylim=(-span, span), aspect="equal")
    axis.legend(frameon=False, loc="upper right")
    return figure
