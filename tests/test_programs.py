"""Compiled programs on disk: found again by the next process, bounded, never in the way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opml_jax.programs import FORGOTTEN, program_cache

WORK = """
import json, sys, jax, jax.numpy as jnp
from opml_jax import programs
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.split("/")[-1]))
programs.LARGEST = int(sys.argv[1])
programs.QUICKEST = 0.0
programs.keep_programs()
programs.keep_programs()
for power in range(int(sys.argv[2])):
    def function(x):
        for k in range(20):
            x = jnp.sin(x) ** (2 + power % 2) + k * x
        return x
    jax.jit(function)(jnp.arange(3.0 + power))
cache = programs.program_cache()
print(json.dumps({"found": events.count("cache_hits"), "kept": programs.keeps(), **(
    {"folder": str(cache.folder), "size": cache.size[1]} if cache.folder else {})}))
"""


def _start(n: int = 1, largest: int = 10**8, **variables: object) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(largest), str(n)],
        env=env | {k: str(v) for k, v in variables.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: subprocess.Popen) -> tuple[dict, str]:
    out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return json.loads(out), told


def test_the_next_process_finds_what_was_compiled(tmp_path):
    first, told = _end(_start(XDG_CACHE_HOME=tmp_path))
    assert (first["found"], first["kept"], told) == (0, True, "")
    assert Path(first["folder"]).parent == tmp_path / "opml_jax" / "programs"
    assert Path(first["folder"]).stat().st_mode & 0o077 == 0  # machine code: nobody else's
    second, told = _end(_start(XDG_CACHE_HOME=tmp_path))
    assert (second["found"] > 0, second["size"], told) == (True, first["size"], "")


def test_processes_at_once_and_damaged_programs(tmp_path):
    both = [_start(3, OPML_CACHE=tmp_path) for _ in range(2)]
    results = [_end(process) for process in both]
    assert [told for _, told in results] == ["", ""]
    for path in tmp_path.glob("*/*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    again, told = _end(_start(3, OPML_CACHE=tmp_path))
    assert (again["found"], told) == (0, "")


def test_no_more_than_the_largest_size_is_kept(tmp_path):
    first, _ = _end(_start(1, OPML_CACHE=tmp_path))
    many, told = _end(_start(6, 2 * first["size"], OPML_CACHE=tmp_path))
    assert first["size"] <= many["size"] <= 2 * first["size"]
    assert told == ""


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "file").touch()
    result, told = _end(_start(OPML_CACHE=tmp_path / "file" / "below"))
    assert not result["kept"]
    assert told.count("CacheWarning") == 1
    assert "Set OPML_CACHE" in told


@pytest.mark.parametrize("word", ["off", "OFF", "0"])
def test_one_variable_turns_it_off(tmp_path, word):
    result, told = _end(
        _start(OPML_CACHE=word, JAX_COMPILATION_CACHE_DIR=tmp_path, XDG_CACHE_HOME=tmp_path)
    )
    assert result == {"found": 0, "kept": False}
    assert told == ""
    assert not any(tmp_path.iterdir())


def test_what_was_said_to_jax_is_left_alone(tmp_path):
    result, _ = _end(_start(JAX_COMPILATION_CACHE_DIR=tmp_path / "jax", OPML_CACHE=tmp_path))
    assert result["kept"]
    assert result["folder"] == str(tmp_path / "jax")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["jax"])


def test_halves_and_forgotten_processors_are_deleted(tmp_path):
    folder = Path(_end(_start(OPML_CACHE=tmp_path))[0]["folder"])
    half, old = folder / "jit_f-1-cache", tmp_path / "x86_64-0-jaxlib-0.1"
    half.write_bytes(b"half of a program")
    old.mkdir()
    (old / "jit_f-2-cache").write_bytes(b"of an older jaxlib")
    young = tmp_path / "x86_64-1-jaxlib-0.1"
    young.mkdir()
    os.utime(half, (time.time() - 100,) * 2)
    os.utime(old, (time.time() - FORGOTTEN - 100,) * 2)
    assert _end(_start(OPML_CACHE=tmp_path))[0]["found"] > 0
    assert (half.exists(), old.exists(), young.exists()) == (False, False, True)


def test_importing_the_library_keeps_nothing(tmp_path):
    script = """
import jax, opml_jax
from opml_jax import models
from opml_jax.programs import keeps
jax.jit(lambda x: x + 1)(1.0)
assert not keeps()
"""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not any(tmp_path.iterdir())


def test_doctor_and_the_flag(tmp_path):
    assert program_cache().reason == "JAX_COMPILATION_CACHE_DIR"  # of these tests
    script = """
import sys
from opml_jax.cli.main import parser_of
from opml_jax.cli import doctor, runs
runs.enable_x64()
print(doctor._programs())
"""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"OPML_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.startswith(f"kept in {tmp_path}"), done.stderr
    assert done.stdout.endswith(" of at most 512 MiB\n")
