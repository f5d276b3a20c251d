"""The report of one job: a page that needs nothing but a browser, and the record that it is made from.

    report.html         self-contained: style and pictures inside, no script, no network
    report.md           the same in short, for a terminal
    record.json         everything that the page says, for programs and for `python -m dogbreed.insight FOLDER`
    rules/<Rule>.json   one verdict each, in AWS's layout

Values in, files out. Knows nothing of how a job runs, of tensors or of SageMaker.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dogbreed.insight.charts import Line, column_chart, heat_map, line_chart, ring
from dogbreed.insight.formats import FILTERS, duration, percent, round_percent, short, shown, words
from dogbreed.insight.photos import WrongPhoto
from dogbreed.insight.profile import Profile
from dogbreed.insight.timeline import shares
from dogbreed.insight.verdicts import Status, Verdict, to_document
from dogbreed.statistics import without_nan

SCHEMA_VERSION = 3
_READ_VERSIONS = (1, 2, 3)
"""The first knew neither profile nor wrong photos, the second no curation."""

REPORT_FILE = "report.html"
RECORD_FILE = "record.json"
MARKDOWN_FILE = "report.md"
RULES_FOLDER = "rules"

_MAX_MATRIX_CLASSES = 40
"""A larger confusion matrix is unreadable, and heavy; the worst pairs say more."""
_MAX_PAIRS = 15
_MAX_SLICES = 8
_MAX_CORRUPT = 100

# What a reader must act on comes first.
_STATUS_ORDER = (Status.ISSUES_FOUND, Status.ERROR, Status.NOT_ENOUGH_DATA, Status.NO_ISSUES_FOUND)
STATUS_WORDS = {
    Status.ISSUES_FOUND: "Issues found",
    Status.ERROR: "Rule failed",
    Status.NOT_ENOUGH_DATA: "Not enough data",
    Status.NO_ISSUES_FOUND: "No issues found",
}
_LEARNS = {"head": "the head learned", "last_stage": "the last stage and the head learned", "all": "everything learned"}


class RecordError(ValueError):
    """A folder holds no record, or one that this version cannot read. The message is one line."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: from 1.
        metrics: name -> value, see `logs.METRIC_NAMES`.
        learning_rate: of the last step.
        seconds: wall time of training and validation.
    """

    epoch: int
    metrics: Mapping[str, float]
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What is to be told of a job.

    Attributes:
        job_name: the platform's name of the job, or None.
        backbone: model name.
        trainable: ``head``, ``last_stage`` or ``all``.
        started: with its time zone.
        ended: with its time zone.
        epochs: the finished ones, in order.
        best_epoch: from 1; 0 when none was finished.
        metrics: of the bundle: accuracies in [0, 1], losses in nats.
        labels: class names in the order of the outputs.
        hyperparameters: name -> value.
        facts: whatever else is known, see `artifacts.Bundle`.
        versions: package -> version.
        confusion: K x K counts, ``confusion[true][predicted]``, of the best epoch's weights; or None.
        confusion_channel: the split that `confusion` was counted on.
        verdicts: of the rules.
        corrupt_images: paths, with reasons, of the images that were skipped.
        profile: time and machine.
        wrong: photos that were answered wrong, most confident first.
        curation: what was found in the data, kind -> count, with a page of its own beside the report; empty when nobody
            looked.
    """

    job_name: str | None
    backbone: str
    trainable: str
    started: datetime
    ended: datetime
    epochs: Sequence[EpochRecord]
    best_epoch: int
    metrics: Mapping[str, float]
    labels: Sequence[str]
    hyperparameters: Mapping[str, object]
    facts: Mapping[str, object]
    versions: Mapping[str, str]
    confusion: Sequence[Sequence[int]] | None
    confusion_channel: str
    verdicts: Sequence[Verdict]
    corrupt_images: Sequence[str]
    profile: Profile = field(default_factory=Profile)
    wrong: Sequence[WrongPhoto] = ()
    curation: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sides = {len(self.confusion), *map(len, self.confusion)} if self.confusion else set()
        if sides - {len(self.labels)}:
            raise ValueError(f"confusion is not {len(self.labels)} x {len(self.labels)}, one row and column per label")

    def to_json(self) -> str:
        """The record as JSON, one line per entry; a number that is not finite becomes null."""
        document: dict[str, object] = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        document["started"], document["ended"] = self.started.isoformat(), self.ended.isoformat()
        document["verdicts"] = [{**asdict(one), "status": one.status.value} for one in self.verdicts]
        rows = [
            f"{json.dumps(name)}: {json.dumps(without_nan(value), default=str)}" for name, value in document.items()
        ]
        return "{\n" + ",\n".join(rows) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> JobRecord:
        """Reads what `to_json` wrote.

        Raises:
            RecordError: the text is not JSON, of another schema version, or damaged.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise RecordError(f"the record is not JSON ({error})") from error
        found = document.pop("schema_version", None) if isinstance(document, dict) else None
        if found not in _READ_VERSIONS:
            raise RecordError(
                f"the record has schema version {found!r}, but this version of dogbreed reads {SCHEMA_VERSION}; use "
                f"the version that wrote it"
            )
        try:
            return cls(
                **{
                    **document,
                    "started": datetime.fromisoformat(document["started"]),
                    "ended": datetime.fromisoformat(document["ended"]),
                    "epochs": tuple(
                        EpochRecord(**{**one, "metrics": _numbers(one["metrics"])}) for one in document["epochs"]
                    ),
                    "metrics": _numbers(document["metrics"]),
                    "labels": tuple(document["labels"]),
                    "verdicts": tuple(
                        Verdict(**{**one, "status": Status(one["status"])}) for one in document["verdicts"]
                    ),
                    "corrupt_images": tuple(document["corrupt_images"]),
                    "profile": Profile(**document.get("profile", {})),
                    "wrong": tuple(WrongPhoto(**one) for one in document.get("wrong", ())),
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"the record is damaged: {type(error).__name__} {error}") from error


def read(folder: Path) -> JobRecord:
    """Reads the record in a job's report folder.

    Raises:
        RecordError: there is none, or it cannot be read; names the file.
    """
    file = folder / RECORD_FILE
    try:
        return JobRecord.from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{folder} holds no {RECORD_FILE}; give the folder that a job's report lies in") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{file} cannot be read: {error}") from error
    except RecordError as error:
        raise RecordError(f"{file}: {error}") from error


def write_record(record: JobRecord, folder: Path) -> None:
    """Writes the record alone, whole or not at all: of a job that may be lost, from which `write` makes the page later.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half_done = folder / f"{RECORD_FILE}.tmp"
    half_done.write_text(record.to_json(), encoding="utf-8")
    half_done.replace(folder / RECORD_FILE)


def write(record: JobRecord, folder: Path) -> Path:
    """Writes record, verdicts and page into a folder, which is made.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written.
    """
    write_record(record, folder)
    rules = folder / RULES_FOLDER
    rules.mkdir(exist_ok=True)
    for verdict in record.verdicts:
        text = json.dumps(to_document(verdict), indent=2) + "\n"
        (rules / f"{verdict.rule}.json").write_text(text, encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(markdown(record), encoding="utf-8")
    page = folder / REPORT_FILE
    page.write_text(render(record), encoding="utf-8")
    return page


def summary(record: JobRecord, page: Path | None = None) -> str:
    """The verdicts for a terminal or a log: one line each, its advice below, and where the page is."""
    lines = []
    for verdict in _ordered(record.verdicts):
        lines.append(f"{verdict.rule}: {verdict.status.value}. {verdict.evidence}")
        if verdict.recommendation and verdict.status is Status.ISSUES_FOUND:
            lines.append(f"  {verdict.recommendation}")
    if not lines:
        lines.append("no rule was evaluated: the job saved no tensors that could be read")
    if page is not None:
        lines.append(f"report: {page}")
    return "\n".join(lines)


def markdown(record: JobRecord) -> str:
    """The job in short as Markdown: result, verdicts, time, worst pairs and hyperparameters."""
    headline, _ = _headline(record)
    lines = [
        f"# {headline}",
        "",
        f"{record.job_name or 'Training job'}: {record.backbone} on {len(record.labels)} classes; best epoch "
        f"{record.best_epoch} of {len(record.epochs)}; {_period(record.started, record.ended)}.",
        "",
        "## Verdicts",
        "",
        "| rule | status | evidence | what to do |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one.rule} | {STATUS_WORDS[one.status]} | {_cell(one.evidence)} | {_cell(one.recommendation)} |"
        for one in _ordered(record.verdicts)
    ]
    if record.metrics:
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [
            f"| {words(name)} | {percent(value) if name.endswith('accuracy') else short(value)} |"
            for name, value in record.metrics.items()
        ]
    if record.profile.seconds:
        lines += ["", "## Where the time went", "", "| work | share | time |", "|---|---|---|"]
        lines += [
            f"| {kind} | {percent(share)} | {duration(record.profile.seconds[kind])} |"
            for kind, share in shares(record.profile.seconds)
        ]
    if _pairs(record):
        lines += ["", "## Worst confused pairs", "", "| true class | taken for | images |", "|---|---|---|"]
        lines += [
            f"| {_cell(pair.true)} | {_cell(pair.predicted)} | {pair.count} of {pair.images} |"
            for pair in _pairs(record)
        ]
    lines += ["", "## Hyperparameters", "", "| name | value |", "|---|---|"]
    lines += [f"| {name} | {_cell(shown(value))} |" for name, value in record.hyperparameters.items()]
    return "\n".join(lines) + "\n"


def render(record: JobRecord) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("dogbreed.insight"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    headline, told = _headline(record)
    return environment.get_template("report.html.j2").render(
        record=record,
        headline=headline,
        tiles=_tiles(record, told),
        verdict_sentence=_verdict_sentence(record.verdicts),
        verdicts=_ordered(record.verdicts),
        status_words=STATUS_WORDS,
        charts=_charts(record),
        time=_time(record.profile),
        steps=_step_charts(record.profile),
        machine=_machine(record.profile),
        epoch_metrics=list(dict.fromkeys(name for epoch in record.epochs for name in epoch.metrics)),
        classes=_class_rows(record),
        pairs=_pairs(record),
        matrix=_matrix(record),
        max_matrix_classes=_MAX_MATRIX_CLASSES,
        corrupt=record.corrupt_images[:_MAX_CORRUPT],
        period=_period(record.started, record.ended),
        learns=_LEARNS.get(record.trainable, f"trainable={record.trainable}"),
    )


@dataclass(frozen=True, slots=True)
class _ClassRow:
    """How one class was recognised: images of it, those answered right, and what it was most often taken for."""

    name: str
    images: int
    right: int
    mistaken_for: str
    mistaken: int

    @property
    def recall(self) -> float:
        """In [0, 1]; NaN for a class without images."""
        return self.right / self.images if self.images else math.nan


@dataclass(frozen=True, slots=True)
class _Pair:
    """Images of one class that were answered as another."""

    true: str
    predicted: str
    count: int
    images: int


def _class_rows(record: JobRecord) -> list[_ClassRow]:
    """Worst recall first; classes without images last."""
    rows = []
    for index, counts in enumerate(record.confusion or ()):
        wrong = [(count, -other) for other, count in enumerate(counts) if other != index and count]
        count, other = max(wrong, default=(0, 0))
        mistaken_for = record.labels[-other] if wrong else ""
        rows.append(_ClassRow(record.labels[index], sum(counts), counts[index], mistaken_for, count))
    return sorted(rows, key=lambda row: (row.images == 0, row.recall if row.images else 0, row.name))


def _pairs(record: JobRecord) -> list[_Pair]:
    """The most frequent mistakes; of equally frequent ones those of the rarer class first."""
    found = [
        _Pair(record.labels[true], record.labels[predicted], count, sum(counts))
        for true, counts in enumerate(record.confusion or ())
        for predicted, count in enumerate(counts)
        if count and true != predicted
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.images, pair.true, pair.predicted))[:_MAX_PAIRS]


def _matrix(record: JobRecord) -> Markup | None:
    if not record.confusion or len(record.labels) > _MAX_MATRIX_CLASSES:
        return None
    title = (
        f"Confusion matrix of {len(record.labels)} classes on {record.confusion_channel}; the tables give the figures"
    )
    return heat_map(title, record.labels, record.confusion)


def _charts(record: JobRecord) -> list[tuple[str, Markup]]:
    """Heading and picture of each curve over the epochs that has data."""

    def chart(heading: str, lines: list[Line], **options: Any) -> tuple[str, Markup]:  # noqa: ANN401  line_chart's own
        title = f"{heading} per epoch"
        for line in lines:
            known = [y for _, y in line.points if math.isfinite(y)]
            if known:
                title += f"; {line.name} from {options['show'](known[0])} to {options['show'](known[-1])}"
        best = record.best_epoch or None
        return heading, line_chart(title, lines, x_label="epoch", best_x=best, **options)

    def metric(name: str, kind: str) -> Line:
        points = [(one.epoch, one.metrics.get(f"{name}_{kind}", math.nan)) for one in record.epochs]
        return Line(name, points)

    rates = [(one.epoch, one.learning_rate) for one in record.epochs]
    seconds = [(one.epoch, one.seconds) for one in record.epochs]
    drawn = [
        chart("Loss", [metric("train", "loss"), metric("validation", "loss")], show=short, from_zero=True),
        chart(
            "Accuracy",
            [metric("train", "accuracy"), metric("validation", "accuracy")],
            show=round_percent,
            at_most=1.0,
        ),
        chart("Learning rate", [Line("last step", rates)], show=short, from_zero=True),
        chart("Time per epoch", [Line("seconds", seconds)], show=short, from_zero=True),
    ]
    return [(heading, picture) for heading, picture in drawn if picture]


@dataclass(frozen=True, slots=True)
class _Time:
    """Where the time went: a ring, and its legend of kind, share and seconds."""

    picture: Markup
    rows: Sequence[tuple[str, float, float]]


def _time(profile: Profile) -> _Time | None:
    found = shares(profile.seconds)
    if not found:
        return None
    if len(found) > _MAX_SLICES:
        # There are as many colours; what is left over is little, and other work.
        rest = [one for one in found if one[0] == "other"] + [one for one in found if one[0] != "other"][
            _MAX_SLICES - 1 :
        ]
        found = [*(one for one in found if one not in rest), ("other", sum(share for _, share in rest))]
    told = ", ".join(f"{kind} {percent(share)}" for kind, share in found)
    total = sum(profile.seconds.values())
    rows = [(kind, share, share * total) for kind, share in found]
    return _Time(ring(f"Where the time went: {told}", found), rows)


def _step_charts(profile: Profile) -> list[tuple[str, str, Markup]]:
    """Heading, sentence and histogram of the steps of each phase."""
    found = []
    for phase, one in profile.steps.items():
        said = (
            f"{one['steps']} steps; median {short(one['p50_ms'])} ms, 95th percentile {short(one['p95_ms'])} ms, "
            f"longest {short(one['max_ms'])} ms."
            + (f" Not drawn: {one['outliers']} beyond three standard deviations." if one["outliers"] else "")
        )
        title = f"Histogram of {phase} step times: {said}"
        picture = column_chart(title, one["edges_ms"], one["counts"], x_label="milliseconds")
        if picture:
            found.append((f"{phase.capitalize()} steps", said, picture))
    return found


def _machine(profile: Profile) -> list[tuple[str, Markup]]:
    """Heading and picture of CPU and memory, and of each GPU, over time."""
    gpus = dict.fromkeys(name.removesuffix(" memory") for name in profile.series if name.startswith("GPU"))
    pairs = [("CPU and memory", ("memory", "CPU")), *((gpu, (f"{gpu} memory", gpu)) for gpu in gpus)]
    found = []
    for heading, names in pairs:
        lines = [
            Line(name, [(x, y / 100) for x, y in profile.series[name]]) for name in names if name in profile.series
        ]
        if any(line.points for line in lines):
            means = ", ".join(f"{one.name} {percent(sum(y for _, y in one.points) / len(one.points))}" for one in lines)
            picture = line_chart(
                f"{heading} over time, mean {means}",
                lines,
                x_label="seconds",
                show=round_percent,
                from_zero=True,
                at_most=1.0,
            )
            found.append((heading, picture))
    return found


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _headline(record: JobRecord) -> tuple[str, str]:
    """The sentence that says how good the model is, and the metric that it tells."""
    for name in ("test_accuracy", "validation_accuracy"):
        if name in record.metrics:
            return f"{percent(record.metrics[name])} {words(name)}", name
    return "No epoch was finished", ""


def _tiles(record: JobRecord, told: str) -> list[tuple[str, str]]:
    """Name and text of the other figures that matter; train figures are in the curves."""
    tiles = [
        (words(name), percent(value) if name.endswith("accuracy") else short(value))
        for name, value in record.metrics.items()
        if name != told and not name.startswith("train_")
    ]
    if record.best_epoch:
        tiles.append(("best epoch", f"{record.best_epoch} of {len(record.epochs)}"))
    tiles.append(("duration", duration((record.ended - record.started).total_seconds())))
    return tiles


def _ordered(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return sorted(verdicts, key=lambda verdict: _STATUS_ORDER.index(verdict.status))


def _verdict_sentence(verdicts: Sequence[Verdict]) -> str:
    counts = {status: sum(verdict.status is status for verdict in verdicts) for status in Status}
    phrases = {
        Status.ISSUES_FOUND: "found an issue",
        Status.ERROR: "failed",
        Status.NOT_ENOUGH_DATA: "had not enough data",
        Status.NO_ISSUES_FOUND: "found no issue",
    }
    parts = [f"{counts[status]} {phrases[status]}" for status in _STATUS_ORDER if counts[status]]
    if not parts:
        return "No rule was evaluated: the job saved no tensors that could be read. Its log says why."
    return f"Of {len(verdicts)} rules, {', '.join(parts)}."


def _period(started: datetime, ended: datetime) -> str:
    first, last = started.astimezone(UTC), ended.astimezone(UTC)
    end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
    return f"{first:%Y-%m-%d %H:%M} to {end} UTC"


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Reads null as NaN, see `JobRecord.to_json`."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
