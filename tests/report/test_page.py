"""What readers see of a report: styles, narrow screens, words for pictures, lines that work."""

import base64
import dataclasses
import html
import itertools
import re
import shlex
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import opml_jax as opml
from opml_jax import figures
from opml_jax.models.family import Evaluated
from opml_jax.models.op2prop import Op2PropConfig, Op2PropFit
from opml_jax.report import words, write_report
from opml_jax.report.residuals import residuals
from opml_jax.report.worst import worst
from opml_jax.training import TrainConfig, train

WARNING = "The error on the validation set is far above that on the <training> set."


@pytest.fixture(scope="module")
def trained():
    """A small model of water, in closed form."""
    data = opml.read_dataset(opml.bundled("water"))
    fit = Op2PropFit(epochs=0, targets=("energy", "forces"))
    model = Op2PropConfig(basis="sto-3g", powers=(1, 2), gram_powers=(1,), fit=fit)
    splits = {"train": list(range(30)), "validation": list(range(30, 40))}
    return train(data, splits, TrainConfig(model=model)).model


@pytest.fixture(scope="module")
def evaluated(trained):
    """Three structures, of which the second could not be predicted."""
    dataset = opml.read_dataset(opml.bundled("water")).subset(range(40, 43))
    predicted = {k: np.array(v) for k, v in trained.predict(dataset.structures).items()}
    predicted["energy"][1] = np.nan
    return Evaluated("test", dataset, predicted, range(40, 43))


@pytest.fixture(scope="module")
def page(trained, evaluated, tmp_path_factory):
    """The report of the model."""
    folder = tmp_path_factory.mktemp("runs") / "my run"
    folder.mkdir()
    model = dataclasses.replace(trained, card={**trained.card, "warnings": [WARNING]})
    metrics = {"test": {"n_structures": 3, "energy_mae_mev": 1.5}}
    write_report(folder / "report.html", model, [evaluated], [], metrics)
    opml.save_model(folder / "model.safetensors", model)
    return folder / "report.html"


def pictures(text):
    """SVG documents of a page, parsed, and as text."""
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    documents = [base64.b64decode(x).decode() for x in found]
    for document in documents:
        ElementTree.fromstring(document)
    return documents


def test_the_title_says_what_of_what(page, trained):
    text = page.read_text()
    title = "Energies and forces of water: Op2Prop, PBE/def2-SVP"
    assert words.title(trained) == title
    assert f"<title>{title}</title>" in text
    assert f"<h1>{title}</h1>" in text


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"targets": ["energy"]}, "Energies: Op2Prop"),
        (
            {
                "targets": ["energy", "forces", "dipole"],
                "elements": ["C", "H", "O"],
                "trained_for": {"electrons": [{"compositions": ["CH2O", "CH4"]}]},
                "reference": {"method": "r2scan", "basis": "cc-pVTZ"},
            },
            "Energies, forces and dipoles of 2 compositions of C, H and O: Op2Prop, r2scan/cc-pVTZ",
        ),
        (
            {
                "targets": ["polarizability"],
                "trained_for": {"electrons": [{"compositions": ["C2H6O"]}]},
                "reference": {"method": "pbe0"},
            },
            "Polarizabilities of C₂H₆O: Op2Prop, PBE0",
        ),
    ],
)
def test_titles(trained, card, expected):
    assert words.title(dataclasses.replace(trained, card=card)) == expected


def test_warnings_of_the_card_come_first(page, trained, evaluated, tmp_path):
    text = page.read_text()
    box = text.index('class="box warnings"')
    assert box < text.index("Use this model") < text.index("<h2>Errors</h2>")
    assert html.escape(WARNING) in text
    write_report(tmp_path / "report.html", trained, [evaluated], [], {"test": {"n_structures": 3}})
    assert 'class="box warnings"' not in (tmp_path / "report.html").read_text()


def test_every_picture_says_what_it_shows(page):
    text = page.read_text()
    alts = [html.unescape(x) for x in re.findall(r'<img alt="([^"]*)"', text)]
    assert len(alts) == text.count("<img ") >= 8
    assert all(len(alt) > 20 for alt in alts)
    assert any("MAE" in alt and "energy" in alt for alt in alts)


def test_the_page_fits_narrow_screens(page):
    """Nothing has a fixed width but what scrolls or shrinks: seen in a browser at 420 pixels."""
    text = page.read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert re.search(r"img \{ max-width: 100%; height: auto; \}", text)
    assert text.count("<table>") == text.count('<div class="wide"><table>') == 1
    assert ".wide { overflow-x: auto; }" in text
    assert "white-space: pre-wrap" in text
    assert "@media (max-width: 36rem)" in text
    assert len(text) < 400_000


def test_pictures_follow_the_style_of_the_reader(page):
    text = page.read_text()
    assert "color-scheme: light dark" in text
    assert "@media (prefers-color-scheme: dark)" in text
    for document in pictures(text):
        sheet = re.search(r"<style>(.*?)</style>", document)[1]
        light, dark = sheet.split("@media (prefers-color-scheme:dark)")
        pairs = [re.findall(r"(--c[0-9a-f]{6}):(#[0-9a-f]{6})", part) for part in (light, dark)]
        assert dict(pairs[0]).keys() == dict(pairs[1]).keys()
        assert dict(pairs[0])["--c000000"] == "#000000"
        assert int(dict(pairs[1])["--c000000"][1:3], 16) > 0xD0
        used = set(re.findall(r"var\((--c[0-9a-f]{6})\)", document))
        assert used <= dict(pairs[0]).keys()
        rest = document.replace(sheet, "")
        assert set(re.findall(r"#[0-9a-f]{6}\b", rest)) <= {figures.WHITE, figures.BLACK}


def test_two_styles_needs_a_picture():
    with pytest.raises(ValueError, match="no <svg>"):
        figures.two_styles("<p>no picture</p>")


def test_residuals_are_of_what_is_a_number(evaluated, trained):
    family = opml.models.family_of(trained)
    energy, forces = residuals([evaluated], family)
    reference = np.asarray(evaluated.dataset["energy"])
    known = [0, 2]
    errors = (evaluated.predicted["energy"] - reference)[known]
    error = 1e3 * opml.units.EV_PER_HARTREE * np.abs(errors).mean()
    assert f"test MAE {error:.2g} meV" in energy.get_label()
    shown = [text.get_text() for text in energy.legends[0].get_texts()]
    assert shown == [f"test MAE {error:.2g} meV"]
    (points,) = [x for x in energy.axes[0].lines if x.get_marker() == "o"]
    drawn = 1e3 * opml.units.EV_PER_HARTREE * errors
    np.testing.assert_allclose(points.get_ydata(), drawn, atol=1e-6)
    assert "component of forces" in forces.get_label()


def test_worst_structures_are_whole_rows(evaluated, trained):
    """Of three structures a row for each kind, of those alone that have a number."""
    rows = worst(evaluated, opml.models.family_of(trained))
    by_energy, by_forces = rows.split('<div class="row">')[1:]
    assert by_energy.count("<figure>") == 2
    assert by_forces.count("<figure>") == 3
    assert "41: " not in by_energy
    forces = [float(x) for x in re.findall(r"([\d.]+) meV/Å", by_forces)]
    assert forces == sorted(forces, reverse=True)


def test_arrows_of_forces_stay_in_their_frame(evaluated, trained):
    from opml_jax.models.op2prop.pictures import forces_picture

    large = {**evaluated.predicted, "forces": 300 * evaluated.predicted["forces"]}
    for predicted in (evaluated.predicted, large):
        (picture,) = forces_picture(dataclasses.replace(evaluated, predicted=predicted))
        (axis,) = picture.figure().axes
        arrows = [x for x in axis.collections if hasattr(x, "U")]
        assert len(arrows) == 2
        for quiver in arrows:
            ends = quiver.XY + np.stack([quiver.U, quiver.V], axis=1) / quiver.scale
            for at, (low, high) in zip(ends.T, (axis.get_xlim(), axis.get_ylim()), strict=True):
                assert low < at.min() < at.max() < high


def test_labels_of_colour_bars_do_not_overlap():
    for top in (66.0, 3e-7, 1.0, 9.9e6):
        drawn, (axis,) = figures.figure(1, width=3.9, height=3.5)
        figures.signed_map(axis, top * np.linspace(-1, 1, 16).reshape(4, 4))
        drawn.canvas.draw()
        labels = [x for x in drawn.axes[1].get_yticklabels() if x.get_text()]
        boxes = sorted((x.get_window_extent() for x in labels), key=lambda box: box.y0)
        assert len(boxes) == 7
        assert all(a.y1 <= b.y0 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("metric", ["plain", "damped"])
def test_operators_are_those_that_the_model_reads(metric):
    """In the metric of the model, with what stands beside V, each to the powers that are read."""
    from opml_jax.models.op2prop.pictures import operator_picture

    water = opml.read_dataset(opml.bundled("water")).subset([0])
    config = Op2PropConfig(
        basis="sto-3g", powers=(1, 2), gram_powers=(1,), metric=metric, others=("overlap",)
    )
    definition = opml.models.family_of(config).define(config, (1, 8))
    picture = operator_picture(definition, Evaluated("test", water, {}, [0]))
    assert "screened potential" in picture.note
    assert (metric == "plain") == (metric not in picture.note)
    drawn = picture.figure()
    assert [f.axes[0].get_title() for f in drawn] == ["V", "V²", "overlap"]
    basis, (structure,) = definition.basis, water.structures
    v = opml.operators.screened_potential(structure, basis)
    s = opml.operators.overlap(structure, basis)
    wanted = v if metric == "plain" else opml.operators.damped(v, s)
    first, second, third = (np.asarray(f.axes[0].images[0].get_array()) for f in drawn)
    np.testing.assert_allclose(first, np.asarray(wanted.to_dense()), atol=1e-12)
    np.testing.assert_allclose(second, first @ first, atol=1e-9)
    if metric == "plain":
        np.testing.assert_allclose(third, np.asarray(s.to_dense()), atol=1e-12)


def copied(path):
    """Blocks with a button, and the example of the page."""
    text = path.read_text()
    blocks = [html.unescape(x) for x in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]
    example = re.search(r'href="data:text/plain;charset=utf-8,([^"]+)"', text)[1]
    return blocks, html.unescape(example)


def test_lines_to_copy_are_commands_and_python(page):
    from opml_jax.cli.main import parser_of

    (shell, *python), _ = copied(page)
    assert len(python) == 2
    name, *arguments = shlex.split(shell)
    assert name == "opml"
    assert parser_of(arguments[0]).parse_args(arguments).run == "my run"
    for block in python:
        compile(block, "report", "exec")


@pytest.mark.slow
def test_lines_to_copy_work(page, evaluated, monkeypatch, capsys):
    """In the folder that holds the run, with the example that the page offers."""
    from urllib.parse import unquote

    from opml_jax.cli import main

    (shell, *python), example = copied(page)
    monkeypatch.chdir(page.parent.parent)
    (page.parent.parent / words.FILE).write_text(unquote(example))
    assert main(shlex.split(shell)[1:]) == 0
    assert (page.parent.parent / "predicted.extxyz").exists()
    for block in python:
        capsys.readouterr()
        exec(compile(block, "report", "exec"), {})
        assert capsys.readouterr().out
