"""What a model file says about its training, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ..data import Dataset
from ..models.base import Definition
from ..models.family import Fit, family_of
from ..structures.contacts import closest_pairs
from ..structures.elements import symbol
from ..structures.trained_for import trained_for
from .config import TrainConfig, mapping_of

LEVEL = ("method", "basis", "convention")
"""What data sets say of the level of theory of their labels."""

SETTINGS = ("grid_level", "density_fit", "pyscf_version")
"""And of how they were calculated, which a calculation that judges a prediction repeats."""


def card_of(
    definition: Definition,
    config: TrainConfig,
    dataset: Dataset,
    sets: Mapping[str, Dataset],
    fit: Fit,
    data_hash: str,
) -> dict[str, Any]:
    """Plain JSON-able values: what a model is, what it learned from, and how.

    Args:
      definition: of the model.
      config: of its training.
      dataset: all labels.
      sets: ``train`` and ``validation``.
      fit: result of the family's training.
      data_hash: of geometries and labels.
    """
    return {
        "model": family_of(definition).describe(config.model),
        "elements": [symbol(z) for z in definition.elements],
        "targets": list(config.model.targets),
        "closest_bohr": closest_pairs(sets["train"].structures),
        "trained_for": trained_for(sets["train"].structures),
        "n_train": len(sets["train"]),
        "n_validation": len(sets["validation"]),
        "data_hash": data_hash,
        "reference": {k: dataset.meta[k] for k in (*LEVEL, *SETTINGS) if k in dataset.meta},
        "source": dataset.meta.get("source", ""),
        **fit.facts,
        "config": mapping_of(config),
        "versions": {p: version(p) for p in ("opml_jax", "jax", "pyscf", "pyscfad")},
    }


def card_text(card: Mapping[str, Any], table: str) -> str:
    """A model card as Markdown: what it is, what it saw, how well it does, where it ends.

    Args:
      card: of the model, with ``splits``, the sizes of its sets.
      table: of its errors, as text.
    """
    reference = card.get("reference", {})
    level = "/".join(str(reference[k]) for k in ("method", "basis") if k in reference) or "unstated"
    lines = [
        "# Model card",
        "",
        f"- **Model**: {card['model']}",
        f"- **Elements**: {', '.join(card['elements'])}",
        f"- **Targets**: {', '.join(card['targets'])}",
        f"- **Labels**: {level}, from {card['source'] or 'an unnamed source'}"
        f"; geometries and labels of training and validation have the hash {card['data_hash']}",
        *_about_origin(card),
        f"- **Structures**: {', '.join(f'{k} {n}' for k, n in card['splits'].items())}",
        *([f"- **Networks**: {card['network']}"] if "network" in card else []),
        f"- **Seeds**: training {card['config']['seed']}, random split "
        f"{card['config']['data']['seed']}",
        f"- **Versions**: {', '.join(f'{k} {v}' for k, v in card['versions'].items())}",
        "",
        *_warnings(card),
        "## Errors",
        "",
        "```",
        table,
        "```",
        "",
        "## Limits",
        "",
        f"Molecules of the elements above with {_electrons(card)}, near the geometries it was "
        "trained on; other charges and spins are refused. Outside of that errors are unknown; "
        "`opml predict` warns of pairs of elements never seen as close and of atoms bonded as none "
        "was in training, and unasked of nothing else.",
        "",
        *_about_doubts(card),
        "Units inside the file: Hartree, Bohr, e.",
        "",
    ]
    return "\n".join(lines)


def _warnings(card: Mapping[str, Any]) -> list[str]:
    """What :func:`~opml_jax.training.verdict.verdict` found, if anything."""
    texts = card.get("warnings", [])
    return ["## Warnings", "", *(f"- {text}" for text in texts), ""] if texts else []


def _about_origin(card: Mapping[str, Any]) -> list[str]:
    """What a card says about the model that training started from."""
    if (origin := card.get("origin")) is None:
        return []
    level = "/".join(origin.get("reference", {}).get(k, "unstated") for k in ("method", "basis"))
    return [
        f"- **Starts from**: a model whose weights have the hash {origin['weights']}, trained on "
        f"{origin.get('n_train', 'unstated')} structures of {level} from "
        f"{origin.get('source') or 'an unnamed source'} (hash {origin.get('data_hash', 'unstated')}"
        f"); {_of_both(card)}"
    ]


def _of_both(card: Mapping[str, Any]) -> str:
    if card.get("start") == "scaling":
        return "its weights were no help, and only the scaling of its features was taken over"
    return "elements, targets and limits are those of both"


def _electrons(card: Mapping[str, Any]) -> str:
    """The charges and spins that training had, in words."""
    states = card["trained_for"]["electrons"]
    return " or ".join(f"charge {e['charge']} and spin {e['spin']} (2S)" for e in states)


def _about_doubts(card: Mapping[str, Any]) -> list[str]:
    """What a card says about standard deviations."""
    if "largest_doubt" not in card:
        return []
    scaled = "calibration" if "calibration" in card["splits"] else "validation"
    return [
        f"`opml predict --uncertainty` gives standard deviations, scaled on the {scaled} set, and "
        "names structures where they are more than twice the largest there: hints, no bounds.",
        "",
    ]
