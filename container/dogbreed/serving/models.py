"""Several models behind one port: which are loaded, who uses them, and what memory they may take.

Knows names, folders, threads and sizes; neither HTTP nor torch: it is handed what opens a model and what gives memory
back. On SageMaker the platform decides what is unloaded: it is told that memory is short (507), and deletes. Elsewhere
a setting lets the model go that was used least recently.

Sources: AWS developer guide, mms-container-apis (loading twice is 409, an absent model 404, no memory 507; memory is
free when a delete returns), build-multi-model-build-container.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dogbreed.errors import (
    JobError,
    ModelConflictError,
    ModelNotFoundError,
    NotReadyError,
    OutOfMemoryError,
    RequestError,
    ServerBusyError,
)
from dogbreed.serving.deadline import Check, unlimited
from dogbreed.serving.payload import Scores

_LOGGER = logging.getLogger(__name__)

_LOADING_TAKES = 4
"""Times the size of a model's files, at the peak: its tensors, the network that is folded for the engine, and what the
engine makes of it (measured: see docs/serving.md)."""

_LOADING_TAKES_BESIDE_BYTES = 128 * 1024 * 1024
"""For the first images, the graph and what is lost between, whatever the size of the files."""

_PAGE = 100
_NAME_MAX_CHARACTERS = 1024
# How Python, torch's CPU allocator and CUDA say it.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Model(Protocol):
    """What an endpoint needs of a model."""

    def status(self) -> str | None:
        """None when the model can predict now, else the reason why not; returns at once."""

    def predict(self, images: Sequence[bytes], check: Check = unlimited) -> Scores:
        """Scores encoded images, in order; asks before each of them, and raises what the check raises."""

    def explain(self, image: bytes, check: Check = unlimited) -> Scores:
        """Scores one encoded image, and tells where the network looked; raises `NoHeatMapError` where it cannot."""


@dataclass(frozen=True, slots=True)
class Described:
    """A loaded model.

    Attributes:
        name: as the platform calls it; opaque.
        url: the folder it was loaded from.
    """

    name: str
    url: str


@dataclass(slots=True)
class _Entry:
    described: Described
    size_bytes: int
    model: Model | None = None  # None while it is loaded
    users: int = 0
    leaves: bool = False
    used_s: float = field(default=0.0)


class ModelRegistry:
    """Loads, lists, lends and deletes models. Thread-safe.

    Args:
        open_model: loads the bundle in a folder; a `JobError` of it is the answer to whoever asked.
        root: no folder outside of it is opened.
        release: gives memory that was freed back to the system.
        available_bytes: memory that may still be taken now; None when nobody knows.
        budget_bytes: that the files of all loaded models may have together; None is any.
        evict: let the least recently used models go where memory is short, instead of refusing.
        copies: of its weights that a loaded model computes with.
        patience_s: how long a delete waits for predictions in hand.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        open_model: Callable[[Path], Model],
        *,
        root: Path,
        release: Callable[[], None],
        available_bytes: Callable[[], int | None],
        budget_bytes: int | None = None,
        evict: bool = False,
        copies: int = 1,
        patience_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = open_model
        self._root = root
        self._release = release
        self._available_bytes = available_bytes
        self._budget_bytes = budget_bytes
        self._evict = evict
        self._loading_takes = _LOADING_TAKES - 1 + copies
        self._patience_s = patience_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._changed = threading.Condition()
        # One at a time: two that each look at the free memory before either takes it would both find enough.
        self._loading = threading.Lock()

    def load(self, name: str, url: str) -> None:
        """Loads a model; returns when it can predict.

        Raises:
            ModelConflictError: one of this name is loaded, or being loaded.
            OutOfMemoryError: it would not fit.
            RequestError: the name or the folder cannot be used; says why.
        """
        if not name or len(name) > _NAME_MAX_CHARACTERS:
            raise RequestError(f"model_name must have 1 to {_NAME_MAX_CHARACTERS} characters; it has {len(name)}")
        if not _is_text(name):
            raise RequestError(
                f"model_name={name[:100]!r} is no text: it holds half of a character's code (a surrogate)"
            )
        folder = self._folder(url)
        entry = _Entry(Described(name, url), _size_bytes(folder))
        with self._changed:
            if name in self._entries:
                raise ModelConflictError(f"a model named {name[:100]!r} is loaded already, or is being loaded")
            self._entries[name] = entry
        try:
            with self._loading:
                self._make_room(entry)
                model = self._open_or_refuse(entry, folder)
        except BaseException:
            with self._changed:
                del self._entries[name]
            self._release()
            raise
        with self._changed:
            entry.used_s = self._clock()
            entry.model = model
        _LOGGER.info("model %r is loaded from %s", name, folder)

    def delete(self, name: str) -> None:
        """Unloads a model, when its predictions in hand are done; its memory is free when this returns.

        Raises:
            ModelNotFoundError: there is none of this name.
            ModelConflictError: it is being loaded.
            ServerBusyError: a prediction did not end in time; the model stays.
        """
        with self._changed:
            entry = self._find(name)
            if entry.model is None:
                raise ModelConflictError(f"the model {name[:100]!r} is being loaded; delete it when it is")
            self._let_go(name, entry)
        del entry
        self._release()
        _LOGGER.info("model %r is deleted", name)

    def describe(self, name: str) -> Described:
        """Raises ModelNotFoundError when there is none of this name."""
        with self._changed:
            return self._find(name).described

    def page(self, token: str | None = None, size: int = _PAGE) -> tuple[list[Described], str | None]:
        """Loaded models by name, and the token of the next page, if there is one.

        Raises:
            RequestError: the token is none of ours.
        """
        after = _read_token(token) if token else None
        with self._changed:
            names = sorted(name for name, entry in self._entries.items() if entry.model is not None)
            names = [name for name in names if after is None or name > after]
            found = [self._entries[name].described for name in names[:size]]
        return found, _write_token(names[size - 1]) if len(names) > size else None

    def count(self) -> int:
        """Models that are loaded."""
        with self._changed:
            return sum(entry.model is not None for entry in self._entries.values())

    def find(self, name: str) -> Model:
        """A model that is held only while it predicts, so that it can be deleted in between.

        Raises:
            ModelNotFoundError: there is none of this name.
        """
        with self._changed:
            self._find(name)
        return _Handle(self, name)

    @contextmanager
    def lend(self, name: str) -> Iterator[Model]:
        """The model itself, which is not deleted before it is given back.

        Raises:
            ModelNotFoundError: there is none of this name.
            NotReadyError: it is being loaded.
        """
        with self._changed:
            entry = self._find(name)
            if entry.model is None:
                raise NotReadyError(f"the model {name[:100]!r} is being loaded")
            entry.users += 1
            entry.used_s = self._clock()
            model = entry.model
        try:
            yield model
        finally:
            del model
            with self._changed:
                entry.users -= 1
                self._changed.notify_all()

    def _find(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None or entry.leaves:
            raise ModelNotFoundError(f"no model named {name[:100]!r} is loaded")
        return entry

    def _folder(self, url: str) -> Path:
        # Resolved first: neither dots nor links lead out of the root.
        try:
            folder = Path(url).resolve()
            inside = folder.is_relative_to(self._root.resolve()) and folder.is_dir()
        except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links, a name that is too long
            inside = False
        if not inside:
            raise RequestError(f"url={url[:200]!r} is not a folder below {self._root}")
        return folder

    def _make_room(self, entry: _Entry) -> None:
        """Raises OutOfMemoryError when there is none to be had."""
        while (shortage := self._shortage(entry)) is not None:
            if not self._evict or not self._evict_one():
                raise OutOfMemoryError(f"model {entry.described.name[:100]!r} does not fit: {shortage}")

    def _shortage(self, entry: _Entry) -> str | None:
        with self._changed:
            loaded_bytes = sum(one.size_bytes for one in self._entries.values() if one.model is not None)
        if self._budget_bytes is not None and loaded_bytes + entry.size_bytes > self._budget_bytes:
            return (
                f"loaded models have {loaded_bytes} bytes and this one {entry.size_bytes}; {self._budget_bytes} are "
                f"allowed"
            )
        available_bytes = self._available_bytes()
        needed_bytes = self._loading_takes * entry.size_bytes + _LOADING_TAKES_BESIDE_BYTES
        if available_bytes is not None and needed_bytes > available_bytes:
            return f"loading it takes {needed_bytes} bytes, and {available_bytes} are available"
        return None

    def _evict_one(self) -> bool:
        """Lets the model go that nobody uses and that was used least recently; False when all are in use."""
        with self._changed:
            idle = [
                (entry.used_s, name)
                for name, entry in self._entries.items()
                if entry.model is not None and not entry.users and not entry.leaves
            ]
            if not idle:
                return False
            _, name = min(idle)
            del self._entries[name]
        self._release()
        _LOGGER.info("model %r is unloaded to make room", name)
        return True

    def _let_go(self, name: str, entry: _Entry) -> None:
        """With the lock held. Nobody new gets the model while its predictions end."""
        entry.leaves = True
        if not self._changed.wait_for(lambda: entry.users == 0, timeout=self._patience_s):
            entry.leaves = False
            raise ServerBusyError(f"a prediction of {name[:100]!r} has not ended in {self._patience_s:g} seconds")
        entry.model = None
        del self._entries[name]

    def _open_or_refuse(self, entry: _Entry, folder: Path) -> Model:
        """Raises RequestError for what is wrong with the bundle or the memory, and lets faults of ours through."""
        try:
            return self._open(folder)
        except (JobError, MemoryError, RuntimeError) as error:
            refusal = _refusal(entry.described.name, error)
            if refusal is None:
                raise
        # Not from the error, and outside of its handler: its frames hold what was loaded so far.
        raise refusal


class _Handle:
    """Stands for a model by its name."""

    def __init__(self, registry: ModelRegistry, name: str) -> None:
        self._registry = registry
        self._name = name

    def status(self) -> str | None:
        try:
            with self._registry.lend(self._name) as model:
                return model.status()
        except NotReadyError as error:
            return str(error)

    def predict(self, images: Sequence[bytes], check: Check = unlimited) -> Scores:
        return self._ask(lambda model: model.predict(images, check))

    def explain(self, image: bytes, check: Check = unlimited) -> Scores:
        return self._ask(lambda model: model.explain(image, check))

    def _ask(self, question: Callable[[Model], Scores]) -> Scores:
        with self._registry.lend(self._name) as model:
            try:
                return question(model)
            except (MemoryError, RuntimeError) as error:
                if not is_memory_error(error):
                    raise
                raise OutOfMemoryError("there is not enough memory for this prediction") from error


def is_memory_error(error: BaseException) -> bool:
    """Whether memory was short, which torch says in the text of a RuntimeError."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)


def _refusal(name: str, error: Exception) -> RequestError | None:
    if is_memory_error(error):
        return OutOfMemoryError(f"there is not enough memory to load model {name[:100]!r}")
    return RequestError(f"model {name[:100]!r} cannot be loaded: {error}") if isinstance(error, JobError) else None


def _is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8, and so in a path; JSON's escapes can write others."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _write_token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _read_token(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise RequestError(f"next_page_token={token[:40]!r} is none that this server has given") from error
