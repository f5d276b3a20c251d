"""`launch.py upload` against a mock S3: what is sent, what is left alone, and what is said."""

import json
import os

import pytest
from tests.launch.conftest import BUCKET, REGION
from tests.launch.scripted import Scripted, refusal

from scripts.launcher.aws import connect
from scripts.launcher.commands import upload

PREFIX = "dogbreed/data/dogs/"


@pytest.fixture
def dogs(tmp_path):
    """Two classes, one file each, and what must stay behind."""
    folder = tmp_path / "dogs"
    for name, content in {
        "train/boxer/1.jpg": b"one",
        "train/pug/2.png": b"twotwo",
        ".DS_Store": b"junk",
        ".cache/x": b"junk",
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def objects(client):
    listed = client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {item["Key"]: item["LastModified"] for item in listed}


def test_sends_what_is_visible_and_prints_the_uri_last(launch, mock_aws, dogs):
    ended = launch("upload", str(dogs))
    assert ended.code == 0
    assert ended.out == f"s3://{BUCKET}/{PREFIX}\n"
    assert "2 of 2 files to send, 9 bytes" in ended.err
    assert set(objects(mock_aws)) == {PREFIX + "train/boxer/1.jpg", PREFIX + "train/pug/2.png"}
    stored = mock_aws("s3").get_object(Bucket=BUCKET, Key=PREFIX + "train/pug/2.png")
    assert stored["Body"].read() == b"twotwo"
    assert stored["ContentType"] == "image/png"


def test_the_second_time_nothing_is_sent(launch, mock_aws, dogs):
    launch("upload", str(dogs))
    before = objects(mock_aws)
    ended = launch("upload", str(dogs))
    assert "0 of 2 files to send, 0 bytes; 2 are there unchanged" in ended.err
    assert objects(mock_aws) == before


@pytest.mark.parametrize("content", [b"new", b"another size"], ids=["same size", "other size"])
def test_what_changed_is_sent_again(launch, mock_aws, dogs, content):
    launch("upload", str(dogs))
    (dogs / "train/boxer/1.jpg").write_bytes(content)
    ended = launch("upload", str(dogs))
    assert "1 of 2 files to send" in ended.err
    stored = mock_aws("s3").get_object(Bucket=BUCKET, Key=PREFIX + "train/boxer/1.jpg")
    assert stored["Body"].read() == content


@pytest.mark.parametrize(
    ("kept", "sent"), [({"ChecksumCRC32": "emyG8Q=="}, 0), ({"ChecksumCRC32": "AAAAAA=="}, 1), ({}, 1)]
)
def test_where_the_etag_is_no_md5_the_checksum_decides(launch, tmp_path, kept, sent):
    """As in a bucket that encrypts with KMS; 7a6c86f1 is the CRC32 of `one`."""
    file = tmp_path / "one.jpg"
    file.write_bytes(b"one")
    key = "dogbreed/data/one/one.jpg"
    launch.aws = Scripted(
        ListObjectsV2={"Contents": [{"Key": key, "Size": 3, "ETag": '"kms"'}]}, HeadObject=kept, PutObject={}
    )
    assert launch("upload", str(file)).code == 0
    assert len(launch.aws.asked("PutObject")) == sent


def test_a_single_file_is_a_uri_of_its_own(launch, mock_aws, tmp_path):
    weights = tmp_path / "resnet18.pth"
    weights.write_bytes(b"weights")
    ended = launch("upload", str(weights), "--prefix", "team/x")
    assert ended.out == f"s3://{BUCKET}/team/x/data/resnet18/resnet18.pth\n"


def test_what_lies_there_beyond_the_folder_is_reported(launch, mock_aws, dogs):
    launch("upload", str(dogs))
    (dogs / "train/pug/2.png").unlink()
    ended = launch("upload", str(dogs))
    assert f"note: 1 objects under the URI are not in {dogs}, {PREFIX}train/pug/2.png for one" in ended.err
    assert PREFIX + "train/pug/2.png" in objects(mock_aws)


def test_links_are_followed_and_loops_are_not(launch, mock_aws, dogs, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "train").symlink_to(dogs / "train")
    (dogs / "train" / "loop").symlink_to(dogs / "train")
    ended = launch("upload", str(linked))
    assert "2 of 2 files" in ended.err


def test_ctrl_c_keeps_what_is_done_and_says_so(launch, dogs):
    answers = iter([{}, KeyboardInterrupt()])

    def put(**parameters):
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    launch.aws = Scripted(ListObjectsV2={}, PutObject=put)
    ended = launch("upload", str(dogs), "--workers", "1")
    assert ended.code == 130
    assert "1 of 2 files were sent and stay; the same command sends the rest" in ended.err
    assert ended.out == ""


def test_a_bucket_that_does_not_exist_is_one_sentence(launch, mock_aws, dogs):
    ended = launch("upload", str(dogs), "--bucket", "nobodys-bucket")
    assert ended.code == 1
    assert ended.err.startswith("launch.py upload: ListObjectsV2: nobodys-bucket does not exist")


def test_a_refused_object_ends_it(launch, dogs):
    launch.aws = Scripted(ListObjectsV2={}, PutObject=refusal("AccessDenied", "Access Denied", 403))
    ended = launch("upload", str(dogs))
    assert ended.code == 1
    assert "your credentials lack s3:PutObject" in ended.err
    assert "0 of 2 files were sent" in ended.err


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_nothing_to_send_is_an_error(launch, tmp_path, make):
    folder = tmp_path / "nothing"
    make(folder)
    ended = launch("upload", str(folder))
    assert ended.code == 2
    assert str(folder) in ended.err


def test_a_file_beyond_one_request_is_refused_before_anything_is_sent(launch, tmp_path):
    with (tmp_path / "huge.tar").open("wb") as file:
        file.truncate(5 * 1024**3 + 1)  # sparse
    ended = launch("upload", str(tmp_path))
    assert ended.code == 2
    assert "larger than 5 GiB" in ended.err


def test_the_dry_run_prints_right_requests_and_sends_none(launch, mock_aws, dogs):
    ended = launch("upload", str(dogs), "--dry-run")
    listing, first, second = json.loads(ended.out)
    assert listing["parameters"] == {"Bucket": BUCKET, "Prefix": PREFIX}
    assert first["parameters"]["Body"] == {"content of": str(dogs / "train/boxer/1.jpg")}
    assert second["parameters"]["Key"] == PREFIX + "train/pug/2.png"
    assert objects(mock_aws) == {}


def test_each_byte_is_reported_once_however_often_it_is_read(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    reported = []
    with upload._Counted(file, reported.append) as counted:
        assert counted.read(4) == b"xxxx"
        counted.seek(0)  # a retry
        assert counted.read() == b"x" * 10
    assert sum(reported) == 10


def test_many_files_arrive_whole_in_parallel(launch, mock_aws, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    contents = {f"{number}.jpg": os.urandom(number * 7) for number in range(1, 60)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    assert launch("upload", str(folder)).code == 0
    s3 = connect(REGION).client("s3")
    for name, content in contents.items():
        assert s3.get_object(Bucket=BUCKET, Key=f"dogbreed/data/many/{name}")["Body"].read() == content
