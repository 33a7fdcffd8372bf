"""Functions by name: `module:attribute`, for calls that cross a network.

The one idea: a name runs no code of its sender. The receiver imports only modules that its own user allowed, and takes from
them only functions and classes that these modules define.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from shoal.protocol.errors import ProtocolError, UserError, printable, signed

MAX_NAME = 512  # characters of a function's name
NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)", re.ASCII)


def name_of(fn: Any) -> str:
    """The name `module:attribute` by which another process can import a function. Raises UserError if it has none."""
    module, attribute = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    if not callable(fn):
        raise TypeError(f"submit and map want a function first, not {signed(fn)}")
    if "<" in attribute:
        raise UserError(f"`{attribute}` has no name another process can import: define it in a file, or use a local Pool")
    if module == "__main__":
        raise UserError(
            f"{attribute} is of the program itself, which no other machine can import: put it into a file of its own"
        )
    name = f"{module}:{attribute}"
    if not (module and NAME.fullmatch(name)) or _found(name) is not fn:
        raise UserError(f"{signed(fn)} has no name another process can import: give a function of a module, not an object")
    return name


def function_of(name: str, allowed: Sequence[str]) -> Callable[..., Any]:
    """The function or class of this name. allowed: modules, each with all below it. Raises ProtocolError, one line, if the name
    is of none of them, or leads to something that they only imported."""
    shown = printable(name, 100)
    if len(name) > MAX_NAME or not (match := NAME.fullmatch(name)):
        raise ProtocolError(f"{shown} is no name of a function: expected module:attribute")
    if not _within(match[1], allowed):
        raise ProtocolError(
            f"{shown} is not allowed here: this actor imports {', '.join(allowed) or 'no modules'} alone; "
            f"start it with --allow {match[1]}"
        )
    try:
        found = _found(name)
    except ImportError as why:
        raise ProtocolError(f"{shown} cannot be imported here: {printable(str(why), 200)}") from None
    if found is None:
        raise ProtocolError(f"{shown} does not exist here: its module has no such attribute")
    if not callable(found) or not _within(str(getattr(found, "__module__", None) or type(found).__module__), allowed):
        raise ProtocolError(f"{shown} is no function of the modules that are allowed here")
    return found  # type: ignore[no-any-return]


def _within(module: str, allowed: Sequence[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in allowed)


def _found(name: str) -> Any:
    """The object of a name; None if there is none. A module on the way is not gone through: it is another name."""
    module, _, attributes = name.partition(":")
    found: Any = import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
        if isinstance(found, types.ModuleType):
            return None
    return found
