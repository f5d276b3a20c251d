from __future__ import annotations

import pytest
from local_test.simulator.channels import RequestError
from local_test.simulator.metrics import Scraper


def test_the_latest_value_counts():
    scraper = Scraper({"loss": r"loss=([0-9.]+)", "never": r"never=(\d)"})
    assert scraper.read("epoch=1; loss=0.9;")
    assert not scraper.read("nothing here")
    assert scraper.read("loss=0.5 loss=0.7")
    assert scraper.series["loss"].values == [0.9, 0.5, 0.7]
    (final,) = scraper.final()
    assert (final["MetricName"], final["Value"]) == ("loss", 0.7)


def test_what_is_no_number_is_no_value():
    scraper = Scraper({"loss": r"loss=(\S+)"})
    assert not scraper.read("loss=none")
    assert not scraper.read("loss=nan")
    assert scraper.final() == []


@pytest.mark.parametrize(
    ("definitions", "sentence"),
    [
        ({"a": "a="}, "has no group"),
        ({"a": "(a"}, "is no regular expression"),
        ({"a": f"({'a' * 500})"}, "a regex 1 to 500"),
        ({"a" * 256: "(a)"}, "1 to 255 characters"),
        ({str(number): "(a)" for number in range(41)}, "41 metric definitions; a job takes 40"),
    ],
)
def test_definitions_that_the_service_refuses(definitions, sentence):
    with pytest.raises(RequestError, match=sentence):
        Scraper(definitions)
