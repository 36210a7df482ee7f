"""Configurations as frozen dataclasses: from mappings and back, strict about names and types."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, one_of


def convert(value: Any, kind: Any, name: str) -> Any:
    """A YAML or JSON value as a field's type, strictly.

    Raises:
      ConfigError: a value of another type.
    """
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = typing.get_args(kind)
        if value is None and type(None) in kinds:
            return None
        return convert(value, next(k for k in kinds if k is not type(None)), name)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, name)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(name, got=repr(value), expected="a list")
        return tuple(
            convert(v, typing.get_args(kind)[0], f"{name}[{i}]") for i, v in enumerate(value)
        )
    if kind is float and isinstance(value, str):
        try:  # YAML 1.1 reads 3e-3 as text
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(name, got=repr(value), expected=f"of type {kind.__name__}")
    return value


def as_mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Key: value pairs; nothing at all are none.

    Raises:
      ConfigError: something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(where, got=repr(value), expected="key: value pairs")
    return value


def from_mapping(cls: type, mapping: Any, where: str = "") -> Any:
    """Dataclass from a mapping; an unknown key is an error that names the nearest known one."""
    kinds = {f.name: kind for f, kind in zip(dataclasses.fields(cls), _kinds(cls), strict=True)}
    values = {}
    for key, value in as_mapping(mapping, where or "config").items():
        name = f"{where}.{key}" if where else str(key)
        one_of(f"a key of {where or 'config'}", key, kinds)
        values[key] = convert(value, kinds[key], name)
    return cls(**values)


def _kinds(cls: type) -> list[Any]:
    hints = typing.get_type_hints(cls)
    return [hints[f.name] for f in dataclasses.fields(cls)]


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain YAML- and JSON-able values of a configuration."""
    if dataclasses.is_dataclass(config):
        config = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {k: _plain(v) for k, v in config.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
        return to_mapping(value)
    return value


def yaml_lines(config: Any, indent: int = 0) -> list[str]:
    """A configuration as lines of YAML, every key with what its docstring says of it."""
    import yaml

    lines, pad, about = [], "  " * indent, attribute_docs(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        lines += [f"{pad}# {text}" for text in about.get(field.name, ())]
        if dataclasses.is_dataclass(value):
            lines += [f"{pad}{field.name}:", *yaml_lines(value, indent + 1)]
        else:
            text = yaml.safe_dump(_plain(value), default_flow_style=True)
            lines.append(f"{pad}{field.name}: {text.removesuffix('...' + chr(10)).strip()}")
    return lines


def attribute_docs(cls: type) -> dict[str, list[str]]:
    """The ``Attributes:`` sections of a class and of those it inherits from, by attribute."""
    found: dict[str, list[str]] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        current = None
        # without indentation, which Python 3.13 takes away itself
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for line in section.splitlines():
            text = line.strip()
            if not text:
                continue
            if len(line) - len(line.lstrip()) == 2:
                current, _, text = text.partition(": ")
                found[current] = []
            if current:
                found[current].append(text.replace("``", ""))
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    values = {}
    for key, value in tree.items():
        name = prefix + key
        values |= flat(value, name + ".") if isinstance(value, Mapping) else {name: value}
    return values
