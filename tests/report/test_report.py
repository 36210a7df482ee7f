"""The report of any family: its tables, what both sides have, and the family's own sections."""

import html
import re
from types import SimpleNamespace

import numpy as np
import pytest

import opml_jax as opml
from opml_jax import figures
from opml_jax.models.family import Evaluated, Family, Picture, _registered
from opml_jax.quantities import QUANTITIES, metric
from opml_jax.report import write_report
from opml_jax.report.residuals import pairs
from opml_jax.report.tables import html_table, text_table
from opml_jax.report.worst import errors_of
from opml_jax.units import DEBYE_PER_EBOHR, EV_PER_HARTREE

SHOWN = {name: q for name, q in QUANTITIES.items() if q.heading}


def columns_of(page):
    """Heading and cells of each column of a table in HTML."""
    head, *rows = re.findall("<tr>(.*?)</tr>", page)
    headings = re.findall('<th scope="col">(.*?)</th>', head)
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
    return dict(zip(map(html.unescape, headings), zip(*cells, strict=True), strict=True))


def test_both_tables_have_a_column_for_every_quantity():
    values = {metric(name): 1.5 + i for i, name in enumerate(SHOWN)}
    assert {"density_error_percent", "quadrupole_mae_ebohr2", "polarizability_mae_bohr3"} <= {
        *values
    }
    metrics = {"test": {"n_structures": 3, **values}}
    columns = columns_of(html_table(metrics))
    printed = text_table(metrics)
    assert len(columns) == 2 + len(SHOWN)
    for name, quantity in SHOWN.items():
        (heading,) = (h for h in columns if h.split(", ")[0] == quantity.heading)
        cell = f"{values[metric(name)]:.3g}"
        assert columns[heading] == (cell,)
        at = printed.index(f"  {quantity.heading} {quantity.shown}".rjust(16))
        assert printed.splitlines()[2][at:].split()[0] == cell


def test_rows_are_sets_and_parts_of_models():
    error = metric("energy")
    metrics = {
        "test": {"n_structures": 9, error: 1.0},
        "test_linear": {"n_structures": 9, error: 2.0},
        "of_april": {"n_structures": 1, metric("dipole"): 3.0},
    }
    lines = text_table(metrics).splitlines()[2:]
    assert [" ".join(line.split()) for line in lines] == [
        "test (model) 1 -",
        "test (linear) 2 -",
        "of_april (model) - 3",
    ]
    columns = columns_of(html_table(metrics))
    assert columns["mean absolute error"] == ("test", "test, closed form", "of_april")
    assert columns["structures"] == ("9", "9", "1")
    assert columns["energy, meV"] == ("1", "2", "–")


@pytest.fixture
def evaluated():
    """Waters, predicted with errors that grow."""
    dataset = opml.read_dataset(opml.bundled("water")).subset(range(6))
    wrong = 1e-3 * np.arange(6.0)
    forces = np.zeros((6, 4, 3))  # one atom more, padding
    forces[:, :3] = np.asarray(dataset["forces"]) + wrong[:, None, None]
    predicted = {
        "energy": np.asarray(dataset["energy"]) - wrong,
        "forces": forces,
        "dipole": np.asarray(dataset["dipole"]) + wrong[:, None],
        "n_atoms": np.full(6, 3),
    }
    return Evaluated("test", dataset, predicted, range(100, 106))


class Toy(Family):
    """A family of which the report can know nothing but what it is told."""

    name = "toy"
    define = check = fit = lambda *_: None

    def summary(self, model):
        return "nothing <at> all"

    def parity(self, evaluated):
        return [("mood", "1", np.zeros(2), np.ones(2))]

    def worst(self, evaluated):
        return {"mood": (np.arange(6.0)[::-1], "{:.1f} moods")}

    def pictures(self, model, evaluated):
        return [Picture("A toy", lambda: figures.figure(1)[0], f"of {evaluated.name}")]


def model_of(family="toy", quantities=(), **card):
    """What a report asks of a model, with a card."""
    basis = SimpleNamespace(name="sto-3g")
    definition = SimpleNamespace(config=SimpleNamespace(family=family), basis=basis)
    return SimpleNamespace(definition=definition, card=card, has=lambda name: name in quantities)


def test_parity_and_worst_are_in_the_units_of_the_table(evaluated):
    table = pairs(evaluated, Toy())
    assert list(table) == [
        ("energy", "meV"),
        ("component of forces", "meV/Å"),
        ("component of dipole", "D"),
        ("mood", "1"),
    ]
    wrong = 1e-3 * np.arange(6.0)
    reference, predicted = table["energy", "meV"]
    assert abs(reference.mean()) < 1e-6
    np.testing.assert_allclose(predicted - reference, -1e3 * EV_PER_HARTREE * wrong, atol=1e-6)
    reference, predicted = table["component of forces", "meV/Å"]
    assert reference.shape == predicted.shape == (54,)  # without padding
    errors = errors_of(evaluated, Toy())
    assert list(errors) == ["energy", "mood", "forces"]  # dipoles where there is nothing else
    length = 1e3 * DEBYE_PER_EBOHR * 3**0.5 * wrong
    few = {"dipole": evaluated.predicted["dipole"]}
    other = Evaluated("test", evaluated.dataset, few, range(6))
    dipoles = errors_of(other, SimpleNamespace(worst=lambda _: {}))
    np.testing.assert_allclose(dipoles["dipole"][0], length, rtol=1e-9)


def test_a_family_brings_its_own_sections(evaluated, tmp_path, monkeypatch):
    monkeypatch.setitem(_registered, "toy", Toy())
    model = model_of(n_train=7)
    error = metric("energy")
    metrics = {"test": {"n_structures": 6, error: 1.0}}
    history = [
        {"epoch": i, "loss": 2.0 / i, f"validation_{metric('energy', 'rmse')}": 1.0 / i}
        for i in (1, 2)
    ]
    curve = [{"n_train": n, error: 1.0 / n} for n in (1, 2)]
    doubts = {"energy": (np.linspace(0, 1, 20), np.ones(20))}
    path = tmp_path / "report.html"
    write_report(path, model, [evaluated], history, metrics, curve, doubts)
    text = path.read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == [
        *("Use this model", "Errors", "Residuals", "Learning curve", "Training"),
        *("Standard deviations", "Worst structures of test", "A toy"),
    ]
    # residuals and one of the family, a learning curve, loss and energy, two of doubts, the family
    assert text.count("data:image/svg+xml;base64,") == 4 + 1 + 2 + 2 + 3 * 5 + 1
    assert "Input: nothing &lt;at&gt; all. Labels: level not stated. 7 training structures" in text
    assert '<p class="note">of test</p>' in text


def test_a_report_of_what_has_no_references(evaluated, tmp_path, monkeypatch):
    """Errors of such a family alone: nothing to compare, and no empty pictures."""
    monkeypatch.setitem(_registered, "toy", Bare())
    bare = Evaluated("test", evaluated.dataset, {}, range(6))
    write_report(tmp_path / "r.html", model_of(), [bare], [], {"test": {"n_structures": 6}})
    headings = re.findall("<h2>(.*?)</h2>", (tmp_path / "r.html").read_text())
    assert headings == ["Use this model", "Errors"]


class Bare(Family):
    """A family that says no more than it must."""

    name = "toy"
    define = check = fit = lambda *_: None
