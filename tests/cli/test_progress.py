"""Phases say what they are; nothing is silent for long, and ends of waits are estimated."""

import os
import subprocess
import sys
import time

import pytest

from opml_jax.cli import progress as module
from opml_jax.cli.progress import Progress, clock, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (100_000, "27 h 47 min"),
    ],
)
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words


def test_measured_times_have_seconds():
    assert [clock(x) for x in (5, 64, 3600)] == ["5 s", "1 min 04 s", "1 h 00 min"]


@pytest.fixture
def lines(monkeypatch, capsys):
    """What is printed, of phases that need not last."""
    monkeypatch.setattr(module, "SILENT", 0.0)
    monkeypatch.setattr(module, "HEARTBEAT", 0.1)
    printed = []

    def so_far():
        printed.extend(capsys.readouterr().err.splitlines())
        return printed

    return so_far


def _until(there):
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_phase_says_what_it_is_and_goes_on_saying_so(lines):
    with Progress("compiling", "usually a minute"):
        _until(lambda: len(lines()) > 2)
    found = lines()
    assert found[0].startswith("compiling: ")
    assert found[0].endswith("usually a minute")
    assert "so far" in found[1]
    assert "usually" not in found[1]
    assert found[-1].startswith("compiling: ")


def test_short_phases_are_not_worth_a_line(capsys):
    with Progress("reading"):
        pass
    assert capsys.readouterr().err == ""


def test_nothing_is_said_when_quiet_or_of_what_failed(lines):
    with Progress("reading", quiet=True) as progress:
        progress.say("nothing")
        time.sleep(0.5)
    with pytest.raises(ZeroDivisionError), Progress():
        raise ZeroDivisionError
    assert lines() == []


def test_the_end_is_estimated_after_three_items(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    progress = Progress(quiet=True)  # nobody looks at the clock but we
    for done in range(6):
        progress.report("labels", done, 100, "")
        words = progress._phases["labels"].words(now)
        assert ("left" in words) == (done >= 3)
        now += 60.0 if done else 1000.0  # the first one compiles
    assert words == "5/100, 1 h 35 min left"


def test_stages_within_stages(lines):
    """As families report: a stage, what it counts, a stage within, and the end."""
    with Progress() as progress:
        progress.report("closed form", 0, 1)
        progress.report("closed form", 0, 50, "compiling")
        _until(lambda: any("form: 0/50" in x and x.endswith("compiling") for x in lines()))
        progress.report("closed form", 50, 50)
        progress.report("fade", 0, 3)
        _until(lambda: any(x.startswith("fade: 0/3") for x in lines()))
        progress.report("fade", 3, 3)
        seen = len(lines())
        _until(lambda: any(x.startswith("closed form: ") for x in lines()[seen:]))
        progress.report("closed form", 1, 1, "lambda 1e-05")
    assert lines()[-1].startswith("closed form: ")
    assert lines()[-1].endswith("lambda 1e-05")


SLOW = """
import sys, time
from opml_jax.cli.progress import Progress
with Progress("compiling", "usually a minute"):
    print("printed", flush=True)
    time.sleep(3)
"""


def test_a_terminal_has_a_bar(tmp_path):
    """Standard error is a real terminal; what is printed to standard output stays there."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=slave, env=environment
    )
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert done.returncode == 0
    assert done.stdout == b"printed\n"
    assert "compiling" in shown
    assert "usually a minute" in shown
    assert "\x1b[" in shown  # drawn in place


ALARM = """
import os
from opml_jax.cli.main import main
if __name__ == "__main__":
    try:
        main(["predict", "--help"])
    except SystemExit:
        pass
    from opml_jax.data.workers import Workers
    with Workers(1) as workers:
        print(os.environ["TF_CPP_MIN_LOG_LEVEL"])
        print(workers.submit(os.getenv, "TF_CPP_MIN_LOG_LEVEL").result())
        import jax
        print(os.environ["TF_CPP_MIN_LOG_LEVEL"])
"""


def test_xla_has_no_alarm(tmp_path):
    """Its level is set before JAX is imported, which sets a louder one; workers inherit it."""
    (tmp_path / "run.py").write_text(ALARM)
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py"], capture_output=True, text=True, env=environment
    )
    assert done.stdout.splitlines()[-3:] == ["3", "3", "3"], done.stderr
