"""Benchmarks are run by hand: what they import is there, and what runs them knows their options."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
PEERS = {"featomic"}
"""What they compare with, and nothing else needs."""
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py"))


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if name in SCRIPTS:
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_they_can_be_imported(load, name):
    try:
        load(name)
    except ModuleNotFoundError as err:
        if err.name not in PEERS:
            raise
        pytest.skip(f"{err.name} is not installed")


def test_run_all_knows_their_options(load):
    """Each script that it starts is there, prints JSON, and has the options that it is given."""
    runs = load("run_all").RUNS
    for script, *arguments in runs.values():
        text = (FOLDER / script).read_text()
        silent = "Printer(args.json)" in text or "if args.json" in text  # else a table is printed
        assert "--json" in arguments or not silent, script
        for option in arguments:
            if option.startswith("--"):
                assert re.search(rf'"{option.rstrip("?")}"', text), (script, option)
