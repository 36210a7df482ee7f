"""Configurations of Op2Op to start from."""

from __future__ import annotations

from ..family import Template
from .config import ObservablesFit, Op2OpConfig, Op2OpFit

TEMPLATES = {
    "op2op": Template(
        "Fock matrices of bundled water, PBE/def2-SVP, from Op2Op: runs as it is, in a minute. Own "
        "molecules: opml generate --no-forces, set data.path and model.basis to those labels'.",
        {"n_train": 100, "n_validation": 50},
        Op2OpConfig(),
    ),
    "effective": Template(
        "A minimal-basis matrix of bundled water whose levels, dipoles and charges are those of "
        "PBE/def2-SVP: runs as it is, in two minutes. Own molecules: opml generate --no-forces in "
        "a large basis, set data.path.",
        {"n_train": 100, "n_validation": 50},
        Op2OpConfig(basis="sto-3g", density_words=(), fit=Op2OpFit(observables=ObservablesFit())),
    ),
}
