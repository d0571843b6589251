"""Methods of objects that are not kept alive by whoever may call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls ``method`` as long as its object lives, and then does nothing.

    For what an object gives to its own parts, and to bells in their hands: a strong reference there makes a cycle,
    which keeps descriptors and memory until the cycle collector runs.
    """
    reference = WeakMethod(method)

    def call(*arguments: Any) -> Any:
        found = reference()
        return None if found is None else found(*arguments)

    return call
