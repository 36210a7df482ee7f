"""What goes in and what comes out of every family of models, with matrices of a bundled water."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from style import save

import opml_jax as opml
from opml_jax.density.grid import matrix_on_points

WIDTH, HEIGHT = 9.6, 5.5  # inches, and units of the axis
INK, GREY, LINE = "#1f2328", "#59636e", "#afb8c1"
INPUT = "#24476b"
COLOURS = {
    "Op2Prop": "#0969da",
    "Op2Op": "#8250df",
    "Op2Density": "#1a7f37",
    "Density2Prop": "#bc4c00",
}
ROWS = dict(zip(COLOURS, (4.35, 3.27, 2.19, 1.11), strict=True))
"""Heights of the centres of the rows."""

READS = {
    "Op2Prop": "irreps and invariants of atoms",
    "Op2Op": "blocks of operators and products",
    "Op2Density": "irreps around each atom",
    "Density2Prop": "irreps of a predicted density",
}
GIVES = {
    "Op2Prop": ("energy and forces", "dipole, quadrupole, polarizability"),
    "Op2Op": ("Fock or density matrix", "levels, gap, dipole, charges"),
    "Op2Density": ("electron density", "in an auxiliary basis; its dipole"),
    "Density2Prop": ("energy and forces", "of that density, beside its dipole"),
}


def draw():
    """The picture of the README."""
    data = opml.read_dataset(opml.bundled("water"))
    water, F, forces = data.structures[0], np.asarray(data["fock"][0]), data["forces"][0]
    basis = opml.load_basis(data.meta["basis"], water.numbers)
    V = np.asarray(opml.operators.external_potential(water, basis).to_dense())
    plane = Plane(water)
    rho = density(water, F, basis, plane)

    figure = plt.figure(figsize=(WIDTH, HEIGHT), layout="none")
    figure.patch.set_alpha(0)  # outside of the panel
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axis.axis("off")
    axis.add_patch(box(0.03, 0.03, WIDTH - 0.06, HEIGHT - 0.06, 0.16, "white", "#d1d9e0"))
    for x, text in ((1.4, "goes in"), (4.62, "is learned"), (7.9, "comes out")):
        axis.text(x, 5.13, text, ha="center", va="center", color=GREY, fontsize=10)

    plane.show(axis, (1.4, 4.33), 0.36)
    axis.add_patch(arrow([(1.4, 3.74), (1.4, 3.34)], INPUT))
    offsets = opml.basis.layout_of(water, basis).offsets[1:3]
    matrix(axis, V, (1.4, 2.47), 1.6, INPUT, offsets)
    axis.text(1.4, 1.49, "external potential V", ha="center", color=INK, weight="bold", fontsize=10)
    axis.text(1.4, 1.27, "an operator in atomic orbitals", ha="center", color=GREY, fontsize=8.5)
    axis.text(1.4, 1.07, "(water, def2-SVP: 24 × 24)", ha="center", color=GREY, fontsize=8.5)

    for name, y in ROWS.items():
        family(axis, name, y)
    for name in ("Op2Prop", "Op2Op", "Op2Density"):
        y = ROWS[name]
        start = 2.47 + 0.28 * np.sign(y - 3.27)
        axis.add_patch(arrow([(2.3, start), (2.85, start), (2.85, y), (3.42, y)], INPUT))
    colour, y = COLOURS["Density2Prop"], ROWS["Op2Density"]
    axis.add_patch(arrow([(6.3, y - 0.3), (5.9, 1.65), (4.6, 1.9), (4.6, 1.52)], colour))

    plane.show(axis, (6.78, ROWS["Op2Prop"]), 0.2, forces, COLOURS["Op2Prop"])
    matrix(axis, F, (6.78, ROWS["Op2Op"]), 0.88, COLOURS["Op2Op"], offsets)
    contours(axis, rho, (6.78, ROWS["Op2Density"]), COLOURS["Op2Density"])
    plane.show(axis, (6.78, ROWS["Density2Prop"]), 0.2, forces, COLOURS["Density2Prop"])

    grad = [(9.2, 0.56), (9.2, 0.36), (9.2, 0.36), (1.4, 0.36), (1.4, 0.36), (1.4, 0.92)]
    axis.add_patch(arrow(grad, GREY, [1, 3, 3, 2, 3, 3], linestyle=(0, (4, 3))))
    axis.text(
        5.3,
        0.36,
        "pure JAX functions: jax.grad gives every derivative in the positions",
        ha="center",
        va="center",
        color=INK,
        fontsize=9.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 5},
    )
    save(figure, "families")


def family(axis, name, y):
    """The box of a family, its arrow, and what comes out in words."""
    colour = COLOURS[name]
    axis.add_patch(box(3.5, y - 0.36, 2.24, 0.72, 0.1, tint(colour, 0.1), colour))
    axis.text(4.62, y + 0.11, name, ha="center", va="center", color=colour, weight="bold", size=12)
    axis.text(4.62, y - 0.16, READS[name], ha="center", va="center", color=INK, fontsize=8)
    axis.add_patch(arrow([(5.82, y), (6.24, y)], colour))
    first, second = GIVES[name]
    axis.text(7.42, y + 0.11, first, va="center", color=INK, weight="bold", fontsize=10)
    axis.text(7.42, y - 0.13, second, va="center", color=GREY, fontsize=8)


class Plane:
    """The plane of a molecule of three atoms, its centre atom above the others."""

    def __init__(self, molecule):
        self.numbers, self.positions = molecule.numbers, np.asarray(molecule.positions)
        bonds = self.positions[1:] - self.positions[0]
        down = bonds[0] / np.linalg.norm(bonds[0]) + bonds[1] / np.linalg.norm(bonds[1])
        up = -down / np.linalg.norm(down)
        across = bonds[1] - (bonds[1] @ up) * up
        self.axes = np.stack([across / np.linalg.norm(across), up])
        self.middle = self.positions[0] - 0.55 * up

    def flat(self, points):
        """Components within the plane."""
        return (points - self.middle) @ self.axes.T

    def show(self, axis, centre, scale, forces=None, colour=None):
        """Balls and sticks, with forces as arrows."""
        at = np.array(centre) + scale * self.flat(self.positions)
        for end in at[1:]:
            axis.plot(*np.stack([at[0], end]).T, color="#8b949e", lw=14 * scale, zorder=3)
        for z, place in zip(self.numbers, at, strict=True):
            face, radius = ("#d1242f", 0.62) if z == 8 else ("#f6f8fa", 0.45)
            ball = Circle(place, scale * radius, fc=face, ec="#57606a", lw=0.9, zorder=4)
            axis.add_patch(ball)
        if forces is not None:
            for place, force in zip(at, np.asarray(forces) @ self.axes.T, strict=True):
                axis.add_patch(arrow([place, place + 8 * force], colour, zorder=3.5, lw=1.8))


def density(water, fock, basis, plane, half=2.7, n=40):
    """``(n, n)`` electrons per Bohr^3 in the plane, of the density matrix of ``fock``."""
    x = np.linspace(-half, half, n)
    grid = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    overlap = opml.integrals.overlap(water, basis)
    dm = opml.observables.density_matrix(fock, overlap, n_electrons=sum(water.numbers))
    return matrix_on_points(dm, water, basis, plane.middle + grid @ plane.axes).reshape(n, n)


def contours(axis, rho, centre, colour, size=0.92):
    """Level lines a factor of two apart, filled."""
    x, y = (np.linspace(c - size / 2, c + size / 2, len(rho)) for c in centre)
    levels = 0.012 * 2.0 ** np.arange(8)
    shades = [tint(colour, s) for s in np.linspace(0.12, 0.95, len(levels))]
    axis.contourf(x, y, rho, levels, colors=shades, extend="max", zorder=2)
    axis.contour(x, y, rho, levels, colors="white", linewidths=0.4, zorder=3)


def matrix(axis, values, centre, size, colour, offsets):
    """Logarithms of the elements, small ones light, and lines where another atom begins."""
    (x, y), half = centre, size / 2
    shades = LinearSegmentedColormap.from_list("", [tint(colour, 0.04), tint(colour, 0.45), colour])
    axis.imshow(
        np.kron(np.log10(np.abs(values) + 1e-12), np.ones((12, 12))),  # viewers may blur
        extent=(x - half, x + half, y - half, y + half),
        cmap=shades,
        vmin=-2.2,
        vmax=1.3,
        interpolation="none",
        zorder=2,
    )
    for start in size * np.asarray(offsets) / len(values):
        line = {"color": "white", "lw": 1.0, "zorder": 2}
        axis.plot([x - half, x + half], [y + half - start] * 2, **line)
        axis.plot([x - half + start] * 2, [y - half, y + half], **line)
    frame = box(x - half, y - half, size, size, 0.02, "none", tint(colour, 0.6))
    axis.add_patch(frame)
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="auto")


def box(x, y, width, height, rounding, face, edge):
    """A rectangle with round corners."""
    style = f"round,pad=0,rounding_size={rounding}"
    return FancyBboxPatch((x, y), width, height, style, fc=face, ec=edge, lw=1.1, zorder=1)


def arrow(points, colour, codes=None, lw=1.4, zorder=2, **line):
    """A straight or curved line with a head at its end."""
    codes = codes or ([1, 2] if len(points) == 2 else [1, 4, 4, 4])
    style = {"arrowstyle": "-|>,head_length=4,head_width=2.2", "mutation_scale": 1, "lw": lw}
    return FancyArrowPatch(path=Path(points, codes), color=colour, zorder=zorder, **style, **line)


def tint(colour, strength):
    """A colour mixed with white."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return tuple(1 - strength * (1 - rgb))


if __name__ == "__main__":
    draw()
