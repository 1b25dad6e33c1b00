"""What every command line of the project shares: exit codes and a ``--help`` that lists the fields."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

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

    What the members of a union share is said once.
    """
    return "\n".join(dict.fromkeys(_describe(schema, prefix="")))


def _describe(schema: type[pydantic.BaseModel], prefix: str) -> Iterator[str]:
    for name, field in schema.model_fields.items():
        inner = nested_models(field.annotation)
        about = " ".join((field.description or "").split())
        yield f"  {prefix + name:<34} {_default(field)}{about}"
        for model in inner:
            yield from _describe(model, prefix=f"{prefix}{name}.")


def _default(field: Any) -> str:
    if field.is_required():
        return "(required) "
    if field.default is PydanticUndefined or isinstance(field.default, pydantic.BaseModel):
        return ""
    return f"[{field.default}] "
