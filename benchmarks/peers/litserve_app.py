"""LitServe: `usual` with its defaults and the usual preparation, `ours` with our engine and decoder and all CPUs."""

from __future__ import annotations

import sys
from typing import Any

import litserve
from common import CPUS, PORT, OurModel, UsualModel
from fastapi import Request


class Api(litserve.LitAPI):
    """Takes raw bodies: what LitServe reads by default is a form or JSON."""

    def __init__(self, *, ours: bool) -> None:
        super().__init__(api_path="/invocations")
        self.ours = ours

    def setup(self, device: str) -> None:
        """In each worker process."""
        self.model = OurModel() if self.ours else UsualModel()

    async def decode_request(self, request: Request) -> bytes:
        """The whole body."""
        return await request.body()

    def predict(self, body: bytes) -> dict[str, Any]:
        """Answers one image."""
        return self.model.answer(body)

    def encode_response(self, answer: dict[str, Any]) -> dict[str, Any]:
        """LitServe makes JSON of it."""
        return answer


if __name__ == "__main__":
    ours = sys.argv[1] == "ours"
    server = litserve.LitServer(Api(ours=ours), accelerator="cpu", workers_per_device=CPUS if ours else 1)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
