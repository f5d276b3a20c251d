"""What a person sees of a job or an endpoint: lines, and a table of metrics or instances.

On a terminal the table stays below the lines and changes in place; elsewhere there are plain lines, and the table comes
at the end. Everything said along the way goes to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, TextIO

from local_test.simulator.metrics import Scraper
from local_test.simulator.records import Record

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

HEADER = ("metric", "last", "lowest", "highest", "values")
"""Of the table of metrics."""

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


class Screen:
    """Lines above a table that is drawn again in place, on the terminal of stderr. Any thread may speak and draw."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._live: Live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Screen:
        """Begins to draw."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the terminal as it was."""
        self._live.stop()

    def say(self, *parts: tuple[str, str]) -> None:
        """A line of texts, each in its style; an empty one is plain."""
        from rich.text import Text

        self._console.print(Text.assemble(*parts))

    def draw(
        self,
        title: str,
        header: Sequence[str],
        body: Sequence[Sequence[str]],
        styles: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Draws the table.

        Args:
            title: above it.
            header: of its columns; the first goes to the left, others to the right.
            body: its rows.
            styles: of cells, by their text.
        """
        from rich.table import Table
        from rich.text import Text

        table: Table = Table(title=title)
        for number, column in enumerate(header):
            table.add_column(column, justify="right" if number else "left")
        for row in body:
            table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
        self._live.update(table)


class Terminal(Quiet):
    """Lines above a table of metrics."""

    def __init__(self) -> None:
        self._screen = Screen()
        self._colors: dict[str, str] = {}
        self._status = ""

    def __enter__(self) -> Terminal:
        """Begins to draw."""
        self._screen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the terminal as it was."""
        self._screen.__exit__(kind, value, trace)

    def line(self, host: str, text: str) -> None:
        """In the host's colour."""
        color = self._colors.setdefault(host, _COLORS[len(self._colors) % len(_COLORS)])
        self._screen.say((f"{host} | ", color), (text, ""))

    def status(self, record: Record) -> None:
        """In bold."""
        last = record.content["SecondaryStatusTransitions"][-1]
        self._status = str(last["Status"])
        told = f": {last['StatusMessage']}" if last["StatusMessage"] else ""
        self._screen.say((f"{record.content['TrainingJobName']} {self._status}{told}", "bold"))

    def metrics(self, record: Record, scraper: Scraper) -> None:
        """Draws the table again."""
        self.scraper = scraper
        self._screen.draw(f"{record.content['TrainingJobName']} {self._status}", HEADER, rows(scraper))


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
