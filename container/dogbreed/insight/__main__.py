"""`python -m dogbreed.insight FOLDER`: makes the report of an old job anew; several folders compare jobs.

Of one folder reads record.json, writes the page, the Markdown and the verdicts beside it, and prints the verdicts. Of
several writes compare.html and compare.md into the current folder, and prints the tables.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.insight import compare, report
from dogbreed.insight.report import JobRecord, RecordError

_USAGE = "usage: python -m dogbreed.insight FOLDER [FOLDER ...]"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 for a folder that cannot be read or written, 2 for a wrong command line."""
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print(f"{_USAGE} (found: {' '.join(arguments) or 'nothing'})", file=sys.stderr)
        return 2
    folders = [Path(argument) for argument in arguments]
    try:
        if len(folders) == 1:
            record = report.read(folders[0])
            print(report.summary(record, report.write(record, folders[0])))
        else:
            _compare(folders)
    except (RecordError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _compare(folders: Sequence[Path]) -> None:
    jobs: dict[str, JobRecord] = {}
    for folder in folders:
        record = report.read(folder)
        jobs[_name(record, folder, jobs)] = record
    page = Path("compare.html")
    page.write_text(compare.render(jobs), encoding="utf-8")
    text = compare.markdown(jobs)
    page.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"{text}\ncomparison: {page.resolve()}")


def _name(record: JobRecord, folder: Path, taken: dict[str, JobRecord]) -> str:
    """The job's name where it has one of its own, else its folder."""
    name = record.job_name or str(folder)
    return name if name not in taken else str(folder) if str(folder) not in taken else f"{folder} ({len(taken) + 1})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
