"""Readers and damaged files: a run of benchmarks/fuzz.py, and the damages that it found first."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import opml_jax as opml
from opml_jax.data import Dataset
from opml_jax.data.store import write_hdf5
from opml_jax.errors import DataError, ModelFileError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def test_readers_read_or_refuse():
    command = [sys.executable, str(SCRIPT), "--cases", "500"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["bad"] == []
    assert sum(found["ends"].values()) == 500
    assert len(found["ends"]) > 5  # refusals of many kinds, and files that are read


@pytest.fixture
def stored(tmp_path, water):
    path = tmp_path / "a.h5"
    write_hdf5(path, Dataset([water] * 3, {"energy": [-76.0, -76.1, -76.2]}, {"method": "hf"}))
    return path


def overwrite(path, at, value):
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("size", [0, 2**63, 100_000], ids=["none", "huge", "beyond"])
def test_a_heap_that_would_keep_hdf5_busy(stored, size):
    heap = stored.read_bytes().index(b"GCOL")
    overwrite(stored, heap + 16 + 8, size.to_bytes(8, "little"))
    with pytest.raises(DataError, match="unreadable"):
        opml.read_dataset(stored)


def test_a_flipped_bit_of_a_small_array_is_noticed(stored):
    with h5py.File(stored) as f:
        energy = f["labels/energy"][()].tobytes()
    at = stored.read_bytes().index(energy)
    overwrite(stored, at + 6, b"\x07")
    with pytest.raises(DataError, match="unreadable"):
        opml.read_dataset(stored)


def test_columns_without_end(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(f"1\nProperties=species:S:1:pos:R:3:x:R:{10**18}\nHe 0 0 0\n")
    with pytest.raises(DataError, match="columns"):
        opml.read_dataset(path)


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path, water):
    from opml_jax.features.couple import key_name
    from opml_jax.models import Op2Op, Op2OpConfig, Op2OpModel

    basis = opml.load_basis("sto-3g", [1, 8])
    definition = Op2Op(Op2OpConfig("sto-3g", words=("S", "W"), density_words=()), basis)
    x = definition.known_irreps(definition.operators(water), definition.table(water))
    guess = {
        key_name(k): {"weights": np.full((v.shape[-1], definition.n_outputs(k)), 0.123456789)}
        for k, v in x.items()
    }
    path = tmp_path / "m.safetensors"
    opml.save_model(path, Op2OpModel(definition, {"guess": guess}))
    assert opml.load_model(path).params["guess"].keys() == guess.keys()
    overwrite(path, path.read_bytes().index(np.float64(0.123456789).tobytes()) + 2, b"\x07")
    with pytest.raises(ModelFileError, match="checksum"):
        opml.load_model(path)
