"""``opml predict``: what a model predicts of structures, in a file."""

from __future__ import annotations

import argparse

from .options import add_geometry_options, read_geometries


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("run", metavar="RUN", help="run directory or model file")
    p.add_argument(
        "structures",
        metavar="STRUCTURES",
        nargs="+",
        help="xyz, extxyz, npz or HDF5 files; - is standard input, extended xyz",
    )
    p.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help=".extxyz (eV and Angstrom) or .h5 (atomic units)",
    )
    add_geometry_options(p)
    p.add_argument(
        "--uncertainty",
        action="store_true",
        help="also standard deviations: of energy and forces over the members of an ensemble or by "
        "the last layer, of densities by their kernels, of Fock matrices and what follows by the "
        "weights of the last map",
    )
    p.add_argument(
        "--allow-unconverged",
        action="store_true",
        help="NaN for molecules whose predicted density does not become self-consistent, instead "
        "of an error",
    )
    p.add_argument(
        "--certify",
        action="store_true",
        help="also one Fock matrix of each predicted density by PySCF, at the level of theory of "
        "the labels: how far it is from self-consistency, its energy, and whether a wrong orbital "
        "is occupied",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from ..errors import counted, one_of
    from ..interfaces.files import write_extxyz, write_predictions
    from ..models import load_model
    from ..structures.names import called
    from .progress import COMPILES, working
    from .runs import enable_x64

    enable_x64()
    suffix = Path(args.output).suffix
    one_of("suffix of --output", suffix, (".extxyz", ".xyz", ".h5", ".hdf5"))
    model = load_model(args.run)
    structures, places = _read(args)
    options, n = _options(model, args), counted(len(structures), "structure")
    if args.certify:
        print(f"certified by PySCF: {_level(model)}")
    with called(places), working(f"predicting {n}", COMPILES):
        predicted = model.predict(structures, **options)
    if args.certify:
        with called(places):
            predicted |= _certified(model, structures, predicted)
    if suffix in (".h5", ".hdf5"):
        write_predictions(args.output, structures, predicted, model)
    else:
        write_extxyz(args.output, structures, predicted)
    print(f"{args.output}: {n}")
    return 0


def _read(args: argparse.Namespace):
    """Structures of all files, one after the other, and what each is called."""
    several = len(args.structures) > 1
    structures, places = [], []
    for path in args.structures:
        part = read_geometries(path, args)
        structures += part
        places += [f"{i} of {path}" if several else i for i in range(len(part))]
    return structures, places


def _options(model, args: argparse.Namespace) -> dict[str, bool]:
    """What ``model.predict`` is asked for.

    Raises:
      OpmlError: it has no such option.
    """
    import inspect

    from ..errors import Code, OpmlError

    options = {"uncertainty": args.uncertainty}
    if args.allow_unconverged:
        if "allow_unconverged" not in inspect.signature(model.predict).parameters:
            expected = "a model whose densities become self-consistent"
            raise OpmlError(
                "--allow-unconverged", got=repr(model), expected=expected, code=Code.CAPABILITY
            )
        options["allow_unconverged"] = True
    return options


def _level(model) -> str:
    """The level of theory of Fock matrices that certify predictions.

    Raises:
      OpmlError: the model has learned none, or does not state its level.
    """
    from ..interfaces.pyscf import level_of

    method, stated = level_of(model), model.card["reference"]
    settings = {"density_fit": f"{'with' if method.density_fit else 'no'} density fitting"}
    if not method.is_hf:
        settings["grid_level"] = f"grid level {method.grid_level}"
    words = [f"{v}{'' if k in stated else ' (not stated)'}" for k, v in sorted(settings.items())]
    return ", ".join((f"{method.method}/{method.basis}", *words))


def _certified(model, structures, predicted):
    """What PySCF finds of each predicted density, with a line for each molecule."""
    from ..interfaces.pyscf import certified
    from ..quantities import QUANTITIES
    from ..structures.elements import formula
    from ..structures.names import name_of

    factor = QUANTITIES["certified_residual"].factor

    def say(i: int, found) -> None:
        line = (
            "not self-consistent"
            if found is None
            else (
                f"residual {factor * found['certified_residual']:.1f} uHa, "
                f"intruder {'yes' if found['intruder'] else 'no'}"
            )
        )
        print(f"{name_of(i)} ({formula(structures[i].numbers)}): {line}", flush=True)

    return certified(model, structures, predicted, on_result=say)
