"""What ``--help`` says, what is meant by misspelled words, and what follows Ctrl-C."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from opml_jax.cli import main
from opml_jax.cli.main import COMMANDS, parser_of


def _parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _parsers(sub)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_default_and_choices_in_the_help(command):
    (sub,) = (a for a in parser_of(command)._actions if isinstance(a, argparse._SubParsersAction))
    for parser in _parsers(sub.choices[command]):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            formatter = parser._get_formatter()
            formatter.add_argument(action)
            text = " ".join(formatter.format_help().split())
            name = "/".join(action.option_strings) or action.dest
            assert action.help, f"{parser.prog} {name} has no help"
            for choice in action.choices or ():
                assert str(choice) in text, f"{parser.prog} {name} does not name {choice}"
            takes = action.option_strings and action.nargs != 0 and not action.required
            if takes and not isinstance(action, argparse._AppendAction):
                assert "default" in text, f"{parser.prog} {name} names no default"
            if isinstance(action.default, int | float) and action.nargs != 0:
                shown = re.search(r"default:? ([^)]*)", text)
                assert shown, f"{parser.prog} {name}"
                if action.default:
                    assert str(action.default) in shown[1], f"{parser.prog} {name}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "no command 'trian'. Did you mean 'train'?"),
        (["data", "chek", "x.h5"], "no action 'chek'. Did you mean 'check'?"),
        (["train", "c.yaml", "--outptu", "run"], "no option --outptu. Did you mean '--output'?"),
        (["md", "r", "s.xyz", "-o", "t.h5", "--step=4"], ""),  # an abbreviation is one
        (["predict", "r", "s", "-o", "o", "--length-unit", "angstom"], "Did you mean 'angstrom'?"),
        (["zzz"], "There are quickstart, generate, train"),
    ],
)
def test_did_you_mean(words, says, capsys):
    if not says:
        assert parser_of("md").parse_args(words).steps == 4
        return
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert says in error
    assert "[OPML-002]" in error


def test_the_package_is_a_program():
    found = [
        subprocess.run(
            [sys.executable, "-m", name, "--version"], capture_output=True, check=True
        ).stdout
        for name in ("opml_jax", "opml_jax.cli")
    ]
    assert found[0] == found[1]
    assert found[0].startswith(b"opml_jax ")


LONG = "20\n\n" + "".join(f"H 0 0 {0.74 * i + 0.6 * (i // 2)}\n" for i in range(20))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_sigint_of_the_parent_ends_its_workers(tmp_path):
    """Two real processes; the parent alone has the signal, while a worker calculates."""
    (tmp_path / "h.xyz").write_text(LONG)
    command = [sys.executable, "-m", "opml_jax", "generate", "h.xyz", "-o", "out.h5"]
    command += ["--method", "b3lyp", "--basis", "def2-qzvp", "--workers", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline, workers = time.monotonic() + 300, []
    while not workers:  # its own processes, and not the one that counts semaphores
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
        names = [c for t in _threads(process.pid) for c in _words(t)]
        workers = [n for n in names if b"spawn_main" in _bytes(f"/proc/{n}/cmdline")]
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "opml: interrupted; the same command goes on where it was" in error
    assert "Traceback" not in error
    for worker in workers:
        assert not os.path.exists(f"/proc/{worker}") or b"Z" in _bytes(f"/proc/{worker}/stat")


def _threads(pid):
    return [f"/proc/{pid}/task/{t}/children" for t in os.listdir(f"/proc/{pid}/task")]


def _bytes(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:  # it has ended meanwhile
        return b""


def _words(path):
    return _bytes(path).decode().split()
