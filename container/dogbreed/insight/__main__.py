"""`python -m dogbreed.insight FOLDER`: makes the report of an old job anew from its record.

Reads FOLDER/record.json, writes the page and the verdicts beside it, and prints the verdicts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.insight import report
from dogbreed.insight.report import RecordError


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 for a folder that cannot be read or written, 2 for a wrong command line."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        given = " ".join(arguments) or "nothing"
        print(f"usage: python -m dogbreed.insight FOLDER (found: {given})", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        record = report.read(folder)
        page = report.write(record, folder)
    except (RecordError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(report.summary(record, page))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
