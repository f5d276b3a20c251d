"""The document is valid, names every route, and no answer has a status that it does not name."""

import base64
import json
import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogbreed.errors import BundleError, ClientGoneError, RequestError, UnreadableImageError
from dogbreed.serving import payload
from dogbreed.serving.admission import Gate
from dogbreed.serving.app import Settings, create_app
from dogbreed.serving.models import ModelRegistry
from dogbreed.serving.payload import HeatMap, Scores


class Model:
    """Takes what begins like a photo."""

    def status(self):
        return None

    def predict(self, images, check=None):
        if not all(image.startswith(b"photo") for image in images):
            raise UnreadableImageError("not a photo")
        return Scores(("pug", "boxer"), [[math.log(0.75), math.log(0.25)] for _ in images])

    def explain(self, image, check=None):
        return replace(self.predict([image]), heat_map=HeatMap([[0.5, 1.0]], (0.0, 0.1, 1.0, 0.8)))


def open_model(folder):
    if folder.name == "broken":
        raise BundleError("it holds no bundle")
    return Model()


def make_app(model):
    return create_app(model, Gate(slots=4, waiting=4), Settings(max_payload_bytes=20_000, page=True))


def document(app):
    return json.loads(app.test_client().get("/openapi.json").data)


ROOT = Path(tempfile.mkdtemp())
for folder in ("good", "broken", "large"):
    (ROOT / folder).mkdir()
(ROOT / "large" / "weights").write_bytes(b"x" * 1000)
MODELS = ModelRegistry(open_model, root=ROOT, release=lambda: None, available_bytes=lambda: None, budget_bytes=999)
MODELS.load("loaded", str(ROOT / "good"))

APPS = {"one": make_app(Model()), "several": make_app(MODELS)}
APP = APPS["one"]
DOCUMENT = document(APP)
OPERATIONS = [
    pytest.param(app, path, method, operation, id=f"{name} {method} {path}")
    for name, app in APPS.items()
    for path, methods in document(app)["paths"].items()
    for method, operation in methods.items()
    if method != "parameters"
]


@pytest.fixture(scope="module", autouse=True)
def _folders():
    yield
    shutil.rmtree(ROOT)


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_it_is_a_valid_document(app):
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document(app))


def test_it_is_served_only_where_the_page_is():
    closed = create_app(Model(), Gate(slots=1, waiting=0), Settings(1000)).test_client()
    assert closed.get("/openapi.json").status_code == 404


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_it_names_every_route_and_no_other(app):
    routes = {
        (rule.rule.replace("<path:name>", "{name}"), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    described = document(app)["paths"]
    assert routes == {(path, method) for path in described for method in described[path] if method != "parameters"}


def test_it_names_every_type_that_is_read_and_written():
    invocations = DOCUMENT["paths"]["/invocations"]["post"]
    assert tuple(invocations["requestBody"]["content"]) == payload.BODY_TYPES
    assert tuple(invocations["responses"]["200"]["content"]) == payload.ANSWER_TYPES


def test_it_names_the_status_of_every_error():
    def below(kind):
        return {kind.status}.union(*(below(child) for child in kind.__subclasses__()))

    # Of a client that has gone nobody reads the answer.
    assert {str(status) for status in below(RequestError) - {ClientGoneError.status}} <= {
        status for operation in OPERATIONS for status in operation.values[-1]["responses"]
    }


def assert_named(operation, response):
    described = operation["responses"].get(str(response.status_code))
    assert described is not None, f"{response.status_code} is not in the document: {response.text}"
    assert response.mimetype in described["content"]
    if response.status_code >= 400:
        assert set(response.json["error"]) == {"code", "message"}


PHOTOS = st.sampled_from([b"photo", b"no image", b""]) | st.binary(max_size=50)
ENCODED = PHOTOS.map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=10)
ITEMS = ENCODED | st.fixed_dictionaries({"b64": ENCODED}) | st.integers()
LOADS = st.fixed_dictionaries(
    {
        "model_name": st.sampled_from(["loaded", "other", ""]) | st.text(max_size=3),
        "url": st.sampled_from([str(ROOT / name) for name in ("good", "broken", "large", "absent")]) | st.text(),
    }
)
BODIES = PHOTOS | st.one_of(
    LOADS,
    st.lists(ITEMS, max_size=70),
    st.dictionaries(st.sampled_from(["images", "instances", "other"]), st.lists(ITEMS, max_size=3)),
).map(lambda value: json.dumps(value).encode())
NAME = st.text(min_size=1, max_size=5).filter(lambda name: not name.startswith(("/", ".")))
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


@pytest.mark.parametrize(("app", "path", "method", "operation"), OPERATIONS)
@given(data=st.data())
def test_every_answer_has_a_status_that_the_document_names(app, path, method, operation, data):
    types = list(operation.get("requestBody", {}).get("content", {}))
    accepts = list(operation["responses"].get("200", {"content": []})["content"])
    headers = {"Accept": data.draw(st.sampled_from([*accepts, "*/*", "image/png"]) | HEADER)}
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "header":
            headers[parameter["name"]] = data.draw(HEADER | st.sampled_from(["top_k=1", "return=log_probabilities"]))
    query = {
        parameter["name"]: data.draw(st.sampled_from(["1", "0", "bG9hZGVk"]) | HEADER)
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query"
    }
    if "{name}" in path:
        path = path.format(name=quote(data.draw(st.sampled_from(["loaded", "other", "a/b"]) | NAME), safe=""))
    body = data.draw(BODIES) if types else None
    response = app.test_client().open(
        path,
        query_string=query,
        method=method.upper(),
        data=body,
        headers=headers,
        content_type=data.draw(st.sampled_from(types) | HEADER) if types else None,
    )
    assert_named(operation, response)


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_schemathesis_finds_nothing_against_it(app):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = schemathesis.checks
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    wanted = [
        check
        for check in checks.CHECKS.get_all()
        if check.__name__
        in (
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
            "unsupported_method",
        )
    ]
    assert len(wanted) == 5

    for operation in schema.get_all_operations():
        found = operation.ok()

        @given(case=found.as_strategy())
        def run(case):
            case.call_and_validate(checks=wanted)

        run()
