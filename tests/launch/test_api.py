"""`launch.py api`, and the function that it deploys in front of the project's own server.

`platform` speaks InvokeEndpoint and passes requests on to the server, as SageMaker does. `api` is API Gateway: it makes
events of HTTP requests and hands them to the real handler. moto's CloudFormation makes function, role, permission and
log, and knows no ApiGatewayV2; those resources are sent to its API Gateway as the requests that CloudFormation makes.
"""

from __future__ import annotations

import ast
import csv
import http.client
import io
import json
import os
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cfnlint.decode
import pytest
from tests.contract.serving import save_bundle
from tests.launch.conftest import BUCKET, IMAGE, REGION, REPOSITORY, ROLE, Launch
from tests.launch.scripted import Scripted, problems, refusal
from tests.server_process import is_ready, start, stop_hard
from tests.unit.microservice.events import Context, answer, as_form, as_json, event

from microservice import handler
from scripts.launcher.commands import api as api_command
from scripts.launcher.plan import Call

STACK = "dogbreed-api-dogs"
ENDPOINT_ARN = f"arn:aws:sagemaker:{REGION}:123456789012:endpoint/dogs"
TEMPLATE = REPOSITORY / "infrastructure" / "microservice.yaml"

Reply = tuple[int, dict[str, str], bytes]


@contextmanager
def http_server(reply: Callable[[str, dict[str, str], bytes], Reply]) -> Iterator[str]:
    """Answers POST by the function, on a port of 127.0.0.1; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more, content = reply(self.path, headers, body)
            self.send_response(status)
            for name, value in (more | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Stays silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def server_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The project's server as a process, on a tiny bundle."""
    root = tmp_path_factory.mktemp("api")
    save_bundle(root)
    server = start(root, DOGBREED_MAX_WAITING="8")
    try:
        server.wait(is_ready)
        yield server.port
    finally:
        stop_hard(server)


@dataclass
class Platform:
    """SageMaker's runtime in front of the server, which it knows as endpoint dogs.

    Attributes:
        port: of the server.
        throttled: how many requests are still refused by throttling.
    """

    port: int
    throttled: int = 0

    def reply(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        if path != "/endpoints/dogs/invocations":
            text = f"Endpoint {path.split('/')[2]} of account 123456789012 not found."
            return 400, {"x-amzn-ErrorType": "ValidationError"}, json.dumps({"message": text}).encode()
        if self.throttled:
            self.throttled -= 1
            return 400, {"x-amzn-ErrorType": "ThrottlingException"}, b'{"message": "Rate exceeded"}'
        passed = ("content-type", "accept", "x-amzn-sagemaker-custom-attributes")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/invocations", body, {name: headers[name] for name in passed if name in headers})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.status == 200:
            return 200, {"Content-Type": response.headers["Content-Type"]}, content
        wrapped = {"OriginalStatusCode": response.status, "OriginalMessage": content.decode()}
        return 424, {"x-amzn-ErrorType": "ModelError"}, json.dumps(wrapped).encode()


@pytest.fixture
def platform(server_port: int, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """Where the handler finds its endpoint."""
    found = Platform(server_port)
    handler._runtime.cache_clear()
    with http_server(found.reply) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        monkeypatch.setenv("ENDPOINT_NAME", "dogs")
        yield found
    handler._runtime.cache_clear()


def call(request: dict[str, Any]) -> tuple[int, Any]:
    response = handler.lambda_handler(request, Context())
    return response["statusCode"], answer(response)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Ten drawn images, unlike each other; the seventh is cut off."""
    import numpy as np
    from local_test import make_data

    found = []
    for index in range(10):
        buffer = io.BytesIO()
        make_data.draw("circle", np.random.default_rng(index), 48).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    found[6] = found[6][:300]
    return found


def test_one_image_is_answered_as_the_server_answers_it(platform: Platform, jpeg: bytes) -> None:
    status, document = call(event(jpeg, "image/jpeg", query={"top_k": "2"}))
    _, _, direct = platform.reply(
        "/endpoints/dogs/invocations",
        {"content-type": "image/jpeg", "x-amzn-sagemaker-custom-attributes": "top_k=2"},
        jpeg,
    )
    assert (status, document) == (200, json.loads(direct))
    assert len(document["predictions"][0]["top_k"]) == 2


@pytest.mark.parametrize("write", [as_json, as_form])
def test_ten_images_of_which_one_is_corrupt_are_nine_answers_and_one_error(
    platform: Platform, images: list[bytes], write: Callable[[list[bytes]], dict[str, Any]]
) -> None:
    alone = [call(event(image)) for image in images]
    status, document = call(write(images))
    assert status == 200
    found = document["predictions"]
    assert len(found) == 10
    error = found[6].pop("error")
    assert (error["code"], error["status"], found[6]) == ("unreadable_image", 400, {})
    assert error["message"] == alone[6][1]["error"]["message"]
    others = [place for place in range(10) if place != 6]
    assert [found[place] for place in others] == [alone[place][1]["predictions"][0] for place in others]
    # Ten images, ten answers: the order could not be told of equal ones.
    assert len({json.dumps(found[place]) for place in others}) == 9


def test_formats_that_have_no_media_type_at_the_endpoint_are_answered(platform: Platform, images: list[bytes]) -> None:
    from PIL import Image

    for name, media_type in (("GIF", "image/gif"), ("TIFF", "image/tiff"), ("PNG", "image/png")):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(images[0])).save(buffer, name)
        assert call(event(buffer.getvalue(), media_type))[0] == 200, name


def test_bytes_that_are_no_image_are_the_clients_mistake(platform: Platform) -> None:
    status, document = call(event(b"%PDF-1.7", "image/jpeg"))
    assert (status, document["error"]["code"]) == (400, "unreadable_image")


def test_options_that_the_server_refuses_are_the_clients_mistake(platform: Platform, jpeg: bytes) -> None:
    status, document = call(event(jpeg, query={"return": "everything"}))
    assert (status, "everything" in document["error"]["message"]) == (400, True)


def test_an_endpoint_that_is_not_there_is_said(
    platform: Platform, jpeg: bytes, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENDPOINT_NAME", "cats")
    for request in (event(jpeg), as_json(images)):
        status, document = call(request)
        assert (status, document["error"]["code"]) == (503, "endpoint_missing")
        assert document["error"]["message"].startswith("endpoint cats does not exist or is not in service")


def test_throttling_is_waited_out_or_handed_on(
    platform: Platform, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler.time, "sleep", lambda seconds: None)
    platform.throttled = 2
    assert call(event(jpeg))[0] == 200
    platform.throttled = 4
    response = handler.lambda_handler(event(jpeg), Context())
    assert (response["statusCode"], response["headers"]["retry-after"]) == (429, "1")
    assert answer(response)["error"]["code"] == "throttled"


def test_an_endpoint_that_hangs_is_a_504(environ: dict[str, str], jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    leave = threading.Event()

    def hang(*_: object) -> Reply:
        leave.wait(60)
        return 200, {}, b"{}"

    handler._runtime.cache_clear()
    monkeypatch.setattr(handler, "READ_TIMEOUT_S", 1)
    with http_server(hang) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
        monkeypatch.setenv("ENDPOINT_NAME", "dogs")
        status, document = call(event(jpeg))
        leave.set()
    handler._runtime.cache_clear()
    assert (status, document["error"]["message"]) == (504, "endpoint dogs did not answer in 1 s")


# launch.py api test


@dataclass
class Api:
    """API Gateway in front of the handler.

    Attributes:
        asked: path, headers in lower case and body of every request.
        refuses: what is answered in the handler's place.
    """

    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    refuses: Reply | None = None

    def reply(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        self.asked.append((path, headers, body))
        if self.refuses:
            return self.refuses
        query = dict(one.split("=") for one in path.partition("?")[2].split("&"))
        found = handler.lambda_handler(event(body, headers["content-type"], query=query), Context())
        return found["statusCode"], found["headers"], found["body"].encode()


@pytest.fixture
def api(launch: Launch) -> Iterator[Api]:
    """A deployed API, of which CloudFormation tells."""
    found = Api()
    with http_server(found.reply) as url:
        outputs = {"Url": f"{url}/classify", "CallerResource": "arn:aws:execute-api:::id/*/POST/classify"}
        stack = {"Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items()]}
        launch.aws = Scripted(DescribeStacks={"Stacks": [stack]})
        yield found


@pytest.fixture
def files(tmp_path: Path, images: list[bytes]) -> list[str]:
    found = [tmp_path / f"{place}.jpg" for place in range(10)]
    for file, image in zip(found, images, strict=True):
        file.write_bytes(image)
    return [str(file) for file in found]


def test_test_posts_a_signed_photo_and_shows_answer_and_time(
    launch: Launch, platform: Platform, api: Api, files: list[str]
) -> None:
    ended = launch("api", "test", "dogs", files[0], "--top-k", "2")
    assert ended.code == 0, ended.err
    header, row = ended.out.splitlines()
    assert header.split() == ["IMAGE", "LABEL", "PROBABILITY"]
    assert re.fullmatch(rf"{re.escape(files[0])}  (Breed \d, drawn)  \d+\.\d% \1, \d+\.\d% Breed \d, drawn", row)
    assert re.search(r"^200 in \d+\.\d\d s from http://.*/classify\?top_k=2$", ended.err, re.MULTILINE)
    ((path, headers, body),) = api.asked
    assert (path, headers["content-type"], body) == ("/classify?top_k=2", "image/jpeg", Path(files[0]).read_bytes())
    assert signature(path, headers, body) == headers["authorization"].rpartition("Signature=")[2]
    assert f"/{REGION}/execute-api/aws4_request" in headers["authorization"]


def signature(path: str, headers: dict[str, str], body: bytes) -> str:
    """AWS Signature Version 4 by hand, of a request that arrived with these headers (IAM user guide, sigv4)."""
    import hashlib
    import hmac

    found = re.search(r"Credential=[^/]*/(\d+)/([^,]*), SignedHeaders=([^,]*)", headers["authorization"])
    assert found
    date, scope, names = found.groups()
    signed = [f"{name}:{headers[name]}" for name in names.split(";")]
    canonical = "\n".join(["POST", *path.split("?"), *signed, "", names, hashlib.sha256(body).hexdigest()])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], f"{date}/{scope}", digest])
    key = b"AWS4test"
    for part in (date, *scope.split("/")):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()


def test_several_photos_are_one_batch(launch: Launch, platform: Platform, api: Api, files: list[str]) -> None:
    ended = launch("api", "test", "dogs", *files)
    assert ended.code == 1
    rows = ended.out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == files
    assert [place for place, row in enumerate(rows) if "unreadable_image (400)" in row] == [6]
    assert len(api.asked) == 1
    ended = launch("api", "test", "dogs", *files[:2], "--json")
    assert (ended.code, len(json.loads(ended.out)["predictions"])) == (0, 2)


def test_a_token_takes_the_place_of_the_signature(
    launch: Launch, platform: Platform, api: Api, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a.b.c\n")
    assert launch("api", "test", "dogs", files[0], "--token-file", str(tmp_path / "token")).code == 0
    assert api.asked[0][1]["authorization"] == "Bearer a.b.c"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((403, {}, b'{"message":"Forbidden"}'), "403, Forbidden: your credentials need execute-api:Invoke on arn:"),
        ((401, {}, b'{"message":"Unauthorized"}'), "401, Unauthorized: give a valid token by --token-file"),
        ((413, {}, b'{"message":"Request Entity Too Large"}'), "413, Request Entity Too Large"),
        ((503, {}, b'{"error":{"code":"endpoint_missing","message":"endpoint dogs does"}}'), "503, endpoint dogs does"),
        ((502, {}, b"<html>\nBad"), "502, <html> Bad"),
    ],
)
def test_what_the_api_refuses_is_one_sentence(
    launch: Launch, api: Api, files: list[str], reply: Reply, words: str
) -> None:
    api.refuses = reply
    ended = launch("api", "test", "dogs", files[0])
    assert (ended.code, ended.out) == (1, "")
    assert f"launch.py api: {words}" in ended.err


def test_without_credentials_nothing_is_posted(
    launch: Launch, api: Api, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    ended = launch("api", "test", "dogs", files[0])
    assert (ended.code, api.asked) == (1, [])
    assert "no AWS credentials for execute-api:Invoke" in ended.err


def test_no_api_is_one_sentence(launch: Launch, files: list[str]) -> None:
    launch.aws = Scripted(
        DescribeStacks=refusal("ValidationError", f"Stack with id {STACK} does not exist"),
    )
    for argv in (("test", "dogs", files[0]), ("delete", "dogs", "--yes")):
        ended = launch("api", *argv)
        assert ended.code == 1
        assert f"dogs has no API here (stack {STACK}): launch.py api deploy dogs makes one" in ended.err


# launch.py api deploy and delete

unknown_to_moto = pytest.mark.filterwarnings("ignore:Tried to parse AWS..ApiGatewayV2:UserWarning")


@pytest.fixture
def endpoint(mock_aws: Callable[[str], Any]) -> Callable[[str], Any]:
    """An account with endpoint dogs."""
    sagemaker = mock_aws("sagemaker")
    sagemaker.create_model(ModelName="dogs", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": IMAGE})
    variant = {"VariantName": "main", "ModelName": "dogs", "InstanceType": "ml.c5.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="dogs", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="dogs", EndpointConfigName="dogs")
    return mock_aws


def only(found: list[Any]) -> Any:
    (one,) = found
    return one


@unknown_to_moto
def test_deploy_makes_the_function_with_its_role_and_log(launch: Launch, endpoint: Callable[[str], Any]) -> None:
    ended = launch("api", "deploy", "dogs")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("https://")
    assert ended.out.endswith("/classify\n")
    assert "launch.py api test dogs photo.jpg" in ended.err
    assert "launch.py api delete dogs" in ended.err
    assert "callers need execute-api:Invoke on arn:aws:execute-api:" in ended.err
    function = only(endpoint("lambda").list_functions()["Functions"])
    assert (function["Runtime"], function["Handler"]) == ("python3.14", "handler.lambda_handler")
    assert function["Environment"]["Variables"] == {"ENDPOINT_NAME": "dogs"}
    role = only(endpoint("iam").list_roles()["Roles"])
    assert function["Role"] == role["Arn"]
    policy = endpoint("iam").get_role_policy(RoleName=role["RoleName"], PolicyName="classify")["PolicyDocument"]
    # moto writes it down as Python does.
    statements = ast.literal_eval(policy)["Statement"]
    assert {one["Sid"]: one["Resource"] for one in statements} == {
        "AskTheEndpoint": ENDPOINT_ARN,
        "WriteTheLog": f"arn:aws:logs:{REGION}:123456789012:log-group:/aws/lambda/{STACK}:*",
    }
    log = only(endpoint("logs").describe_log_groups()["logGroups"])
    assert (log["logGroupName"], log["retentionInDays"]) == (f"/aws/lambda/{STACK}", 30)
    key = only(endpoint("s3").list_objects_v2(Bucket=BUCKET)["Contents"])["Key"]
    assert re.fullmatch(r"dogbreed/api/dogs/[0-9a-f]{16}\.zip", key)
    packed = endpoint("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.namelist() == ["handler.py"]
        assert archive.read("handler.py") == Path(handler.__file__).read_bytes()


@unknown_to_moto
def test_deploy_again_changes_what_is_given_and_keeps_the_rest(launch: Launch, endpoint: Callable[[str], Any]) -> None:
    assert launch("api", "deploy", "dogs", "--requests-per-second", "50", "--tags", "team=dogs").code == 0
    assert launch("api", "deploy", "dogs", "--allow-origin", "https://a.example", "https://b.example").code == 0
    stack = only(endpoint("cloudformation").describe_stacks()["Stacks"])
    assert stack["StackStatus"] == "UPDATE_COMPLETE"
    parameters = {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}
    assert parameters["RequestsPerSecond"] == "50"
    # moto tells a changed list as Python writes it.
    assert re.findall(r"https://\w\.example", parameters["AllowOrigins"]) == ["https://a.example", "https://b.example"]
    only(endpoint("lambda").list_functions()["Functions"])


@unknown_to_moto
def test_delete_leaves_nothing_but_the_endpoint(launch: Launch, endpoint: Callable[[str], Any]) -> None:
    s3 = endpoint("s3")
    s3.put_object(Bucket=BUCKET, Key="dogbreed/api/dogs-2/other.zip", Body=b"")
    assert launch("api", "deploy", "dogs").code == 0
    s3.put_object(Bucket=BUCKET, Key="dogbreed/api/dogs/of-an-earlier-version.zip", Body=b"")
    ended = launch("api", "delete", "dogs", "--yes")
    assert ended.code == 0, ended.err
    assert endpoint("cloudformation").list_stacks(StackStatusFilter=["CREATE_COMPLETE"])["StackSummaries"] == []
    assert endpoint("lambda").list_functions()["Functions"] == []
    assert endpoint("iam").list_roles()["Roles"] == []
    assert endpoint("logs").describe_log_groups()["logGroups"] == []
    assert [one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["dogbreed/api/dogs-2/other.zip"]
    only(endpoint("sagemaker").list_endpoints()["Endpoints"])
    assert "the endpoint stays, and costs, until: launch.py delete dogs" in ended.err


def test_delete_asks(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stack = {"StackName": STACK, "StackId": "id", "StackStatus": "CREATE_COMPLETE"}
    launch.aws = Scripted(DescribeStacks={"Stacks": [stack]})
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    ended = launch("api", "delete", "dogs")
    assert (ended.code, launch.aws.asked("DeleteStack")) == (1, [])
    assert "nothing was deleted" in ended.err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert launch("api", "delete", "dogs").code == 2


def test_without_an_endpoint_nothing_is_made(launch: Launch, mock_aws: Callable[[str], Any]) -> None:
    ended = launch("api", "deploy", "dogs")
    assert ended.code == 1
    assert "there is no endpoint dogs to put an API in front of: launch.py deploy dogs" in ended.err
    assert "Contents" not in mock_aws("s3").list_objects_v2(Bucket=BUCKET)


def failing(status: str, existing: list[Any]) -> Scripted:
    """CloudFormation that comes to rest in a status, with the events that it leaves."""
    token: list[str] = []

    def put(**parameters: Any) -> dict[str, str]:
        token.append(parameters["ClientRequestToken"])
        return {"StackId": "arn:aws:cloudformation:eu-west-1:1:stack/x/1"}

    def events(**_: Any) -> dict[str, Any]:
        def one(resource: str, state: str, reason: str, of: str) -> dict[str, str]:
            return {
                "LogicalResourceId": resource,
                "ResourceStatus": state,
                "ResourceStatusReason": reason,
                "ClientRequestToken": of,
            }

        found = [
            one("Api", "CREATE_FAILED", "Resource creation cancelled", token[0]),
            one("Role", "CREATE_FAILED", "not authorized to perform: iam:CreateRole", token[0]),
            one("LogGroup", "CREATE_COMPLETE", "", token[0]),
            one("Function", "UPDATE_FAILED", "of another time", "earlier"),
        ]
        return {"StackEvents": found}

    gone = refusal("ValidationError", "Stack does not exist")
    return Scripted(
        DescribeEndpoint={"EndpointStatus": "Creating", "EndpointArn": ENDPOINT_ARN},
        PutObject={},
        DeleteObject={},
        CreateStack=put,
        UpdateStack=put,
        DescribeStacks=[
            *existing,
            {"Stacks": [{"StackStatus": "CREATE_IN_PROGRESS"}]},
            {"Stacks": [{"StackStatus": status}]},
            gone,
        ],
        DescribeStackEvents=events,
    )


def test_a_stack_that_fails_says_why_first_and_leaves_no_code(launch: Launch) -> None:
    launch.aws = failing("DELETE_COMPLETE", [refusal("ValidationError", "Stack does not exist")])
    ended = launch("api", "deploy", "dogs")
    assert ended.code == 1
    assert "launch.py api: Role: not authorized to perform: iam:CreateRole\nstack" in ended.err
    assert "endpoint dogs is Creating; until it is in service the API answers 503" in ended.err
    assert f"stack {STACK}: CREATE_IN_PROGRESS, 0:00" in ended.err
    assert launch.slept == [5.0]
    assert [one["Key"] for one in launch.aws.asked("DeleteObject")] == [launch.aws.asked("PutObject")[0]["Key"]]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("ROLLBACK_COMPLETE", "which only deleting it ends\nto be rid of it: launch.py api delete dogs"),
        ("UPDATE_IN_PROGRESS", f"stack {STACK} is UPDATE_IN_PROGRESS: wait until that is over"),
    ],
)
def test_a_stack_that_cannot_be_changed_is_said(launch: Launch, status: str, words: str) -> None:
    launch.aws = failing("-", [{"Stacks": [{"StackStatus": status}]}] * 2)
    ended = launch("api", "deploy", "dogs")
    assert (ended.code, words in ended.err) == (1, True), ended.err
    assert launch.aws.asked("UpdateStack") == []


def test_nothing_to_change_is_no_error(launch: Launch) -> None:
    outputs = [{"OutputKey": key, "OutputValue": key} for key in ("Url", "CallerResource")]
    stack = {"StackStatus": "CREATE_COMPLETE", "Outputs": outputs}
    launch.aws = Scripted(
        DescribeEndpoint={"EndpointStatus": "InService", "EndpointArn": ENDPOINT_ARN},
        PutObject={},
        DescribeStacks={"Stacks": [stack]},
        UpdateStack=refusal("ValidationError", "No updates are to be performed."),
    )
    ended = launch("api", "deploy", "dogs")
    assert (ended.code, ended.out) == (0, "Url\n")
    assert f"stack {STACK} is as it should be already" in ended.err


@pytest.mark.parametrize(
    "argv", [("deploy", "dogs", "--jwt-issuer", "https://i", "--jwt-audience", "a"), ("delete", "dogs")]
)
def test_a_dry_run_shows_requests_that_the_services_would_take(launch: Launch, argv: tuple[str, ...]) -> None:
    calls = [Call(**one) for one in json.loads(launch("api", *argv, "--dry-run").out)]
    known = [one for one in calls if "${" not in json.dumps({**one.parameters, "TemplateBody": ""})]
    assert [problem for one in known for problem in problems(one)] == []
    assert len(known) >= 2


def test_a_dry_run_of_test_shows_what_would_be_posted(launch: Launch, files: list[str]) -> None:
    _, posted = json.loads(launch("api", "test", "dogs", files[0], "--dry-run").out)
    assert posted["parameters"] == {
        "Url": "${DescribeStacks.Outputs.Url}?top_k=3",
        "ContentType": "image/jpeg",
        "Body": {"content of": files[0]},
    }
    _, posted = json.loads(launch("api", "test", "dogs", *files[:2], "--dry-run").out)
    assert [one["content of"] for one in posted["parameters"]["Body"]] == files[:2]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("test", "dogs"), "no photo to post"),
        (("test", "dogs", "nowhere.jpg"), "nowhere.jpg is no file"),
        (("test", "dogs", __file__, "--token-file", "nowhere"), "--token-file nowhere is no file"),
        (("deploy", "dogs", "photo.jpg"), "api deploy takes no files, and got photo.jpg"),
        (("deploy", "dogs", "--jwt-audience", "a"), "--jwt-audience needs --jwt-issuer"),
        (("deploy", "dogs", "--jwt-issuer", "https://i"), "--jwt-issuer needs --jwt-audience"),
        (("deploy", "dogs", "--jwt-issuer", "i", "--jwt-audience", "a"), "--jwt-issuer='i' is no https:// address"),
        (("deploy", "dogs", "--requests-per-second", "0"), "is not a whole number from 1 on"),
        (("delete", "dogs"), "nobody is here to confirm: give --yes"),
        (("fly", "dogs"), "invalid choice: 'fly'"),
    ],
)
def test_what_does_not_go_together_is_refused(launch: Launch, argv: tuple[str, ...], words: str) -> None:
    launch.aws = Scripted()
    ended = launch("api", *argv)
    assert (ended.code, words in ended.err) == (2, True), ended.err


def test_the_template_is_not_too_long_to_be_sent_with_the_request() -> None:
    assert TEMPLATE.stat().st_size <= 51200


def test_the_same_code_is_the_same_zip() -> None:
    """Whenever it is packed: a date in it would be a change to deploy."""
    with zipfile.ZipFile(io.BytesIO(api_command.package())) as archive:
        assert only(archive.infolist()).date_time == (1980, 1, 1, 0, 0, 0)
    assert api_command.package() == api_command.package()


# What moto's CloudFormation does not make.

_REFERRED = {"Api": "ApiId", "Integration": "IntegrationId", "Authorizer": "AuthorizerId"}


@pytest.mark.parametrize("jwt", [False, True])
def test_the_gateways_resources_are_requests_that_api_gateway_takes(mock_aws: Callable[[str], Any], jwt: bool) -> None:
    template, _ = cfnlint.decode.decode(str(TEMPLATE))
    resources = json.loads(json.dumps(template))["Resources"]
    values = {
        **{"AWS::StackName": STACK, "EndpointName": "dogs", "AllowOrigins": ["https://a.example"]},
        **{"JwtIssuer": "https://i.example", "JwtAudience": ["web"], "RequestsPerSecond": 10},
    }
    client = mock_aws("apigatewayv2")

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(one) for one in value]
        if not isinstance(value, dict):
            return value
        if set(value) == {"Ref"}:
            return values.get(value["Ref"])
        if set(value) == {"Fn::GetAtt"}:
            return f"arn:aws:lambda:{REGION}:123456789012:function:f"
        if set(value) == {"Fn::Sub"}:
            return re.sub(r"\$\{([\w:]+)\}", lambda match: str(values[match.group(1)]), value["Fn::Sub"])
        if set(value) == {"Fn::If"}:
            return resolved(value["Fn::If"][1 if jwt else 2])
        return {key: found for key, one in value.items() if (found := resolved(one)) is not None}

    for name in ("Api", "Integration", "Authorizer", "Route", "Stage"):
        if name == "Authorizer" and not jwt:
            continue
        parameters = resolved(resources[name]["Properties"])
        assert problems(Call("apigatewayv2", f"Create{name}", parameters)) == []
        made = getattr(client, f"create_{name.lower()}")(**parameters)
        if name in _REFERRED:
            values[name] = made[_REFERRED[name]]
    found = only(client.get_apis()["Items"])
    assert found["CorsConfiguration"]["AllowOrigins"] == ["https://a.example"]
    route = only(client.get_routes(ApiId=found["ApiId"])["Items"])
    assert (route["RouteKey"], route["AuthorizationType"]) == ("POST /classify", "JWT" if jwt else "AWS_IAM")
    assert (
        route["Target"]
        == f"integrations/{only(client.get_integrations(ApiId=found['ApiId'])['Items'])['IntegrationId']}"
    )
    assert ("AuthorizerId" in route) == jwt
    assert only(client.get_stages(ApiId=found["ApiId"])["Items"])["StageName"] == "$default"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("kind", ["image", "json", "form"])
def test_what_curl_sends_is_understood(
    platform: Platform, files: list[str], images: list[bytes], tmp_path: Path, kind: str
) -> None:
    """The guide's commands. curl signs files, but no forms: their signature is that of an empty body."""
    (tmp_path / "batch.json").write_text(as_json(images[:3])["body"])
    sign = ["--aws-sigv4", f"aws:amz:{REGION}:execute-api", "--user", "test:test"]
    commands = {
        "image": ["--data-binary", f"@{files[0]}", "-H", "Content-Type: image/jpeg", *sign],
        "json": ["--data-binary", f"@{tmp_path / 'batch.json'}", "-H", "Content-Type: application/json", *sign],
        "form": [part for file in files[:3] for part in ("-F", f"images=@{file}")],
    }
    gateway = Api()
    with http_server(gateway.reply) as url:
        done = subprocess.run(
            ["curl", "--silent", "--noproxy", "*", *commands[kind], f"{url}/classify?top_k=1"],
            capture_output=True,
            timeout=60,
        )
    assert len(json.loads(done.stdout)["predictions"]) == (1 if kind == "image" else 3)
    ((path, headers, body),) = gateway.asked
    if kind != "form":
        assert signature(path, headers, body) == headers["authorization"].rpartition("Signature=")[2]


CLASSES = ("000.Breed 0, drawn", "001.Breed 1, drawn")
"""Folders of the first classes that the served bundle knows."""


@pytest.fixture
def photos(tmp_path: Path, images: list[bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two class folders of what the model answers with; one of the ten images is corrupt."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    for place, image in enumerate(images):
        name = CLASSES[place % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{place}.jpg").write_bytes(image)
    return folder


@pytest.mark.timeout(60)
def test_what_cannot_be_sent_does_not_cost_its_batch(
    launch: Launch, platform: Platform, api: Api, photos: Path, tmp_path: Path
) -> None:
    (photos / CLASSES[0] / "0.jpg").unlink()
    (photos / CLASSES[0] / "0.jpg").symlink_to("nowhere")
    (photos / CLASSES[0] / "2.jpg").unlink()
    os.mkfifo(photos / CLASSES[0] / "2.jpg")
    with http_server(api.reply) as url:
        ended = launch("evaluate", str(photos), "--api", f"{url}/classify", "--batch", "2", "--name", "dogs")
    assert ended.code == 0, ended.err
    with (tmp_path / "build" / "evaluation" / "dogs" / "answers.csv").open(newline="") as file:
        failed = {row["path"].rpartition("/")[2]: row["error"] for row in csv.DictReader(file) if row["error"]}
    assert set(failed) == {"0.jpg", "2.jpg", "6.jpg"}
    assert failed["0.jpg"] == "unreadable_file: no file but a link to nothing, or gone"
    assert failed["2.jpg"] == "unreadable_file: no file but a folder, a pipe or a device"


def test_a_folder_is_evaluated_through_the_api_in_batches(
    launch: Launch, platform: Platform, api: Api, photos: Path, tmp_path: Path
) -> None:
    with http_server(api.reply) as url:
        asked = ["evaluate", str(photos), "--api", f"{url}/classify", "--batch", "4", "--name", "dogs"]
        ended = launch(*asked)
    assert ended.code == 0, ended.err
    assert [body.count(b"filename=") for _, _, body in sorted(api.asked, key=lambda one: -len(one[2]))] == [4, 4, 2]
    assert {headers["authorization"][:16] for _, headers, _ in api.asked} == {"AWS4-HMAC-SHA256"}
    with (tmp_path / "build" / "evaluation" / "dogs" / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert [row["path"] for row in rows if row["error"]] == [f"{CLASSES[0]}/6.jpg"]
    for row in rows:
        if not row["error"]:
            status, alone = call(event((photos / row["path"]).read_bytes(), "image/jpeg"))
            assert (status, row["prediction"]) == (200, alone["predictions"][0]["label"])
            assert float(row["probability"]) == pytest.approx(alone["predictions"][0]["probability"], abs=1e-4)
    assert "4 images in a request" in (tmp_path / "build" / "evaluation" / "dogs" / "evaluation.html").read_text()


def test_an_api_that_does_not_allow_it_ends_an_evaluation(
    launch: Launch, platform: Platform, api: Api, photos: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("abc\n")
    api.refuses = (401, {}, b'{"message": "Unauthorized"}')
    with http_server(api.reply) as url:
        ended = launch("evaluate", str(photos), "--api", f"{url}/classify", "--token-file", str(token))
    assert (ended.code, ended.out) == (1, "")
    assert "401, Unauthorized: give a valid token by --token-file" in ended.err
    assert api.asked[0][1]["authorization"] == "Bearer abc"
    ended = launch("evaluate", str(photos), "--api", "https://nowhere.invalid/classify", "--token-file", "nothing")
    assert (ended.code, ended.out) == (2, "")
    assert "--token-file nothing is no file" in ended.err
