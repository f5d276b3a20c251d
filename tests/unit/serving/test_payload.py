"""What a client sends becomes values or a RequestError, and answers have the documented shapes."""

import base64
import csv
import io
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder

from dogbreed.errors import NotAcceptableError, PayloadTooLargeError, RequestError, UnsupportedMediaTypeError
from dogbreed.serving import forms, payload
from dogbreed.serving.payload import Options, Scores

PHOTO = b"\xff\xd8 not decoded here"
B64 = base64.b64encode(PHOTO).decode()

SCORES = Scores(
    labels=("Affenpinscher", 'Basset, "petit"', "Pug"),
    log_probabilities=[[math.log(0.2), math.log(0.7), math.log(0.1)], [math.log(0.25), math.log(0.25), math.log(0.5)]],
)


def read_images(content_type, sent):
    return payload.all_images(payload.read_items(content_type, sent))


def body(document):
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "content_type", [*payload.IMAGE_TYPES, "IMAGE/JPEG", "image/png; charset=utf-8", None, "", " "]
)
def test_an_image_type_means_that_the_body_is_one_image(content_type):
    assert read_images(content_type, PHOTO) == [PHOTO]


@pytest.mark.parametrize(
    "document",
    [
        {"images": [B64, B64]},
        {"instances": [B64, {"b64": B64}]},
        [B64, f"data:image/jpeg;base64,{B64}"],
        [f"DATA:image/jpeg;BASE64,{B64}", {"b64": B64[:4] + "\r\n" + B64[4:] + "\n"}],
        {"images": [B64, B64], "trace": 1},
    ],
)
def test_json_carries_several_images(document):
    assert read_images("Application/JSON; charset=utf-8", body(document)) == [PHOTO, PHOTO]


@pytest.mark.parametrize("content_type", ["text/html", "multipart/mixed; boundary=x", "application/x-npy", "image/*"])
def test_another_type_is_refused_with_the_list_of_allowed_ones(content_type):
    with pytest.raises(UnsupportedMediaTypeError, match=r"image/jpeg.*application/json") as caught:
        read_images(content_type, PHOTO)
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b"9" * 10_000, "not JSON"),
        (body([]), "list of images is empty"),
        (body({"images": []}), "list of images is empty"),
        (body({"pictures": [B64]}), "found 'pictures'"),
        (body({}), "found no keys"),
        (body({"images": [B64], "instances": [B64]}), 'either "images" or "instances"'),
        (body({"images": B64}), "found a string"),
        (body(None), "found null"),
        (body(True), "found a boolean"),
        (body([B64, 7]), r"image 1 \(counted from 0\) .* found a number"),
        (body([B64, {"data": B64}]), "image 1 .* found an object"),
        (body([B64, B64, "=not base64="]), "image 2 .* is not base64"),
        (body([B64[:4] + "?" + B64[4:]]), "image 0 .* is not base64"),
        (body(["Größe"]), "image 0 .* is not base64"),
        (body([B64, ""]), "image 1 .* is empty"),
        (body(["data:image/png," + B64]), "image 0 .* data URI without"),
    ],
)
def test_bad_json_is_the_clients_mistake_and_says_where(document, message):
    with pytest.raises(RequestError, match=message) as caught:
        read_images("application/json", document)
    assert caught.value.status == 400


def test_an_empty_image_body_is_refused():
    with pytest.raises(RequestError, match="body is empty"):
        read_images("image/jpeg", b"")


def test_images_are_counted():
    assert len(read_images("application/json", body([B64] * payload.MAX_IMAGES))) == 64
    with pytest.raises(PayloadTooLargeError, match="65 images are more than the allowed 64"):
        read_images("application/json", body([B64] * (payload.MAX_IMAGES + 1)))


def test_json_lines_are_read_line_by_line_and_errors_stand_in_their_places():
    lines = b"\n".join([body(B64), body({"b64": B64}), b"{", b"", body(7), b'"\xe2\x80\xa8"', body(B64)]) + b"\n"
    items = payload.read_items("application/jsonlines", lines)
    assert items[:2] == [PHOTO, PHOTO]
    assert items[6:] == [PHOTO]
    assert [str(item).partition(":")[0] for item in items[2:6]] == [
        "line 2 (counted from 0) is not JSON",
        "line 3 (counted from 0) is not JSON",
        'line 4 (counted from 0) must be a base64 string or {"b64"',
        "line 5 (counted from 0) is empty",
    ]
    with pytest.raises(PayloadTooLargeError, match="1025 lines are more than the allowed 1024"):
        payload.read_items("application/jsonlines", b"1\n" * 1025)


def form(*parts, boundary="xyz", end="--"):
    """Each part is headers and content."""
    text = b"".join(b"--xyz\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return f"multipart/form-data; boundary={boundary}", text + b"--xyz" + end.encode() + b"\r\n"


FORM_XYZ = "multipart/form-data; boundary=xyz"
FILE = 'Content-Disposition: form-data; name="f"; filename="a.jpg"'
FIELD = 'Content-Disposition: form-data; name="f"'


def test_a_forms_files_are_images_whatever_bytes_they_hold():
    nasty = bytes(range(256)) + b"\r\n--xy\r\n\r\n--xyz0" + bytes(range(256))
    sent = form((FILE, PHOTO), (FIELD, b"a caption"), (FIELD + "\r\nContent-Type: image/png", b"png"), (FILE, nasty))
    assert read_images(*sent) == [PHOTO, b"png", nasty]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (form((FIELD, b"a caption")), "the form holds no file"),
        (form(), "the form holds no file"),
        (form((FILE, PHOTO), (FILE, b"")), "file 1 .* is empty"),
        (form((FILE, PHOTO), boundary=""), "has no boundary"),
        (form((FILE, PHOTO), boundary="other"), "not a multipart form, .*: it does not begin with its boundary"),
        ((FORM_XYZ, b"a preamble\r\n" + form((FILE, PHOTO))[1]), "it does not begin with its boundary"),
        ((FORM_XYZ, b"\r\n" * 1000), "it does not begin with its boundary"),
        (form((FILE + "\r\nA: b" * 5000, PHOTO)), "a part has no head, or one of more than 16384 bytes"),
        ((FORM_XYZ, b"--xyz\r\n" + FILE.encode() + b"\r\n--xyz--"), "a part has no head"),
        ((FORM_XYZ, b"--xyz\r\n--xyz\r\n--xyz--"), "a part has no head"),
        ((FORM_XYZ, b"--xyz\r\nContent-Disposition: \xff\r\n\r\nx\r\n--xyz--"), "not a multipart form"),
        (form((FILE, PHOTO), end=""), "not a multipart form, or not the whole of one"),
        (form(("Content-Type: image/png", PHOTO)), "Missing Content-Disposition"),
    ],
)
def test_a_bad_form_is_the_clients_mistake(sent, message):
    with pytest.raises(RequestError, match=message) as caught:
        read_images(*sent)
    assert caught.value.status == 400


PARTS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                FILE,
                FIELD,
                FIELD + "\r\nContent-Type: image/png",
                "content-type: IMAGE/jpeg; q=1\r\ncontent-disposition: form-data;\r\n name=f",
                "Content-Disposition: form-data; filename*=utf-8''%c3%a4.jpg",
            ]
        ),
        st.lists(st.sampled_from([b"\n", b"\r\n", b"--", b"xy", b"a", b"\0"]), max_size=8).map(b"".join),
    ),
    max_size=5,
)


@settings(max_examples=200)
@given(
    PARTS,
    st.sampled_from([b"\r\n", b"\n"]),
    st.sampled_from([b"", b"\r\n"]),
    st.sampled_from([b"", b" \t"]),
    st.binary(),
)
def test_a_form_is_what_a_general_parser_finds_in_it(parts, line, before, blank, after):
    text = b"".join(
        b"--xyz%s%s" % (blank, line) + head.encode().replace(b"\r\n", line) + line * 2 + content + line
        for head, content in parts
    )
    sent = before + text + b"--xyz--" + blank + b"\r\n" + after
    decoder = MultipartDecoder(b"xyz", max_parts=128)
    decoder.receive_data(sent)
    decoder.receive_data(None)
    expected, wanted = [], False
    try:
        while not isinstance(event := decoder.next_event(), Epilogue):
            if isinstance(event, File | Field):
                wanted = isinstance(event, File) or event.headers.get("Content-Type", "").lower().startswith("image/")
                expected += [b""] * wanted
            elif isinstance(event, Data) and wanted:
                expected[-1] += event.data
    except ValueError:  # content that looks like a part
        expected = []
    try:
        found = forms.read_files(FORM_XYZ, sent, max_files=64)
    except RequestError:
        found = []
    assert found == expected


@pytest.mark.parametrize(
    "document",
    [b"[" + b"[]," * 9000 + b"[]]", b"[" + b"{}," * 9000 + b"{}]", b"[" + b"0," * 17_000 + b"0]", b"[" * 100_000],
    ids=["lists", "objects", "numbers", "depth"],
)
def test_json_of_many_values_is_refused_before_they_are_made(monkeypatch, document):
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("read"))
    with pytest.raises(PayloadTooLargeError, match=r"commas and brackets in JSON are more than the allowed 16384"):
        payload.read_items("application/json", document)
    (item,) = payload.read_items("application/jsonlines", document)
    assert isinstance(item, PayloadTooLargeError)


def test_lines_are_counted_before_they_are_made():
    class Body(bytes):
        def removesuffix(self, *_):  # the first step of splitting it
            pytest.fail("split")

    with pytest.raises(PayloadTooLargeError, match="5000 lines are more than the allowed 1024"):
        payload.read_items("application/jsonlines", Body(b"1\n" * 5000))


@pytest.mark.parametrize(("files", "fields"), [(65, 0), (1, 128)])
def test_the_parts_of_a_form_are_counted(files, fields):
    with pytest.raises(PayloadTooLargeError):
        read_images(*form(*[(FILE, b"x")] * files, *[(FIELD, b"y")] * fields))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("  ", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("TEXT/CSV", "text/csv"),
        ("text/*", "text/csv"),
        ("application/jsonlines; charset=utf-8", "application/jsonlines"),
        ("text/csv;q=0.5, application/jsonlines;q=0.9", "application/jsonlines"),
        ("text/csv;q=0.5, */*", "application/json"),
        ("text/csv, */*", "text/csv"),
        ("application/json;q=0, */*;q=0.1", "application/jsonlines"),
        ("application/json;q=0, application/*, text/csv;q=0.9", "application/jsonlines"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        ("application/jsonlines, text/csv", "application/jsonlines"),
        ("text/csv, application/jsonlines", "text/csv"),
        ("text/csv;q=high, application/json;q=0.1", "application/json"),
    ],
)
def test_the_client_gets_the_type_that_it_likes_best(accept, expected):
    assert payload.choose_answer_type(accept) == expected


def test_the_servers_default_decides_when_the_client_does_not_care():
    assert payload.choose_answer_type(None, "text/csv") == "text/csv"
    assert payload.choose_answer_type("*/*", "text/csv") == "text/csv"
    assert payload.choose_answer_type("application/*", "text/csv") == "application/json"


@pytest.mark.parametrize(
    "accept", ["image/png", "text/html, image/*", "*/*;q=0", "application/json;q=0", ",;,", "json"]
)
def test_what_cannot_be_produced_is_refused_with_the_list_of_what_can(accept):
    with pytest.raises(NotAcceptableError, match="application/json, application/jsonlines, text/csv") as caught:
        payload.choose_answer_type(accept)
    assert caught.value.status == 406


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (None, Options(5, False)),
        ("", Options(5, False)),
        ("top_k=3", Options(3, False)),
        (" top_k = 3 ; return = log_probabilities", Options(3, True)),
        ("return=log_probabilities,top_k=12", Options(12, True)),
        ("c000b4f9-df62-4c85-a0bf-7c525f9104a4", Options(5, False)),
        ("trace=abc==,top_k=1,,;", Options(1, False)),
    ],
)
def test_options_travel_in_custom_attributes_and_other_names_are_left_alone(attributes, expected):
    assert payload.read_options(attributes) == expected


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1.5", "\u0663", "9" * 5000])
def test_a_bad_top_k_is_named(value):
    with pytest.raises(RequestError, match=r"top_k=.*whole number from 1"):
        payload.read_options(f"top_k={value}")


def test_a_bad_return_is_named():
    with pytest.raises(RequestError, match="return='everything' is not allowed; give log_probabilities"):
        payload.read_options("return=everything")


def test_a_json_answer_has_the_best_class_and_the_next_ones():
    document = json.loads(payload.write_answer(SCORES, Options(top_k=2), "application/json"))
    first, second = document["predictions"]
    assert (first["label"], first["index"], first["probability"]) == ('Basset, "petit"', 1, pytest.approx(0.7))
    assert [entry["index"] for entry in first["top_k"]] == [1, 0]
    assert [entry["index"] for entry in second["top_k"]] == [2, 0]  # equal probabilities: the lower index first
    assert "log_probabilities" not in first


def test_top_k_is_capped_by_the_number_of_classes():
    document = json.loads(payload.write_answer(SCORES, Options(top_k=1000), "application/json"))
    assert [len(prediction["top_k"]) for prediction in document["predictions"]] == [3, 3]


def test_json_lines_have_one_prediction_a_line_and_exact_log_probabilities():
    lines = payload.write_answer(SCORES, Options(1, log_probabilities=True), "application/jsonlines").splitlines()
    assert [json.loads(line)["log_probabilities"] for line in lines] == SCORES.log_probabilities


def test_csv_has_one_row_per_image_and_rank():
    rows = list(csv.DictReader(io.StringIO(payload.write_answer(SCORES, Options(2), "text/csv").decode())))
    assert [(row["image"], row["rank"], row["index"]) for row in rows] == [
        ("0", "1", "1"),
        ("0", "2", "0"),
        ("1", "1", "2"),
        ("1", "2", "0"),
    ]
    assert rows[0]["label"] == 'Basset, "petit"'
    assert float(rows[0]["probability"]) == pytest.approx(0.7)


def test_csv_with_log_probabilities_has_one_column_per_label():
    text = payload.write_answer(SCORES, Options(log_probabilities=True), "text/csv").decode()
    header, *rows = csv.reader(io.StringIO(text))
    assert tuple(header) == SCORES.labels
    assert [[float(value) for value in row] for row in rows] == SCORES.log_probabilities


ERRORS = {0: RequestError("bad"), 2: PayloadTooLargeError("big, too")}


@pytest.mark.parametrize("answer_type", ["application/json", "application/jsonlines"])
def test_errors_stand_in_their_images_places(answer_type):
    text = payload.write_answer(SCORES, Options(1), answer_type, ERRORS)
    entries = json.loads(text)["predictions"] if answer_type.endswith("json") else map(json.loads, text.splitlines())
    assert [entry.get("index", entry.get("error")) for entry in entries] == [
        {"code": "bad_request", "message": "bad"},
        1,
        {"code": "payload_too_large", "message": "big, too"},
        2,
    ]


def test_errors_are_a_column_of_csv():
    rows = list(csv.DictReader(io.StringIO(payload.write_answer(SCORES, Options(1), "text/csv", ERRORS).decode())))
    assert [(row["image"], row["index"], row["error"]) for row in rows] == [
        ("0", "", "bad"),
        ("1", "1", ""),
        ("2", "", "big, too"),
        ("3", "2", ""),
    ]
    rows = csv.reader(io.StringIO(payload.write_answer(SCORES, Options(1, True), "text/csv", ERRORS).decode()))
    assert [(len(row), row[-1]) for row in rows] == [(4, "error"), (4, "bad"), (4, ""), (4, "big, too"), (4, "")]


def test_an_error_is_one_short_json_line():
    line = payload.write_error("bad_request", "one\ntwo " + "x" * 5000)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert len(line) < 2048
    assert json.loads(line)["error"]["code"] == "bad_request"


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["images", "instances", "b64"]), inner),
    max_leaves=8,
)
HEADER = st.none() | st.text() | st.text("aq/*;,=.01 application/json", max_size=40)


def outcome(function, *arguments):
    """What a function returns; None when it refuses with a 4xx. Anything else that it raises fails the test."""
    try:
        return function(*arguments)
    except RequestError as error:
        return None if 400 <= error.status < 500 else error


@given(
    content_type=HEADER | st.sampled_from([*payload.BODY_TYPES, "multipart/form-data; boundary=xyz"]),
    sent=st.binary()
    | JSON_LIKE.map(body)
    | st.lists(JSON_LIKE.map(body)).map(b"\n".join)
    | st.lists(st.sampled_from([b"--xyz", b"--", b"\r\n", b"\n", FILE.encode(), FIELD.encode(), b"x"])).map(b"".join),
)
def test_random_bodies_give_images_or_a_request_error(content_type, sent):
    images = outcome(read_images, content_type, sent)
    assert images is None or (images and all(images))


@given(accept=HEADER, attributes=HEADER | st.text("top_k=return;,0123456789", max_size=30))
def test_random_headers_give_values_or_a_request_error(accept, attributes):
    assert outcome(payload.choose_answer_type, accept) in (None, *payload.ANSWER_TYPES)
    options = outcome(payload.read_options, attributes)
    assert options is None or options.top_k >= 1


JUDGED = replace(SCORES, familiarity=[0.4, 0.3], known_from=0.4)


def test_where_the_model_knows_its_limits_each_prediction_says_on_which_side_it_is():
    first, second = json.loads(payload.write_answer(JUDGED, Options(), payload.JSON))["predictions"]
    assert (first["known"], first["familiarity"]) == (True, 0.4)
    assert (second["known"], second["familiarity"]) == (False, 0.3)


def test_errors_do_not_shift_what_is_known():
    errors = {0: RequestError("no image")}
    lines = payload.write_answer(JUDGED, Options(), payload.JSON_LINES, errors).splitlines()
    assert [json.loads(line).get("known") for line in lines] == [None, True, False]


def test_a_model_that_does_not_know_says_nothing():
    predictions = json.loads(payload.write_answer(SCORES, Options(), payload.JSON))["predictions"]
    assert not any("known" in one or "familiarity" in one for one in predictions)


def test_scores_of_several_calls_are_joined_in_order():
    parts = [
        replace(JUDGED, log_probabilities=[row], familiarity=[value])
        for row, value in zip(JUDGED.log_probabilities, JUDGED.familiarity, strict=True)
    ]
    assert payload.join(parts) == JUDGED
    assert payload.join([]) == Scores((), [])
