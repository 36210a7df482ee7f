"""Labels of several files: merged, and every byte of them verified."""

import json

import numpy as np
import pytest

import opml_jax as opml
from opml_jax.cli import main
from opml_jax.data import Dataset
from opml_jax.data import generate as module
from opml_jax.data.generate import generate
from opml_jax.data.reference import Method
from opml_jax.data.shards import merge
from opml_jax.data.store import write_hdf5
from opml_jax.errors import ConventionError, DataError

HF = Method("hf", "sto-3g")


@pytest.fixture(scope="module")
def water():
    return opml.read_dataset(opml.bundled("water")).structures[:5]


@pytest.fixture
def pair(tmp_path, water):
    """Two files of one list cut in two, which share a geometry."""
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for file, part in zip(files, (water[:3], water[2:]), strict=True):
        generate(part, file, HF, extra_meta={"source": file.stem})
    return files


def _check_same(found, expected):
    assert [s.numbers for s in found] == [s.numbers for s in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


def test_merged_files_are_one_run(pair, water, tmp_path, capsys):
    whole = tmp_path / "all.h5"
    assert not main(["data", "merge", *map(str, pair), "-o", str(whole)])
    assert "5 structures of 2 files, 1 repeated geometry left out" in capsys.readouterr().out
    generate(water, tmp_path / "one.h5", HF)
    found, expected = (opml.read_dataset(tmp_path / name) for name in ("all.h5", "one.h5"))
    _check_same(found.structures, expected.structures)
    assert found.layout_hashes == expected.layout_hashes
    assert found.meta == {**expected.meta, "source": "a, b"}
    for name, values in expected.labels.items():
        for one, other in zip(found.labels[name], values, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-8)  # SCF converges to 1e-10 Hartree
    # a merged file is a finished run
    assert generate(water, whole, HF).found == 5


def test_a_file_may_be_merged_into_itself(pair):
    assert not main(["data", "merge", *map(str, pair), "-o", str(pair[0])])
    assert len(opml.read_dataset(pair[0])) == 5


def test_another_level_of_theory_is_refused(pair, water, tmp_path, capsys):
    generate(water[4:], tmp_path / "c.h5", Method("hf", "6-31g"))
    command = ["data", "merge", str(pair[0]), str(tmp_path / "c.h5"), "-o", f"{tmp_path}/out.h5"]
    assert main(command) == 2
    assert "level of theory of" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert not (tmp_path / "out.h5").exists()


def _renamed(file, target, **meta):
    """The same labels with other meta data; what is None there is not stated."""
    data = opml.read_dataset(file)
    meta = {k: v for k, v in {**data.meta, **meta}.items() if v is not None}
    write_hdf5(target, Dataset(data.structures, data.labels, meta, data.layout_hashes))
    return target


def test_functionals_are_merged_by_their_meaning(pair, tmp_path):
    """Labels of QH9 are B3LYP with VWN5: not what PySCF calls b3lyp since 2.3."""
    a, b, out = (tmp_path / name for name in ("x.h5", "y.h5", "out.h5"))
    new, old = {"method": "B3LYP", "pyscf_version": "2.14.0"}, {"pyscf_version": "2.2.1"}
    qh9 = {"method": "b3lyp5", "pyscf_version": None}
    _renamed(pair[0], a, **new)
    for other in (qh9, {**new, **old}):
        _renamed(pair[1], b, **other)
        with pytest.raises(ConventionError, match="got method"):
            merge([a, b], out)
    for other in ({**new, "pyscf_version": "2.9.0"}, {**qh9, "method": "b3lypg"}):
        _renamed(pair[1], b, **other)
        merge([a, b], out)
        assert opml.read_dataset(out).meta["method"] == "b3lypg"  # whatever PySCF reads it
    _renamed(pair[0], a, **qh9)
    _renamed(pair[1], b, **{**new, **old})
    merge([a, b], out)
    assert opml.read_dataset(out).meta["method"] == "b3lyp5"


def test_a_basis_is_compared_where_no_method_is_stated(pair, tmp_path):
    a = _renamed(pair[0], tmp_path / "x.h5", method=None)
    b = _renamed(pair[1], tmp_path / "y.h5", method=None, basis="def2-svp")
    with pytest.raises(ConventionError, match="got basis def2-svp"):
        merge([a, b], tmp_path / "out.h5")


def test_other_labels_are_refused(pair, tmp_path):
    data = opml.read_dataset(pair[1])
    fewer = Dataset(data.structures, {"energy": data.labels["energy"]}, data.meta)
    write_hdf5(tmp_path / "fewer.h5", fewer)
    with pytest.raises(DataError, match=r"labels of .*fewer\.h5 .*opml data pack"):
        merge([pair[0], tmp_path / "fewer.h5"], tmp_path / "out.h5")
    bare = Dataset(data.structures, data.labels, {"basis": "sto-3g"}, data.layout_hashes)
    write_hdf5(tmp_path / "bare.h5", bare)
    with pytest.raises(ConventionError, match="level of theory"):
        merge([pair[0], tmp_path / "bare.h5"], tmp_path / "out.h5")


def test_whole_files_are_verified(pair, capsys):
    assert not main(["data", "verify", *map(str, pair)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "3 structures with 10 labels each, all checksums are right"
    ] * 2


def test_every_flipped_bit_is_found(pair, capsys):
    """Of labels and of what describes them, at many places; bytes that nothing uses may pass."""
    intact, rng, passed = pair[0].read_bytes(), np.random.default_rng(0), 0
    expected = opml.read_dataset(pair[0])
    for case, at in enumerate(rng.integers(0, len(intact), 150)):
        damaged = bytearray(intact)
        damaged[at] ^= 1 << int(rng.integers(8))
        file = pair[0].with_name(f"{case}.h5")  # HDF5 remembers what it has read of a file
        file.write_bytes(damaged)
        if main(["data", "verify", str(file)]) == 0:
            passed += 1
            found = opml.read_dataset(file)
            _check_same(found.structures, expected.structures)
            for name, values in expected.labels.items():
                np.testing.assert_array_equal(np.array(found[name]), np.array(values))
    capsys.readouterr()
    assert passed < 100


def test_parts_of_a_run_are_verified(tmp_path, water, capsys, monkeypatch):
    """Those of a run that has not come to its end."""

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_hdf5", killed)
    with pytest.raises(KeyboardInterrupt):
        generate(water, tmp_path / "out.h5", HF)
    parts = tmp_path / "out.h5.parts"
    assert not main(["data", "verify", str(parts)])
    assert "5 structures with 10 labels each" in capsys.readouterr().out
    # the same names as the manifest's, one of them lost
    names = json.loads((parts / "manifest.json").read_text())["geometries"]
    assert {p.stem for p in parts.glob("*.npz")} == set(names)
    (parts / f"{names[0]}.npz").unlink()
    assert not main(["data", "verify", str(parts)])
    assert "4 of 5 structures with 10 labels each" in capsys.readouterr().out
    one = sorted(parts.glob("*.npz"))[2]
    damaged = bytearray(one.read_bytes())
    with np.load(one) as f:
        damaged[damaged.index(f["fock"].tobytes()) + 11] ^= 1
    one.write_bytes(damaged)
    assert main(["data", "verify", str(parts)]) == 2
    error = capsys.readouterr().err
    assert f"1 damaged files of 4 ({one.name}" in error
    assert "opml generate calculates them again" in error


def test_a_damaged_manifest_is_said(tmp_path, water, capsys, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_hdf5", killed)
    with pytest.raises(KeyboardInterrupt):
        generate(water[:1], tmp_path / "out.h5", HF)
    (tmp_path / "out.h5.parts" / "manifest.json").write_text("{")
    assert main(["data", "verify", str(tmp_path / "out.h5.parts")]) == 2
    assert "manifest.json must be JSON" in capsys.readouterr().err
    monkeypatch.undo()
    assert generate(water[:1], tmp_path / "out.h5", HF).found == 1


def test_a_folder_without_labels_is_refused(tmp_path, capsys):
    assert main(["data", "verify", str(tmp_path)]) == 2
    assert "no finished label" in capsys.readouterr().err
