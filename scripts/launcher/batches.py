"""Images through the API in batches, each a multipart form; for `launch.py evaluate --api`, and no command itself."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from dogbreed import imagefiles
from scripts.launcher import gateway
from scripts.launcher.commands import api
from scripts.launcher.commands.predict import Answer, RefusedError, check_readable
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError
from scripts.launcher.plan import Call

# Of the API (docs/microservice.md): images in a request, and their bytes.
_MOST_IMAGES = 64
_MOST_BYTES = 4 * 1024 * 1024
# The highest that it takes; the answer lists all classes of a model with as many.
_QUERY = "top_k=9999&return=log_probabilities"
_BUSY = (429, 503)
_BUSY_ATTEMPTS = 6


def requests(files: Sequence[Path], url: str, size: int) -> list[Call]:
    """As few requests as the API's limits allow, of ``size`` images at most; too large an image goes alone."""
    found: list[list[Path]] = []
    held = 0
    for file in files:
        length = max(0, imagefiles.size_bytes(file))
        held += length
        if not found or len(found[-1]) >= min(size, _MOST_IMAGES) or held > _MOST_BYTES:
            found.append([])
            held = length
        found[-1].append(file)
    return [
        Call("http", "POST", {"Url": f"{url}?{_QUERY}", "ContentType": "multipart/form-data", "Body": batch})
        for batch in found
    ]


def ask_all(calls: Sequence[Call], context: Context, parallel: int) -> Iterator[Answer]:
    """Sends requests, several at once; yields the answers image by image, each with its request's time.

    Raises:
        LaunchError: what would happen to every other image as well: nobody there, not allowed.
    """
    token = context.arguments.token_file
    post = partial(
        gateway.post,
        region=context.settings.region if token is None else "",
        token=None if token is None else token.read_text(encoding="utf-8").strip(),
    )

    def ask(call: Call) -> list[Answer]:
        given: Sequence[Path] = call.parameters["Body"]
        refused = _unreadable(given)
        files, boundary = [file for file in given if file not in refused], uuid.uuid4().hex
        if not files:
            return list(refused.values())
        body, content_type = api.form(files, boundary), f"multipart/form-data; boundary={boundary}"
        seconds = 0.0
        for attempt in range(_BUSY_ATTEMPTS):
            if attempt:
                # Waiting is part of how long an answer took.
                pause = 0.5 * 2**attempt
                context.sleep(pause)
                seconds += pause
            answer = post(call.parameters["Url"], body, content_type)
            seconds += answer.elapsed_s
            if answer.status not in _BUSY:
                break
        answered = dict(zip(files, _answers(files, answer, seconds), strict=True))
        return [refused.get(file) or answered[file] for file in given]

    with ThreadPoolExecutor(parallel) as pool:
        for found in pool.map(ask, calls):
            yield from found


def _unreadable(files: Sequence[Path]) -> dict[Path, Answer]:
    """Those that cannot be sent, with why."""
    found = {}
    for file in files:
        try:
            check_readable(file)
        except RefusedError as error:
            found[file] = Answer(str(file), error=error)
    return found


def _answers(files: Sequence[Path], answer: gateway.Answer, seconds: float) -> list[Answer]:
    text = answer.body.decode(errors="replace")
    if answer.status in (401, 403):
        raise OutcomeError(api.refused(answer.status, text, "the API"))
    try:
        predictions: list[dict[str, Any]] = json.loads(text)["predictions"]
        if len(predictions) != len(files):
            raise ValueError(f"{len(predictions)} answers")
    except (ValueError, KeyError, TypeError):
        refused = RefusedError(api.refused(answer.status, text, "the API"), status=answer.status, code="refused")
        return [Answer(str(file), error=refused, seconds=seconds) for file in files]
    return [_answer(file, one, seconds) for file, one in zip(files, predictions, strict=True)]


def _answer(file: Path, prediction: dict[str, Any], seconds: float) -> Answer:
    if "error" not in prediction:
        return Answer(str(file), (prediction,), seconds=seconds)
    error = prediction["error"]
    return Answer(
        str(file), error=RefusedError(error["message"], status=error["status"], code=error["code"]), seconds=seconds
    )
