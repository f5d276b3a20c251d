"""`python -m local_test`."""

import sys

from local_test.cli import main

if __name__ == "__main__":
    sys.exit(main())
