"""``opml spectrum``: infrared spectrum and vibrational density of states of a trajectory."""

from __future__ import annotations

import argparse
from typing import Any


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("trajectory", metavar="TRAJ", help="HDF5 file of opml md")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write into")
    p.add_argument("--resolution", type=float, default=10.0, help="cm^-1")
    p.add_argument("--window", default="hann", help="of lags: hann, gaussian or none")
    p.add_argument(
        "--correction",
        default="harmonic",
        help="quantum correction: harmonic, none, standard or schofield",
    )
    p.add_argument("--max-wavenumber", type=float, default=4500.0, help="of the pictures, cm^-1")
    p.add_argument(
        "--harmonic",
        metavar="RUN",
        help="also harmonic lines of this model near the first frame (default: none)",
    )
    p.add_argument(
        "--raman",
        metavar="RUN",
        help="also Raman activities of those lines, of this model's "
        "polarizability (Op2Op, or Op2Prop trained on it; default: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json
    from pathlib import Path

    import numpy as np

    from ..data.files import atomic_path, write_text
    from ..dynamics import Trajectory, infrared, peaks, vibrational_dos
    from ..errors import OpmlError
    from .progress import working
    from .runs import check_writable, enable_x64

    enable_x64()
    if args.raman and not args.harmonic:
        raise OpmlError("--raman", got="no --harmonic", expected="the model of the lines")
    folder = Path(args.output)
    check_writable(folder)
    trajectory = Trajectory.read(args.trajectory)
    options = {"resolution": args.resolution, "window": args.window}
    spectra = {"vibrational_dos": (vibrational_dos(trajectory, **options), "modes per cm^-1")}
    if "dipole" in trajectory.frames:
        absorption = infrared(trajectory, **options, correction=args.correction)
        spectra["infrared"] = absorption, "km/mol per cm^-1"
    lines = scattered = None
    if args.harmonic:
        with working("harmonic lines", "compiles second derivatives, usually a minute or two"):
            lines, scattered = _lines(args, trajectory)
    summary = {
        **options,
        "correction": args.correction,
        "temperature_kelvin": float(trajectory.temperature.mean()),
        "picoseconds": float(trajectory.time_fs[-1] / 1e3),
        "replicas": trajectory.n_replicas,
    }
    for name, ((wavenumbers, values), unit) in spectra.items():
        found = peaks(wavenumbers, values)
        summary[name] = {
            "peaks_per_cm": found.round(2).tolist(),
            "integral": float(np.trapezoid(values, wavenumbers)),
        }
        with atomic_path(folder / f"{name}.csv") as temporary:
            header = f"wavenumber (cm^-1),{name.replace('_', ' ')} ({unit})"
            table = np.transpose([wavenumbers, values])
            np.savetxt(temporary, table, "%.8g", ",", header=header, comments="")
        with atomic_path(folder / f"{name}.png") as temporary:
            _picture(temporary, name, wavenumbers, values, unit, lines, args.max_wavenumber)
        print(f"{name.replace('_', ' ')}: " + " ".join(f"{x:.0f}" for x in found) + " cm^-1")
    if lines is not None:
        summary["harmonic"] = {"wavenumbers_per_cm": lines.wavenumbers.round(2).tolist()}
        if lines.intensities is not None:
            summary["harmonic"]["intensities_km_per_mol"] = lines.intensities.round(4).tolist()
        if scattered is not None:
            summary["harmonic"]["raman_angstrom4_per_dalton"] = scattered.activities.tolist()
            ratios = scattered.depolarization.tolist()
            summary["harmonic"]["depolarization"] = [None if r != r else r for r in ratios]
        print("harmonic: " + " ".join(f"{x:.0f}" for x in lines.wavenumbers) + " cm^-1")
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"{folder}: {', '.join(spectra)} (csv, png), summary.json")
    return 0


def _lines(args, trajectory):
    from ..dynamics import harmonic, raman, relax
    from ..models import load_model

    model = load_model(args.harmonic)
    minimum = relax(model, trajectory.structure(0))
    lines = harmonic(model, minimum)
    if not args.raman:
        return lines, None
    other: Any = load_model(args.raman)
    other.require("polarizability")
    other.check_structures([minimum])
    return lines, raman(lines, other.property_fn("polarizability"), minimum)


def _picture(path, name, wavenumbers, values, unit, lines, longest) -> None:
    from ..figures import figure

    drawn, (axis,) = figure(1, width=8, height=3.2)
    shown = wavenumbers <= longest
    axis.plot(wavenumbers[shown], values[shown], lw=1.2, label="dynamics")
    if lines is not None:
        height = lines.intensities if name == "infrared" else None
        height = height if height is not None else lines.wavenumbers**0
        scaled = values[shown].max() * height / height.max()
        axis.vlines(lines.wavenumbers, 0, scaled, "C3", lw=1.5, label="harmonic (scaled)")
        axis.legend()
    axis.set(xlabel="wavenumber (cm$^{-1}$)", ylabel=unit, xlim=(0, longest), ylim=(0, None))
    axis.set_title(name.replace("_", " "))
    drawn.savefig(path, format="png", dpi=120)
