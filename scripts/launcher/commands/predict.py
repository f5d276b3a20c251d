"""Ask an endpoint, or a server, what is on some images.

FILE is an image, a folder (searched in depth for .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff and .webp), a .json
request, or - for one image on standard input. An image that is refused does not end the run, and makes the exit code 1.

  launch.py predict dogs photo.jpg
  launch.py predict dogs photos/ --top-k 1 --json > answers.jsonl
  launch.py predict dogs photo.jpg --local               the endpoint that `deploy --local` started on this machine
  launch.py predict --url http://127.0.0.1:8080 photo.jpg        a running server, without AWS (make serve)

A local endpoint is found by its name without --local as well, in the folder from which it was deployed.

--json writes one line per image: {"image": PATH, "predictions": [...]} or {"image": PATH, "error": {...}}.
AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME sends the requests to any server that speaks InvokeEndpoint. For an endpoint that
was deployed with --async see docs/aws-endpoints.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from scripts.launcher import arguments as types
from scripts.launcher import hosting
from scripts.launcher.aws import Aws
from scripts.launcher.context import Context
from scripts.launcher.errors import LaunchError, ServiceError, SettingError
from scripts.launcher.local import engine, folders
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings
from scripts.launcher.tables import table

HTTP = "http"
"""The service of a call that is a plain HTTP request, and none to AWS."""

_STDIN = Path("/dev/stdin")
_ANY_IMAGE = "application/octet-stream"
_JSON = "application/json"
# The platform answers within 60 s, and advises clients to wait 70 (developer guide, your-algorithms-inference-code).
_TIMEOUT_S = 70
# Hosting FAQ. Checked here because the platform's refusal says neither the limit nor the size.
_MAX_BYTES = 25 * 1024 * 1024
_BUSY_ATTEMPTS = 6
_LOGGED_CHARACTERS = 300


class RefusedError(Exception):
    """One image was not answered.

    Attributes:
        status: the container's HTTP status, or 0 when it was never asked.
        code: its stable word for the error.
    """

    def __init__(self, message: str, *, status: int = 0, code: str = "error") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one image: predictions, or an error; and the seconds from the request to it, waits included."""

    image: str
    predictions: Sequence[dict[str, Any]] = ()
    error: RefusedError | None = None
    seconds: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("target", metavar="NAME", nargs="?", help="name of the endpoint; left out with --url")
    parser.add_argument("files", metavar="FILE", nargs="*", help="images, folders, or -")
    parser.add_argument(
        "--url", metavar="URL", help="ask the server at this address instead, http://127.0.0.1:8080 say"
    )
    parser.add_argument("--local", action="store_true", help="NAME is a local endpoint, and nothing of AWS")
    parser.add_argument(
        "--top-k", type=types.positive, default=3, metavar="K", help="candidates per image (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line per image instead of a table")
    parser.add_argument("--content-type", metavar="TYPE", help="default: by the file's ending, else " + _ANY_IMAGE)
    parser.add_argument(
        "--parallel", type=types.positive, default=4, metavar="N", help="requests at once (default %(default)s)"
    )


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return arguments.url is None and not arguments.local


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One request per image; looks into folders."""
    look_here(arguments)
    # With --url there is no name, and what stands in its place is the first file.
    given = [arguments.target, *arguments.files] if arguments.url else arguments.files
    if not arguments.url and arguments.target is None:
        raise SettingError("nothing to ask: give the endpoint's NAME, or --url")
    files = list(_files(text for text in given if text is not None))
    if not files:
        raise SettingError("no image: give one or more files or folders, or - for standard input")
    return [_call(arguments, file) for file in files]


def look_here(arguments: argparse.Namespace) -> None:
    """Puts the address of a local endpoint where --url has its own, and the name out of the way."""
    if arguments.url or arguments.target is None:
        if arguments.url and arguments.local:
            raise SettingError("--url and --local exclude each other; give one of them")
        return
    here = folders.find_endpoint(arguments.target)
    if here is None:
        if arguments.local:
            raise SettingError(folders.no_endpoint(arguments.target))
        return
    if not arguments.dry_run and engine.is_free(here.port):
        raise SettingError(
            f"the local endpoint {here.name} is not running any more: `launch.py deploy {here.name} --local "
            f"--model-data {here.model}` starts it again, `launch.py delete {here.name} --local` forgets it"
        )
    arguments.url, arguments.target, arguments.local = here.url, None, True


def run(calls: Sequence[Call], context: Context) -> int:
    """Asks for every image, several at once, and writes the answers in the order of the images."""
    arguments = context.arguments
    answered: list[Answer] = []
    failed = 0
    answers = ask_all(calls, context, arguments.parallel)
    silent = len(calls) == 1 or not sys.stderr.isatty()
    for answer in tqdm(answers, total=len(calls), unit="image", leave=False, disable=silent):
        failed += answer.error is not None
        if arguments.json:
            print(_as_line(answer), flush=True)
        else:
            answered.append(answer)
    if answered:
        print(_as_table(answered))
    if failed:
        context.say(f"{failed} of {len(calls)} images were not answered")
    return 1 if failed else 0


def ask_all(calls: Sequence[Call], context: Context, parallel: int) -> Iterator[Answer]:
    """Sends requests that `request` made, several at once, and yields the answers in order.

    Raises:
        LaunchError: what would happen to every other image as well.
    """
    over_http = any(call.service == HTTP for call in calls)
    ask = _through_http if over_http else _through(context.aws)
    return _answers(calls, lambda call: _patiently(lambda: ask(call), context.sleep), parallel)


def request(
    file: Path, *, attributes: str, url: str | None = None, endpoint: str | None = None, content_type: str | None = None
) -> Call:
    """One image to a server, or to an endpoint.

    Args:
        file: whose content is sent.
        attributes: the container's options, `top_k=3`.
        url: of a server; or else
        endpoint: by name.
        content_type: default by the file's ending.
    """
    suffix = file.suffix.lower()
    content_type = content_type or hosting.IMAGE_TYPES.get(suffix)
    content_type = content_type or (_JSON if suffix == ".json" else _ANY_IMAGE)
    parameters: dict[str, Any] = {
        "ContentType": content_type,
        "Accept": _JSON,
        "CustomAttributes": attributes,
        "Body": file,
    }
    if url:
        return Call(HTTP, "POST", {"Url": f"{url.rstrip('/')}/invocations", **parameters})
    return Call("sagemaker-runtime", "InvokeEndpoint", {"EndpointName": endpoint, **parameters})


def _files(given: Iterable[str]) -> Iterator[Path]:
    for text in given:
        path = Path(text)
        if text == "-":
            yield _STDIN
        elif path.is_dir():
            yield from hosting.images_below(path)
        elif path.is_file():
            yield path
        else:
            raise SettingError(f"{text} is neither a file nor a folder")


def _call(arguments: argparse.Namespace, file: Path) -> Call:
    return request(
        file,
        attributes=f"top_k={arguments.top_k}",
        url=arguments.url,
        endpoint=arguments.target,
        content_type=arguments.content_type,
    )


def _answers(calls: Sequence[Call], ask: Callable[[Call], bytes], parallel: int) -> Iterator[Answer]:
    """Asks ahead of what is read, but not far: a folder may hold more images than memory holds answers."""
    with ThreadPoolExecutor(parallel) as pool:
        waiting: list[Future[Answer]] = []
        for call in calls:
            waiting.append(pool.submit(_answer, call, ask))
            if len(waiting) > parallel:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


def _answer(call: Call, ask: Callable[[Call], bytes]) -> Answer:
    file: Path = call.parameters["Body"]
    image = "-" if file == _STDIN else str(file)
    began_s = time.perf_counter()
    try:
        if file != _STDIN:
            check_readable(file)
        if call.service != HTTP and file != _STDIN and file.stat().st_size > _MAX_BYTES:
            raise RefusedError("over 25 MB, the most that SageMaker passes on in real time", code="payload_too_large")
        content = ask(call)
        seconds = time.perf_counter() - began_s
        return Answer(image, _predictions(content), seconds=seconds)
    except RefusedError as error:
        return Answer(image, error=error)
    except OSError as error:
        return Answer(image, error=RefusedError(str(error), code="unreadable_file"))


def check_readable(file: Path) -> None:
    """Raises `RefusedError` for what only has the name of an image: a link to nothing, or a pipe, which never ends."""
    if not file.is_file():
        kind = "a folder, a pipe or a device" if file.exists() else "a link to nothing, or gone"
        raise RefusedError(f"no file but {kind}", code="unreadable_file")


def _predictions(body: bytes) -> list[dict[str, Any]]:
    try:
        predictions = json.loads(body)["predictions"]
        if [row for row in predictions if not isinstance(row["top_k"], list)]:
            raise TypeError("top_k is no list")
    except (ValueError, KeyError, TypeError) as error:
        text = body[:_LOGGED_CHARACTERS].decode(errors="replace")
        raise RefusedError(f"the answer is no prediction of this project's container: {text!r}") from error
    return list(predictions)


def _patiently(ask: Callable[[], bytes], sleep: Callable[[float], None]) -> bytes:
    """Asks again, later and later, while the server says that it is busy or not ready."""
    for attempt in range(_BUSY_ATTEMPTS):
        try:
            return ask()
        except RefusedError as error:
            if error.status != 503 or attempt == _BUSY_ATTEMPTS - 1:
                raise
            sleep(2.0**attempt)
    raise AssertionError("unreachable")


def _through(aws: Aws) -> Callable[[Call], bytes]:
    """Asks by InvokeEndpoint."""

    def ask(call: Call) -> bytes:
        try:
            body: bytes = aws.call(call)["Body"].read()
        except ServiceError as error:
            response = getattr(error.__cause__, "response", {})
            # What the container answered; all else would happen to the next image as well.
            if error.code == "ModelError":
                status = int(response.get("OriginalStatusCode", 0))
                raise _refused(status, str(response.get("OriginalMessage", error))) from error
            if response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 413:
                raise RefusedError(str(error), status=413, code="payload_too_large") from error
            raise
        return body

    return ask


def _through_http(call: Call) -> bytes:
    """Asks a server as SageMaker would."""
    parameters = call.parameters
    url = urlsplit(parameters["Url"])
    if url.scheme not in ("http", "https") or not url.hostname:
        raise SettingError(f"--url={parameters['Url']!r} is no address; for example http://127.0.0.1:8080")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    body = parameters["Body"].read_bytes()
    connection = kind(url.hostname, url.port, timeout=_TIMEOUT_S)
    headers = {
        "Content-Type": parameters["ContentType"],
        "Accept": parameters["Accept"],
        "X-Amzn-SageMaker-Custom-Attributes": parameters["CustomAttributes"],
    }
    try:
        connection.request("POST", url.path, body, headers)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise LaunchError(f"no answer from {url.scheme}://{url.netloc}: is the server running? ({error!r})") from error
    finally:
        connection.close()
    if response.status != 200:
        raise _refused(response.status, content.decode(errors="replace"))
    return content


def _refused(status: int, text: str) -> RefusedError:
    """The container's own words, where it sent its JSON line, else the beginning of what it sent."""
    try:
        error = json.loads(text)["error"]
        return RefusedError(str(error["message"]), status=status, code=str(error["code"]))
    except (ValueError, KeyError, TypeError):
        return RefusedError(" ".join(text.split())[:_LOGGED_CHARACTERS] or "an empty answer", status=status)


def _as_line(answer: Answer) -> str:
    if answer.error is not None:
        error = {"code": answer.error.code, "message": str(answer.error), "status": answer.error.status}
        return json.dumps({"image": answer.image, "error": error})
    return json.dumps({"image": answer.image, "predictions": list(answer.predictions)})


def _as_table(answers: Iterable[Answer]) -> str:
    """One row per prediction; an error takes the place of the label and what follows."""
    rows = []
    for answer in answers:
        if answer.error is not None:
            status = f" ({answer.error.status})" if answer.error.status else ""
            rows.append((answer.image, "-", "-", f"{answer.error.code}{status}: {answer.error}"))
        for place, prediction in enumerate(answer.predictions):
            image = answer.image if len(answer.predictions) == 1 else f"{answer.image}[{place}]"
            first, *others = prediction["top_k"]
            then = ", ".join(f"{one['label']} {one['probability']:.1%}" for one in others)
            rows.append((image, str(first["label"]), f"{first['probability']:.1%}", then))
    return table(("image", "label", "probability", "then"), rows)
