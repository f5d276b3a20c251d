"""The document is valid, names every route, and no answer has a status that it does not name."""

import base64
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogbreed.errors import RequestError, UnreadableImageError
from dogbreed.serving import payload
from dogbreed.serving.admission import Gate
from dogbreed.serving.app import Settings, create_app
from dogbreed.serving.payload import Scores


class Model:
    """Takes what begins like a photo."""

    def status(self):
        return None

    def predict(self, images):
        if not all(image.startswith(b"photo") for image in images):
            raise UnreadableImageError("not a photo")
        return Scores(("pug", "boxer"), [[math.log(0.75), math.log(0.25)] for _ in images])


APP = create_app(Model(), Gate(slots=4, waiting=4), Settings(max_payload_bytes=20_000, page=True))
DOCUMENT = json.loads(APP.test_client().get("/openapi.json").data)
OPERATIONS = [
    (path, method, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]


def test_it_is_a_valid_document():
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(DOCUMENT)


def test_it_is_served_only_where_the_page_is():
    closed = create_app(Model(), Gate(slots=1, waiting=0), Settings(1000)).test_client()
    assert closed.get("/openapi.json").status_code == 404


def test_it_names_every_route_and_no_other():
    routes = {
        (rule.rule.replace("<path:name>", "{name}"), method.lower())
        for rule in APP.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert routes == {(path, method) for path, method, _ in OPERATIONS}


def test_it_names_every_type_that_is_read_and_written():
    invocations = DOCUMENT["paths"]["/invocations"]["post"]
    assert tuple(invocations["requestBody"]["content"]) == payload.BODY_TYPES
    assert tuple(invocations["responses"]["200"]["content"]) == payload.ANSWER_TYPES


def test_it_names_the_status_of_every_error():
    def below(kind):
        return {kind.status}.union(*(below(child) for child in kind.__subclasses__()))

    assert {str(status) for status in below(RequestError)} <= {
        status for _, _, operation in OPERATIONS for status in operation["responses"]
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
BODIES = PHOTOS | st.one_of(
    st.lists(ITEMS, max_size=70),
    st.dictionaries(st.sampled_from(["images", "instances", "other"]), st.lists(ITEMS, max_size=3)),
).map(lambda value: json.dumps(value).encode())
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
@given(data=st.data())
def test_every_answer_has_a_status_that_the_document_names(path, method, operation, data):
    types = list(operation.get("requestBody", {}).get("content", {}))
    accepts = list(operation["responses"]["200"]["content"])
    headers = {"Accept": data.draw(st.sampled_from([*accepts, "*/*", "image/png"]) | HEADER)}
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "header":
            headers[parameter["name"]] = data.draw(HEADER | st.sampled_from(["top_k=1", "return=log_probabilities"]))
    body = data.draw(BODIES) if types else None
    response = APP.test_client().open(
        path,
        method=method.upper(),
        data=body,
        headers=headers,
        content_type=data.draw(st.sampled_from(types) | HEADER) if types else None,
    )
    assert_named(operation, response)


def test_schemathesis_finds_nothing_against_it():
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = schemathesis.checks
    schema = schemathesis.openapi.from_wsgi("/openapi.json", APP)
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
