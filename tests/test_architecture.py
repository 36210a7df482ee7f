"""The import rule of ARCHITECTURE.md, held against every module of the package."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import opml_jax

ROOT = Path(opml_jax.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 600

FLOORS = {
    "units": 0,
    "errors": 0,
    "numerics": 1,
    "lapack": 2,
    "structures": 2,
    "conventions": 2,
    "basis": 3,
    "integrals": 4,
    "data": 4,
    "operators": 5,
    "features": 6,
    "density": 6,
    "models": 7,
    "observables": 6,  # below models, which read density matrices
    "testing": 7.5,  # may use everything up to floor 7
    "training": 8,
    "dynamics": 8,
    "interfaces": 9,
    "report": 9,
    "analysis": 9,
    "cli": 10,  # stands beside interfaces, and may use the report
}
FACE = ""  # the room of opml_jax/__init__.py
NOBODY_IMPORTS = {"testing"}
MAY_BE_HEAVY = {"analysis", "dynamics", "interfaces", "testing", "training"}  # at first use
LAZY = ("pyscf", "pyscfad", "ase", "jax_md", "matplotlib", "flax.nnx")
DOORS = {"interfaces/ase.py": "ase"}  # subclasses a class of it, and is imported on first use only


def _name(path: Path) -> tuple[str, ...]:
    """Dotted name below the package, as a tuple; the package itself is ()."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _room(path: Path) -> str:
    return (*_name(path), FACE)[0]


def _imports(nodes, path: Path):
    """Full dotted names of everything imported by some syntax nodes of a module."""
    package = _name(path) if path.name == "__init__.py" else _name(path)[:-1]
    package = ("opml_jax", *package)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _rooms_imported(path: Path) -> set[str]:
    names = _imports(ast.walk(ast.parse(path.read_text())), path)
    parts = (name.split(".") for name in names)
    return {p[1] if p[1] in FLOORS else FACE for p in parts if p[0] == "opml_jax" and len(p) > 1}


def _at_import_time(node):
    """Syntax nodes that run when the module is imported: not functions, not TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import_time(child)


def _violations(path: Path) -> list[str]:
    room = _room(path)
    if room == FACE:
        return []
    floor, out = FLOORS[room], []
    for other in _rooms_imported(path) - {room}:
        if other == FACE or FLOORS[other] >= floor or other in NOBODY_IMPORTS:
            out.append(f"{room} imports {other or 'the public face'}")
    return out


def _eager(path: Path) -> list[str]:
    names = _imports(_at_import_time(ast.parse(path.read_text())), path)
    lazy = set(LAZY) - {DOORS.get(path.relative_to(ROOT).as_posix())}
    return [n for n in names if any(n == m or n.startswith(m + ".") for m in lazy)]


by_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())


@by_module
def test_every_module_is_in_a_room(path):
    assert _room(path) in FLOORS or _room(path) == FACE


@by_module
def test_rooms_import_only_from_floors_below(path):
    assert _violations(path) == []


@by_module
def test_heavy_packages_are_imported_inside_functions(path):
    assert _eager(path) == []


@by_module
def test_modules_are_short_and_say_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    if not path.stem.startswith("_") or path.stem == "__init__":
        assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize(
    ("where", "source", "caught"),
    [
        ("basis/x.py", "from ..structures import Structure", False),
        ("basis/x.py", "from .layout import batch", False),
        ("basis/x.py", "from ..integrals import overlap", True),
        ("basis/x.py", "def f():\n    from .. import integrals", True),
        ("basis/x.py", "import opml_jax.data.store", True),
        ("basis/x.py", "from .. import load_basis", True),
        ("data/x.py", "from ..integrals import overlap", True),
        ("models/x.py", "from ..testing import assert_equivariant", True),
        ("training/x.py", "from .. import testing", True),
        ("testing.py", "from .models import linear", False),
        ("testing.py", "from .training import loop", True),
        ("cli/x.py", "from ..report import html", False),
        ("cli/x.py", "from ..interfaces.ase import structure_to_ase", False),
        ("interfaces/x.py", "from ..report import html", True),
    ],
)
def test_the_rule_catches_what_it_should(tmp_path, monkeypatch, where, source, caught):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert bool(_violations(path)) == caught


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import pyscf", True),
        ("from flax import nnx", True),
        ("try:\n    import ase.io\nexcept ImportError:\n    ase = None", True),
        ("class A:\n    import matplotlib.pyplot", True),
        ("import flax.linen", False),
        ("def f():\n    import pyscf", False),
        ("if TYPE_CHECKING:\n    import pyscf", False),
    ],
)
def test_the_lazy_rule_catches_what_it_should(tmp_path, monkeypatch, source, caught):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "units.py"
    path.write_text(source)
    assert bool(_eager(path)) == caught


def test_importing_the_package_has_no_side_effects():
    script = f"""
import sys
import jax
config = dict(jax.config.values)
import opml_jax

for name in dir(opml_jax):
    if name not in {MAY_BE_HEAVY}:
        getattr(opml_jax, name)
assert [m for m in {LAZY} if m in sys.modules] == []
assert {{k: jax.config.values[k] for k in config}} == config
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_face_shows_editors_what_it_has():
    """Names load on first use; the imports that type checkers read must be the same."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    shown = [n for node in tree.body if isinstance(node, ast.If) for n in node.body]
    shown = {alias.name: n.module for n in shown for alias in n.names}
    assert shown == {room: None for room in opml_jax._ROOMS} | opml_jax._HOME
    for name, room in opml_jax._HOME.items():
        assert getattr(opml_jax, name) is getattr(importlib.import_module(f"opml_jax.{room}"), name)
    assert {*shown, "__version__"} <= {*dir(opml_jax)}
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        opml_jax.colour  # noqa: B018


def test_the_command_line_does_not_wait_for_jax():
    script = """
import sys
from opml_jax.cli import main
try:
    main(["--help"])
except SystemExit:
    assert "jax" not in sys.modules and "numpy" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
