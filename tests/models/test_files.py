"""Model files: nothing lost, nothing executed, damage named."""

import dataclasses
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import opml_jax as opml
from opml_jax.models import files


@pytest.fixture
def path(model, tmp_path):
    """Of the model's file, in a folder of its own."""
    opml.save_model(tmp_path / "model.safetensors", model)
    return tmp_path / "model.safetensors"


def test_a_run_directory_is_a_model(path, tmp_path):
    assert opml.load_model(tmp_path).elements == (1, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_loading_needs_no_pyscf(path):
    code = (
        f"import sys, opml_jax; opml_jax.load_model({str(path)!r}); print('pyscf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_truncated_file(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ValueError, match=r"model\.safetensors must be"):
        opml.load_model(path)


def test_newer_format_names_its_version(path, monkeypatch):
    monkeypatch.setattr(files, "FORMAT_VERSION", files.FORMAT_VERSION - 1)
    with pytest.raises(ValueError, match=r"version 5.*written by opml_jax 0\.2\.0"):
        opml.load_model(path)


def test_what_single_precision_holds_is_written_in_it(model, tmp_path):
    """Exactly, and nothing else: half of a number of float64 and of one of float32."""
    third, eighth = np.full((2, 3), 1 / 3), np.full((2, 3), 1 / 8)
    own = {"third": third, "eighth": eighth, "huge": np.array(1e300), "none": np.array(np.nan)}
    params = {**model.params, "mine": own}
    opml.save_model(tmp_path / "own.safetensors", dataclasses.replace(model, params=params))
    tensors = load_file(tmp_path / "own.safetensors")
    of_mine = {k: v.dtype for k, v in tensors.items() if "mine" in k}
    assert of_mine == {
        "params/mine/third": np.float64,
        "params/mine/eighth.single": np.float32,
        "params/mine/huge": np.float64,
        "params/mine/none": np.float64,
    }
    read = opml.load_model(tmp_path / "own.safetensors").params
    for name, value in own.items():
        assert read["mine"][name].dtype == np.float64
        np.testing.assert_array_equal(read["mine"][name], value)
    del read["mine"]
    chex.assert_trees_all_equal_dtypes(jax.tree.map(np.asarray, model.params), read)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, model.params), read)


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"a": np.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="an opml_jax model"):
        opml.load_model(tmp_path / "x.safetensors")


def test_altered_basis_is_noticed(path):
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "numpy") as f:
        metadata = f.metadata()
    tensors["basis/8/0/0"] = tensors["basis/8/0/0"] * 1.01
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="checksum"):
        opml.load_model(path)
    del metadata["sha256"]  # as files of earlier versions
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="fingerprint"):
        opml.load_model(path)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="a model file or a run directory"):
        opml.load_model(tmp_path / "nothing")
