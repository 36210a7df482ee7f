"""Do self-consistent learned densities answer an electric field as the reference's do?

    python benchmarks/field.py --json

Op2Op is fitted to Fock matrices of bundled waters without a field; its polarizabilities of other
geometries, and the Raman activities of the minimum (normal modes of the reference's Hessian), are
compared with PySCF's at the same level, by differences of dipoles in a field. Beside them the
polarizabilities of the same Fock matrices when they do not answer.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
from environment import record

import opml_jax as opml
from opml_jax.data.reference import Method, polarizability
from opml_jax.data.sampling import normal_modes
from opml_jax.dynamics import Harmonic, raman
from opml_jax.models.op2op import Op2OpConfig
from opml_jax.training import TrainConfig, train
from opml_jax.units import WAVENUMBER_PER_HARTREE


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-train", type=int, nargs="*", default=[380])
    parser.add_argument("--n-test", type=int, default=10)
    parser.add_argument("--raman", action="store_true", help="also the Raman activities")
    parser.add_argument("--json", action="store_true", help="append lines to results")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    data = opml.read_dataset(opml.bundled("water"))
    basis = opml.load_basis(data.meta["basis"], data.elements)
    method = Method.from_meta(data.meta)
    test = data.structures[450 : 450 + args.n_test]
    wanted = np.array([polarizability(s, method) for s in test])
    how = data.meta["sampling"]
    minimum = opml.Structure(how["numbers"], how["minimum_bohr"])
    hessian = np.array(how["hessian"])
    frequencies, modes = normal_modes(minimum, hessian)
    vibrations = Harmonic(frequencies * WAVENUMBER_PER_HARTREE, modes, None, hessian, None)

    def by_pyscf(structure):
        def host(positions):
            return polarizability(structure.replace(positions=np.asarray(positions)), method)

        shape = jax.ShapeDtypeStruct((3, 3), np.float64)
        return jax.pure_callback(host, shape, structure.positions)

    reference = raman(vibrations, by_pyscf, minimum) if args.raman else None
    for n in args.n_train:
        splits = {"train": range(n), "validation": range(400, 450)}
        model = train(data, splits, TrainConfig(model=Op2OpConfig(basis=basis.name))).model
        function = model.property_fn("polarizability")
        start = time.process_time()
        compiled = jax.jit(function).lower(test[0]).compile()
        line = {"n_train": n, "n_test": len(test), "compile_cpu_s": time.process_time() - start}
        start = time.process_time()
        found = np.array([compiled(s) for s in test])
        line["cpu_ms_per_molecule"] = 1e3 * (time.process_time() - start) / len(test)
        out = [model.predict(s) for s in test]
        alone = np.array(
            [
                opml.observables.polarizability(o["fock"], o["overlap"], 10, s, basis)
                for o, s in zip(out, test, strict=True)
            ]
        )
        line["mean_bohr3"] = float(np.trace(wanted.mean(axis=0)) / 3)
        for name, own in (("", found), ("uncoupled_", alone)):
            trace = np.trace(own - wanted, axis1=1, axis2=2) / 3
            line |= {f"{name}mae_bohr3": float(np.abs(own - wanted).mean())}
            line |= {f"{name}isotropic_mae_bohr3": float(np.abs(trace).mean())}
        if reference is not None:
            scattered = raman(vibrations, function, minimum)
            for name, own in (("", scattered), ("reference_", reference)):
                line[f"{name}activities"] = own.activities.tolist()
                line[f"{name}depolarization"] = own.depolarization.tolist()
        record(line, "field", args.json)


if __name__ == "__main__":
    main()
