from __future__ import annotations

import os
from pathlib import Path

import pytest
from local_test.simulator.channels import InputMode, RequestError, parse


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for key in ("a/1", "a/2", "b/1", "b/2", "b/3"):
        file = tmp_path / "photos" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(key)
    return tmp_path / "photos"


def test_a_channel_is_described_without_its_source(photos):
    assert parse([f"train={photos}"]).described() == {
        "TrainingInputMode": "File",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
    }
    words = [f"train={photos}", "mode=Pipe", "wrapper=RecordIO", "distribution=ShardedByS3Key", "content-type=a/b"]
    assert parse(words).described() == {
        "TrainingInputMode": "Pipe",
        "S3DistributionType": "ShardedByS3Key",
        "RecordWrapperType": "RecordIO",
        "ContentType": "a/b",
    }


def test_fast_file_is_reported_as_file_unless_asked_otherwise(photos):
    channel = parse([f"train={photos}", "mode=FastFile"])
    assert channel.mode is InputMode.FAST_FILE
    assert channel.described()["TrainingInputMode"] == "File"
    told = parse([f"train={photos}", "mode=FastFile", "reported=FastFile"]).described()
    assert told["TrainingInputMode"] == "FastFile"


def test_shares_are_apart_and_together_all(photos, tmp_path):
    channel = parse([f"train={photos}", "distribution=ShardedByS3Key"])
    shares = [channel.folder(host, 2, tmp_path / f"host-{host}") for host in (0, 1)]
    found = [sorted(str(file.relative_to(share)) for file in share.rglob("*") if file.is_file()) for share in shares]
    assert found == [["a/1", "b/1", "b/3"], ["a/2", "b/2"]]
    assert (shares[1] / "b/2").read_text() == "b/2"
    assert channel.folder(0, 1, tmp_path / "alone") == photos
    assert parse([f"train={photos}"]).folder(1, 2, tmp_path / "all") == photos


def test_a_dead_link_a_link_back_and_a_pipe_are_no_objects(photos, tmp_path):
    (photos / "a" / "dead").symlink_to("nowhere")
    os.mkfifo(photos / "a" / "pipe")
    (photos / "a" / "up").symlink_to(photos)
    channel = parse([f"train={photos}", "distribution=ShardedByS3Key"])
    assert channel.objects() == ["a/1", "a/2", "b/1", "b/2", "b/3"]


def test_a_file_is_the_only_object_of_its_channel(photos, tmp_path):
    channel = parse([f"pretrained={photos / 'a/1'}"])
    assert channel.objects() == ["1"]
    mounted = channel.folder(0, 1, tmp_path / "host")
    assert [(file.name, file.read_text()) for file in mounted.iterdir()] == [("1", "a/1")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], r"--channel 'train': write NAME=FOLDER"),
        (["tr ain={photos}"], "'tr ain': a name has"),
        (["train=/no/where"], "/no/where is not there; name the folder"),
        (["train={photos}", "mode=Tape"], r"mode='Tape'; allowed: File, FastFile, Pipe"),
        (["train={photos}", "speed=fast"], "'speed=fast' is no option"),
        (["train={photos}", "shuffle=x"], "shuffle='x' is not a seed"),
        (["train={photos}", "compression=Gzip"], "compression=Gzip is for mode=Pipe, not File"),
        (["train={photos}", "mode=Pipe", "compression=zip"], "compression='zip'; allowed: None, Gzip"),
        (["train={photos}", "wrapper=RecordIO"], "wrapper=RecordIO is for mode=Pipe, not File"),
        (["train={photos}", "attributes=source-ref"], "attributes are of a manifest"),
        (["train={photos}/a/1", "attributes=source-ref", "mode=Pipe"], "add mode=Pipe wrapper=RecordIO"),
    ],
)
def test_what_the_service_refuses_is_refused(photos, words, sentence):
    with pytest.raises(RequestError, match=sentence):
        parse([word.format(photos=photos) for word in words])
