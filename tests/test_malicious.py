"""Files that try to run something or to reach out of themselves: none does, whatever its name.

Every file carries something that would leave a mark if it were run or followed. A reader may read
what is harmless in it or refuse it; the mark must not appear, and nothing outside be changed.
"""

import contextlib
import io
import itertools
import json
import os
import pickle
import sqlite3
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

import opml_jax as opml
from opml_jax.data import read_splits
from opml_jax.data.store import write_hdf5
from opml_jax.dynamics import Trajectory
from opml_jax.errors import OpmlError
from opml_jax.learn.history import read_history
from opml_jax.learn.states import load_state
from opml_jax.training import load_config

READERS = {
    "a.xyz": opml.read_dataset,
    "a.npz": opml.read_dataset,
    "a.h5": opml.read_dataset,
    "a.db": opml.read_dataset,
    "s.json": read_splits,
    "c.yaml": load_config,
    "m.safetensors": opml.load_model,
    "state.npz": lambda path: load_state(path, {"w": np.ones(3)}, "0"),
    "history.jsonl": read_history,
    "md.h5": Trajectory.read,
}
MARK = "ran"


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


def pickled(path):
    path.write_bytes(pickle.dumps({"nuclear_charges": Payload(), "coords": Payload()}))


def old_pickle(path):
    path.write_bytes(f"cos\nsystem\n(S'touch {MARK}'\ntR.".encode())


def objects(path):
    payload = np.array([Payload(), Payload()], dtype=object)
    with open(path, "wb") as f:
        np.savez(f, nuclear_charges=np.array([1, 1]), coords=payload, meta=payload, leaf_0=payload)


def pickle_in_a_zip(path):
    with zipfile.ZipFile(path, "w") as z:
        for name in ("coords.npy", "nuclear_charges.npy", "meta.npy", "leaf_0.npy", "data.pkl"):
            z.writestr(name, pickle.dumps(Payload()))


def climbing_zip(path):
    whole = io.BytesIO()
    np.save(whole, np.ones((1, 2, 3)))
    with zipfile.ZipFile(path, "w") as z:
        for name in ("../../ran.npy", "/tmp/ran.npy", "..\\ran.npy", "coords.npy"):
            z.writestr(name, whole.getvalue())


def bomb(path):
    """A kilobyte that claims a terabyte."""
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': "
    header += b"(40000000000, 3), }"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name in ("coords.npy", "nuclear_charges.npy", "meta.npy", "leaf_0.npy"):
            z.writestr(name, header.ljust(127) + b"\n" + bytes(10**6))


NPZ = (pickled, old_pickle, objects, pickle_in_a_zip, climbing_zip, bomb)


def yaml_object(tag):
    def make(path):
        path.write_text(f"data: !!python/{tag} ['touch {MARK}']\nseed: 1\n")

    return make


YAML = {
    "apply": yaml_object("object/apply:os.system"),
    "new": yaml_object("object/new:os.system"),
    "name": lambda path: path.write_text("data: !!python/name:os.system\n"),
    "module": lambda path: path.write_text("data: !!python/module:os\n"),
    "aliases": lambda path: path.write_text(
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
        )
    ),
    "path": lambda path: path.write_text("data: {path: ../../../../etc/passwd}\nmodel: {}\n"),
}


def stored(change):
    """A data set of this library with something changed."""

    def make(path):
        hydrogen = opml.Structure([1, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]])
        write_hdf5(path, opml.Dataset([hydrogen], {"energy": [-1.1]}))
        with h5py.File(path, "r+") as f:
            change(f, path)

    return make


def outer_link(f, path):
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["positions"] = f["positions"][()]
    del f["positions"]
    f["positions"] = h5py.ExternalLink("other.h5", "/positions")


def outer_group(f, path):
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["labels/energy"] = [-1.1]
    del f["labels"]
    f["labels"] = h5py.ExternalLink("other.h5", "/labels")


def outer_storage(f, path):
    path.with_name("raw").write_bytes(bytes(48))
    del f["positions"]
    f.create_dataset("positions", (2, 3), "f8", external=[(str(path.with_name("raw")), 0, 48)])


def virtual(f, path):
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["x"] = np.ones((2, 3))
    layout = h5py.VirtualLayout((2, 3), "f8")
    layout[:] = h5py.VirtualSource(str(path.with_name("other.h5")), "x", (2, 3))
    del f["positions"]
    f.create_virtual_dataset("positions", layout)


def endless(f, path):
    del f["positions"]
    f.create_dataset("positions", (10**12, 3), "f8", chunks=(1000, 3))


def pickle_in_meta(f, path):
    f.attrs["meta"] = np.void(pickle.dumps(Payload()))


def circle(f, path):
    del f["labels"]
    f["labels"] = f["/"]


HDF5 = (outer_link, outer_group, outer_storage, virtual, endless, pickle_in_meta, circle)


def query(*statements):
    """An SQLite file that does more than hold rows."""

    def make(path):
        with sqlite3.connect(path) as c:
            for statement in statements:
                c.execute(statement)
        c.close()

    return make


QH9 = "CREATE TABLE data (id INTEGER PRIMARY KEY, N INTEGER, Z BLOB, pos BLOB, Ham BLOB)"
SQLITE = {
    "trigger": query(
        QH9,
        "INSERT INTO data VALUES (0, 1, x'02', x'00', x'00')",
        "CREATE TRIGGER t AFTER INSERT ON data BEGIN DELETE FROM data; END",
    ),
    "view": query(
        "CREATE VIEW data AS SELECT 0 AS id, 1 AS N, load_extension('ran') AS Z, "
        "writefile('ran', 'x') AS pos, zeroblob(100) AS Ham"
    ),
    "endless view": query(
        "CREATE VIEW data AS WITH RECURSIVE n(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM n) "
        "SELECT id, 1 AS N, x'02' AS Z, zeroblob(24) AS pos, zeroblob(1) AS Ham FROM n"
    ),
    "large blob": query(QH9, "INSERT INTO data VALUES (0, 2147483647, x'02', x'00', x'00')"),
    "generated": query(
        "CREATE TABLE data (id INTEGER PRIMARY KEY, N INTEGER, Z BLOB, pos BLOB, "
        "Ham BLOB AS (zeroblob(1000000000)))",
        "INSERT INTO data (id, N, Z, pos) VALUES (0, 1, x'02', x'00')",
    ),
    "pickle": query(
        QH9, f"INSERT INTO data VALUES (0, 1, x'{pickle.dumps(Payload()).hex()}', 1, 1)"
    ),
}


def safetensors(**header):
    return lambda path: save_file({"x": np.ones(3)}, path, {k: str(v) for k, v in header.items()})


def overlapping(path):
    spans = {n: {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]} for n in "ab"}
    text = json.dumps(spans).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))


KIND = "__import__('os').system('touch ran')"
MODELS = {
    "pickle": pickled,
    "torch": pickle_in_a_zip,
    "kind": safetensors(format='"opml_jax model"', format_version=2, kind=json.dumps(KIND)),
    "header is code": safetensors(format=KIND),
    "deep": safetensors(format="[" * 100_000),
    "overlapping": overlapping,
}


def frame(comment):
    return lambda path: path.write_text(f"1\n{comment}\nHe 0 0 0\n")


XYZ = {
    "expression": frame(f'energy="{KIND}"'),
    "json": frame('info="_JSON {\\"__ase_objtype__\\": \\"cell\\", \\"array\\": 1}"'),
    "calculator": frame(f'calculator="{KIND}" energy=-1 Properties=species:S:1:pos:R:3'),
    "pickle": pickled,
    "columns": frame("Properties=species:S:1:pos:R:3:x:R:1000000000000"),
}
OTHERS = {
    "s.json": {"deep": lambda path: path.write_text('{"train": ' + "[" * 10**6), "pickle": pickled},
    "history.jsonl": {"pickle": old_pickle},
    "md.h5": {"pickle": pickled, "links": stored(outer_link)},
}
CASES = [
    *(("a.npz", make.__name__, make) for make in NPZ),
    *(("state.npz", make.__name__, make) for make in NPZ),
    *(("c.yaml", *own) for own in YAML.items()),
    *(("a.h5", make.__name__, stored(make)) for make in HDF5),
    *(("a.db", *own) for own in SQLITE.items()),
    *(("m.safetensors", *own) for own in MODELS.items()),
    *(("a.xyz", *own) for own in XYZ.items()),
    *((name, *own) for name, several in OTHERS.items() for own in several.items()),
]


def test_there_are_enough_of_them():
    assert len(CASES) >= 40


@pytest.mark.parametrize(("name", "what", "make"), CASES, ids=[f"{n}-{w}" for n, w, _ in CASES])
def test_nothing_runs_and_nothing_is_followed(tmp_path, monkeypatch, name, what, make):
    inside = tmp_path / "one" / "two"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    make(inside / name)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    refusals = ValueError if name == "history.jsonl" else OpmlError  # read after a whole state only
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(refusals):
        READERS[name](inside / name)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files
    assert not os.path.exists("/tmp/ran.npy")
