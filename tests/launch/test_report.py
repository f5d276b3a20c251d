"""`launch.py report`: fetched, unpacked without trust, and found again."""

import io
import tarfile

import pytest
from tests.launch.conftest import BUCKET
from tests.launch.scripted import Scripted, refusal
from tests.launch.test_watching import create_job

from scripts.launcher.commands import report
from scripts.launcher.errors import OutcomeError

KEY = "dogbreed/jobs/dogs-1/output/output.tar.gz"
PAGE = {"insight/report.html": b"<p>report</p>", "insight/rules/Overfit.json": b"{}"}


def archive(members):
    """A tar.gz of regular files, and of TarInfos as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members.items() if isinstance(members, dict) else members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def job(launch, mock_aws, here):
    """Puts an ended job with this output into the mock AWS."""
    create_job(mock_aws)
    return lambda members: mock_aws("s3").put_object(Bucket=BUCKET, Key=KEY, Body=archive(members))


def test_fetches_the_report_and_prints_where_it_is(launch, job, here):
    job(PAGE | {"tensors/index.json": b"not fetched"})
    ended = launch("report", "dogs-1")
    assert ended.code == 0
    assert ended.out == "build/reports/dogs-1/report.html\n"
    files = {str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()}
    assert files == {"build/reports/dogs-1/report.html", "build/reports/dogs-1/rules/Overfit.json"}


def test_a_second_fetch_replaces_the_first(launch, job, here):
    job(PAGE | {"insight/old.json": b"{}"})
    launch("report", "dogs-1")
    job(PAGE | {"insight/report.html": b"new"})
    assert launch("report", "dogs-1").code == 0
    assert (here / "build/reports/dogs-1/report.html").read_bytes() == b"new"
    assert not (here / "build/reports/dogs-1/old.json").exists()


def test_names_with_a_leading_dot_are_the_same_folder(launch, job):
    job({"./insight/report.html": b"x"})
    assert launch("report", "dogs-1").code == 0


def test_another_folder_may_be_named(launch, job, here):
    job(PAGE)
    assert launch("report", "dogs-1", "--output", "mine").out == "mine/report.html\n"


def test_somebodys_folder_is_not_replaced(launch, job, here):
    job(PAGE)
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("years of work")
    ended = launch("report", "dogs-1", "--output", "mine")
    assert ended.code == 1
    assert "holds something that is no report" in ended.err
    assert (here / "mine" / "thesis.tex").exists()


def test_opens_the_browser_on_request(launch, job, here, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    job(PAGE)
    launch("report", "dogs-1")
    assert opened == []
    launch("report", "dogs-1", "--open")
    assert opened == [(here / "build/reports/dogs-1/report.html").as_uri()]


def special(kind, name, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        ("insight/../escaped", b"x"),
        ("../insight/escaped", b"x"),
        ("/insight/escaped", b"x"),
        special(tarfile.SYMTYPE, "insight/escaped", "/etc/passwd"),
        special(tarfile.LNKTYPE, "insight/escaped", "insight/report.html"),
        special(tarfile.FIFOTYPE, "insight/escaped"),
    ],
    ids=["dots", "dots before", "absolute", "link", "hard link", "pipe"],
)
def test_nothing_is_unpacked_outside_the_folder(tmp_path, member):
    file = tmp_path / "output.tar.gz"
    file.write_bytes(archive([*PAGE.items(), member]))
    deep = tmp_path / "deep"
    deep.mkdir()
    report.unpack(file, deep / "folder")
    assert not list(tmp_path.rglob("escaped"))
    assert (deep / "folder" / "report.html").read_bytes() == b"<p>report</p>"


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_MAX_BYTES", 10)
    file = tmp_path / "output.tar.gz"
    file.write_bytes(archive(PAGE))
    with pytest.raises(OutcomeError, match="more than 2 GiB"):
        report.unpack(file, tmp_path / "folder")


def test_an_archive_without_a_report_says_what_it_holds(launch, job, here):
    job({"tensors/index.json": b"x"})
    ended = launch("report", "dogs-1")
    assert ended.code == 1
    assert "holds no folder insight, only tensors" in ended.err
    assert list((here / "build/reports").iterdir()) == []


def test_a_broken_archive_is_one_sentence(launch, mock_aws, here):
    create_job(mock_aws)
    mock_aws("s3").put_object(Bucket=BUCKET, Key=KEY, Body=archive(PAGE)[:40])
    ended = launch("report", "dogs-1")
    assert ended.code == 1
    assert "output.tar.gz cannot be unpacked" in ended.err


def describe(status, **more):
    output = {"S3OutputPath": f"s3://{BUCKET}/dogbreed/jobs"}
    return {"TrainingJobName": "dogs-1", "TrainingJobStatus": status, "OutputDataConfig": output, **more}


@pytest.mark.parametrize(
    ("description", "says"),
    [
        (describe("InProgress"), "dogs-1 is InProgress: the report is uploaded when the job ends"),
        (describe("Failed", FailureReason="AlgorithmError: no data"), "dogs-1 failed: AlgorithmError: no data"),
        (describe("Completed"), "dogs-1 left no output.tar.gz"),
    ],
)
def test_a_job_without_output_is_explained(launch, here, description, says):
    launch.aws = Scripted(
        DescribeTrainingJob=description, GetObject=refusal("NoSuchKey", "The specified key does not exist.", 404)
    )
    ended = launch("report", "dogs-1")
    assert ended.code == 1
    assert ended.err.splitlines()[0] == f"launch.py report: {says}" or says in ended.err.splitlines()[0]


@pytest.mark.parametrize("name", ["../../etc", "a/b", ""])
def test_a_name_cannot_be_a_path(launch, name):
    launch.aws = Scripted()
    assert launch("report", name).code == 2
