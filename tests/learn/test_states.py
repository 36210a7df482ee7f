"""What a killed run goes on from: states, history, and arrays that outlive the process."""

import os
import sys
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import pytest

from opml_jax.errors import ModelFileError, OpmlError
from opml_jax.learn import rows as module
from opml_jax.learn.history import History, read_history
from opml_jax.learn.rows import Rows
from opml_jax.learn.run import Run
from opml_jax.learn.states import fingerprint, forget, load_state, save_state

Moments = namedtuple("Moments", "mean count")
STATE = "network.npz"


@pytest.fixture
def state():
    return {"w": jnp.arange(6.0).reshape(2, 3) / 7, "o": Moments(np.float32(0.1), jnp.int32(4))}


def test_a_state_comes_back_bit_for_bit(tmp_path, state):
    path = tmp_path / STATE
    assert load_state(path, state, "a") is None
    meta = {"fingerprint": "a", "history": [{"loss": 0.1 + 0.2}]}
    save_state(path, state, meta)
    found, facts = load_state(path, state, "a")
    assert facts == meta
    assert isinstance(found["o"], Moments)
    for a, b in ((found["w"], state["w"]), (found["o"].mean, state["o"].mean)):
        np.testing.assert_array_equal(a, b, strict=True)
    assert os.listdir(tmp_path) == [STATE]


@pytest.mark.parametrize(
    ("damage", "source", "says"),
    [
        (None, "b", "another configuration or data set"),
        (b"", "a", "unreadable"),
        (b"PK\x03\x04 not a zip", "a", "unreadable"),
    ],
)
def test_a_state_that_cannot_be_used_is_refused(tmp_path, state, damage, source, says):
    path = tmp_path / STATE
    save_state(path, state, {"fingerprint": "a"})
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(ModelFileError, match=f"{says}.*Delete it"):
        load_state(path, state, source)


def test_a_state_of_other_shapes_is_refused(tmp_path, state):
    save_state(tmp_path / STATE, state, {"fingerprint": "a"})
    with pytest.raises(ModelFileError, match="another configuration"):
        load_state(tmp_path / STATE, {**state, "w": jnp.zeros(6)}, "a")


def test_fingerprints_see_everything(water, molecules):
    moved = water.replace(positions=np.asarray(water.positions) + 1e-12)
    found = [
        fingerprint(settings, structures, labels)
        for settings in ({}, {"seed": 1}, {"a": {"b": [1, 2]}})
        for structures in ([water], [moved], [molecules["hydrogen_sulfide"]], [water, water])
        for labels in ((), [np.zeros(3)], [np.full(3, 1e-12)])
    ]
    assert len(set(found)) == len(found)
    assert fingerprint({"a": 1, "b": 2}, [water]) == fingerprint({"b": 2, "a": 1}, [water])


def test_history_goes_on_where_a_killed_run_was(tmp_path):
    path = tmp_path / "history.jsonl"
    first = History(path)
    for epoch in (1, 2, 3):
        first.append({"epoch": epoch, "loss": 1.0})
        assert len(read_history(path)) == epoch
    with open(path, "a") as f:
        f.write('{"epoch": 4, "lo')  # killed while it wrote
    second = History(path)  # its state is that of epoch 2
    for epoch in (3, 4):
        second.append({"epoch": epoch, "loss": 2.0})
    assert [(r["epoch"], r["loss"]) for r in read_history(path)] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def _scalars(folder):
    """``{(name, epoch): value}`` of TensorBoard's event files, those purged left out."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = {}
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # records: length, its checksum, the event, its checksum
            n = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + n]), data[16 + n :]
            if event.session_log.status == SessionLog.START:
                found = {k: v for k, v in found.items() if k[1] < event.step}
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    return found


def test_history_for_tensorboard(tmp_path):
    path = tmp_path / "history.jsonl"
    first = History(path, tensorboard=True)
    for epoch in (1, 2, 3):
        first.append({"epoch": epoch, "loss": 1.0, "validation_loss": 3.0})
    second = History(path, tensorboard=True)
    second.append({"epoch": 3, "loss": 2.0, "validation_loss": 4.0})
    losses = {("loss", 1): 1.0, ("loss", 2): 1.0, ("loss", 3): 2.0}
    validation = {(f"validation_{k}", n): 3.0 if n < 3 else 4.0 for k, n in losses}
    assert _scalars(tmp_path / "tensorboard") == losses | validation


def test_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(OpmlError, match=r"(?i)pip install .tensorboardX>=.*extra tensorboard"):
        History(tmp_path / "history.jsonl", tensorboard=True)


def _fill(rows, upto):
    while rows.done < upto:
        own = np.arange(rows.done, min(rows.done + 2, rows.n), dtype=np.float64)
        rows.append({"x": own[:, None] * np.ones(3), "dx": own.astype(np.float32)})


@pytest.mark.parametrize("where", ["memory", "disk", "little memory"])
def test_rows(tmp_path, monkeypatch, where):
    if where == "little memory":
        monkeypatch.setattr(module, "MAX_MEMORY", 16)
    rows = Rows(5, tmp_path / "rows" if where == "disk" else None)
    _fill(rows, 5)
    found = rows.arrays()
    np.testing.assert_array_equal(found["x"], np.arange(5)[:, None] * np.ones(3))
    np.testing.assert_array_equal(found["dx"], np.arange(5, dtype=np.float32), strict=True)
    assert isinstance(found["x"], np.memmap) == (where == "little memory")


def test_rows_outlive_a_process(tmp_path, monkeypatch):
    folder = Run(folder=tmp_path).path("structures")
    _fill(Rows(5, folder, "a"), 4)
    assert Rows(5, folder, "a").done == 2  # the second write came too soon after the first
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    _fill(Rows(5, folder, "a"), 4)
    again = Rows(5, folder, "a")
    assert again.done == 4
    _fill(again, 5)
    np.testing.assert_array_equal(Rows(5, folder, "a").arrays()["dx"], np.arange(5))
    assert Rows(5, folder, "b").done == 0  # of something else
    assert not folder.exists()
    _fill(Rows(5, folder, "a"), 2)
    (folder / "rows.json").unlink()  # killed before the first rows were complete
    assert Rows(5, folder, "a").done == 0
    forget(tmp_path)
    assert os.listdir(tmp_path) == []


def test_rows_stay_in_memory_where_the_disk_is_full(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(free=100))
    rows = Rows(5, tmp_path / "rows", "a")
    _fill(rows, 5)
    assert len(rows.arrays()["x"]) == 5
    assert os.listdir(tmp_path / "rows") == []
