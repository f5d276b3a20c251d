"""One bad image costs the others nothing, in one answer and in a stream."""

import contextlib
import json
import math

import pytest

from dogbreed.errors import NotReadyError, RequestError, ServerBusyError, UnreadableImageError
from dogbreed.serving import answers
from dogbreed.serving.payload import Options, Scores


class Model:
    """The image says what its best class is; "bad" cannot be decoded."""

    def __init__(self):
        self.calls = []

    def predict(self, images):
        self.calls.append(list(images))
        if b"bad" in images:
            raise UnreadableImageError("bad")
        return Scores(("pug", "boxer"), [[math.log(0.9), math.log(0.1)][:: int(image)] for image in images])


BAD_LINE = RequestError("no base64")


def test_images_that_are_all_good_are_scored_together():
    model = Model()
    scores, errors = answers.score_each(model.predict, [b"1", BAD_LINE, b"-1"])
    assert model.calls == [[b"1", b"-1"]]
    assert [row[0] > row[1] for row in scores.log_probabilities] == [True, False]
    assert errors == {1: BAD_LINE}


def test_a_bad_image_is_found_and_the_others_are_scored():
    scores, errors = answers.score_each(Model().predict, [BAD_LINE, b"1", b"bad", b"-1"])
    assert scores.labels == ("pug", "boxer")
    assert [row[0] > row[1] for row in scores.log_probabilities] == [True, False]
    assert {place: str(error) for place, error in errors.items()} == {0: "no base64", 2: "bad"}


def test_no_good_image_is_no_call():
    model = Model()
    assert answers.score_each(model.predict, [BAD_LINE]) == (Scores((), []), {0: BAD_LINE})
    assert model.calls == []


def test_what_is_no_images_fault_refuses_the_request():
    def predict(_):
        raise NotReadyError("it failed")

    with pytest.raises(NotReadyError):
        answers.score_each(predict, [b"1", b"1"])


def lines(chunks):
    return [json.loads(line) for chunk in chunks for line in chunk.splitlines()]


def test_a_stream_comes_in_groups_that_each_wait_for_a_turn():
    turns = []

    @contextlib.contextmanager
    def turn():
        turns.append("in")
        yield
        turns.append("out")

    stream = answers.stream_lines(Model().predict, turn, [b"1", b"bad", BAD_LINE, *[b"-1"] * 7], Options(1))
    first = lines([next(stream)])
    assert turns == ["in", "out"]  # nobody waits behind a client that reads slowly
    assert [entry.get("label", "error") for entry in first] == ["pug", "error", "error", *["boxer"] * 5]
    assert [entry["label"] for entry in lines(stream)] == ["boxer"] * 2
    assert len(turns) == 4


def test_a_full_server_refuses_a_stream_at_its_beginning_and_only_lines_later():
    @contextlib.contextmanager
    def full():
        raise ServerBusyError("try again later")
        yield

    with pytest.raises(ServerBusyError):
        next(answers.stream_lines(Model().predict, full, [b"1"], Options()))
    turns = iter([contextlib.nullcontext(), full(), contextlib.nullcontext()])
    stream = answers.stream_lines(Model().predict, turns.__next__, [b"1"] * 20, Options())
    codes = [entry.get("error", {}).get("code", "") for entry in lines(stream)]
    assert codes == [*[""] * 8, *["busy"] * 8, *[""] * 4]
