"""``opml data``: check a file, pack it small, verify its bytes, merge several, compare bonds."""

from __future__ import annotations

import argparse

from ..errors import counted
from .options import add_geometry_options, add_reading_options


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = sub.add_parser("check", help="how many structures, which labels, and what is wrong")
    check.add_argument("file", help="data set, in any format that is read")
    check.add_argument(
        "--splits", metavar="FILE", help="also: does validation or test leak? (default: not asked)"
    )
    check.add_argument(
        "--against",
        metavar="FILE",
        help="also: is this training file found there? (default: not asked)",
    )
    check.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="ANGSTROM",
        help="interatomic distances of equal geometries agree to this",
    )
    check.add_argument(
        "--fock",
        type=int,
        default=0,
        metavar="N",
        help="also: of N structures, is the Fock matrix that of its own density, by PySCF at the "
        "level of theory that the file states? (default: 0)",
    )
    add_reading_options(check)
    pack = sub.add_parser("pack", help="store a data set as HDF5, keeping some labels")
    pack.add_argument("file", help="data set, in any format that is read")
    pack.add_argument("-o", "--output", required=True, metavar="OUT", help="HDF5 file to write")
    pack.add_argument(
        "--fields", default="energy,forces,dipole", help="labels to keep, comma-separated"
    )
    add_reading_options(pack)
    verify = sub.add_parser("verify", help="read every label against its checksums")
    verify.add_argument(
        "files", nargs="+", metavar="FILE", help="HDF5 data set, or a folder OUT.h5.parts"
    )
    merge = sub.add_parser("merge", help="join HDF5 data sets of one level of theory")
    merge.add_argument("files", nargs="+", metavar="FILE", help="HDF5 data set")
    merge.add_argument("-o", "--output", required=True, metavar="OUT", help="HDF5 file to write")
    contacts = sub.add_parser("contacts", help="which elements are bonded, which bonds are lacking")
    contacts.add_argument("file", metavar="TRAINING", help="any file of geometries")
    contacts.add_argument(
        "--against",
        metavar="FILE",
        help="also: which structures of this file have bonds that TRAINING lacks? "
        "(default: not asked)",
    )
    contacts.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="with --against: extended xyz file to write, of the fewest structures of FILE that "
        "have all these bonds, to label them (default: none)",
    )
    add_geometry_options(contacts)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    actions = {"check": _check, "pack": _pack, "verify": _verify, "merge": _merge}
    actions["contacts"] = _contacts
    return actions[args.action](args)


def _verify(args: argparse.Namespace) -> int:
    from ..data.shards import verify

    for file in args.files:
        n, labels, wanted = verify(file)
        there = f"{n} of {counted(wanted, 'structure')}" if wanted > n else counted(n, "structure")
        print(f"{file}: {there} with {counted(labels, 'label')} each, all checksums are right")
    return 0


def _merge(args: argparse.Namespace) -> int:
    from ..data.shards import merge

    n, repeated = merge(args.files, args.output)
    note = f", {counted(repeated, 'repeated geometry')} left out" if repeated else ""
    files = counted(len(args.files), "file")
    print(f"{args.output}: {counted(n, 'structure')} of {files}{note}")
    return 0


def _contacts(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..errors import OpmlError, one_of
    from ..structures.contacts import closest_pairs, lacking_bonds
    from .options import read_geometries

    if args.output and not args.against:
        expected = "given with --against, whose structures it will have"
        raise OpmlError("--output", got=args.output, expected=expected)
    if args.output:
        one_of("suffix of --output", Path(args.output).suffix, (".extxyz", ".xyz"), OpmlError)
    training = read_geometries(args.file, args)
    for line in _bonded(args.file, training):
        print(line)
    if not args.against:
        return 0
    others, known = read_geometries(args.against, args), closest_pairs(training)
    lacking = [lacking_bonds(s, known) for s in others]
    chosen = _lacking(args, others, lacking, known)
    if args.output and chosen:
        from ..interfaces.files import write_extxyz

        write_extxyz(args.output, [others[i] for i in chosen], {})
        print(f"{args.output}: {counted(len(chosen), 'structure')}")
    return 0


def _bonded(file: str, structures) -> list[str]:
    """Every pair of the elements of a file, a line each: how it is bonded, or that it is not."""
    from itertools import combinations_with_replacement

    from ..structures.contacts import bonds_by_pair, closest_pairs
    from ..structures.elements import symbol
    from ..units import ANGSTROM_PER_BOHR

    elements = sorted({z for s in structures for z in s.numbers})
    bonded, closest = bonds_by_pair(structures), closest_pairs(structures)
    names = " ".join(map(symbol, elements))
    lines = [f"{file}: {counted(len(structures), 'structure')} of {names}"]
    for pair in combinations_with_replacement(elements, 2):
        name = "-".join(map(symbol, pair))
        if name in bonded:
            n, *ends = bonded[name]
            shortest, longest = (f"{ANGSTROM_PER_BOHR * x:.2f}" for x in ends)
            text = f"bonded in {counted(n, 'structure')}, {shortest} to {longest} A"
        elif name in closest:
            text = f"never bonded; closest {ANGSTROM_PER_BOHR * closest[name]:.2f} A"
        else:
            text = "never in one structure"
        lines.append(f"{name}: {text}")
    return lines


def _lacking(args: argparse.Namespace, others, lacking, known) -> list[int]:
    """Print which structures have bonds that training lacks, and choose what to label."""
    from ..structures.contacts import cover, in_words

    having = [i for i, of_one in enumerate(lacking) if of_one]
    n = counted(len(others), "structure")
    if not having:
        print(f"{args.against}: none of {n} has a bond that {args.file} lacks")
        return []
    print(f"{args.against}: {len(having)} of {n} have bonds that {args.file} lacks")
    for name in sorted({name for of_one in lacking for name in of_one}):
        which = [i for i in having if name in lacking[i]]
        shortest = min(lacking[i][name] for i in which)
        print(f"{in_words(name, shortest, known)} in {', '.join(map(str, which))}")
    chosen = cover(lacking, [s.n_atoms for s in others])
    print(f"to label: {', '.join(map(str, chosen))}")
    return chosen


def _pack(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ..data.store import write_hdf5
    from .options import read_labelled

    names = [n.strip() for n in args.fields.split(",") if n.strip()]
    lazy = Path(args.file).suffix in (".h5", ".hdf5")  # what is left out need not be read
    dataset = read_labelled(args.file, args, lazy=lazy)
    dataset.check_labels(names)  # before anything is written
    write_hdf5(args.output, dataset, names)
    size = Path(args.output).stat().st_size / 1e6
    n = counted(len(dataset), "structure")
    print(f"{args.output}: {n}, {', '.join(names)}, {size:.2f} MB")
    return 0


def _check(args: argparse.Namespace) -> int:
    import warnings

    from ..data.duplicates import duplicates
    from ..data.splits import check_splits, read_splits
    from ..errors import OpmlError, UnitWarning
    from ..units import ANGSTROM_PER_BOHR
    from .options import read_labelled

    if args.fock < 0:
        raise OpmlError("--fock", got=args.fock, expected="a number of structures")
    if not args.tolerance > 0:
        raise OpmlError("--tolerance", got=args.tolerance, expected="positive, Angstrom")
    tolerance = args.tolerance / ANGSTROM_PER_BOHR
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = read_labelled(args.file, args)
    suspicious = [str(w.message) for w in caught if issubclass(w.category, UnitWarning)]
    for other in (w for w in caught if not issubclass(w.category, UnitWarning)):
        warnings.warn(other.message, stacklevel=2)
    for line in _understood(args.file, dataset):
        print(line)
    found, problems = _convention(dataset)
    problems = suspicious + problems
    if found:
        print(found)
    problems += _forces(dataset)
    if args.fock:
        problems += _fock(dataset, args.fock)
    pairs = duplicates(dataset.structures, tolerance=tolerance)
    if len(pairs):
        repeats = len(set(pairs[:, 1]))
        problems.append(
            f"{counted(repeats, 'geometry')} equal to an earlier one up to rotation, reflection "
            f"and order ({_identical(dataset, pairs, tolerance)} of {counted(len(pairs), 'pair')} "
            "as written): "
            f"{_some(f'{i} = {j}' for i, j in pairs)}"
        )
    if args.splits:
        splits = read_splits(args.splits)
        check_splits(dataset, splits)
        print(f"{args.splits}: " + ", ".join(f"{k} {len(v)}" for k, v in splits.items()))
        train = splits["train"]
        for name in (k for k in splits if k != "train"):
            problems += _leaks(name, dataset, train, dataset, splits[name], tolerance)
    if args.against:
        other = read_labelled(args.against, args)
        every, there = range(len(dataset)), range(len(other))
        problems += _leaks(args.against, dataset, every, other, there, tolerance)
    for line in problems:
        print(f"problem: {line}")
    print("no problems found" if not problems else counted(len(problems), "problem"))
    return 0


def _understood(file: str, dataset) -> list[str]:
    """What a file was read as, a line for each matter."""
    from collections import Counter

    from ..structures.elements import formula, symbol

    structures, meta = dataset.structures, dataset.meta
    sizes = [s.n_atoms for s in structures]
    elements = " ".join(symbol(z) for z in dataset.elements)
    lines = [
        f"{file}: {counted(len(dataset), 'structure')}, {min(sizes)} to {max(sizes)} atoms of "
        f"{elements}; "
        f"labels: {', '.join(dataset.labels) or 'none'}"
    ]
    if "format" in meta:
        lines.append(f"format: {meta['format']}, positions in {meta['length_unit']}")
        for field, name in meta["labels"].items():
            lines.append(f"{field}: {name}")
    level = [f"{k} {meta[k]}" for k in ("method", "basis", "aux_basis") if k in meta]
    lines.append(f"level: {', '.join(level) or 'not stated'}")
    formulas = Counter(formula(s.numbers) for s in structures).most_common()
    lines.append(f"compositions: {len(formulas)}, {_some(f'{name} ({n})' for name, n in formulas)}")
    states = Counter((s.charge, s.spin) for s in structures).most_common()
    shown = _some(f"charge {q:+d}, spin {s} ({n})" for (q, s), n in states)
    lines.append("charge 0, spin 0 (2S) everywhere" if [*dict(states)] == [(0, 0)] else shown)
    if atoms := meta.get("isolated_atoms"):
        lines.append("free atoms: " + ", ".join(f"{k} {v:.6f} Ha" for k, v in atoms.items()))
    if meta.get("unread"):
        lines.append(f"not read: {_some(meta['unread'], 12)}")
    return lines


def _some(items, most: int = 5) -> str:
    """The first few, and that there are more."""
    items = list(items)
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def _forces(dataset) -> list[str]:
    """Net forces, and single structures with forces no molecule has."""
    import numpy as np

    from ..data.plausibility import MAX_FORCE
    from ..units import EV_PER_ANGSTROM_PER_ATOMIC_FORCE

    if "forces" not in dataset:
        return []
    problems = []
    net = max(np.abs(f.sum(axis=0)).max() for f in dataset.labels["forces"])
    if net > 1e-3:
        problems.append(f"forces do not sum to zero (up to {net:.1e} Hartree/Bohr)")
    largest = np.array([np.abs(f).max() for f in dataset.labels["forces"]])
    wild = np.flatnonzero(largest * EV_PER_ANGSTROM_PER_ATOMIC_FORCE > MAX_FORCE)
    if len(wild):
        which = _some(map(str, wild))
        problems.append(f"forces above {MAX_FORCE:.0f} eV/Angstrom in {len(wild)}: {which}")
    return problems


FOCK = 1e-5
"""Mean over its elements, Hartree, by which a Fock matrix may differ from that of its density.

SCFs that are converged to 1e-9 Hartree leave orbital gradients of 3e-5, and matrices that agree to
2e-7 (QH9); integration grids of levels 3 and 5 differ by 1e-7. VWN3 instead of VWN5 in B3LYP gives
1e-4."""


def _fock(dataset, n: int) -> list[str]:
    """Whether Fock matrices are those of their densities at the level that the file states."""
    import numpy as np

    from ..data.reference import Method, fock_deviation
    from ..quantities import QUANTITIES

    dataset.check_labels(["fock"])
    method = Method.from_meta(dataset.meta)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(n, len(dataset))).astype(int))
    off = [
        np.abs(fock_deviation(dataset.structures[i], dataset.labels["fock"][i], method))
        for i in map(int, chosen)
    ]
    means = np.array([x.mean() for x in off])
    micro, level = QUANTITIES["fock"].factor, f"{method.method}/{method.basis}"
    print(
        f"fock: F[P] of {counted(len(off), 'structure')} by PySCF at {level}, grid level "
        f"{method.grid_level}: "
        f"|F[P] - F| is {micro * means.mean():.2f} uHa on average, "
        f"{micro * max(x.max() for x in off):.1f} at most"
    )
    wrong = chosen[~(means <= FOCK)]
    if not len(wrong):
        return []
    return [
        f"fock differs from that of its density by more than {micro * FOCK:.0f} uHa on average in "
        f"{_some(map(str, wrong))}: not converged, or of another functional or grid than {level}"
    ]


def _identical(dataset, pairs, tolerance: float) -> int:
    """How many pairs have the same atoms at the same places, as written."""
    import numpy as np

    def same(a, b):
        return a.numbers == b.numbers and np.abs(a.positions - b.positions).max() < tolerance

    return sum(same(dataset.structures[i], dataset.structures[j]) for i, j in pairs)


def _leaks(name: str, dataset, train, other, held_out, tolerance: float) -> list[str]:
    """What of the structures ``train`` of one set is among ``held_out`` of another, or the same."""
    from ..data.duplicates import FRAMES, leakage

    found = leakage(dataset.subset(train), other.subset(held_out), tolerance=tolerance)
    problems = []
    if len(found.duplicates):
        again = len(set(found.duplicates[:, 1]))
        which = _some(f"{held_out[j]} = {train[i]}" for i, j in found.duplicates)
        problems.append(f"{name}: {again} of {len(held_out)} are training geometries: {which}")
    if found.neighbours is not None and len(found.neighbours):
        problems.append(
            f"{name}: {len(found.neighbours)} of {len(held_out)} are within {FRAMES} frames of a "
            f"training geometry: {_some(str(held_out[j]) for j in found.neighbours)}"
        )
    return problems


def _convention(dataset) -> tuple[str, list[str]]:
    """What AO matrices are in and how that is known; stored layout hashes, and the order found."""
    from ..basis import load_basis
    from ..data.matrices import JUDGES, MATRICES, check_matrices
    from ..errors import ConventionError

    names = [n for n in MATRICES if n in dataset]
    if not names or "basis" not in dataset.meta:
        return "", []
    basis = load_basis(dataset.meta["basis"], dataset.elements)
    order = dataset.meta.get("order_in_file", "opml")
    found = f"{', '.join(names)}: {basis.name}, AO order {order} in the file"
    try:
        dataset.check_layout(basis)
    except ConventionError as err:
        return found, [str(err)]
    verdict = check_matrices(dataset.structures, dataset.labels, basis)
    judge = next((n for n in JUDGES if n in names), None)
    if verdict != "agrees":
        return found, [f"{judge} does not match the geometry: {verdict}"]
    return f"{found}" + (f", confirmed by the geometry ({judge})" if judge else ""), []
