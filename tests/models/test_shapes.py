"""Lists of mixed molecules: few compiled shapes, and the numbers of each molecule alone."""

from pathlib import Path

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.basis.buckets import buckets
from opml_jax.models.base import energy
from opml_jax.programs import COMPILING

GOLDEN = Path(__file__).parent / "golden/op2prop_products.safetensors"
ROUNDING = 1e-10  # Hartree and Hartree/Bohr: padding changes the order of sums


@pytest.fixture(scope="module")
def model():
    return opml.load_model(GOLDEN)


def _programs() -> int:
    return energy._evaluate.quick._cache_size() + energy._evaluate.thorough._cache_size()


@pytest.fixture(scope="module")
def mixed(water):
    """Two waters, hydrogen and a dimer of water: 2 to 6 atoms in turns, as a file may have them."""
    x = np.asarray(water.positions)
    hydrogen = opml.Structure([1, 1], x[1:])
    dimer = opml.Structure(water.numbers * 2, np.concatenate([x, x + 6.0]))
    turned = opml.Structure(water.numbers, x[:, [1, 2, 0]])
    return [water, dimer, hydrogen, turned] * 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::opml_jax.errors.DataWarning")  # no such fragments in training
def test_a_list_of_mixed_sizes_compiles_once(model, mixed):
    before = _programs()
    predicted = model.predict(mixed)
    assert _programs() == before + 1
    for part in (mixed[:3], mixed[::-1], [mixed[0]] * 17):  # shapes that are there are taken
        again = model.predict(part)
    assert _programs() == before + 1
    assert again["energy"][0] == pytest.approx(predicted["energy"][0], abs=ROUNDING)
    for k in (0, 1, 2, 3):
        n = mixed[k].n_atoms
        for other in (k + 4, k + 16):
            np.testing.assert_allclose(
                predicted["energy"][other], predicted["energy"][k], atol=ROUNDING, rtol=0
            )
        alone = model.predict(mixed[k])
        assert alone["energy"] == pytest.approx(predicted["energy"][k], abs=ROUNDING)
        np.testing.assert_allclose(
            predicted["forces"][k, :n], alone["forces"], atol=ROUNDING, rtol=0
        )
        assert not predicted["forces"][k, n:].any()
    assert _programs() <= before + 3  # alone: water, and the dimer, which does not fit there


def test_work_decides_how_many_shapes(model, water):
    basis = model.definition.basis
    x = np.asarray(water.positions)
    many = [
        opml.Structure(water.numbers * k, np.concatenate([x + 6.0 * i for i in range(k)]))
        for k in (1, 2, 12)
    ]
    one = buckets(many, basis, each=COMPILING, chunk=1)
    assert [sorted(index.tolist()) for _, index in one] == [[0, 1, 2]]
    several = buckets(many[:2] * 2000 + many[2:], basis, each=COMPILING, chunk=16)
    assert len(several) > 1
    assert sorted(np.concatenate([index for _, index in several])) == list(range(4001))
    assert sum(b.pair_work * len(i) for b, i in several) < sum(b.pair_work * 4001 for b, _ in one)


@pytest.mark.slow
def test_quick_and_thorough_programs_agree(model, water):
    structures = opml.batch([water], model.definition.basis)
    arguments = (model.definition, model.params, structures, False)
    quick = energy._evaluate.for_work(0.0)(*arguments)
    # whatever XLA_FLAGS say here: what users get for much work
    full = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    lowered = energy._evaluate.for_work(np.inf).lower(*arguments)
    thorough = lowered.compile(compiler_options=full)(model.params, structures)
    for name, value in thorough.items():
        np.testing.assert_allclose(quick[name], value, atol=ROUNDING, rtol=0, err_msg=name)
