"""Compiled programs and traces on disk: found again by the next process, never in the way."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import opml_jax as opml
from opml_jax import numerics, traces
from opml_jax.models.op2prop import Op2Prop
from opml_jax.programs import FORGOTTEN, program_cache

GOLDEN = Path(__file__).parent / "models/golden/op2prop_products.safetensors"

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
    {"folder": str(cache.folder), "size": cache.size[-1]} if cache.folder else {})}))
"""


SILENT = {"TF_CPP_MIN_LOG_LEVEL": "3"}
"""As of ``opml``: on some processors XLA doubts its own programs as it reads them, because of how
they were tuned (openxla/xla issue 44565), and runs them all the same."""

TRACES = """
import json, jax, numpy as np
jax.config.update("jax_enable_x64", True)
from opml_jax import numerics, programs
traced = []
def listen(name, _, fun_name="", **__):
    if name.endswith("jaxpr_to_mlir_module_duration") and fun_name == "jit(flat)":
        traced.append(fun_name)
jax.monitoring.register_event_duration_secs_listener(listen)
programs.keep_programs()
norm = programs.Program(numerics.safe_norm, static_argnums=(1,)).for_work(0.0)
x = np.arange(12.0).reshape(3, 4)
values = [norm(x, axis).tolist() for axis in (0, 1, -1)] + [norm(x[:2], 1).tolist()]
outside = programs.Program(lambda x: 2 * x).for_work(0.0)(x).tolist()
print(json.dumps({"traced": len(traced), "values": [*values, outside]}))
"""
"""A function of the package, with other static arguments and other shapes; and one from outside."""

PREDICTION = """
import json, sys, jax
jax.config.update("jax_enable_x64", True)
import opml_jax as opml
from opml_jax.models.op2prop.atomwise import AtomwiseDefinition
from opml_jax.programs import keep_programs
keep_programs()
traced, apply = [], AtomwiseDefinition.apply
def counted(*arguments):
    traced.append(arguments)
    return apply(*arguments)
AtomwiseDefinition.apply = counted
predicted = opml.load_model(sys.argv[1]).predict(opml.read_structures(sys.argv[2])[0])
print(json.dumps({"traced": len(traced), **{k: v.tolist() for k, v in predicted.items()}}))
"""


def _start(
    n: object = 1, largest: object = 10**8, script: str = WORK, **variables: object
) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | SILENT
    return subprocess.Popen(
        [sys.executable, "-c", script, str(largest), str(n)],
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
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | SILENT
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
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | SILENT
    env |= {"OPML_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.startswith(f"kept in {tmp_path}"), done.stderr
    assert done.stdout.endswith(" of at most 512 MiB\n")


def _traces(folder):
    return sorted(folder.glob("*/trace_*-cache"))


def test_the_next_process_does_not_trace_again(tmp_path):
    first, told = _end(_start(script=TRACES, OPML_CACHE=tmp_path))
    assert (first["traced"], told) == (4, "")  # -1 is another value than 1, as jit has it
    assert len(_traces(tmp_path)) == 4
    second, told = _end(_start(script=TRACES, OPML_CACHE=tmp_path))
    assert (second["traced"], told) == (0, "")
    norm, x = jax.jit(numerics.safe_norm, static_argnums=1), np.arange(12.0).reshape(3, 4)
    without = [norm(x, 0), norm(x, 1), norm(x, -1), norm(x[:2], 1), 2 * x]
    assert first["values"] == second["values"] == [of.tolist() for of in without]


def test_damaged_traces_are_made_anew_by_processes_at_once(tmp_path):
    first, _ = _end(_start(script=TRACES, OPML_CACHE=tmp_path))
    whole = [path.read_bytes() for path in _traces(tmp_path)]
    damaged = [whole[0][:100], b"", whole[2][:-1] + bytes([whole[2][-1] ^ 1]), whole[0]]
    damaged[3] = damaged[3].replace(b"\n", b"", 1)
    for path, content in zip(_traces(tmp_path), damaged, strict=True):
        path.write_bytes(content)
    both = [_start(script=TRACES, OPML_CACHE=tmp_path) for _ in range(2)]
    for again, told in map(_end, both):
        assert (again["values"], told) == (first["values"], "")
    assert [path.read_bytes() for path in _traces(tmp_path)] == whole
    assert not list(tmp_path.glob(f"*/*{traces.UNFINISHED}"))


def test_other_sources_and_settings_have_other_traces(tmp_path):
    shutil.copytree(Path(opml.__file__).parent, tmp_path / "changed" / "opml_jax")
    copied = {"OPML_CACHE": tmp_path / "kept", "PYTHONPATH": tmp_path / "changed"}
    copied["PYTHONSAFEPATH"] = "1"  # not the sources of the folder that tests run in
    assert _end(_start(script=TRACES, **copied))[0]["traced"] == 4
    setting = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    assert _end(_start(script=TRACES, **copied, **setting))[0]["traced"] == 4
    with open(tmp_path / "changed" / "opml_jax" / "numerics.py", "a") as file:
        file.write("# another\n")
    assert _end(_start(script=TRACES, **copied))[0]["traced"] == 4


def test_sources_that_were_edited_meanwhile_are_no_key(monkeypatch):
    traces._sources.__wrapped__()
    monkeypatch.setattr(traces, "_IMPORTED", 0.0)
    with pytest.raises(OSError, match="changed since this process began"):
        traces._sources.__wrapped__()


def test_only_what_is_the_same_everywhere_is_told_apart_by_a_text():
    paths = [p for p in GOLDEN.parent.glob("*.safetensors") if "removed" not in p.stem]
    once, again = ([opml.load_model(p).definition for p in paths] for _ in range(2))
    assert [*map(traces._text, once)] == [*map(traces._text, again)]
    assert len({traces._text(d) for d in once}) == len(set(once)) > 9
    texts = [
        traces._text(x) for x in (1, True, 1.0, "1", None, (1,), [1], {1: 1}, 0.1, 0.1 + 2e-17)
    ]
    assert len(set(texts)) == len(texts)

    class Outside(Op2Prop):
        """A family from outside, whose sources no hash holds."""

    definition = opml.load_model(GOLDEN).definition
    outside = Outside(definition.config, definition.basis)
    for value in (outside, object(), np.arange(3), len, (1, {"a": object()})):
        with pytest.raises(TypeError, match="in another process"):
            traces._text(value)


def test_functions_that_share_a_name_are_not_kept():
    """Two closures of one function, and what one function makes of another, are not the same."""

    def times(n):
        def of(x):
            return n * x

        of.__module__, of.__qualname__ = "opml_jax.numerics", "of"
        return of

    made = functools.wraps(numerics.safe_norm)(lambda x: x)
    for function in (times(2), times(3), made, functools.partial(numerics.safe_norm, axis=0)):
        assert traces.kept_trace(function, (), lambda: None) is function
    kept = traces.kept_trace(numerics.safe_norm, (), lambda: None)
    assert kept is not numerics.safe_norm


@pytest.mark.slow
def test_predictions_are_those_without_traces_bit_for_bit(tmp_path):
    water = tmp_path / "water.xyz"
    water.write_text("3\n\nO 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n")
    found = []
    for kept in ("off", tmp_path, tmp_path):
        process = _start(water, GOLDEN, script=PREDICTION, OPML_CACHE=kept)
        found.append(_end(process)[0])
    assert [of.pop("traced") for of in found] == [1, 1, 0]
    assert found[0] == found[1] == found[2]
