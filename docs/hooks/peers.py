"""Benchmarks beside other programs, one picture each, from the lines in ``benchmarks/results``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from opml_jax.figures import BLUE, GREY, RED, figure, svg

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
OURS = "opml_jax"
MACE = {"MACE, 300 K": 8.8, "MACE, 600 K": 21.8, "MACE, 1200 K": 62.0}
"""Published force RMSE on 3BPA, meV/Å (arXiv:2206.07697)."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One question, ours and others' answers to it; less is better.

    Attributes:
      name: of its picture.
      title: what is compared.
      unit: what is on its axis.
      section: heading of the tables in ``benchmarks/README.md`` that have the same numbers.
      bars: numbers by who, or nothing.
      curves: ``{n_train: number}`` by who, or nothing.
    """

    name: str
    title: str
    unit: str
    section: str
    bars: dict[str, float] = dataclasses.field(default_factory=dict)
    curves: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The same in words."""
        bars = [f"{who} {value:.3g}" for who, value in self.bars.items()]
        ends = [
            f"{who} {c[max(c)]:.2g} from {max(c)} and {c[min(c)]:.2g} from {min(c)}"
            for who, c in self.curves.items()
        ]
        return f"{self.title}, {self.unit}: {'; '.join(bars + ends)}"

    def draw(self) -> str:
        """An SVG document."""
        from matplotlib.ticker import LogLocator

        drawn, (axis,) = figure(1, width=3.4, height=2.2)
        axis.set_title(self.title, loc="left", fontsize=9, fontweight="bold")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        if self.bars:
            self._draw_bars(axis)
        for (who, curve), colour in zip(self.curves.items(), (BLUE, RED, GREY), strict=False):
            axis.loglog([*curve], [*curve.values()], "o-", color=colour, ms=4, label=who)
            axis.set(xlabel="training structures", ylabel=self.unit)
            axis.legend(frameon=False, fontsize=8)
        if self.curves:
            sizes = sorted({n for curve in self.curves.values() for n in curve})
            axis.set_xticks(sizes, labels=map(str, sizes))
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
        return svg(drawn)

    def _draw_bars(self, axis: Any) -> None:
        names, values = [*self.bars], [*self.bars.values()]
        colours = [BLUE if name.startswith(OURS) else GREY for name in names]
        drawn = axis.barh(names, values, color=colours, height=0.62)
        axis.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set(xlabel=self.unit)


def _lines(file: str, **wanted: Any) -> list[dict[str, Any]]:
    """Lines of a file of results in which keys have values; later ones are of later runs."""
    lines = map(json.loads, (RESULTS / f"{file}.jsonl").read_text().splitlines())
    chosen = [line for line in lines if all(line.get(k) == v for k, v in wanted.items())]
    if not chosen:
        raise LookupError(f"{file}.jsonl has no line with {wanted}")
    return chosen


def _curve(file: str, key: str, **wanted: Any) -> dict[int, float]:
    found = {line["n_train"]: line[key] for line in _lines(file, **wanted)}
    return dict(sorted(found.items()))


def comparisons() -> list[Comparison]:
    """Every comparison that is shown."""
    engines = {OURS: "native", "libcint": "libcint", "MoleLite": "mole_lite", "MolePad": "mole_pad"}
    case = {"case": "ethanol_def2-svp_32", "task": "gradient"}
    time = "milliseconds_per_molecule"
    gradients = {
        who: _lines("integrals_cpu_one_core", engine=engine, **case)[0][time]
        for who, engine in engines.items()
    }
    models = {OURS: "ethanol_energy_and_forces", "MACE": "ethanol_mace"}
    costs = {
        who: _lines("inference_cpu_one_core", name=name, batch=32, dtype="float64")[-1][time]
        for who, name in models.items()
    }
    cycles = {}
    for molecule, n_train in (("water", 500), ("ethanol", 130)):
        wanted = {"name": "self-consistent", "molecule": molecule, "n_train": n_train}
        scf = [line["scf"] for line in _lines("op2op", **wanted) if "scf" in line][-1]
        cycles[f"{OURS}, {molecule}"] = scf["scf_iterations_model"]
        cycles[f"minao, {molecule}"] = scf["scf_iterations_minao"]
    kcal = "mae_kcal_per_mol"
    heats = {
        f"{OURS}, products + kernel": _curve("qm7", kcal, name="products_kernel", metric="damped"),
        "SOAP kernel, tuned": _curve("soap_qm7", kcal, name="soap_kernel"),
    }
    percent = "density_error_percent"
    densities = {
        f"{OURS}, Op2Density": _curve("density", percent, name="waters_operator_gaussian"),
        "λ-SOAP": _curve("density", percent, name="waters_lambda-soap_gaussian"),
    }
    bpa = _lines("threebpa", split="from_300K")[-1]["forces_rmse_mev_per_angstrom"]
    larger = {f"{OURS}, 300 to 1200 K": bpa, **MACE}
    return [
        Comparison("density", "Electron density of water", "% of electrons misplaced",
                   "Electron densities", curves=densities),
        Comparison("heats", "Heats of formation, QM7", "MAE, kcal/mol",
                   "Heats of formation of QM7", curves=heats),
        Comparison("larger", "3BPA, from 500 at 300 K", "force RMSE, meV/Å",
                   "3BPA", bars=larger),
        Comparison("cost", "Energy and forces of ethanol", "ms a molecule, one core, float64",
                   "What a prediction costs", bars=costs),
        Comparison("integrals", "Gradient of V of ethanol, def2-SVP", "ms a molecule, one core",
                   "The external potential, one CPU core", bars=gradients),
        Comparison("cycles", "PySCF's SCF cycles", "cycles, by where they start",
                   "Fock matrices", bars=cycles),
    ]  # fmt: skip


def shown(folder: str) -> str:
    """All of them in Markdown, pictures in ``folder``."""
    pictures = "\n".join(f"![{c.text}]({folder}/{c.name}.svg)" for c in comparisons())
    return (
        "## Beside other programs\n\n"
        "Less is better; each picture's numbers are in the tables below it, with how they were"
        f' measured.\n\n<div class="screen" markdown>\n{pictures}\n</div>\n\n'
        "Ahead of λ-SOAP on densities; ahead of tuned SOAP on heats of formation at 1000 molecules"
        " and behind it beyond; far behind message passing on 3BPA, which is larger and flexible:"
        " our one number there is of a mixed set of temperatures, MACE's are published for each."
        " MACE's cost is that of an untrained network of usual size.\n"
    )
