"""Names that are imported when somebody first asks for them."""

import importlib
from collections.abc import Callable
from typing import Any


def lazily(package: str, homes: dict[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """A ``__getattr__`` for ``package``: modules by name, and what each of them offers."""
    home_of = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home_of[name]), name)

    return find
