"""The one configuration loader: a YAML file, overrides, a schema -> a frozen, checked model.

Every schema is a subclass of :class:`Config` and lives beside the code that reads it. Nothing is guessed:
an unknown key, a duplicate key, a wrong type or a missing file raises :class:`ConfigError`, whose message is
one line that names the file, the field and the mend.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

__all__ = ["Config", "ConfigError", "config_hash", "dump", "load"]


class ConfigError(ValueError):
    """A configuration that cannot be used. The message is one line: file, field, what to do."""


class Config(pydantic.BaseModel):
    """Base of every schema: frozen, strict types, unknown keys refused."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


ConfigT = TypeVar("ConfigT", bound=pydantic.BaseModel)


def load(path: str | Path, overrides: Sequence[str] = (), *, schema: type[ConfigT]) -> ConfigT:
    """Read ``path``, follow ``base:``, apply ``overrides`` and validate against ``schema``.

    Args:
        path: A YAML file. Its optional key ``base`` names another file, relative to this one, whose mappings
            are merged under this file's; lists and scalars are replaced.
        overrides: ``"a.b=c"`` strings; the right side is parsed as YAML.
        schema: The pydantic model that describes the file.

    Raises:
        ConfigError: with one line that says what to do.
    """
    path = Path(path)
    tree = _read(path, seen=())
    for override in overrides:
        _apply(tree, override)
    return _validate(tree, schema, source=str(path))


def dump(config: pydantic.BaseModel) -> str:
    """The resolved configuration as YAML text that :func:`load` reads back to an equal model."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110
    )


def config_hash(config: pydantic.BaseModel, exclude: Any = None) -> str:
    """16 hexadecimal digits that change when a field outside ``exclude`` changes.

    ``exclude`` is pydantic's: a set of names, or a mapping of names to inner sets.
    """
    tree = config.model_dump(mode="json", exclude=exclude)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


# --- reading -------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its YAML 1.1 surprises: ``no`` stays a word, ``12:30`` a text, ``1e-3`` a
    number, ``010`` a text (so that an integer field refuses it), and a duplicate key is an error.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own shape


_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            line = key_node.start_mark.line + 1
            raise ConfigError(f"line {line}: the key '{key}' appears twice; keep one")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever a plain YAML 1.1 reader, or ours, would not read back as the same text."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    looks_other = _Loader("").resolve(yaml.ScalarNode, text, (True, False)) != "tag:yaml.org,2002:str"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if looks_other else None)


_Dumper.add_representer(str, _represent_str)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{source}:{where} {problem}; check the indentation and the colons") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in ``path`` merged over those of its ``base`` chain."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: 'base' leads back to this file; break the circle")
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_similar_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a YAML text file") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines at the top level, found {_kind(tree)}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: 'base' must be the path of a YAML file, found {_kind(base)}")
    return _merge(_read(path.parent / base, (*seen, path.resolve())), tree)


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one ``a.b=c`` in ``tree``. Whether the field exists is the schema's business."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"override '{override}': write it as field=value, for example optim.lr=0.3")
    *parents, leaf = dotted.strip().split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override}': '{name}' is {_kind(child)}, it has no fields")
        tree = child
    tree[leaf] = _parse(text, f"override '{override}'")


def _similar_file(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else "; check the path"


# --- validating ----------------------------------------------------------------------------------------------


def _validate(tree: dict[str, Any], schema: type[ConfigT], source: str) -> ConfigT:
    # Through JSON: strict mode then takes a list for a tuple and a text for a path, as a file must spell
    # them, and still refuses a text where a number belongs.
    try:
        return schema.model_validate_json(json.dumps(tree))
    except (TypeError, ValueError) as error:
        if not isinstance(error, pydantic.ValidationError):
            raise ConfigError(f"{source}: {error}") from None
        first, *rest = _distinct(error.errors(), schema, tree)
        more = f" (and {len(rest)} more)" if rest else ""
        raise ConfigError(f"{source}: {_explain(first, schema, tree)}{more}") from None


def _distinct(errors: Sequence[Any], schema: type[pydantic.BaseModel], tree: Any) -> list[Any]:
    """One error a field, though every member of a union has its own; a misspelt key is not missing besides."""
    found: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        found.setdefault(tuple(_real_keys(error, tree)), error)
    for keys in [keys for keys, error in found.items() if error["type"] == "extra_forbidden"]:
        for meant in _close(keys, schema):
            if found.get((*keys[:-1], meant), {}).get("type") == "missing":
                del found[(*keys[:-1], meant)]
    return list(found.values())


def _close(keys: Sequence[Any], schema: type[pydantic.BaseModel]) -> list[str]:
    """The field that an unknown key may have been meant for, if any."""
    return difflib.get_close_matches(str(keys[-1]), _field_names(schema, keys[:-1]), n=1, cutoff=0.4)


def _explain(error: Any, schema: type[pydantic.BaseModel], tree: Any) -> str:
    """One pydantic error as 'field: what is wrong; the mend'."""
    # A discriminated union puts its tag into the location; the tree knows which parts are real.
    keys = _real_keys(error, tree)
    field = ".".join(str(key) for key in keys) or "the file"
    kind = error["type"]
    if kind == "extra_forbidden":
        close = _close(keys, schema)
        mend = f"did you mean '{close[0]}'?" if close else "remove it"
        known = ", ".join(_field_names(schema, keys[:-1]))
        return f"{field}: unknown key; {mend} (known: {known})"
    if kind == "missing":
        return f"{field}: missing; add it"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _explain_tag(error["ctx"], keys, schema)
    if kind in ("value_error", "assertion_error"):
        said: str = error["msg"].removeprefix("Value error, ")
        return f"{field}: {said}" if keys else said  # of the whole, it names the field itself
    found = error.get("input")
    return f"{field}: {_lower(error['msg'])}, found {_kind(found)}{_hint(kind, found)}"


def _explain_tag(context: Mapping[str, Any], keys: Sequence[Any], schema: type[pydantic.BaseModel]) -> str:
    """Which members a discriminated union has, where none was named or another."""
    tag = context["discriminator"].strip("'")
    fields = [model.model_fields[tag] for model in _models(schema, keys) if tag in model.model_fields]
    names = [str(name) for field in fields for name in get_args(field.annotation)]
    field, choices = ".".join(map(str, [*keys, tag])), ", ".join(names)
    if "tag" not in context:
        return f"{field}: missing; write one of {choices}"
    close = difflib.get_close_matches(context["tag"], names, n=1)
    meant = f"did you mean '{close[0]}'? " if close else ""
    return f"{field}: unknown '{context['tag']}'; {meant}write one of {choices}"


def _hint(kind: str, found: Any) -> str:
    if kind.startswith("bool") and isinstance(found, str):
        return "; write true or false"
    if kind.startswith(("int", "float")) and isinstance(found, str):
        return "; write a plain number without quotes or leading zeros"
    if kind.startswith("string"):
        return "; put it in quotes"
    return ""


def _real_keys(error: Any, tree: Any) -> list[Any]:
    keys: list[Any] = []
    for i, part in enumerate(error["loc"]):
        inside = isinstance(tree, dict) and part in tree
        inside = inside or (isinstance(tree, list) and isinstance(part, int) and part < len(tree))
        if inside:
            keys.append(part)
            tree = tree[part]
        elif i == len(error["loc"]) - 1 and error["type"] == "missing":
            keys.append(part)
    return keys


def _field_names(schema: type[pydantic.BaseModel], keys: Sequence[Any]) -> list[str]:
    """The fields known at ``keys`` below ``schema``; for a union, those of every member."""
    return list(dict.fromkeys(name for model in _models(schema, keys) for name in model.model_fields))


def _models(schema: type[pydantic.BaseModel], keys: Sequence[Any]) -> list[type[pydantic.BaseModel]]:
    """The models that may stand at ``keys`` below ``schema``: of a union, every member."""
    models = [schema]
    for key in keys:
        inner: list[type[pydantic.BaseModel]] = []
        for model in models:
            if isinstance(key, int):
                inner.append(model)
            elif key in model.model_fields:
                inner.extend(nested_models(model.model_fields[key].annotation))
        models = inner
    return models


def nested_models(annotation: Any) -> list[type[pydantic.BaseModel]]:
    """The pydantic models inside an annotation such as ``tuple[A | B, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple, list, dict):
        return [model for arg in get_args(annotation) for model in nested_models(arg)]
    return []


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "the text", type(None): "nothing", bool: "the switch"}
    name = names.get(type(value), "the number")
    return name if isinstance(value, (dict, list, type(None))) else f"{name} {json.dumps(value)}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
