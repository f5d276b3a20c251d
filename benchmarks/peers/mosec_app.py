"""Mosec with our engine and decoder, one process per CPU."""

from __future__ import annotations

import sys
from typing import Any

from common import CPUS, PORT, OurModel
from mosec import Runtime, Server, Worker


class Classifier(Worker):
    """One process."""

    def __init__(self) -> None:
        super().__init__()
        self.model = OurModel()

    def deserialize(self, data: bytes) -> bytes:
        """The body is the image."""
        return data

    def forward(self, data: bytes) -> dict[str, Any]:
        """Answers one image."""
        return self.model.answer(data)


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", str(PORT), "--timeout", "60000"]
    server = Server()
    server.register_runtime({"/invocations": [Runtime(Classifier, num=CPUS)]})
    server.run()
