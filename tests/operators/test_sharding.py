"""Eight devices that share one CPU, in a process of their own: the number is set before JAX starts.

Everything is computed there once, on one device and on eight, and compared; tests look at what
came out. Run as a script this file is that process.
"""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax import operators
from opml_jax.basis import batch, layout_of, load_basis
from opml_jax.errors import ConventionError, OpmlError
from opml_jax.features import AtomFeatures
from opml_jax.numerics import replace
from opml_jax.operators import Operator, map_molecules, plan, shard_batch, shard_operator
from opml_jax.structures import Structure

# Relative to the largest element: the same sums in another order
ROUND_OFF = 1e-12

N_DEVICES = 8
CUTOFF = 9.0


def _error(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _collectives(compiled):
    """Names of the communications in a compiled program."""
    names = r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("
    return sorted(set(re.findall(names, compiled.as_text())))


def _shards(array):
    """Devices, and first axes of what each holds."""
    return len(array.sharding.device_set), [s.data.shape[0] for s in array.addressable_shards]


def _batch(mesh, structures):
    basis = load_basis("sto-3g", sorted({z for s in structures for z in s.numbers}))
    recipe = AtomFeatures(basis.spec, (1, 2), pair=False)

    @jax.jit
    def compute(structures):
        def energy(positions):
            v = operators.external_potential(structures.replace(positions=positions), basis)
            x = recipe(v).array
            return jnp.sum(jnp.sin(1e-2 * x)), (v.to_dense(), x)

        slope, (v, x) = jax.grad(energy, has_aux=True)(structures.positions)
        return {"potential": v, "features": x, "gradient": slope}

    potential = jax.jit(lambda s: operators.external_potential(s, basis).to_dense())
    whole = batch(structures, basis)
    spread = shard_batch(whole, mesh)
    compiled = jax.jit(map_molecules(compute, mesh)).lower(spread).compile()
    one, many = compute(whole), compiled(spread)
    free = {"potential": potential(spread)}  # spread by whatever the compiler sees fit
    try:
        shard_batch(batch(structures[:5], basis), mesh)
    except OpmlError as error:
        refused = str(error)
    return {
        "errors": {k: _error(many[k], one[k]) for k in one},
        "free errors": {k: _error(free[k], one[k]) for k in free},
        "shards": {k: _shards(many[k]) for k in one},
        "given": _shards(spread.positions),
        "collectives": _collectives(compiled),
        "refused": refused,
    }


def _system(mesh, structure):
    layout = layout_of(structure, load_basis("sto-3g", structure.numbers))
    pattern = plan(structure, load_basis("sto-3g", structure.numbers), CUTOFF, storage="tiled")
    rng = np.random.default_rng(0)
    a, b, w = (
        Operator.from_dense(m, layout).restrict(pattern)
        for m in rng.normal(size=(3, layout.nao, layout.nao))
    )
    sa = shard_operator(a, mesh)
    sb, sw = (shard_operator(o, sa.rows) for o in (b, w))

    @jax.jit
    def slope(a, w):
        """Of sum(W * (A @ A)), as an operator again."""

        def squared(values):
            x = replace(a, values=values)
            return jnp.sum((x @ x).values * w.values)

        return replace(a, values=jax.grad(squared)(a.values))

    product = jax.jit(lambda a, b: a @ b).lower(sa, sb).compile()
    gradient = slope.lower(sa, sw).compile()
    results = {
        "A": (a, sa),
        "A @ B": (a @ b, product(sa, sb)),
        "A + B": (a + b, sa + sb),
        "A - B": (a - b, sa - sb),
        "2.5 A": (2.5 * a, 2.5 * sa),
        "A 2.5": (a * 2.5, sa * 2.5),
        "gradient": (slope(a, w), gradient(sa, sw)),
    }
    dense = [np.asarray(o.to_dense()) for o in (a, b)]
    kept = np.asarray(Operator(pattern.mask * 1.0, layout, pattern).to_dense())
    by_hand = kept * (dense[0] @ dense[1])
    return {
        "n_atoms": structure.n_atoms,
        "occupation": pattern.occupation,
        "errors": {
            k: _error(ours.gather().to_dense(), theirs.to_dense())
            for k, (theirs, ours) in results.items()
        },
        "by hand": _error(results["A @ B"][1].gather().to_dense(), by_hand),
        "shards": {k: _shards(ours.values) for k, (_, ours) in results.items()},
        "collectives": _collectives(product),
        "gradient collectives": _collectives(gradient),
    }


def _few(mesh, structure):
    """A few molecules have fewer rows of tiles than there are devices."""
    try:
        shard_operator(_unit(structure, load_basis("sto-3g", structure.numbers)), mesh)
    except OpmlError as error:
        return str(error)


def _run(path):
    jax.config.update("jax_enable_x64", True)
    with np.load(path) as file:
        given = {n: file[n] for n in file.files}
    names = sorted({n.split(":")[0] for n in given})
    found = {n: Structure(given[f"{n}:numbers"], given[f"{n}:positions"]) for n in names}
    mesh = jax.make_mesh((N_DEVICES,), ("parts",))
    small = [found[n] for n in names if n.startswith("small")]
    return {
        "batch": _batch(mesh, small),
        **{n: _system(mesh, found[n]) for n in ("alkane", "waters")},
        "few": _few(mesh, found["few"]),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory, molecules, alkane, waters):
    """What the other process found, with sixteen molecules of two compositions, and two systems."""
    rng = np.random.default_rng(5)
    given = {"alkane": alkane(50), "waters": waters(32), "few": waters(14)}
    for n in range(16):
        s = molecules[("water", "hydrogen_cyanide")[n % 2]]
        moved = s.replace(positions=s.positions + 0.1 * rng.normal(size=s.positions.shape))
        given[f"small{n:02d}"] = moved
    path = tmp_path_factory.mktemp("sharding") / "structures.npz"
    np.savez(
        path,
        **{f"{k}:numbers": s.numbers for k, s in given.items()},
        **{f"{k}:positions": s.positions for k, s in given.items()},
    )
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={N_DEVICES}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__, str(path)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


both_systems = pytest.mark.parametrize("system", ["alkane", "waters"])


@pytest.mark.slow
def test_a_batch_computes_the_same_on_many_devices(found):
    assert {*found["batch"]["errors"]} == {"potential", "features", "gradient"}
    for way in ("errors", "free errors"):
        for name, error in found["batch"][way].items():
            assert error <= ROUND_OFF, (way, name)


def test_molecules_stay_where_they_are(found):
    """Two on each device, before and after; nothing is sent to another."""
    assert found["batch"]["given"] == [8, [2] * 8]
    for name, shards in found["batch"]["shards"].items():
        assert shards == [8, [2] * 8], name
    assert found["batch"]["collectives"] == []


def test_molecules_that_do_not_divide_are_refused(found):
    assert "batch must be a multiple of 8 devices; got 5 molecules." in found["batch"]["refused"]


@both_systems
def test_the_algebra_of_tiles_is_that_of_one_device(found, system):
    assert found[system]["n_atoms"] >= 96
    assert 0.05 < found[system]["occupation"] < 0.6  # something is left out, and something is not
    for name, error in found[system]["errors"].items():
        assert error <= ROUND_OFF, name
    assert found[system]["by hand"] <= ROUND_OFF


@both_systems
def test_rows_of_tiles_stay_where_they_are(found, system):
    for name, shards in found[system]["shards"].items():
        assert shards == [8, [1] * 8], name


@both_systems
def test_a_product_sends_single_squares_to_neighbours(found, system):
    assert found[system]["collectives"] == ["collective-permute"]
    assert found[system]["gradient collectives"] == ["collective-permute"]


def test_systems_of_fewer_rows_than_devices_are_refused(found):
    assert re.match(r"operator must be at least 8, .*; got \d rows of tiles", found["few"])


@pytest.fixture(scope="module")
def basis(water):
    return load_basis("sto-3g", water.numbers)


def _unit(structure, basis, storage="tiled"):
    layout = layout_of(structure, basis)
    pattern = plan(structure, basis, CUTOFF, storage=storage)
    return Operator.from_dense(np.eye(layout.nao), layout).restrict(pattern)


@pytest.fixture(scope="module")
def tiled(water, basis):
    """A single square."""
    return _unit(water, basis)


def test_one_device_is_a_mesh_too(water, basis, tiled):
    mesh = jax.make_mesh((1,), ("all",))
    spread = shard_operator(tiled, mesh)
    back = (spread @ (3.0 * spread)).gather()
    np.testing.assert_array_equal(back.to_dense(), 3 * np.eye(tiled.nao))
    same = shard_batch(batch([water], basis), mesh)
    np.testing.assert_array_equal(same.positions[0], water.positions)


def test_dense_operators_are_refused(water, basis):
    mesh = jax.make_mesh((1,), ("all",))
    restricted = _unit(water, basis, "dense")
    for operator in (restricted, restricted.restrict(None)):
        with pytest.raises(OpmlError, match="operator must be tiled storage; got Operator"):
            shard_operator(operator, mesh)


def test_meshes_of_two_axes_are_refused(water, basis, tiled):
    mesh = jax.make_mesh((1, 1), ("rows", "columns"))
    for call in (
        lambda: shard_batch(batch([water], basis), mesh),
        lambda: shard_operator(tiled, mesh),
    ):
        with pytest.raises(OpmlError, match=r"mesh must be a mesh of one axis; got axes .*columns"):
            call()


def test_operators_of_two_plans_do_not_mix(waters, basis, tiled):
    mesh = jax.make_mesh((1,), ("all",))
    a, b = (shard_operator(o, mesh) for o in (tiled, _unit(waters(12), basis)))
    for call in (lambda: a @ b, lambda: a + b, lambda: a - b):
        with pytest.raises(ConventionError, match="sharded operators must be sharded by one plan"):
            call()


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1])))
