"""What a person sees of a job: log lines with their host, statuses, and a table of metrics.

On a terminal the table stays below the lines and changes in place; elsewhere there are plain lines, and the table comes
at the end. Everything said along the way goes to stderr.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from local_test.simulator.metrics import Scraper
from local_test.simulator.records import Record

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_COLORS = ("cyan", "magenta", "green", "yellow", "blue")


class Quiet:
    """A listener that says nothing.

    Attributes:
        scraper: of the job, once it has told a metric.
    """

    scraper: Scraper | None = None

    def line(self, host: str, text: str) -> None:
        """Drops it."""

    def status(self, record: Record) -> None:
        """Drops it."""

    def metrics(self, record: Record, scraper: Scraper) -> None:
        """Keeps it, to be looked at afterwards."""
        self.scraper = scraper


class Plain(Quiet):
    """Plain lines.

    Args:
        stream: takes them.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def __enter__(self) -> Plain:
        """Nothing to set up."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to take down."""

    def line(self, host: str, text: str) -> None:
        """With its host."""
        print(f"{host} | {text}", file=self._stream, flush=True)

    def status(self, record: Record) -> None:
        """With what is known of it."""
        last = record.content["SecondaryStatusTransitions"][-1]
        told = f": {last['StatusMessage']}" if last["StatusMessage"] else ""
        print(f"{record.content['TrainingJobName']} {last['Status']}{told}", file=self._stream, flush=True)


class Terminal(Quiet):
    """Lines above a table that is drawn again in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._live: Live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._colors: dict[str, str] = {}
        self._status = ""

    def __enter__(self) -> Terminal:
        """Begins to draw."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the terminal as it was."""
        self._live.stop()

    def line(self, host: str, text: str) -> None:
        """In the host's colour."""
        from rich.text import Text

        color = self._colors.setdefault(host, _COLORS[len(self._colors) % len(_COLORS)])
        self._console.print(Text.assemble((f"{host} | ", color), text))

    def status(self, record: Record) -> None:
        """In bold."""
        from rich.text import Text

        last = record.content["SecondaryStatusTransitions"][-1]
        self._status = str(last["Status"])
        told = f": {last['StatusMessage']}" if last["StatusMessage"] else ""
        self._console.print(Text(f"{record.content['TrainingJobName']} {self._status}{told}", style="bold"))

    def metrics(self, record: Record, scraper: Scraper) -> None:
        """Draws the table again."""
        self.scraper = scraper
        from rich.table import Table

        table: Table = Table(title=f"{record.content['TrainingJobName']} {self._status}")
        for column in ("metric", "last", "lowest", "highest", "values"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for row in rows(scraper):
            table.add_row(*row)
        self._live.update(table)


def console() -> Plain | Terminal:
    """What suits stderr."""
    return Terminal() if sys.stderr.isatty() else Plain()


def rows(scraper: Scraper) -> list[tuple[str, ...]]:
    """Metric, last, lowest and highest value, and how many there were."""
    return [
        (name, *(f"{value:g}" for value in (one.values[-1], min(one.values), max(one.values))), str(len(one.values)))
        for name, one in scraper.series.items()
    ]


def table(header: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """Columns of text: the first to the left, others to the right."""
    widths = [max(len(row[column]) for row in [header, *body]) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *body]
    )
