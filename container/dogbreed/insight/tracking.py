"""Tells an MLflow tracking server of a job: hyperparameters, metrics of each epoch, the report and the bundle.

A thread of its own does all the talking, because a server may be slow or away: training waits for nothing, and the
first failure is one warning and the end of the telling. At the end of the job the thread is given a minute for what is
left, or half of one where the server has not answered yet.

The library is optional and imported in that thread (it takes seconds). Only `MlflowClient` is used, whose interface has
been the same since MLflow 1.27.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "dogbreed"
_FIRST_ANSWER_S = 30.0
_LAST_WORDS_S = 60.0
_MOST_CHARACTERS = 250
"""Of a parameter's value: the least that a version of MLflow takes."""


@dataclass(frozen=True, slots=True)
class Run:
    """Which run on which server.

    Attributes:
        uri: of the tracking server or store; an ARN needs the sagemaker-mlflow plugin.
        experiment: its name; made when there is none of that name.
        run_id: of a run that exists and goes on, or None for a new one.
        name: of a new run, or None.
    """

    uri: str
    experiment: str = DEFAULT_EXPERIMENT
    run_id: str | None = None
    name: str | None = None


class Tracker:
    """Tells of one job. No method raises or waits, but for `finish`, which waits a minute at most.

    Args:
        run: where it is told.
        parameters: of the job.
        patience_s: how long `finish` waits for a server that has not answered yet, and for one that has.
    """

    def __init__(
        self,
        run: Run,
        parameters: Mapping[str, object],
        *,
        patience_s: tuple[float, float] = (_FIRST_ANSWER_S, _LAST_WORDS_S),
    ) -> None:
        self._run = run
        self._parameters = {name: str(value)[:_MOST_CHARACTERS] for name, value in parameters.items()}
        self._patience_s = patience_s
        self._answered = threading.Event()
        self._tasks: queue.SimpleQueue[Callable[[Any, str], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of an epoch."""
        milliseconds = int(time.time() * 1000)

        def tell(client: Any, run_id: str) -> None:  # noqa: ANN401  an optional library's
            from mlflow.entities import Metric

            client.log_batch(run_id, metrics=[Metric(key, value, milliseconds, step) for key, value in values.items()])

        self._tasks.put(tell)

    def finish(self, folders: Mapping[str, Path], *, failed: bool) -> None:
        """Sends what the job has left, ends the run, and waits for that as long as is bearable.

        Args:
            folders: artifact path -> folder; those that are not there are left out.
            failed: the job has ended with an error.
        """
        for name, folder in folders.items():
            if folder.is_dir():
                self._tasks.put(_sending(folder, name))
        self._tasks.put(lambda client, run_id: client.set_terminated(run_id, "FAILED" if failed else "FINISHED"))
        self._tasks.put(None)
        first, last = self._patience_s
        self._thread.join(first)
        if self._answered.is_set():
            self._thread.join(last)
        if self._thread.is_alive():
            logger.warning("MLflow at %s takes too long; what it was not told yet is lost", self._run.uri)

    def _work(self) -> None:
        try:
            client, run_id = self._begin()
            self._answered.set()
            while (task := self._tasks.get()) is not None:
                task(client, run_id)
        except ImportError as error:
            logger.warning(
                "MLFLOW_TRACKING_URI is set and MLflow cannot be imported (%s): it is told nothing; install "
                "mlflow-skinny, see docs/insight.md",
                error,
            )
        except Exception as error:  # whatever a library, a network or a server may do
            logger.warning("MLflow at %s is told nothing more: %s", self._run.uri, _first_line(error))

    def _begin(self) -> tuple[Any, str]:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        # It warns of every attempt; one warning at the end says it all.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        client, run = MlflowClient(tracking_uri=self._run.uri), self._run
        if run.run_id is None:
            known = client.get_experiment_by_name(run.experiment)
            experiment = known.experiment_id if known else client.create_experiment(run.experiment)
            tags = {"mlflow.source.name": "dogbreed"} | ({"mlflow.runName": run.name} if run.name else {})
            run_id = str(client.create_run(experiment, tags=tags).info.run_id)
        else:
            run_id = str(client.get_run(run.run_id).info.run_id)
        client.log_batch(run_id, params=[Param(key, value) for key, value in self._parameters.items()])
        logger.info("MLflow at %s is told of this job, run %s", run.uri, run_id)
        return client, run_id


def _sending(folder: Path, name: str) -> Callable[[Any, str], object]:
    return lambda client, run_id: client.log_artifacts(run_id, str(folder), name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
