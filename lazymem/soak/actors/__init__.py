"""Who is on stage? Every module here (`lazymem.soak.actor` says what one is): to add an actor, add a file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def everybody() -> list[ModuleType]:
    """All actors, by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]
