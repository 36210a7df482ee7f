"""``opml export``: energies and forces of one molecule as a program that needs JAX alone."""

from __future__ import annotations

import argparse


def configure(p: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    p.add_argument("run", metavar="RUN", help="run directory or model file")
    p.add_argument("structure", metavar="STRUCTURE", help="file whose first structure is meant")
    p.add_argument("-o", "--output", required=True, metavar="OUT", help=".stablehlo")
    p.add_argument(
        "--length-unit", choices=("angstrom", "bohr"), default="angstrom", help="of positions"
    )
    p.add_argument(
        "--energy-unit", choices=("ev", "hartree", "kcal/mol"), default="ev", help="of energies"
    )
    p.add_argument(
        "--platforms",
        nargs="+",
        default=["cpu"],
        metavar="P",
        help="one or several of cpu, cuda, rocm, tpu",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..data import read_structures
    from ..interfaces.export import export_energy, write_program
    from ..models import load_model
    from .progress import working
    from .runs import enable_x64

    enable_x64()
    model = load_model(args.run)
    structure = read_structures(args.structure)[0]
    with working("compiling", "usually a minute or two"):
        program = export_energy(
            model,
            structure.numbers,
            length_unit=args.length_unit,
            energy_unit=args.energy_unit,
            charge=structure.charge,
            spin=structure.spin,
            platforms=args.platforms,
        )
    write_program(args.output, program)
    print(
        f"{args.output}: positions (n, {structure.n_atoms}, 3) in {args.length_unit} -> energies "
        f"(n,) in {args.energy_unit}, forces; for {', '.join(program.platforms)}"
    )
    return 0
