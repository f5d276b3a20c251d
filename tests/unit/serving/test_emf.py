"""The embedded metric format: every metric that is named has a value in the same document."""

import json

import pytest

from dogbreed.serving import emf


@pytest.mark.parametrize(("status", "errors"), [(200, (0, 0)), (413, (1, 0)), (503, (0, 1))])
def test_the_document_follows_the_specification(status, errors):
    document = emf.invocation(
        "dogs", route="/invocations", status=status, images=2, elapsed_ms=12.5, request_id="abc", now_s=1.5
    )
    json.dumps(document)
    (directive,) = document["_aws"]["CloudWatchMetrics"]
    assert document["_aws"]["Timestamp"] == 1500  # milliseconds
    assert directive["Namespace"] == "dogs"
    assert directive["Dimensions"] == [["Route"]]
    assert document["Route"] == "/invocations"
    for metric in directive["Metrics"]:
        assert isinstance(document[metric["Name"]], int | float)
        assert metric["Unit"] in ("Count", "Milliseconds")
    assert (document["Invocation4XXErrors"], document["Invocation5XXErrors"]) == errors
    assert (document["Images"], document["Latency"]) == (2, 12.5)
