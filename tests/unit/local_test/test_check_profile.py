"""Profiles: what a check needs to know of somebody's image, from a TOML file; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_test.simulator.checks.profile import ProfileError, read_profile

WHOLE = """
[train]
channels = { train = "data" }
hyperparameters = { epochs = "3" }
objective_regex = "loss=([0-9.]+)"
epochs = 3

[serve]
request = "request.csv"
content_type = "text/csv"
payload_mb = 5
"""


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "request.csv").write_bytes(b"1,2\n")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    file = folder / "profile.toml"
    file.write_text(text)
    return file


def test_a_profile_is_read_with_paths_beside_it(beside: Path) -> None:
    profile = read_profile(write(beside, WHOLE))

    assert profile.training is not None
    assert profile.training.channels == {"train": beside / "data"}
    assert profile.training.hyperparameters == {"epochs": "3"}
    assert profile.training.epochs == 3
    assert profile.serving is not None
    assert profile.serving.request == b"1,2\n"
    assert profile.serving.payload_mb == 5
    assert profile.serving.model is None


def test_one_side_is_enough(beside: Path) -> None:
    profile = read_profile(write(beside, '[serve]\nrequest = "request.csv"\n'))

    assert profile.training is None
    assert profile.serving is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[train", "not TOML"),
        ("[deploy]\n", "'deploy' is unknown"),
        ("[train]\nchanels = {}\n", "'chanels' of [train] is unknown"),
        ("[train]\n", "has no channels"),
        ('[train]\nchannels = { train = "nowhere" }\n', "'nowhere' is not a folder"),
        ('[train]\nchannels = { train = "data" }\nhyperparameters = { epochs = 3 }\n', "not a table of strings"),
        ('[train]\nchannels = { train = "data" }\nobjective_regex = "loss"\n', "has no group"),
        ('[train]\nchannels = { train = "data" }\nobjective_regex = "("\n', "not a regular expression"),
        ('[train]\nchannels = { train = "data" }\nepochs = 0\n', "not a whole number from 1"),
        ("[serve]\n", "has no request"),
        ('[serve]\nrequest = "nothing.csv"\n', "'nothing.csv' cannot be read"),
        ('[serve]\nrequest = "request.csv"\ncontent_type = 3\n', "content_type=3 is not a string"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(text: str, told: str, beside: Path) -> None:
    with pytest.raises(ProfileError) as caught:
        read_profile(write(beside, text))

    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(tmp_path / "none.toml")
