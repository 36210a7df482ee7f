"""Out of memory: a real limit on a real process, and what is said or done about it."""

import json
import subprocess
import sys

import pytest

from opml_jax.learn.chunks import in_chunks

SCRIPT = """
import json, resource, warnings
from pathlib import Path
import jax
import jax.numpy as jnp
from opml_jax.errors import OpmlError
from opml_jax.learn.chunks import in_chunks
from opml_jax.learn.config import DescentConfig
from opml_jax.learn.optimizer import room_for_batches

MIB = 2**18  # float32 numbers
text = Path("/proc/self/status").read_text()
now = int(text.split("VmSize:")[1].split()[0]) * 2**10
resource.setrlimit(resource.RLIMIT_AS, (now + 2 * 2**30, resource.RLIM_INFINITY))


def do(size_mib, n):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = in_chunks(lambda size: jnp.ones(size * size_mib * MIB).nbytes, n, (1, 16))
        except OpmlError as err:
            found = str(err)
    return found, [str(w.message) for w in caught]


out = {"few": do(10, 16), "less": do(512, 16), "none": do(8192, 16), "one": do(8192, 1)}
try:
    with room_for_batches(DescentConfig(batch_size=16, accumulate=2)):
        jnp.ones(4096 * MIB).block_until_ready()
except OpmlError as err:
    out["training"] = str(err)
print(json.dumps(out))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux'")
def test_less_at_once_or_what_it_takes():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    out = json.loads(found.stdout.splitlines()[-1])
    assert out["few"] == [160 * 2**20, []]
    found, warned = out["less"]
    assert found == 512 * 2**20
    assert len(warned) == 1
    assert "16 structures at once ask for 8.0 GiB, which memory lacks: going on with 1" in warned[0]
    error, warned = out["none"]
    assert len(warned) == 1
    for text in (error, out["one"][0]):
        assert "a single structure asks for 8.0 GiB at once" in text
        assert text.endswith("[OPML-704]")
    assert "an epoch asks for 4.0 GiB at once" in out["training"]
    assert "fit.batch_size 8 and fit.accumulate 4" in out["training"]


def test_other_errors_pass():
    def fails(size):
        raise ValueError(size)

    with pytest.raises(ValueError, match="8"):
        in_chunks(fails, 3, (1, 8))
