"""What a TorchServe worker runs: our engine and decoder. Read by TorchServe, which knows it by its path."""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path.insert(0, os.environ["BENCH_PEERS"])

from common import OurModel


class Handler:
    """One worker process; TorchServe calls `initialize` once and `handle` with each batch."""

    def initialize(self, _context: object) -> None:
        """Loads the model."""
        self.model = OurModel()

    def handle(self, requests: list[dict[str, Any]], _context: object) -> list[dict[str, Any]]:
        """One answer for each request."""
        return [self.model.answer(bytes(request["body"])) for request in requests]
