"""What a model answered to the images of a labelled folder: one row per image, kept as two files.

    answers.csv   one row per image, for a spreadsheet and for comparing
    run.json      what was asked, when and how

Plain values and files; knows neither servers nor statistics, and needs nothing but the standard library, so that what
asks endpoints can write it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ANSWERS_FILE = "answers.csv"
RUN_FILE = "run.json"
SCHEMA_VERSION = 1

CANDIDATES = 5
"""Of each answer that are kept."""


class ResultError(Exception):
    """A folder holds no results, or damaged ones; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image.

    Attributes:
        path: below the folder of images, with slashes.
        label: its class, in the model's words where the model knows it, else the folder's name.
        prediction: the answer; empty when there was none.
        probability: of the answer, in [0, 1]; NaN without one.
        top: up to five classes with their probabilities, best first.
        log_loss: minus the natural logarithm of the true class's probability; NaN where the model does not know it.
        brier: squared distance of all probabilities from the truth, in [0, 2]; NaN likewise.
        seconds: from the request to the answer.
        error: why there is no answer; empty otherwise.
        known: whether the model took the image for one of its classes; None where it does not say.
    """

    path: str
    label: str
    prediction: str = ""
    probability: float = math.nan
    top: tuple[tuple[str, float], ...] = ()
    log_loss: float = math.nan
    brier: float = math.nan
    seconds: float = math.nan
    error: str = ""
    known: bool | None = None

    @property
    def right(self) -> bool:
        """Whether the answer is the true class."""
        return not self.error and self.prediction == self.label

    @property
    def in_top(self) -> bool:
        """Whether the true class is among the candidates."""
        return any(label == self.label for label, _ in self.top)


@dataclass(frozen=True, slots=True)
class Run:
    """How the rows came to be.

    Attributes:
        name: of the results.
        target: what was asked, in words.
        data: the folder of images.
        started: time, ISO 8601.
        seconds: from the first request to the last answer.
        parallel: requests at once.
        labels: the model's classes, in its order.
        unknown: classes of the folder that the model does not know.
    """

    name: str
    target: str
    data: str
    started: str
    seconds: float
    parallel: int
    labels: tuple[str, ...]
    unknown: tuple[str, ...] = ()


_COLUMNS = (
    "path",
    "label",
    "prediction",
    "probability",
    "right",
    "top5",
    "log_loss",
    "brier",
    "seconds",
    "error",
    "known",
)


def write(run: Run, rows: Sequence[Row], folder: Path) -> None:
    """Writes both files into a folder, which is made.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ANSWERS_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in rows:
            numbers = [_number(row.log_loss), _number(row.brier), _number(row.seconds)]
            right = "" if row.error else str(row.right).lower()
            top = json.dumps([list(one) for one in row.top], ensure_ascii=False)
            known = "" if row.known is None else str(row.known).lower()
            writer.writerow(
                [row.path, row.label, row.prediction, _number(row.probability), right, top, *numbers, row.error, known]
            )
    document = {"schema_version": SCHEMA_VERSION, **asdict(run)}
    (folder / RUN_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[Run, list[Row]]:
    """Reads what `write` wrote.

    Raises:
        ResultError: a file is missing, damaged, or of another version.
    """
    try:
        document = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        found = document.pop("schema_version", None)
        if found != SCHEMA_VERSION:
            raise ResultError(
                f"{folder / RUN_FILE} has schema version {found!r}, but this version of dogbreed reads "
                f"{SCHEMA_VERSION}; evaluate again"
            )
        run = Run(
            name=str(document["name"]),
            target=str(document["target"]),
            data=str(document["data"]),
            started=str(document["started"]),
            seconds=float(document["seconds"]),
            parallel=int(document["parallel"]),
            labels=tuple(map(str, document["labels"])),
            unknown=tuple(map(str, document["unknown"])),
        )
        with (folder / ANSWERS_FILE).open(encoding="utf-8", newline="") as file:
            rows = [_row(one) for one in csv.DictReader(file)]
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise ResultError(f"{folder} holds no {name}; give a folder that `launch.py evaluate` has written") from None
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(f"the results in {folder} are damaged: {type(error).__name__} {error}") from error
    return run, rows


_KNOWN = {"": None, "true": True, "false": False}


def _row(cells: dict[str, str]) -> Row:
    return Row(
        path=cells["path"],
        label=cells["label"],
        prediction=cells["prediction"],
        probability=_read(cells["probability"]),
        top=tuple((str(label), float(probability)) for label, probability in json.loads(cells["top5"])),
        log_loss=_read(cells["log_loss"]),
        brier=_read(cells["brier"]),
        seconds=_read(cells["seconds"]),
        error=cells["error"],
        # Results of before have no such column.
        known=_KNOWN[cells.get("known", "")],
    )


def _number(value: float) -> str:
    """An empty cell for what is not known; otherwise the shortest text that reads back the same."""
    return "" if math.isnan(value) else repr(float(value))


def _read(text: str) -> float:
    return float(text) if text else math.nan
