"""`python -m dogbreed train` and `python -m dogbreed serve`: the image's entry point.

Only picks which of the two runs. Knows nothing of either, and imports no more than the one that was asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dogbreed import collector, stops
from dogbreed.deferred import defer_compiler


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code; 2 for a command that does not exist."""
    stops.leave_on_stops()
    # Before anything that imports torchvision.
    defer_compiler()
    collector.pause()  # whoever is called resumes
    match arguments:
        case ["train"]:
            from dogbreed.training import job

            return job.main()
        case ["serve"]:
            from dogbreed.serving import server

            return server.main()
        case _:
            given = " ".join(arguments) or "nothing"
            print(f"usage: python -m dogbreed train | serve (found: {given})", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
