"""Finding simulators and embedders: by entry point name, or by ``module:Name``."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from simpe.errors import InputError

GROUPS = ("simpe.simulators", "simpe.embedders")


def available(group: str) -> dict[str, metadata.EntryPoint]:
    """Registered plug-ins of a group: name -> entry point. Nothing is imported."""
    return {point.name: point for point in sorted(metadata.entry_points(group=group), key=lambda p: p.name)}


def load(name: str, group: str, modules: Path | None = None) -> Any:
    """The class, function or object called ``name``; modules are also looked for in ``modules``, or
    else the current folder.

    Raises InputError when it is not found or cannot be imported.
    """
    registered = available(group)
    if name in registered:
        return _import(name, registered[name].load)
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        known = ", ".join(registered) or "none"
        raise InputError(f"{name!r} is not registered (known: {known}); write module:Name for a plug-in of your own")
    here = str(modules or Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)

    def find() -> Any:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found

    return _import(name, find)


def make(name: str, group: str, options: dict[str, Any] | None = None, modules: Path | None = None) -> Any:
    """The plug-in, made with the options where it is a class.

    Raises InputError when it cannot be made.
    """
    found = load(name, group, modules)
    if not isinstance(found, type):
        if options:
            raise InputError(f"{name} is not a class, so it takes no options")
        return found
    try:
        return found(**(options or {}))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be made: {type(error).__name__}: {_first_line(error)}") from error


def _import(name: str, find: Any) -> Any:
    try:
        return find()
    except Exception as error:
        raise InputError(f"{name} cannot be imported: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
