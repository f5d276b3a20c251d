"""Plain-text tables and times for the terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart, without trailing blanks."""
    lines = [[header.upper() for header in headers], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def when(time: object) -> str:
    """A time that AWS gave, in UTC to the minute; a dash for none."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if isinstance(time, datetime) else "-"


def size(count: float) -> str:
    """Bytes with a unit: `3.2 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
