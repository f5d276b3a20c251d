"""`python -m dogbreed.curation FOLDER --model MODEL`: what to look at in a folder of labelled images.

FOLDER holds train, valid and test, or one folder per class. MODEL is the folder of a bundle: its backbone gives the
features, and its preprocessing the view; what classes it knows does not matter. Writes curation.html, .json and .csv
into the folder that --output names, and prints what was found. Changes nothing in FOLDER.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreed import stops
from dogbreed.errors import DataError, DogbreedError, OutputError

if TYPE_CHECKING:
    from dogbreed.curation.finds import Curation

_DEFAULT_OUTPUT = Path("build", "curation")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 for a folder or a bundle that cannot be used, 2 for a wrong command line.

    Ctrl-C ends the process with 130.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dogbreed.curation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="with train, valid and test, or one folder a class")
    parser.add_argument("--model", required=True, type=Path, metavar="FOLDER", help="of a bundle, build/ml/model say")
    parser.add_argument("--output", type=Path, default=_DEFAULT_OUTPUT, metavar="FOLDER", help="default %(default)s")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the features there, for the next time")
    parser.add_argument("--seed", type=int, default=0, help="of the folds (default %(default)s)")
    chosen = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="dogbreed-curation-") as scratch,
        # Threads may be anywhere in native code, so that the end is not left to an exception.
        stops.leaving_on_interrupt(lambda: shutil.rmtree(scratch, ignore_errors=True)),
    ):
        return _run(chosen, Path(scratch))


def _run(chosen: argparse.Namespace, scratch: Path) -> int:
    # Here, so that a bad option is reported at once.
    from dogbreed import logs, outputs
    from dogbreed.environment import available_cpus
    from dogbreed.training.curating import of_folder

    logs.configure()
    threads = available_cpus()
    try:
        if not chosen.folder.is_dir():
            raise DataError(
                f"{chosen.folder} is not a folder; name one that holds train, valid and test, or one folder per class"
            )
        outputs.prove(chosen.output)
        found = of_folder(chosen.folder, chosen.model, cache=chosen.cache or scratch, seed=chosen.seed, threads=threads)
        written = _write(found, chosen.output, threads)
    except (DogbreedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(found.sentence)
    for note in found.notes:
        print(note)
    print(written)
    return 0


def _write(found: Curation, folder: Path, threads: int) -> Path:
    from dogbreed.curation import page

    try:
        return page.write(found, folder, threads=threads)
    except OSError as error:
        raise OutputError(
            f"the finds cannot be written into {folder}: {error.strerror}; make room there, or name another folder "
            f"with --output"
        ) from error


if __name__ == "__main__":
    stops.leave_on(signal.SIGINT, "interrupted", stops.INTERRUPTED)
    sys.exit(main(sys.argv[1:]))
