"""Methods of objects that are not kept alive by their callers.

For what an object gives to its own parts, and to bells in their hands: a strong reference there makes a cycle, which
keeps descriptors and memory until the cycle collector runs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any
from weakref import ref


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a bound method as long as its object lives, and then does nothing."""
    owner, function = ref(method.__self__), method.__func__  # type: ignore[attr-defined]

    def call(*arguments: Any) -> Any:
        found = owner()
        return None if found is None else function(found, *arguments)

    return call


def bound(method: Callable[..., Any]) -> Callable[[], Callable[..., Any] | None]:
    """Return a function that returns a method as long as its object lives: for many calls in a row. Others stay."""
    if not isinstance(method, MethodType):
        return lambda: method
    owner, function = ref(method.__self__), method.__func__

    def get() -> Callable[..., Any] | None:
        found = owner()
        return None if found is None else MethodType(function, found)

    return get
