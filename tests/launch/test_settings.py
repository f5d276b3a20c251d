"""Role, bucket, region, image: from the argument, else the variable; what is missing or wrong is one sentence."""

import argparse
from datetime import UTC, datetime

import pytest

from scripts.launcher.errors import SettingError
from scripts.launcher.settings import read_settings

ROLE = "arn:aws:iam::111122223333:role/service/dogbreed"
IMAGE = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/dogbreed"
NOW = datetime(2026, 11, 20, 20, 31, 5, 42_000, tzinfo=UTC)


def read(environ=None, configured_region=None, **arguments):
    return read_settings(argparse.Namespace(**arguments), environ or {}, now=NOW, configured_region=configured_region)


def test_the_argument_wins_over_the_variable():
    assert read({"DOGBREED_BUCKET": "from-variable"}, bucket="from-argument").bucket == "from-argument"


def test_an_argument_that_was_not_given_leaves_it_to_the_variable():
    assert read({"DOGBREED_BUCKET": "from-variable"}, bucket=None).bucket == "from-variable"


def test_an_empty_variable_counts_as_none():
    assert read({"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-3"}).region == "eu-west-3"


def test_the_region_of_the_configuration_file_comes_last():
    assert read(configured_region="us-east-1").region == "us-east-1"
    assert read({"AWS_REGION": "eu-west-1"}, configured_region="us-east-1").region == "eu-west-1"


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("role", "DOGBREED_ROLE"),
        ("bucket", "DOGBREED_BUCKET"),
        ("image", "DOGBREED_IMAGE"),
        ("region", "AWS_REGION or AWS_DEFAULT_REGION"),
    ],
)
def test_a_missing_one_names_argument_and_variable(name, variable):
    with pytest.raises(SettingError, match=f"^no {name}: give --{name} or {variable} ") as raised:
        getattr(read(), name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("role", "dogbreed"),
        ("role", "arn:aws:iam::111122223333:user/me"),
        ("bucket", "My_Bucket"),
        ("bucket", "bucket/with/key"),
        ("image", "dogbreed"),
        ("region", "Ireland"),
    ],
)
def test_a_malformed_one_is_quoted(name, value):
    with pytest.raises(SettingError, match=f"{name}='{value}' is not"):
        getattr(read(**{name: value}), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("role", ROLE),
        ("role", "arn:aws-cn:iam::111122223333:role/x"),
        ("image", IMAGE),
        ("image", IMAGE + ":0123abc-dirty"),
        ("image", IMAGE + "@sha256:" + "0" * 64),
        ("image", "localhost:5000/dogbreed:latest"),
        ("region", "us-gov-west-1"),
        ("region", "ap-southeast-2"),
    ],
)
def test_what_aws_uses_is_taken(name, value):
    assert getattr(read(**{name: value}), name) == value


def test_a_bucket_may_be_given_as_a_uri():
    assert read(bucket="s3://my-bucket/").bucket == "my-bucket"


@pytest.mark.parametrize(
    ("prefix", "uri"), [(None, "s3://b-1/dogbreed/jobs"), ("/a/b/", "s3://b-1/a/b/jobs"), ("/", "s3://b-1/jobs")]
)
def test_uris_have_no_empty_parts(prefix, uri):
    assert read(bucket="b-1", prefix=prefix).s3_uri("jobs") == uri


def test_names_are_made_of_the_time():
    assert read().unique_name("dogbreed") == "dogbreed-20261120-203105-042"
