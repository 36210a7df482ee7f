"""Model files: nothing lost, nothing executed, damage named."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import opml_jax as opml
from opml_jax.models import files


def test_round_trip_is_exact(model, water, tmp_path):
    path = tmp_path / "model.safetensors"
    opml.save_model(path, model)
    again = opml.load_model(path)
    assert again.definition == model.definition
    assert again.card == json.loads(json.dumps(model.card))
    before, after = model.predict(water), again.predict(water)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_run_directory_is_a_model(model, tmp_path):
    opml.save_model(tmp_path / "model.safetensors", model)
    assert opml.load_model(tmp_path).elements == (1, 8)


def test_loading_needs_no_pyscf(model, tmp_path):
    path = tmp_path / "model.safetensors"
    opml.save_model(path, model)
    code = (
        f"import sys, opml_jax; opml_jax.load_model({str(path)!r}); print('pyscf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_truncated_file(model, tmp_path, keep):
    path = tmp_path / "model.safetensors"
    opml.save_model(path, model)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ValueError, match=r"model\.safetensors must be"):
        opml.load_model(path)


def test_newer_format_names_its_version(model, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    opml.save_model(path, model)
    monkeypatch.setattr(files, "FORMAT_VERSION", files.FORMAT_VERSION - 1)
    with pytest.raises(ValueError, match=r"version 3.*written by opml_jax 0\.2\.0"):
        opml.load_model(path)


def test_another_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="an opml_jax model"):
        opml.load_model(path)


def test_altered_basis_is_noticed(model, tmp_path):
    path = tmp_path / "model.safetensors"
    opml.save_model(path, model)
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
