"""Puts off torch's compiler until somebody compiles.

torchvision and every optimizer of torch 2.11 import `torch._dynamo` with all that a compiler needs (sympy, the symbolic
shapes, FSDP): half of the CPU time of a start. All they want from it is three functions, which do nothing where nothing
is compiled. `defer_compiler()` puts a stand-in with those three in its place. Whatever else is asked of the stand-in or
below it loads the real module first, so `torch.compile` works as ever.

Must be called before torchvision is imported. Knows torch's names alone, and does not import it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_UTILITIES = "torch._dynamo.utils"


def defer_compiler() -> None:
    """Puts the stand-in in place; does nothing where the real module is loaded already, or the stand-in is there."""
    if _COMPILER not in sys.modules:
        finder = _Finder()
        for name in (_COMPILER, _UTILITIES):
            sys.modules[name] = _StandIn(name, finder)
        sys.meta_path.insert(0, finder)


def is_compiled(model: object) -> bool:
    """Whether this is what `torch.compile` made of a module; asking loads no compiler."""
    compiler = sys.modules.get(f"{_COMPILER}.eval_frame")
    return compiler is not None and isinstance(model, compiler.OptimizedModule)


class _StandIn(ModuleType):
    """A module that has what is wanted without a compiler, and becomes the real one when asked for more."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, so that a module below it is asked of the finder
        self._finder = finder

    def graph_break(self, *_: object, **__: object) -> None:
        """Tells the compiler to stop here; there is none."""

    def disable(self, function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        """Keeps the compiler from a function; there is none, and it is asked again once there is."""
        self._finder.left_alone.append(function)
        return function

    def is_compile_supported(self, device: str) -> bool:
        """What torchvision asks before it compiles: the real answer."""
        supported: bool = self._finder.load(_UTILITIES).is_compile_supported(device)
        return supported

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the real module has
        if name.startswith("__") and name.endswith("__"):  # Python's own questions about a module
            raise AttributeError(name)
        return getattr(self._finder.load(self.__name__), name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the real modules as soon as one below the stand-in is imported."""

    def __init__(self) -> None:
        self.left_alone: list[Callable[..., Any]] = []

    def load(self, name: str) -> ModuleType:
        """The real module, in the place of its stand-in."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            for stand_in in (_COMPILER, _UTILITIES):
                sys.modules.pop(stand_in, None)
            for function in self.left_alone:
                # Where torch._compile remembers the answer of `disable`.
                vars(function).pop("__dynamo_disable", None)
        return importlib.import_module(name)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `MetaPathFinder`."""
        if not name.startswith(f"{_COMPILER}."):
            return None
        self._spec = self.load(name).__spec__
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module is there already: loading the package loaded it, or `find_spec` did."""
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Undoes what the import system wrote into a module that it took for a new one."""
        module.__spec__ = self._spec
