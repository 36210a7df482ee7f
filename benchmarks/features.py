"""What do features of a given operator cost, and what from coordinates to features?

``recipes``: on-site features of V^1 .. V^K, K = 2, 4, 8, of a batch of ethanols (def2-SVP, 72 AOs)
from given V by ``AtomFeatures``, beside the naive way (all powers of the whole batch, their on-site
blocks gathered and coupled, by the same coupling): value, value and gradient, temporary memory;
neighbour-pooled features; errors of float32 against float64. ``coupling``: pooled blocks to irreps,
beside loops over blocks in NumPy and a stream copy. ``end_to_end``: coordinates to features to V^4,
beside libcint's S, T, r and V of the same molecules one by one, and the share of the integrals.

Times are CPU seconds of this process, ratios are of the least of several repeats, peers take their
turns with what they are compared to, and every repeat has its own input. Compilation is apart.

    OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 \
        python benchmarks/features.py --json [--quick] [--batches 256 1024]
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from common import Printer, compiled, ethanols, floors, race, relative_error
from pyscf import gto

import opml_jax as opml
from opml_jax.basis import BasisSpec, BatchLayout
from opml_jax.features import AtomFeatures
from opml_jax.features.couple import coupling_matrix
from opml_jax.features.hierarchy import _assembled, _couple, _kept, by_molecule
from opml_jax.operators import Operator, build, on_site_blocks
from opml_jax.structures.elements import symbol

LOOPED = 200  # blocks that the loops in NumPy are timed on


class Problem:
    """A batch of ethanols and its V, in several versions."""

    def __init__(self, n: int):
        self.n, self.structures = n, ethanols(n)
        self.basis = opml.load_basis("def2-svp", self.structures[0].numbers)
        self.batch = opml.batch(self.structures, self.basis)
        potential = jax.jit(lambda r: self.potential(r).values)
        self.exact = np.asarray(potential(jnp.asarray(self.batch.positions)))

    @property
    def layout(self) -> BatchLayout:
        """AO layout of the batch."""
        return self.batch.layout

    @property
    def spec(self) -> BasisSpec:
        """The basis."""
        return self.basis.spec

    def potential(self, positions) -> Operator:
        """V of all molecules."""
        return build.external_potential(self.batch.replace(positions=positions), self.basis)

    def inputs(self, dtype: str) -> list[tuple]:
        """V of the molecules in three orders."""
        v = self.exact.astype(dtype)
        return [(jnp.asarray(np.roll(v, k, axis=0)),) for k in range(3)]

    def positions(self, dtype: str) -> list[tuple]:
        """Coordinates of the molecules in three orders."""
        r = np.asarray(self.batch.positions).astype(dtype)
        return [(jnp.asarray(np.roll(r, k, axis=0)),) for k in range(3)]

    def features(self, recipe: AtomFeatures, v) -> jax.Array:
        """What is measured."""
        return recipe(Operator(v, self.layout, symmetric=True)).array

    def sum_of_squares(self, recipe: AtomFeatures, v) -> jax.Array:
        """A scalar of them, made molecule by molecule."""
        operator = Operator(v, self.layout, symmetric=True)
        return jnp.sum(recipe(operator, then=lambda x: jnp.sum(x.array**2)))

    def naive(self, recipe: AtomFeatures, v) -> jax.Array:
        """The same features from whole powers, of the whole batch at once."""
        blocks, x = [], v
        for k in range(1, max(recipe.powers) + 1):
            x = x if k == 1 else x @ v
            blocks.append(on_site_blocks(Operator(x, self.layout)))
        blocks = jnp.stack(blocks, axis=2)  # (molecule, atom, power, slot, slot)
        flat = blocks.reshape(-1, *blocks.shape[2:])
        kept = _kept(self.spec, None, True)
        return _assembled([_couple(flat, self.spec, kept)]).reshape(*blocks.shape[:2], -1)


def recipes(printer: Printer, problem: Problem, dtype: str, quick: bool) -> None:
    """Features of given V."""
    repeats, n, given = 3 if quick else 7, problem.n, problem.inputs(dtype)
    shape = {"batch": n, "nao": problem.layout.nao, "dtype": dtype}
    for top in (4,) if quick else (2, 4, 8):
        recipe = AtomFeatures(problem.spec, tuple(range(1, top + 1)), pair=False)
        traces = []

        def ours(v, recipe=recipe, traces=traces):
            traces.append(v.shape)
            return problem.features(recipe, v)

        def naive(v, recipe=recipe):
            return problem.naive(recipe, v)

        def scalar(v, recipe=recipe):
            return problem.sum_of_squares(recipe, v)

        def naive_scalar(v, naive=naive):
            return jnp.sum(naive(v) ** 2)

        program, cost = compiled(ours, *given[0])
        plain, _ = compiled(naive, *given[0])
        found = program(*given[0])
        assert found.dtype.name == dtype, found.dtype
        features_bytes = found.nbytes
        agreement = relative_error(found, plain(*given[0]))
        assert agreement < {"float32": 3e-6, "float64": 1e-13}[dtype], agreement
        exact = _exact(problem, recipe) if dtype == "float32" else None
        times = race({"ours": (program, given), "naive": (plain, given)}, repeats)
        again = jax.jit(ours)
        for arguments in given:
            again(*arguments)
        printer.line(
            f"on_site_to_{top}",
            times["ours"],
            ratio=times["naive"].least / times["ours"].least,
            peer="whole powers of the whole batch, on-site blocks gathered and coupled",
            target=2.0 if top == 4 else None,
            molecules_per_second=n / times["ours"].least,
            milliseconds_naive=1e3 * times["naive"].least,
            difference=agreement,
            error=None if exact is None else relative_error(found, exact),
            error_worst_power=None if exact is None else _worst(recipe, found, exact),
            traces_of_four_calls=len(traces),
            **cost,
            **shape,
        )
        value, value_cost = compiled(scalar, *given[0])
        slope, slope_cost = compiled(jax.value_and_grad(scalar), *given[0])
        plain, plain_cost = compiled(jax.value_and_grad(naive_scalar), *given[0])
        found = [np.asarray(f(*given[0])[1], np.float64) for f in (slope, plain)]
        found = [g + np.swapaxes(g, -1, -2) for g in found]  # V is symmetric: one gradient of it
        agreement = relative_error(*found)
        assert agreement < {"float32": 1e-5, "float64": 1e-12}[dtype], agreement
        entries = {"value": value, "both": slope, "naive": plain}
        times = race({k: (f, given) for k, f in entries.items()}, repeats)
        temporary = slope_cost["temporary_bytes"]
        printer.line(
            f"on_site_to_{top}_gradient",
            times["both"],
            ratio=times["both"].least / times["value"].least,
            peer="value alone",
            target=3.5 if top == 4 else None,
            ratio_naive=times["naive"].least / times["both"].least,
            temporary_ratio=plain_cost["temporary_bytes"] / temporary,
            temporary_target=20.0 if top == 4 else None,
            temporary_bytes_naive=plain_cost["temporary_bytes"],
            temporary_bytes_value=value_cost["temporary_bytes"],
            features_bytes=features_bytes,
            difference=agreement,
            **slope_cost,
            **shape,
        )
    recipe = AtomFeatures(problem.spec, (1, 2, 3, 4), pair=True)
    on_site = AtomFeatures(problem.spec, (1, 2, 3, 4), pair=False)
    program, cost = compiled(lambda v: problem.features(recipe, v), *given[0])
    entries = {
        "pooled": (program, given),
        "on_site": (compiled(lambda v: problem.features(on_site, v), *given[0])[0], given),
    }
    times, found = race(entries, repeats), program(*given[0])
    exact = _exact(problem, recipe) if dtype == "float32" else None
    printer.line(
        "pooled_to_4",
        times["pooled"],
        ratio=times["pooled"].least / times["on_site"].least,
        peer="on-site features alone",
        molecules_per_second=n / times["pooled"].least,
        features_per_atom=recipe.irreps.dim,
        error=None if exact is None else relative_error(found, exact),
        error_worst_power=None if exact is None else _worst(recipe, found, exact),
        **cost,
        **shape,
    )


def _exact(problem: Problem, recipe: AtomFeatures) -> np.ndarray:
    return np.asarray(jax.jit(lambda v: problem.features(recipe, v))(problem.exact))


def _worst(recipe: AtomFeatures, found, exact) -> float:
    """Largest error of features of one power relative to the largest of them."""
    power = np.concatenate([[c.power] * (2 * c.l + 1) for c in recipe.channels])
    return max(
        relative_error(np.asarray(found)[..., power == k], exact[..., power == k])
        for k in recipe.powers
    )


def coupling(printer: Printer, problem: Problem, dtype: str, stream: float, quick: bool) -> None:
    """Pooled blocks to irreps."""
    n, repeats, spec = 4000 if quick else 20000, 3 if quick else 7, problem.spec
    rng, width, kept = np.random.default_rng(0), spec.n_slots, _kept(spec, None, False)
    host = [rng.normal(size=(n, 1, width, width)).astype(dtype) for _ in range(3)]

    def couple(x):
        return _assembled([_couple(x, spec, kept)])

    def in_chunks(x):  # as AtomFeatures takes molecules, here of ten atoms
        return by_molecule(couple, x.reshape(-1, 10, *x.shape[1:])).reshape(n, -1)

    inputs = [(jnp.asarray(x),) for x in host]
    program, cost = compiled(couple, *inputs[0])
    chunked, chunked_cost = compiled(in_chunks, *inputs[0])
    starts, start = [], 0
    for l in spec.slot_ls:
        starts.append((start, l))
        start += 2 * l + 1
    matrices = {
        (a, b): coupling_matrix(a, b).reshape(-1, (2 * a + 1) * (2 * b + 1)).astype(dtype)
        for a in set(spec.slot_ls)
        for b in set(spec.slot_ls)
    }

    def loops(blocks):
        return [
            [
                block[i : i + 2 * a + 1, j : j + 2 * b + 1].ravel() @ matrices[a, b]
                for i, a in starts
                for j, b in starts
            ]
            for block in blocks[:LOOPED, 0]
        ]

    entries = {
        "coupling": (program, inputs),
        "coupling_in_chunks": (chunked, inputs),
        "loops": (loops, [(x,) for x in host]),
    }
    times, result = race(entries, repeats), program(*inputs[0])
    assert relative_error(chunked(*inputs[0]), result) < 1e-6
    found = np.asarray(result, np.float64)[:LOOPED]
    by_loop = np.array([np.concatenate(row) for row in loops(host[0])], np.float64)
    # the loops leave another order of features: what coupling keeps is the norm
    norms = [np.linalg.norm(x, axis=1) for x in (found, by_loop)]
    assert np.allclose(*norms, rtol=1e-5)
    looped = times["loops"].least * n / LOOPED
    for name, own in (("coupling", cost), ("coupling_in_chunks", chunked_cost)):
        moved = (host[0].nbytes + result.nbytes) / times[name].least
        printer.line(
            name,
            times[name],
            ratio=looped / times[name].least,
            peer=f"NumPy loops over blocks and pairs of shells, {LOOPED} blocks scaled up",
            target=40.0,
            ratio_to_stream=moved / stream,
            stream_target=0.5,
            gigabytes_per_second=1e-9 * moved,
            blocks=n,
            width=width,
            dtype=dtype,
            **own,
        )


def end_to_end(printer: Printer, problem: Problem, dtype: str, quick: bool) -> None:
    """Coordinates to features."""
    repeats, n, few = 3 if quick else 5, problem.n, min(problem.n, 32)
    mols = [
        gto.M(
            atom=[(symbol(z), tuple(r)) for z, r in zip(s.numbers, s.positions, strict=True)],
            unit="Bohr",
            basis="def2-svp",
            verbose=0,
        )
        for s in problem.structures[:few]
    ]
    kinds = ("int1e_ovlp", "int1e_kin", "int1e_r", "int1e_nuc")

    def libcint(names):
        return [m.intor(name) for m in mols for name in names]

    entries = {
        "libcint": (libcint, [(kinds,)]),
        "libcint_nuc": (libcint, [(kinds[-1:],)]),
    }
    positions, given = problem.positions(dtype), problem.inputs(dtype)
    programs, costs = {}, {}
    for name, pair in (("on_site", False), ("pooled", True))[: 1 if quick else 2]:
        recipe = AtomFeatures(problem.spec, (1, 2, 3, 4), pair=pair)

        def whole(r, recipe=recipe):
            return recipe(problem.potential(r)).array

        def alone(v, recipe=recipe):
            return problem.features(recipe, v)

        programs[name], costs[name] = compiled(whole, *positions[0])
        entries[name] = (programs[name], positions)
        entries[f"{name}_features"] = (compiled(alone, *given[0])[0], given)
    integrals, integrals_cost = compiled(lambda r: problem.potential(r).values, *positions[0])
    entries["integrals"] = (integrals, positions)
    exact = np.asarray(
        opml.from_pyscf(
            np.array([m.intor("int1e_nuc") for m in mols]), problem.structures[0], problem.basis
        )
    )
    error = float(np.abs(np.asarray(integrals(*positions[0]))[:few] - exact).max())
    assert error < {"float32": 1e-4, "float64": 1e-11}[dtype], error
    times = race(entries, repeats)
    peer, nuc = (times[k].least / few for k in ("libcint", "libcint_nuc"))
    for name, program in programs.items():
        found = program(*positions[0])
        recipe = AtomFeatures(problem.spec, (1, 2, 3, 4), pair=name == "pooled")
        printer.line(
            f"end_to_end_{name}",
            times[name],
            ratio=peer / (times[name].least / n),
            peer="libcint S, T, r, V through PySCF, one molecule at a time",
            target=0.9 if name == "on_site" else None,
            molecules_per_second=n / times[name].least,
            molecules_per_second_libcint=1.0 / peer,
            ratio_to_libcint_potential=nuc / (times[name].least / n),
            milliseconds_integrals=1e3 * times["integrals"].least,
            milliseconds_features=1e3 * times[f"{name}_features"].least,
            share_of_integrals=times["integrals"].least / times[name].least,
            compile_seconds_integrals=integrals_cost["compile_seconds"],
            error_of_potential=error,
            error=relative_error(found, _exact(problem, recipe)),
            batch=n,
            nao=problem.layout.nao,
            dtype=dtype,
            **costs[name],
        )


def main() -> None:
    """Run and print one line (``--json``: one JSON object) per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a small batch, fewer repeats")
    parser.add_argument("--batches", nargs="*", type=int, default=[256, 1024])
    parts = ("recipes", "coupling", "end_to_end")
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts)
    args = parser.parse_args()
    printer = Printer(args.json)
    _, stream = floors(printer, args.quick)
    for n in [64] if args.quick else args.batches:
        problem = Problem(n)
        for dtype in ("float32", "float64"):
            if "recipes" in args.parts:
                recipes(printer, problem, dtype, args.quick)
            if ("coupling" in args.parts and n == args.batches[0]) or args.quick:
                coupling(printer, problem, dtype, stream, args.quick)
            if "end_to_end" in args.parts:
                end_to_end(printer, problem, dtype, args.quick)


if __name__ == "__main__":
    main()
