"""The life of the model behind the port: loading, ready, failed. It is where `/ping` gets its answer.

Knows threads and states; is handed a loader and knows neither torch nor the web. The port is open while the loader
works in the background, and the model counts as ready only when a self-test has passed. An error that no request
explains makes it prove itself again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from dogbreed.errors import DogbreedError, NotReadyError
from dogbreed.serving.deadline import Check, unlimited
from dogbreed.serving.payload import Scores

_LOGGER = logging.getLogger(__name__)


class Engine(Protocol):
    """What a loader returns."""

    def predict(self, images: Sequence[bytes], check: Check) -> Scores:
        """Scores encoded images; raises `RequestError` for the client's mistakes, and what the check raises."""

    def explain(self, image: bytes, check: Check) -> Scores:
        """Scores one encoded image with a heat map; raises `NoHeatMapError` as well."""

    def self_test(self) -> None:
        """Raises an exception when the model does not work."""


class ModelLifecycle:
    """Loads an engine in the background and stands in for it.

    Args:
        loader: builds the engine; runs once, in its own thread. A `DogbreedError` from it is shown to clients, of any
            other exception only the type.
        stuck_after_s: when a prediction has not gone on for longer than this, from one image to the next, the model
            counts as dead until it does. How long all of its images take is the affair of the request's own deadline.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        loader: Callable[[], Engine],
        *,
        stuck_after_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loader = loader
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        # Read without a lock on purpose: /ping must never wait. Each is replaced whole, the engine before the reason.
        self._engine: Engine | None = None
        self._reason: str | None = "the model is waiting to be loaded"
        self._examination = threading.Lock()
        # When each call in hand was last seen to go on.
        self._seen_s: dict[object, float] = {}

    def start(self) -> threading.Thread:
        """Begins to load; returns the thread, which a test may join."""
        # A daemon: a server that is told to stop while it loads does not finish loading first.
        thread = threading.Thread(target=self._load, name="load-model", daemon=True)
        thread.start()
        return thread

    def status(self) -> str | None:
        """None when the model can predict now, else why not. Never waits."""
        if self._reason is not None:
            return self._reason
        oldest_s = min(list(self._seen_s.values()), default=None)
        if oldest_s is not None and (age_s := self._clock() - oldest_s) > self._stuck_after_s:
            return f"a prediction has not gone on for {age_s:.0f} seconds"
        return None

    def predict(self, images: Sequence[bytes], check: Check = unlimited) -> Scores:
        """Scores encoded images.

        Args:
            images: of one request.
            check: asked by the engine before each image; may end the request.

        Raises:
            NotReadyError: the model is not loaded, or has failed.
            RequestError: from the engine, for the client's mistakes; from the check.
            Exception: anything else that the engine raises; the model has passed or failed its self-test by then.
        """
        return self._ask(lambda engine, watched: engine.predict(images, watched), check)

    def explain(self, image: bytes, check: Check = unlimited) -> Scores:
        """Scores one encoded image with a heat map; raises as `predict` does, and `NoHeatMapError`."""
        return self._ask(lambda engine, watched: engine.explain(image, watched), check)

    def _ask(self, question: Callable[[Engine, Check], Scores], check: Check) -> Scores:
        engine = self._engine
        if engine is None or self._reason is not None:
            raise NotReadyError(self._reason or "the model is waiting to be loaded")
        call = object()
        self._seen_s[call] = self._clock()

        def goes_on() -> None:
            self._seen_s[call] = self._clock()
            check()

        try:
            return question(engine, goes_on)
        except DogbreedError:
            raise
        except Exception:
            self._examine(engine)
            raise
        finally:
            del self._seen_s[call]

    def _load(self) -> None:
        began_s = self._clock()
        try:
            self._enter("loading the model")
            engine = self._loader()
            self._enter("the model is loaded; its self-test is running")
            engine.self_test()
        except DogbreedError as error:
            self._reason = str(error)
            _LOGGER.error("the model cannot be served: %s", error)
        except Exception as error:
            self._reason = f"the model cannot be loaded: {type(error).__name__}, see the log"
            _LOGGER.exception("the model cannot be loaded")
        else:
            self._engine = engine
            self._reason = None
            _LOGGER.info("ready after %.1f s", self._clock() - began_s)

    def _enter(self, phase: str) -> None:
        self._reason = phase
        _LOGGER.info("%s", phase)

    def _examine(self, engine: Engine) -> None:
        """Runs the self-test after an unexpected error; a model that fails it is not asked again."""
        with self._examination:
            if self._reason is not None:  # another thread's examination ended badly meanwhile
                return
            try:
                engine.self_test()
            except Exception as error:
                self._reason = f"the model failed its self-test after an error: {type(error).__name__}, see the log"
                _LOGGER.exception("the model failed its self-test after an error; it is not asked again")
