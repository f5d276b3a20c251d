"""LitServe: `usual` with its defaults and the usual preparation, `ours` with our engine and decoder and all CPUs.

LitServe looks at the annotation of a request itself, so annotations are not put off here.
"""

import sys
from typing import Annotated, Any

import litserve
from common import CPUS, PORT, OurModel, UsualModel
from fastapi import Body


class Api(litserve.LitAPI):
    """Takes raw bodies: what LitServe reads by default is a form or JSON."""

    def __init__(self, *, ours: bool) -> None:
        super().__init__(api_path="/invocations")
        self.ours = ours

    def setup(self, device: str) -> None:
        """In each worker process."""
        self.model = OurModel() if self.ours else UsualModel()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> bytes:
        """The whole body; a plain Request would be read as JSON or a form."""
        return request

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
