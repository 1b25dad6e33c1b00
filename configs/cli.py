"""What every command line of the project shares: exit codes and a ``--help`` that lists the fields."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import pydantic
from pydantic_core import PydanticUndefined

from configs import ConfigError, nested_models

DONE, FAILED, BAD_USAGE = 0, 1, 2
INTERRUPTED = 130  # as shells count: 128 and the signal's number
STOPPED = 75  # EX_TEMPFAIL: on request; the same command goes on


def run(main: Callable[[], int | None]) -> None:
    """Call ``main`` and exit: 0 done, 1 failed (with its traceback), 2 bad usage (one line on stderr), 130 Ctrl-C."""
    try:
        code = main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        code = BAD_USAGE
    except BrokenPipeError:  # somebody reads the beginning only, with head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is on disk", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code or DONE)


def describe(schema: type[pydantic.BaseModel]) -> str:
    """The fields of ``schema`` with default and description, one a line, for an argparse epilog.

    Of alternatives each is named by the value that chooses it, and what they share is said once. The fields of a
    model that stands in several places are listed where its path is shortest.
    """
    return "\n".join(dict.fromkeys(_describe(schema, "", _homes(schema))))


def _homes(schema: type[pydantic.BaseModel]) -> dict[type[pydantic.BaseModel], str]:
    """Model -> where its fields are listed, which may be those of a model that extends it."""
    homes: dict[type[pydantic.BaseModel], str] = {}
    level = [(schema, "")]
    while level:
        below = []
        for outer, prefix in level:
            for name, field in outer.model_fields.items():
                for model in nested_models(field.annotation):
                    wider = next((home for known, home in homes.items() if issubclass(known, model)), None)
                    homes.setdefault(model, wider or prefix + name)
                    if wider is None:
                        below.append((model, f"{prefix}{name}."))
        level = below
    return homes


def _describe(
    schema: type[pydantic.BaseModel], prefix: str, homes: Mapping[type[pydantic.BaseModel], str]
) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        path, models = prefix + name, nested_models(field.annotation)
        about = " ".join((field.description or "").split())
        if len(models) == 1 and homes[models[0]] != path:
            about = f"{about} Its fields are those of {homes[models[0]]}."
        yield _line(path, f"{_default(field)}{about}")
        for model in models:
            lines = _describe(model, f"{path}.", homes) if homes[model] == path else ()
            if len(models) == 1:
                yield from lines
                continue
            choice = _choice(model)
            what = (model.__doc__ or "").strip().partition("\n")[0]
            where = "" if homes[model] == path else f" Its fields are those of {homes[model]}."
            yield _line(f"{path}.{choice}", f"{what}{where}")
            tag = f"{path}.{choice.partition('=')[0]}"
            yield from (line for line in lines if line.split()[0] != tag)


def _line(path: str, about: str) -> str:
    return f"  {path:<34} {about}".rstrip()


def _choice(model: type[pydantic.BaseModel]) -> str:
    """The field that tells a member of a union from the others, and its value: kind=people."""
    for name, field in model.model_fields.items():
        values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        if len(values) == 1:
            return f"{name}={values[0]}"
    return model.__name__


def _default(field: Any) -> str:
    if field.is_required():
        return "(required) "
    if field.default is PydanticUndefined or isinstance(field.default, pydantic.BaseModel):
        return ""
    return f"[{_as_yaml(field.default)}] "


def _as_yaml(value: Any) -> str:
    if isinstance(value, pydantic.BaseModel):
        return _choice(type(value)).partition("=")[2]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
