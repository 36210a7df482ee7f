"""Model files: one safetensors file with everything needed to use the model. No pickle.

Tensors are the parameters (``params/...``) and the exponents and coefficients of the bases that
a definition names, so loading needs neither PySCF nor its library. The header's metadata is JSON:
format version, family, configuration, convention, basis fingerprints, card.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..basis import Basis, Shell
from ..conventions import CONVENTION
from ..data.files import atomic_path
from ..errors import Code, ConventionError, ModelFileError, OpmlError, check_file, one_of
from ..learn.few_bits import packed, unpacked
from ..learn.schema import to_mapping
from .base import Model
from .family import families, family, family_of

FORMAT_VERSION = 5
"""2: networks are stacked over the members of an ensemble. 3: families, settings of training apart
from those of functions. 4: weights of 16 bits. 5: what single precision holds is written in it."""

REMOVED = {"operator_network": "a network of learned operators"}
"""Kinds of models that earlier versions wrote and there are no more."""

PACKED = (".integers", ".exponents")
"""What :func:`opml_jax.learn.few_bits.packed` makes of a matrix, behind its name in a file."""

SINGLE = ".single"
"""Behind the name of a matrix of float64 whose numbers are those of float32."""

PRETRAINED = {
    "water": "one water molecule, PBE/def2-SVP",
    "chno": "molecules of H, C, N and O with up to four atoms other than hydrogen, PBE/def2-SVP",
    "chno-fock": "Fock and density matrices of molecules of H, C, N and O, PBE/def2-SVP",
    "chno-fock-b3lyp": "the same, B3LYP (VWN5)/def2-SVP",
}
"""Models in the package, with a card each (``NAME.md`` beside them)."""

LIMITS = {
    "water": "It knows one water molecule as at 500 K: no clusters, no ions, no bonds that break.",
    "chno": "It knows 54 molecules near their minima, where errors are 11 meV and 60 meV/A, and "
    "little else: on other molecules expect hundreds of meV (predict with uncertainty tells).",
    **dict.fromkeys(
        ("chno-fock", "chno-fock-b3lyp"),
        "It knows neutral closed shells near their minima, of up to six atoms other than hydrogen, "
        "and pairs of small ones; nine such atoms work too. No ions, radicals, broken bonds.",
    ),
}
"""What is said when one of :data:`PRETRAINED` is loaded for the first time in a process."""

_said: set[str] = set()


def save_model(path: str | os.PathLike, model: Model) -> None:
    """Write a model to one safetensors file, atomically."""
    from importlib.metadata import version

    from safetensors.numpy import save_file

    definition, own_family = model.definition, family_of(model)
    bases = {k: b for k in definition.bases if (b := getattr(definition, k)) is not None}
    tensors: dict[str, np.ndarray] = {}
    for key, value in jax.tree_util.tree_leaves_with_path(model.params):
        tensor = "params/" + "/".join(k.key for k in key)
        tensors |= _stored(tensor, np.ascontiguousarray(value))
    for name, basis in bases.items():
        for z, shells in zip(basis.elements, basis.shells, strict=True):
            for i, shell in enumerate(shells):
                table = np.stack([shell.exponents, shell.coefficients], axis=1)
                tensors[f"{name}/{z}/{i}/{shell.l}"] = np.ascontiguousarray(table)
    header = {
        "format": "opml_jax model",
        "format_version": FORMAT_VERSION,
        "opml_jax_version": version("opml_jax"),
        "family": own_family.name,
        "config": to_mapping(definition.config),
        **own_family.header(definition),
        "convention": CONVENTION,
        **{f"{name}_name": basis.name for name, basis in bases.items()},
        **{f"{name}_fingerprint": basis.spec.fingerprint for name, basis in bases.items()},
        "card": model.card,
    }
    texts = {k: json.dumps(v) for k, v in header.items()}
    texts["sha256"] = json.dumps(_digest(texts, tensors))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, texts)


def _stored(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """What a parameter is written as: in as few bits as lose nothing."""
    if value.dtype != np.float64:
        return {name: value}
    is_linear = name.endswith("/weights") and value.ndim == 2
    if is_linear and (parts := packed(value)) is not None:
        return {name + suffix: part for suffix, part in zip(PACKED, parts, strict=True)}
    with np.errstate(over="ignore"):
        single = value.astype(np.float32)
    return {name + SINGLE: single} if (single == value).all() else {name: value}


def _restored(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of :func:`_stored`, of all tensors."""
    integers, exponents = PACKED
    out = {}
    for name, value in tensors.items():
        if name.endswith(integers):
            name = name.removesuffix(integers)
            value = unpacked(value, tensors[name + exponents])
        elif name.endswith(SINGLE):
            name, value = name.removesuffix(SINGLE), value.astype(np.float64)
        if not name.endswith(exponents):
            out[name] = value
    return out


def _digest(texts: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    """Hash of all that a file holds; safetensors itself has none."""
    digest = hashlib.sha256(repr(sorted(texts.items())).encode())
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()


def pretrained(name: str) -> Path:
    """Path of a model that ships with the package: ``opml.load_model(opml.pretrained("water"))``.

    ``water`` and ``chno`` (:data:`PRETRAINED`): energies, forces and dipoles, with standard
    deviations of the last layer; ``chno-fock``, ``chno-fock-b3lyp``: Fock and density matrices.
    What they were trained on, how well they do and where they end is in the ``.md`` file beside
    each.

    Raises:
      ModelFileError: no such model.
    """
    one_of("pretrained model", name, PRETRAINED, ModelFileError)
    return Path(str(files("opml_jax.models").joinpath("pretrained", f"{name}.safetensors")))


def load_model(path: str | os.PathLike) -> Model:
    """Read a model file, or the model of a run directory (``model.safetensors`` in it).

    Args:
      path: file or directory, or ``"pretrained:NAME"`` for :func:`pretrained`, whose limits are
        then logged once, as a warning.

    Raises:
      ModelFileError: missing, damaged, or written by a newer format.
      ConventionError: written for another component convention.
    """
    if isinstance(path, str) and path.startswith("pretrained:"):
        path = pretrained(name := path.removeprefix("pretrained:"))
        if name not in _said:
            logging.getLogger(__name__).warning("pretrained:%s: %s", name, LIMITS[name])
            _said.add(name)
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    expected, hint = "a model file or a run directory with one", "opml train makes one."
    check_file(path, expected, error=ModelFileError, hint=hint)
    header, tensors = _read(path)
    _check_header(header, path)
    try:
        return _model(header, tensors)
    except OpmlError as err:
        raise err.within(path) from err
    except Exception as err:  # a part that is not there, or not what it should be
        raise ModelFileError(
            str(path),
            got=f"contents that make no model ({type(err).__name__}: {err})",
            expected="an undamaged file",
            hint=f"It was written by opml_jax {header.get('opml_jax_version', '?')}.",
            code=Code.DAMAGED,
        ) from err


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors of a file whose checksum is right."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as f:
            texts = dict(f.metadata() or {})
            header = {k: json.loads(v) for k, v in texts.items()}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        texts.pop("sha256", None)
        stated = header.pop("sha256", None)  # files of earlier versions have none
        if stated is not None and stated != _digest(texts, tensors):
            raise ValueError("its checksum is another")
    except (SafetensorError, OSError, ValueError, RecursionError) as err:
        raise ModelFileError(
            str(path),
            got=f"an unreadable file ({err})",
            expected="a complete safetensors model of this library",
            code=Code.DAMAGED,
        ) from err
    return header, tensors


def _check_header(header: dict[str, Any], path: Path) -> None:
    """Refuse other formats and conventions."""
    version = header.get("format_version", 0)
    known = isinstance(version, int) and 1 <= version <= FORMAT_VERSION
    if header.get("format") != "opml_jax model" or not known:
        raise ModelFileError(
            str(path),
            got=f"format {header.get('format')!r} version {version}",
            expected=f"an opml_jax model of version 1 to {FORMAT_VERSION}",
            hint=f"It was written by opml_jax {header.get('opml_jax_version', '?')}.",
            code=Code.FORMAT_VERSION,
        )
    if header.get("convention") != CONVENTION:
        raise ConventionError(
            f"convention of {path}", got=repr(header.get("convention")), expected=repr(CONVENTION)
        )


def _model(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> Model:
    """The model that the parts of a file are."""
    name = header["family"] if header["format_version"] >= 3 else header["kind"]
    if name in REMOVED:
        raise ModelFileError(
            "kind of model",
            got=f"{name}, {REMOVED[name]}, which was removed",
            expected=f"one of the families {', '.join(families())}",
            hint=f"opml_jax {header.get('opml_jax_version', '?')} reads it.",
            code=Code.FORMAT_VERSION,
        )
    params, shells = _sorted_tensors(_restored(tensors))
    if header["format_version"] == 1 and "residual" in params:
        params["residual"] = jax.tree.map(lambda w: w[None], params["residual"])
    of_family = family(name)
    bases = {k: _basis(header, k, elements) for k, elements in shells.items()}
    return of_family.model(of_family.restore(header, bases), params, header["card"])


Shells = dict[int, dict[int, Shell]]
"""Shells of a basis by element, and by their place there."""


def _sorted_tensors(tensors: dict[str, np.ndarray]) -> tuple[dict, dict[str, Shells]]:
    """Parameters as a tree, and the shells of every basis."""
    shells: dict[str, Shells] = {}
    params: dict = {}
    for name, value in tensors.items():
        kind, *keys = name.split("/")
        if kind == "params":
            node = params
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = value
        else:
            z, i, l = map(int, keys)
            shells.setdefault(kind, {}).setdefault(z, {})[i] = Shell(l, value[:, 0], value[:, 1])
    return params, shells


def _basis(header: dict[str, Any], name: str, shells: Shells) -> Basis:
    """A basis of a file, held against its fingerprint."""
    ordered = {z: [of_element[i] for i in sorted(of_element)] for z, of_element in shells.items()}
    basis = Basis.from_shells(header[f"{name}_name"], ordered)
    if basis.spec.fingerprint != header[f"{name}_fingerprint"]:
        raise ModelFileError(
            "basis",
            got="a basis that does not match its fingerprint",
            expected="an undamaged file",
            code=Code.DAMAGED,
        )
    return basis
