"""The import rule of ARCHITECTURE.md, held against every module of the package."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import opml_jax

ROOT = Path(opml_jax.__file__).parent
GOLDEN = Path(__file__).parent / "models/golden/op2prop_products.safetensors"
MODULES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 600

FLOORS = {
    "units": 0,
    "errors": 0,
    "traces": 0,
    "quantities": 1,
    "numerics": 1,
    "irreps": 1,
    "programs": 1,
    "lapack": 2,
    "structures": 2,
    "conventions": 2,
    "basis": 3,
    "integrals": 4,
    "figures": 4,
    "data": 4,
    "operators": 5,
    "features": 6,
    "density": 6,
    "observables": 6,  # below models, which read density matrices
    "learn": 7,
    "mean_field": 7,
    "models": 8,
    "testing": 8.5,  # may use everything up to models
    "training": 9,
    "dynamics": 9,
    "interfaces": 10,
    "report": 10,
    "analysis": 10,
    "__main__": 12,
    "cli": 11,  # stands beside interfaces, and may use the report
}
IN_MODELS = {
    "base": 0,
    "family": 1,
    "op2prop": 2,
    "op2op": 2,
    "op2density": 2,
    "functional": 2,
    "density2prop": 3,
    "files": 2,
}
"""Floors inside models: families stand side by side; one stands on two others."""
IN_A_FAMILY = {
    **{name: 0 for name in ("config", "legacy")},
    **{name: 1 for name in ("functions", "network", "templates", "model")},
    "family": 9,
}
"""Floors inside a family's folder, of the files that every family may have: inference below, then
the family, which alone knows the fit, and that only when it is called."""
FACE = ""  # the room of opml_jax/__init__.py
NOBODY_IMPORTS = {"testing"}
MAY_BE_HEAVY = {"analysis", "dynamics", "interfaces", "testing", "training"}  # at first use
LAZY = ("pyscf", "pyscfad", "ase", "jax_md", "matplotlib", "flax.nnx")
DOORS = {"interfaces/ase.py": "ase"}  # subclasses a class of it, and is imported on first use only
ROOMS_OF_MODELS = ("models", "learn", "training", "report")
MOST_LINES = 400
"""Of files in these rooms; of all others :data:`MAX_LINES`."""
LONGEST = 80
"""Lines of a function there."""


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
    assert len(text.splitlines()) <= (MOST_LINES if _room(path) in ROOMS_OF_MODELS else MAX_LINES)
    if not path.stem.startswith("_") or path.stem == "__init__":
        assert ast.get_docstring(ast.parse(text))


def _models_imported(path: Path) -> set[tuple[str, ...]]:
    """Names inside models, ``("op2op", "fit")``, that a module of models imports at its top."""
    names = _imports(_at_import_time(ast.parse(path.read_text())), path)
    parts = (name.split(".")[1:] for name in names if name.startswith("opml_jax.models."))
    return {tuple(p[1:]) for p in parts}


MODELS = [p for p in MODULES if _room(p) == "models" and p != ROOT / "models/__init__.py"]


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_families_stand_side_by_side(path):
    """Of a family only what is above it, or of it, knows it."""
    part = _name(path)[1]
    for other, *_ in _models_imported(path):
        assert other == part or IN_MODELS[other] < IN_MODELS[part], f"{part} imports {other}"


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_inference_is_light(path):
    """What predicts does not import what trains, and a family imports its fit when it is called."""
    family, *rest = _name(path)[1:]
    if IN_MODELS[family] not in (2, 3) or not rest or rest[0] not in IN_A_FAMILY:
        return
    for other, *names in _models_imported(path):
        if other == family and names:
            assert not names[0].startswith("fit"), f"{rest[0]} imports {names[0]}"
            if names[0] in IN_A_FAMILY and rest[0] != names[0]:
                assert IN_A_FAMILY[names[0]] <= IN_A_FAMILY[rest[0]]


KINDS = re.compile(
    r"(Op2Prop|Op2Op|Op2Density|Density2Prop|Energy|Operator|Density)?"
    r"(Definition|Model)$|^(Op2Prop|Op2Op|Op2Density|Density2Prop)$"
)


def _questions_about_kinds(path: Path) -> list[str]:
    """``isinstance`` and ``issubclass`` of classes of models and definitions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            names |= {n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)}
            found += [ast.unparse(node) for name in names if KINDS.search(name)]
    return found


@by_module
def test_nobody_asks_for_a_kind_of_model(path):
    """The family is asked; only equality of definitions looks at its own class."""
    allowed = ["isinstance(other, Definition)"] * (_name(path) == ("models", "base", "definition"))
    assert _questions_about_kinds(path) == allowed


@pytest.mark.parametrize("path", [p for p in MODULES if _room(p) in ROOMS_OF_MODELS], ids=str)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 < LONGEST, node.name


def test_a_family_is_named_in_two_places():
    """Its folder, and the registry (and the names that models show); ``train`` knows none."""
    names = ("op2prop", "op2op", "op2density", "density2prop")
    known = {p.relative_to(ROOT).as_posix() for p in MODULES if _names_a_family(p, names)}
    allowed = {"models/__init__.py", "models/family.py"}
    assert {p for p in known - allowed if not p.startswith("models/")} == set()
    assert {p.split("/")[1] for p in known - allowed} <= set(names)
    tree = ast.parse((ROOT / "training/run.py").read_text())
    train = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    assert train.end_lineno - train.lineno + 1 <= 60


def _names_a_family(path: Path, names) -> bool:
    """Whether code, not a docstring, has the name of a family's folder or a class of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        words = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = [node.value] if " " not in node.value else []
        elif isinstance(node, ast.ImportFrom):
            words = [node.module or "", *(a.name for a in node.names)]
        elif isinstance(node, ast.Name):
            words = [node.id]
        if any(n in w.lower().split(".") or w.lower().startswith(n) for w in words for n in names):
            return True
    return False


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
        ("learn/x.py", "from ..models import base", True),
        ("models/x.py", "from ..testing import assert_equivariant", True),
        ("training/x.py", "from .. import testing", True),
        ("testing.py", "from .models import base", False),
        ("testing.py", "from .training import run", True),
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


def test_what_e3nn_imports_late_is_there_when_it_is_asked_for():
    script = """
import sys
from opml_jax.irreps import e3nn
late = ("e3nn_jax.flax", "scipy.signal", "scipy.spatial", "sympy")
assert not [m for m in late if m in sys.modules]
import jax.numpy as jnp
harmonics = e3nn.spherical_harmonics("2e", jnp.ones(3), True, algorithm=("recursive", "dense"))
assert harmonics.irreps == "2e" and "sympy" in sys.modules
import e3nn_jax, e3nn_jax.flax, flax, scipy.signal, sympy
assert issubclass(e3nn.flax.Linear, flax.linen.Module)
assert e3nn_jax._src.s2grid.scipy.signal.find_peaks is scipy.signal.find_peaks
assert sympy.sqrt(4) == 2
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_using_a_model_loads_no_training():
    script = f"""
import sys
import jax
jax.config.update("jax_enable_x64", True)
import opml_jax as opml
model = opml.load_model({str(GOLDEN)!r})
model.predict(opml.Structure([8, 1, 1], [[0, 0, 0.22], [0, 1.43, -0.88], [0, -1.43, -0.88]]))
heavy = ("opml_jax.training", "pyscf", "pyscfad", "matplotlib", "optax", "sympy", "scipy.linalg")
fits = [m for m in sys.modules if m.startswith("opml_jax.models") and ".fit" in m]
assert [m for m in heavy if m in sys.modules] + fits == []
assert not [m for m in sys.modules if m.startswith("opml_jax.models.op2op")]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
