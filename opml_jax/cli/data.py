"""``opml data``: check a data file, or pack it small."""

from __future__ import annotations

import argparse


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = sub.add_parser("check", help="how many structures, which labels, and what is wrong")
    check.add_argument("file")
    check.add_argument("--length-unit", choices=("angstrom", "bohr"))
    check.add_argument("--energy-unit", choices=("hartree", "ev", "kcal/mol"))
    pack = sub.add_parser("pack", help="copy an HDF5 data set, keeping some labels")
    pack.add_argument("file")
    pack.add_argument("-o", "--output", required=True)
    pack.add_argument("--fields", default="energy,forces,dipole", help="comma-separated")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return {"check": _check, "pack": _pack}[args.action](args)


def _pack(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..data.readers import read_dataset
    from ..data.store import write_hdf5

    names = [n.strip() for n in args.fields.split(",") if n.strip()]
    dataset = read_dataset(args.file)
    for name in names:
        dataset[name]  # names what is missing before anything is written
    write_hdf5(args.output, dataset, names)
    size = Path(args.output).stat().st_size / 1e6
    print(f"{args.output}: {len(dataset)} structures, {', '.join(names)}, {size:.2f} MB")
    return 0


def _check(args: argparse.Namespace) -> int:
    import numpy as np

    from ..data.readers import read_dataset
    from ..structures.elements import symbol

    dataset = read_dataset(args.file, length_unit=args.length_unit, energy_unit=args.energy_unit)
    elements = " ".join(symbol(z) for z in dataset.elements)
    sizes = [s.n_atoms for s in dataset.structures]
    print(
        f"{args.file}: {len(dataset)} structures, {min(sizes)} to {max(sizes)} atoms of "
        f"{elements}; labels: {', '.join(dataset.labels) or 'none'}"
    )
    problems = _duplicates(dataset) + _convention(dataset)
    if "forces" in dataset:
        net = max(np.abs(f.sum(axis=0)).max() for f in dataset.labels["forces"])
        if net > 1e-3:
            problems.append(f"forces do not sum to zero (up to {net:.1e} Hartree/Bohr)")
    for line in problems:
        print(f"problem: {line}")
    print("no problems found" if not problems else f"{len(problems)} problem(s)")
    return 0


def _duplicates(dataset) -> list[str]:
    """Geometries that repeat up to rotation: equal sorted interatomic distances to 1e-5 Bohr."""
    import numpy as np

    seen: dict[tuple, int] = {}
    repeats = 0
    for s in dataset.structures:
        order = np.argsort(s.numbers, kind="stable")
        x = np.asarray(s.positions)[order]
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)[np.triu_indices(len(x), 1)]
        key = (tuple(np.array(s.numbers)[order]), s.charge, tuple(np.round(np.sort(d), 5)))
        repeats += key in seen
        seen[key] = 1
    return [f"{repeats} geometries repeat another up to rotation"] if repeats else []


def _convention(dataset) -> list[str]:
    """Stored layout hashes, and the stored overlap against one computed from the geometry."""
    import jax
    import numpy as np

    from ..basis import load_basis
    from ..errors import ConventionError

    if "basis" not in dataset.meta:
        return []
    if dataset.layout_hashes is not None:
        try:
            dataset.check_layout(load_basis(dataset.meta["basis"], dataset.elements))
        except ConventionError as err:
            return [str(err)]
    if "overlap" not in dataset:
        return []
    jax.config.update("jax_enable_x64", True)
    from ..basis import layout_of
    from ..conventions import diagnose
    from ..integrals import overlap

    basis = load_basis(dataset.meta["basis"], dataset.elements)
    s = dataset.structures[0]
    verdict = diagnose(
        dataset.labels["overlap"][0], np.asarray(overlap(s, basis)), layout_of(s, basis).shell_ls
    )
    return (
        []
        if verdict == "agrees"
        else [f"overlap of structure 0 does not match its geometry: {verdict}"]
    )
