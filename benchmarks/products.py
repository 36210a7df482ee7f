"""What do products of operators cost, in batches of small molecules and in large ones?

``batch``: V @ V of 256 ethanols (def2-SVP, 72 AOs) through ``Operator``, as a fraction of the rate
of one large dense product, beside dense products, scipy's BSR and CSR, JAX's BCSR, and gather,
batched dot and segment sum over triples of atoms typed by element; gradient of sum((V @ V)^2).
``chain``, ``water``: squares restricted to atom pairs within 6 Angstrom, of alkane chains and water
clusters: tiled, dense (above 2500 AOs estimated as n^3), and as ``plan`` chooses; exact and
executed work, plans, exponents from 300 to 999 atoms, gradients. ``--qm7``: padding of a data set
in eight buckets, and recompilation in a second epoch.

Values are random and symmetric, patterns those of the geometries. Times are CPU seconds of this
process, ratios are of the least of several repeats, every repeat has its own input. The floors (a
large dense product, a stream copy) are measured first. Every result is compared with float64.

    OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 \
        python benchmarks/products.py --json [--quick] [--parts batch chain] [--qm7 FILE.extxyz]
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import scipy
import scipy.sparse
from common import (
    Printer,
    TypedTriples,
    atom_padded,
    bsr,
    compiled,
    cpu_time,
    ethanols,
    floors,
    race,
    relative_error,
    symmetric,
    water,
)
from integrals import alkane
from jax.experimental import sparse

import opml_jax as opml
from opml_jax.basis import AOLayout, buckets, layout_of
from opml_jax.basis.buckets import smallest_bucket
from opml_jax.operators import Operator, Plan, plan
from opml_jax.units import ANGSTROM_PER_BOHR

CUTOFF = 6.0 / ANGSTROM_PER_BOHR
DENSE_UP_TO = 2500  # AOs; beyond, dense times are estimates


def batch(printer: Printer, gemm: dict, dtype: str, quick: bool) -> None:
    """Products of a batch of ethanols."""
    n, repeats, rng = 64 if quick else 256, 3 if quick else 9, np.random.default_rng(0)
    structures = ethanols(n)
    basis = opml.load_basis("def2-svp", structures[0].numbers)
    layout, one = opml.batch(structures, basis).layout, layout_of(structures[0], basis)
    flops, shape = 2.0 * n * one.nao**3, {"batch": n, "nao": one.nao, "dtype": dtype}
    host = [symmetric(rng, n, one.nao, one.nao).astype(dtype) for _ in range(3)]
    device = [(jnp.asarray(x),) for x in host]
    exact = host[0].astype(np.float64) @ host[0].astype(np.float64)
    tolerance = {"float32": 1e-6, "float64": 1e-14}[dtype]

    def square(x):
        v = Operator(x, layout, symmetric=True)
        return (v @ v).values

    program, cost = compiled(square, *device[0])
    found = program(*device[0])
    assert found.dtype == dtype
    error = relative_error(found, exact)
    assert error < tolerance, error
    reused, triples = np.empty_like(host[0]), TypedTriples(one, n)
    blocks = [(b, b) for b in map(triples.blocks, host)]
    by_csr = jax.jit(
        lambda m, x: sparse.bcsr_dot_general(m, x, dimension_numbers=(((2,), (1,)), ((0,), (0,))))
    )
    itself, matrices = (lambda m: m @ m), [(x,) for x in host]
    padded = [(bsr(atom_padded(x, one), 14),) for x in host]
    nines = [(bsr(x, 9),) for x in host]
    rows = [(scipy.sparse.csr_array(bsr(x, one.nao)),) for x in host]
    ragged = [(sparse.BCSR.fromdense(x, n_batch=1), x) for (x,) in device]
    want = triples.blocks(exact)
    in_place = partial(np.matmul, out=reused)
    entries = {
        "operator": (program, device),
        "numpy_matmul_reused_memory": (lambda x: in_place(x, x), matrices),
        "xla_dense": (jax.jit(itself), device),
        "jax_bcsr_dense": (by_csr, ragged),
        "jax_typed_triples": (jax.jit(triples.multiply), blocks),
        "scipy_bsr_14_atoms_padded": (itself, padded),
        "scipy_bsr_9_fastest": (itself, nines),
        "scipy_csr": (itself, rows),
    }
    times = race(entries, repeats)
    ours = times.pop("operator")
    rate = flops / ours.least
    printer.line(
        "batch_operator",
        ours,
        ratio=rate / gemm[dtype]["floor"],
        peer="rate of one large dense product, the better of XLA and NumPy",
        target={"float32": 0.6, "float64": 0.4}[dtype],
        gigaflops=1e-9 * rate,
        error=error,
        **cost,
        **shape,
    )

    for name, timing in times.items():
        function, inputs = entries[name]
        result = function(*inputs[0])
        if name == "jax_typed_triples":
            error = max(relative_error(result[key], want[key]) for key in want)
        elif name.startswith("scipy"):
            whole = atom_padded(exact, one) if "padded" in name else exact
            error = relative_error(result.sum(axis=1), whole.sum(axis=2).ravel())
        else:
            error = relative_error(result, exact)
        assert error < tolerance, (name, error)
        printer.line(
            f"batch_{name}",
            timing,
            ratio=timing.least / ours.least,
            peer=f"Operator @ Operator beside {name}",
            target={"jax_typed_triples": 30.0, "scipy_bsr_14_atoms_padded": 50.0}.get(name),
            gigaflops=1e-9 * flops / timing.least,
            error=error,
            scipy=scipy.__version__ if name.startswith("scipy") else None,
            **shape,
        )

    def on_site(x):
        v = Operator(x, one, symmetric=True)
        return v.multiply(v, out="diagonal")

    program, cost = compiled(jax.vmap(on_site), *device[0])
    timing = cpu_time(program, device, repeats)
    printer.line(
        "batch_on_site_blocks",
        timing,
        ratio=timing.least / ours.least,
        peer="Operator @ Operator, all of it",
        target=0.6,
        **cost,
        **shape,
    )

    exact_slope = 2.0 * (exact @ host[0] + host[0] @ exact)
    for name, function in (("operator", square), ("autodiff", itself)):

        def energy(x, function=function):
            return jnp.sum(function(x) ** 2)

        forward, _ = compiled(energy, *device[0])
        backward, cost = compiled(jax.value_and_grad(energy), *device[0])
        slope = np.asarray(backward(*device[0])[1], np.float64)
        error = relative_error(0.5 * (slope + np.swapaxes(slope, -1, -2)), exact_slope)
        assert error < tolerance, error
        value, both = race({f: (f, device) for f in (forward, backward)}, repeats).values()
        printer.line(
            f"batch_gradient_{name}",
            both,
            ratio=both.least / value.least,
            peer="sum((V @ V)^2), value alone",
            milliseconds_forward=1e3 * value.least,
            error=error,
            **cost,
            **shape,
        )


def exact_flops(layout: AOLayout, positions: np.ndarray) -> tuple[float, float]:
    """Work of a square restricted to close atoms, from blocks of atoms: all, and upper half."""
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    close = (distance <= CUTOFF).astype(float)
    width = np.diff(layout.offsets).astype(float)
    work = 2.0 * close * width[:, None] * width * ((close * width) @ close)
    return float(work.sum()), float(np.triu(work).sum())


def restricted(layout: AOLayout, found: Plan, rng: np.random.Generator) -> Operator:
    """Random symmetric values in the pattern of a plan, float32."""
    shape = found.mask.shape if found.storage == "tiled" else (layout.nao, layout.nao)
    values = jnp.where(found.mask, jnp.asarray(rng.normal(size=shape), jnp.float32), 0)
    return Operator(values, layout, found).symmetrised()


def square_of(operator: Operator) -> jax.Array:
    return (operator @ operator).values


def energy_of(values: jax.Array, operator: Operator) -> jax.Array:
    """Scalar whose gradient is taken; the operator brings the plan."""
    own = Operator(values, operator.layout, operator.plan, symmetric=True)
    return jnp.sum(square_of(own) ** 2)


def on_device(found: Plan) -> Plan:
    """Indices as arrays of JAX: NumPy arrays would be copied in every call."""
    return jax.tree.map(jnp.asarray, found)


def system(
    printer: Printer, kind: str, numbers, positions, dense_rate: dict[str, float], quick: bool
) -> tuple[float, float]:
    """One large molecule; seconds of its tiled product, and its exact work."""
    repeats, rng = 3 if quick else 7, np.random.default_rng(0)
    structure = opml.Structure(tuple(int(z) for z in numbers), positions)
    basis = opml.load_basis("def2-svp", set(numbers.tolist()))
    layout = layout_of(structure, basis)
    nao, atoms = layout.nao, len(numbers)
    seconds = []
    for _ in range(2):
        start = time.process_time()
        chosen = plan(structure, basis, CUTOFF)
        seconds.append(time.process_time() - start)
    moved = opml.Structure(structure.numbers, positions + 0.01 * rng.normal(size=positions.shape))
    tiled = on_device(plan(structure, basis, CUTOFF, storage="tiled"))
    start = time.process_time()
    plan(structure, basis, CUTOFF, storage="tiled", tile=tiled.tile).update(moved)
    seconds.append(time.process_time() - start)

    operators = [(restricted(layout, tiled, rng),) for _ in range(3)]
    program, cost = compiled(square_of, *operators[0])
    values = program(*operators[0])
    assert values.dtype == jnp.float32
    entries = {"tiled": (program, operators)}
    if chosen.storage == "dense":
        own = on_device(chosen)
        inputs = [(Operator(o.to_dense(), layout, own, symmetric=True),) for (o,) in operators]
        entries["choice"] = (compiled(square_of, *inputs[0])[0], inputs)
    small = nao <= DENSE_UP_TO
    error = slope_error = None
    if small:
        x = np.asarray(operators[0][0].to_dense(), np.float64)
        mask = np.asarray(Operator(tiled.mask, layout, tiled).to_dense())
        exact = np.where(mask, x @ x, 0)
        error = relative_error(Operator(values, layout, tiled).to_dense(), exact)
        assert error < 1e-6, error
        dense = [(o.to_dense(),) for (o,) in operators]
        host, out = [(np.asarray(m),) for (m,) in dense], np.empty((nao, nao), np.float32)
        entries["xla"] = (compiled(lambda x: x @ x, *dense[0])[0], dense)
        entries["numpy"] = (lambda m: np.matmul(m, m, out=out), host)
    times = race(entries, repeats)
    tiles, choice = times["tiled"], times.get("choice", times["tiled"])
    if small:
        dense_rate.update({k: 2.0 * nao**3 / times[k].least for k in ("xla", "numpy")})
    xla, numpy = (2.0 * nao**3 / dense_rate[k] for k in ("xla", "numpy"))
    everything, half = exact_flops(layout, positions)
    shape = {"atoms": atoms, "nao": nao, "dtype": "float32", "cutoff_bohr": CUTOFF}
    printer.line(
        f"{kind}_{atoms}_square",
        tiles,
        ratio=min(xla, numpy) / tiles.least,
        peer="dense product, the better of XLA and NumPy" + ("" if small else " (est)"),
        target={("chain", 300): 30.0, ("water", 192): 1.5, ("water", 300): 3.0}.get(
            (kind, 3 * round(atoms / 3))
        ),
        milliseconds_dense_xla=1e3 * xla,
        milliseconds_dense_numpy=1e3 * numpy,
        dense="measured" if small else "est",
        choice=chosen.storage,
        milliseconds_choice=1e3 * choice.least,
        choice_ratio=min(xla, tiles.least) / choice.least,
        choice_target=0.9,
        tile=tiled.tile,
        gigaflop_exact=1e-9 * everything,
        gigaflop_exact_half=1e-9 * half,
        gigaflop_executed=1e-9 * tiled.flops,
        pad_ratio=tiled.flops / half,
        gigaflops_useful=1e-9 * half / tiles.least,
        occupation=tiled.occupation,
        plan_milliseconds_first=1e3 * seconds[0],
        plan_milliseconds_cached=1e3 * seconds[1],
        plan_milliseconds_update=1e3 * seconds[2],
        plan_megabytes=1e-6 * sum(x.nbytes for x in jax.tree.leaves(tiled)),
        error=error,
        **cost,
        **shape,
    )

    inputs = [(o.values, o) for (o,) in operators]
    forward, _ = compiled(energy_of, *inputs[0])
    backward, cost = compiled(jax.value_and_grad(energy_of), *inputs[0])
    if small:
        slope = Operator(backward(*inputs[0])[1], layout, tiled).symmetrised().to_dense()
        want = 2.0 * (exact @ x + x @ exact)
        slope_error = relative_error(np.where(mask, slope, 0), np.where(mask, want, 0))
        assert slope_error < 2e-6, slope_error
    value, both = race({f: (f, inputs) for f in (forward, backward)}, repeats).values()
    printer.line(
        f"{kind}_{atoms}_gradient",
        both,
        ratio=both.least / value.least,
        peer="sum(square^2), value alone",
        target=3.2,
        milliseconds_forward=1e3 * value.least,
        temporary_ratio=cost["temporary_bytes"] / inputs[0][0].nbytes,
        temporary_target=4.0,
        error=slope_error,
        **cost,
        **shape,
    )
    return tiles.least, everything


def scaling(printer: Printer, kind: str, quick: bool) -> None:
    """Large molecules of one kind, and how their cost grows."""
    made = {
        "chain": ((alkane, (11, 24)), (alkane, (49, 99, 332))),
        "water": ((water, (12, 27)), (water, (64, 100, 333))),
    }[kind]
    dense_rate, points = {}, []
    for make, sizes in made[: 1 if quick else 2]:
        for n in sizes:
            numbers, positions = make(n)
            found = system(printer, kind, numbers, positions, dense_rate, quick)
            points.append((len(numbers), *found))
    n, seconds, work = np.log(np.array(points[-2:])).T
    printer.line(
        f"{kind}_exponent",
        atoms=[p[0] for p in points[-2:]],
        exponent=float(np.diff(seconds)[0] / np.diff(n)[0]),
        exponent_exact_work=float(np.diff(work)[0] / np.diff(n)[0]),
        target=None if quick else {"chain": 1.1, "water": 1.45}[kind],
        dtype="float32",
    )


def qm7(printer: Printer, path: Path, quick: bool) -> None:
    """Padding of a data set in eight shapes, and recompilation in a second epoch."""
    structures = opml.read_structures(path)[:: 20 if quick else 1]
    basis = opml.load_basis("def2-svp", {z for s in structures for z in s.numbers})
    own = [smallest_bucket(basis.spec, [s.numbers]) for s in structures]
    found = buckets(structures, basis, n=8)
    size, rng, traces = 32, np.random.default_rng(0), []

    @jax.jit
    def square(x, layout):
        traces.append(x.shape)
        v = Operator(x, layout, symmetric=True)
        return (v @ v).values

    epochs = []
    for _ in range(2):
        for bucket, indices in found:
            for start in range(0, len(indices), size):
                part = [structures[k] for k in np.resize(indices[start : start + size], size)]
                layout = opml.batch(part, basis, bucket=bucket).layout
                x = symmetric(rng, size, bucket.nao, bucket.nao)
                jax.block_until_ready(square(jnp.asarray(x, jnp.float32), layout))
        epochs.append(len(traces))
    exact = sum(b.nao**3 for b in own)
    printer.line(
        f"buckets_{path.stem}",
        structures=len(structures),
        shapes=len(found),
        ratio=sum(len(i) * b.nao**3 for b, i in found) / exact,
        peer="nao^3 without padding",
        target=1.15,
        ratio_one_shape=len(own) * max(b.nao for b in own) ** 3 / exact,
        ratio_pair_work=sum(len(i) * b.pair_work for b, i in found) / sum(b.pair_work for b in own),
        compilations_first_epoch=epochs[0],
        compilations_second_epoch=epochs[1] - epochs[0],
        dtype="float32",
    )


def main() -> None:
    """Run and print one line (``--json``: one JSON object) per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer, smaller cases")
    parts = ("batch", "chain", "water")
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts)
    parser.add_argument("--qm7", type=Path, metavar="FILE", help="padding on a data set")
    args = parser.parse_args()
    printer = Printer(args.json)
    gemm, _ = floors(printer, args.quick)
    for part in args.parts:
        if part == "batch":
            for dtype in ("float32", "float64"):
                batch(printer, gemm, dtype, args.quick)
        else:
            scaling(printer, part, args.quick)
    if args.qm7:
        qm7(printer, args.qm7, args.quick)


if __name__ == "__main__":
    main()
