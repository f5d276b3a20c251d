"""Images in, answers out, where one bad image must not cost the others theirs.

In a batch transform a failed object has no output and spoils the job, and a streamed answer has sent its status before
the last image is looked at: both answer with an entry per image, a prediction or an error. Knows no web framework and
no model, only a function that scores images and a way to wait for one's turn.

Source: AWS developer guide, batch-transform-errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from dogbreed.errors import RequestError
from dogbreed.serving import payload
from dogbreed.serving.payload import Item, Options, Scores

Predict = Callable[[Sequence[bytes]], Scores]
Turn = Callable[[], AbstractContextManager[object]]

_LINES_PER_TURN = 8
"""Of a streamed answer: few enough for others to come in between, enough for a batch."""


def score_each(predict: Predict, items: Sequence[Item]) -> tuple[Scores, dict[int, RequestError]]:
    """Scores what can be scored.

    Returns:
        The scores of the images that could be, in order, and the errors of the others by place.

    Raises:
        RequestError: one that is no image's fault: the server is busy, the model is not ready.
    """
    errors = {place: item for place, item in enumerate(items) if isinstance(item, RequestError)}
    images = {place: item for place, item in enumerate(items) if not isinstance(item, RequestError)}
    try:
        return (predict(list(images.values())) if images else Scores((), [])), errors
    except RequestError as error:
        _raise_unless_the_images_fault(error)
    # One of them is bad, and only the model knows which.
    parts: list[Scores] = []
    for place, image in images.items():
        try:
            parts.append(predict([image]))
        except RequestError as error:
            _raise_unless_the_images_fault(error)
            errors[place] = error
    return payload.join(parts), errors


def stream_lines(predict: Predict, turn: Turn, items: Sequence[Item], options: Options) -> Iterator[bytes]:
    """JSON Lines, some at a time, as they come; each group waits for a turn of its own.

    Once the first group is out its status is too, and what is wrong later can only be said in the lines themselves.

    Raises:
        RequestError: before anything is yielded.
        Exception: any that the model raises; of later groups as well, for the caller to log.
    """
    for start in range(0, len(items), _LINES_PER_TURN):
        group = items[start : start + _LINES_PER_TURN]
        try:
            with turn():
                scores, errors = score_each(predict, group)
        except RequestError as error:
            if start == 0:
                raise
            scores, errors = Scores((), []), dict.fromkeys(range(len(group)), error)
        yield payload.write_answer(scores, options, payload.JSON_LINES, errors)


def _raise_unless_the_images_fault(error: RequestError) -> None:
    if error.status != RequestError.status:
        raise error
