"""Put an HTTP API in front of an endpoint, try it, or delete it.

`deploy` makes a CloudFormation stack (infrastructure/microservice.yaml) of an HTTP API with one route, POST /classify,
and the Lambda function behind it (microservice/handler.py), or changes the one that is there; options that are not
given keep the values that they have. `test` posts photos to it, several of them as one batch. `delete` removes all that
`deploy` made, and leaves the endpoint alone.

  launch.py api deploy dogs
  launch.py api test dogs photo.jpg another.jpg
  launch.py api deploy dogs --allow-origin https://example.com --jwt-issuer https://idp.example.com --jwt-audience web
  launch.py api test dogs photo.jpg --token-file token.txt
  launch.py api delete dogs

Callers sign their requests with AWS credentials that may execute-api:Invoke the route; with --jwt-issuer they bring
that issuer's JSON web token instead. `--jwt-issuer ""` goes back. `--dry-run` plans a new stack; what only AWS knows
stands in it as ${Operation.Field}.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.launcher import arguments as types
from scripts.launcher import gateway, hosting, stacks
from scripts.launcher import settings as settings_module
from scripts.launcher.context import Context
from scripts.launcher.errors import OutcomeError, ServiceError, SettingError
from scripts.launcher.plan import Call
from scripts.launcher.settings import Settings
from scripts.launcher.tables import table

_REPOSITORY = Path(__file__).resolve().parents[3]
_TEMPLATE = _REPOSITORY / "infrastructure" / "microservice.yaml"
_HANDLER = _REPOSITORY / "microservice" / "handler.py"

_ARN = "${DescribeEndpoint.EndpointArn}"
_URL = "${DescribeStacks.Outputs.Url}"
_CODE_BUCKET = "${DescribeStacks.Parameters.CodeBucket}"
_CODE_KEY = "${ListObjectsV2.Contents[].Key}"
_ANY_IMAGE = "application/octet-stream"
# The first date that a zip can hold: the same code is the same file, whenever it is packed.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_SHOWN_CHARACTERS = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("action", choices=("deploy", "test", "delete"), help="what to do")
    parser.add_argument("name", type=hosting.base_name, metavar="NAME", help="name of the endpoint")
    parser.add_argument("files", metavar="FILE", nargs="*", help="test: one photo, or several as a batch")
    settings_module.add_arguments(parser, "bucket", "prefix")

    making = parser.add_argument_group("deploy")
    making.add_argument(
        "--allow-origin",
        action="extend",
        nargs="+",
        metavar="ORIGIN",
        help="whose pages may call it (CORS, at first *)",
    )
    making.add_argument("--jwt-issuer", metavar="URL", help="callers bring a JSON web token of this issuer")
    making.add_argument(
        "--jwt-audience", action="extend", nargs="+", metavar="AUDIENCE", help="whom that token must be meant for"
    )
    making.add_argument(
        "--requests-per-second", type=types.positive, metavar="N", help="more are refused with 429 (at first 10)"
    )
    making.add_argument("--tags", type=types.pair, nargs="+", default=[], metavar="KEY=VALUE", help="for the bill")

    trying = parser.add_argument_group("test")
    trying.add_argument("--top-k", type=types.positive, default=3, metavar="K", help="candidates (default %(default)s)")
    trying.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token, where the API wants one")
    trying.add_argument("--json", action="store_true", help="print the answer as it came")

    parser.add_argument("--yes", action="store_true", help="delete: do not ask; needed where nobody can answer")


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """The requests, for `deploy` those of a new stack."""
    arguments.files = [Path(file) for file in arguments.files]
    if arguments.files and arguments.action != "test":
        raise SettingError(f"api {arguments.action} takes no files, and got {arguments.files[0]}")
    if arguments.action == "deploy":
        return _deploy_plan(arguments, settings)
    if arguments.action == "test":
        return _test_plan(arguments)
    name = stack_name(arguments.name)
    return [
        stacks.describe(name),
        Call(
            "cloudformation",
            "DeleteStack",
            {"StackName": name, "ClientRequestToken": settings.unique_name(arguments.name)},
        ),
        Call("s3", "ListObjectsV2", {"Bucket": _CODE_BUCKET, "Prefix": "${DescribeStacks.Parameters.CodeKey}"}),
        Call("s3", "DeleteObject", {"Bucket": _CODE_BUCKET, "Key": _CODE_KEY}),
    ]


def run(calls: Sequence[Call], context: Context) -> int:
    """Does what the action says."""
    return {"deploy": _deploy, "test": _test, "delete": _delete}[context.arguments.action](calls, context)


def stack_name(endpoint: str) -> str:
    """Name of the stack of an endpoint's API; also that of its log group, below /aws/lambda."""
    return f"dogbreed-api-{endpoint}"


def package() -> bytes:
    """The function's code as Lambda takes it: a zip, the same bytes for the same code."""
    file = zipfile.ZipInfo(_HANDLER.name, _ZIP_DATE)
    # Readable for all: Lambda runs the function under a user of its own.
    file.external_attr = 0o644 << 16
    file.compress_type = zipfile.ZIP_DEFLATED
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(file, _HANDLER.read_bytes())
    return packed.getvalue()


def _deploy_plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    if arguments.jwt_audience and not arguments.jwt_issuer:
        raise SettingError("--jwt-audience needs --jwt-issuer, whose tokens they are")
    if arguments.jwt_issuer and not arguments.jwt_audience:
        raise SettingError("--jwt-issuer needs --jwt-audience: without one, tokens meant for others would be accepted")
    if arguments.jwt_issuer and not arguments.jwt_issuer.startswith("https://"):
        raise SettingError(f"--jwt-issuer={arguments.jwt_issuer!r} is no https:// address")
    name = arguments.name
    # A new key for new code: that is how CloudFormation sees that there is something to change.
    digest = hashlib.sha256(package()).hexdigest()[:16]
    key = f"{_code_folder(name, settings.prefix)}{digest}.zip"
    values = {
        "EndpointName": name,
        "EndpointArn": _ARN,
        "CodeBucket": settings.bucket,
        "CodeKey": key,
        "AllowOrigins": _joined(arguments.allow_origin),
        "JwtIssuer": arguments.jwt_issuer,
        "JwtAudience": _joined(arguments.jwt_audience),
        "RequestsPerSecond": arguments.requests_per_second and str(arguments.requests_per_second),
    }
    create = {
        "StackName": stack_name(name),
        "TemplateBody": _TEMPLATE.read_text(encoding="utf-8"),
        "Parameters": _parameters(values),
        "Capabilities": ["CAPABILITY_IAM"],
        "OnFailure": "DELETE",
        "ClientRequestToken": settings.unique_name(name),
        **hosting.tags(arguments),
    }
    return [
        Call("sagemaker", "DescribeEndpoint", {"EndpointName": name}),
        Call("s3", "PutObject", {"Bucket": settings.bucket, "Key": key, "Body": _HANDLER}),
        Call("cloudformation", "CreateStack", create),
    ]


def _deploy(calls: Sequence[Call], context: Context) -> int:
    look, upload, create = calls
    name = context.arguments.name
    try:
        endpoint = context.aws.call(look)
    except ServiceError as error:
        if not error.not_found:
            raise
        raise OutcomeError(f"there is no endpoint {name} to put an API in front of: launch.py deploy {name}") from error
    if endpoint["EndpointStatus"] != "InService":
        context.say(f"endpoint {name} is {endpoint['EndpointStatus']}; until it is in service the API answers 503")
    # The plan names the file, and what is sent is the zip of it.
    context.aws.call(Call(upload.service, upload.operation, {**upload.parameters, "Body": package()}))
    found = [
        {**one, "ParameterValue": endpoint["EndpointArn"]} if one["ParameterValue"] == _ARN else one
        for one in create.parameters["Parameters"]
    ]
    create = Call(create.service, create.operation, {**create.parameters, "Parameters": found})
    try:
        stack = stacks.put(create, context)
    except OutcomeError as error:
        if stacks.find(context, create.parameters["StackName"]) is not None:
            raise OutcomeError(f"{error}\nto be rid of it: launch.py api delete {name}") from error
        context.aws.call(Call("s3", "DeleteObject", {key: upload.parameters[key] for key in ("Bucket", "Key")}))
        raise
    outputs = stacks.outputs(stack)
    context.say(f"try it: launch.py api test {name} photo.jpg\ndelete it: launch.py api delete {name}")
    if not stacks.parameters(stack).get("JwtIssuer"):
        context.say(f"callers need execute-api:Invoke on {outputs['CallerResource']}")
    print(outputs["Url"])
    return 0


def _test_plan(arguments: argparse.Namespace) -> list[Call]:
    if not arguments.files:
        raise SettingError("no photo to post: give one file, or several for a batch")
    if missing := [file for file in arguments.files if not file.is_file()]:
        raise SettingError(f"{missing[0]} is no file")
    if arguments.token_file and not arguments.token_file.is_file():
        raise SettingError(f"--token-file {arguments.token_file} is no file")
    posted: dict[str, Any] = {"Url": f"{_URL}?top_k={arguments.top_k}"}
    if len(arguments.files) == 1:
        (file,) = arguments.files
        posted |= {"ContentType": _media_type(file), "Body": file}
    else:
        posted |= {"ContentType": "multipart/form-data", "Body": arguments.files}
    return [stacks.describe(stack_name(arguments.name)), Call("http", "POST", posted)]


def _test(calls: Sequence[Call], context: Context) -> int:
    arguments, posted = context.arguments, calls[1].parameters
    outputs = stacks.outputs(_existing(context))
    url = posted["Url"].replace(_URL, outputs["Url"])
    content_type, body = posted["ContentType"], b""
    if len(arguments.files) == 1:
        body = arguments.files[0].read_bytes()
    else:
        boundary = uuid.uuid4().hex
        content_type, body = f"{content_type}; boundary={boundary}", form(arguments.files, boundary)
    token = arguments.token_file.read_text(encoding="utf-8").strip() if arguments.token_file else None
    answer = gateway.post(url, body, content_type, region=context.settings.region, token=token)
    context.say(f"{answer.status} in {answer.elapsed_s:.2f} s from {url}")
    text = answer.body.decode(errors="replace")
    try:
        predictions = json.loads(text)["predictions"]
    except (ValueError, KeyError, TypeError):
        raise OutcomeError(refused(answer.status, text, outputs["CallerResource"])) from None
    if arguments.json:
        print(text.rstrip("\n"))
    else:
        rows = [(str(file), *_row(one)) for file, one in zip(arguments.files, predictions, strict=True)]
        print(table(("image", "label", "probability"), rows))
    return 1 if any("error" in one for one in predictions) else 0


def _delete(calls: Sequence[Call], context: Context) -> int:
    arguments = context.arguments
    if not arguments.yes and not sys.stdin.isatty():
        raise SettingError("nobody is here to confirm: give --yes")
    stack = _existing(context)
    name, url = stack["StackName"], stacks.outputs(stack).get("Url", "which was never finished")
    if not arguments.yes:
        sys.stderr.write(f"delete stack {name} with its API {url}, function, role and log? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            context.say("nothing was deleted")
            return 1
    stacks.delete(calls[1], str(stack["StackId"]), context)
    context.say(f"deleted stack {name}")
    code = stacks.parameters(stack)
    folder = code["CodeKey"].rpartition("/")[0] + "/"
    listing = Call("s3", "ListObjectsV2", {"Bucket": code["CodeBucket"], "Prefix": folder})
    for key in [one["Key"] for page in context.aws.pages(listing) for one in page.get("Contents", [])]:
        context.aws.call(Call("s3", "DeleteObject", {"Bucket": code["CodeBucket"], "Key": key}))
        context.say(f"deleted s3://{code['CodeBucket']}/{key}")
    context.say(f"the endpoint stays, and costs, until: launch.py delete {arguments.name}")
    return 0


def _existing(context: Context) -> dict[str, Any]:
    name = context.arguments.name
    found = stacks.find(context, stack_name(name))
    if found is None:
        raise OutcomeError(f"{name} has no API here (stack {stack_name(name)}): launch.py api deploy {name} makes one")
    return found


def _code_folder(name: str, prefix: str) -> str:
    return "/".join(part for part in (prefix, "api", name) if part) + "/"


def _parameters(values: dict[str, str | None]) -> list[dict[str, str]]:
    """Those that were given, in the shape of a request."""
    given = {key: value for key, value in values.items() if value is not None}
    return [{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()]


def _joined(values: Sequence[str] | None) -> str | None:
    return None if values is None else ",".join(values)


def _media_type(file: Path) -> str:
    return hosting.IMAGE_TYPES.get(file.suffix.lower(), _ANY_IMAGE)


def form(files: Sequence[Path], boundary: str) -> bytes:
    """The files as RFC 7578 has them. Their own names are not sent: they could hold anything, and nobody reads them."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{place}"\r\n'
        f"Content-Type: {_media_type(file)}\r\n\r\n".encode()
        + file.read_bytes()
        + b"\r\n"
        for place, file in enumerate(files)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def _row(prediction: dict[str, Any]) -> tuple[str, str]:
    if "error" in prediction:
        error = prediction["error"]
        return "-", f"{error['code']} ({error['status']}): {error['message']}"
    best = prediction["top_k"]
    return str(best[0]["label"]), ", ".join(f"{one['probability']:.1%} {one['label']}" for one in best)


def refused(status: int, text: str, resource: str) -> str:
    """What the function says, or API Gateway before it was asked."""
    try:
        document = json.loads(text)
        words = document["error"]["message"] if "error" in document else document["message"]
    except (ValueError, KeyError, TypeError):
        words = " ".join(text.split())[:_SHOWN_CHARACTERS] or "an empty answer"
    if status == 403:
        return f"403, {words}: your credentials need execute-api:Invoke on {resource}"
    if status == 401:
        return f"401, {words}: give a valid token by --token-file"
    return f"{status}, {words}"
