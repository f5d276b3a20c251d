"""Hooks of torch that are there only while somebody wants to hear of something.

One that has nothing to do still takes microseconds of every step, and there are steps of half a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Listeners:
    """Hooks that come and go together; at first they are not there."""

    def __init__(self) -> None:
        self._wanted: list[tuple[Callable[..., Any], Callable[..., Any]]] = []
        self._handles: list[Any] = []
        self._active = False

    def add(self, register: Callable[..., Any], heard: Callable[..., Any]) -> None:
        """One more: ``register(heard)`` puts it in place and returns its handle."""
        self._wanted.append((register, heard))
        if self._active:
            self._handles.append(register(heard))

    def listen(self, wanted: bool) -> None:
        """Puts them in place, or takes them away; does nothing where they are as they should be."""
        if wanted == self._active:
            return
        self._active = wanted
        if wanted:
            self._handles = [register(heard) for register, heard in self._wanted]
        else:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
