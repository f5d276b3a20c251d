"""The drawn data set: deterministic, shaped like a real one, and never mixed with somebody's files."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from local_test import make_data
from PIL import Image, ImageStat

SMALL = {"classes": 2, "train": 2, "valid": 1, "test": 1, "size": 32}
SMALL_OPTIONS = ["--classes", "2", "--train", "2", "--valid", "1", "--test", "1", "--size", "32"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.jpg")}


def test_layout_is_split_class_image(drawn_data):
    assert sorted(entry.name for entry in drawn_data.iterdir()) == [".drawn.json", "test", "train", "valid"]
    for split, count in (("train", 6), ("valid", 3), ("test", 3)):
        classes = sorted((drawn_data / split).iterdir())
        assert [folder.name for folder in classes] == ["001.Circle", "002.Square", "003.Triangle"]
        assert [len(list(folder.glob("*.jpg"))) for folder in classes] == [count] * 3


def test_same_seed_draws_the_same_files_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_data.make(tmp_path / name, **SMALL, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a").values()).isdisjoint(contents(tmp_path / "c").values())


def test_no_image_is_in_two_places(drawn_data):
    images = contents(drawn_data)
    assert len(set(images.values())) == len(images) == 3 * 12


def test_an_image_does_not_depend_on_how_many_others_there_are(tmp_path):
    make_data.make(tmp_path / "few", **SMALL)
    make_data.make(tmp_path / "many", **{**SMALL, "classes": 3, "train": 3})
    assert contents(tmp_path / "few").items() <= contents(tmp_path / "many").items()


@pytest.mark.parametrize("shape", make_data.SHAPES)
def test_every_shape_is_drawn_in_colour_at_the_size_asked_for(shape):
    images = [make_data.draw(shape, np.random.default_rng(seed), 40) for seed in range(12)]
    assert {image.mode for image in images} == {"RGB"}
    assert {min(image.size) for image in images} == {40}
    assert min(min(ImageStat.Stat(image).stddev) for image in images) > 3, "a flat image shows no shape"


@pytest.mark.parametrize("shape", make_data.SHAPES)
def test_every_shape_covers_part_of_the_picture(shape):
    covered = [
        np.asarray(make_data._mask(shape, np.random.default_rng(seed), 60, 40)).mean() / 255 for seed in range(20)
    ]
    assert min(covered) > 0.02
    assert max(covered) < 0.8


def test_images_are_square_portrait_and_landscape():
    sizes = [make_data.draw("star", np.random.default_rng(seed), 20).size for seed in range(40)]
    assert {(width > height) - (width < height) for width, height in sizes} == {-1, 0, 1}


def test_drawing_again_with_the_same_options_changes_nothing(tmp_path):
    assert make_data.make(tmp_path / "out", **SMALL)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    assert not make_data.make(tmp_path / "out", **SMALL)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


def test_an_unfinished_drawing_is_finished(tmp_path):
    out = tmp_path / "out"
    make_data.make(out, **SMALL)
    complete = contents(out)
    marker = json.loads((out / make_data.MARKER_FILE).read_text())
    (out / make_data.MARKER_FILE).write_text(json.dumps({**marker, "finished": False}))
    next(out.rglob("*.jpg")).unlink()
    assert make_data.make(out, **SMALL)
    assert contents(out) == complete


def test_other_options_are_refused(tmp_path):
    make_data.make(tmp_path / "out", **SMALL)
    with pytest.raises(FileExistsError, match="out is drawn with other options; delete it or name another folder"):
        make_data.make(tmp_path / "out", **SMALL, seed=7)


def test_somebody_elses_folder_is_refused_in_one_line_with_exit_code_1(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear")
    assert make_data.main([str(tmp_path), *SMALL_OPTIONS]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"make_data: {tmp_path} is not an empty folder; delete it or name another folder\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys):
    file = tmp_path / "out"
    file.write_text("")
    assert make_data.main([str(file), *SMALL_OPTIONS]) == 1
    assert "is not an empty folder" in capsys.readouterr().err


def test_the_command_says_what_it_drew_and_what_was_there(tmp_path, capsys):
    assert make_data.main([str(tmp_path), *SMALL_OPTIONS]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: drew 8 images of 2 classes\n"
    assert make_data.main([str(tmp_path), *SMALL_OPTIONS]) == 0
    assert "already holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [("--classes", "1", "2 to 10"), ("--classes", "11", "2 to 10"), ("--size", "big", "16"), ("--train", "0", "1")],
)
def test_a_bad_option_is_named_with_what_is_allowed(tmp_path, capsys, option, value, allowed):
    with pytest.raises(SystemExit) as exit_info:
        make_data.main([str(tmp_path), option, value])
    assert exit_info.value.code == 2
    assert f"argument {option}: '{value}' is not a whole number from {allowed}" in capsys.readouterr().err


def test_it_runs_as_a_command():
    done = subprocess.run([sys.executable, make_data.__file__, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--classes" in done.stdout
    assert done.stderr == ""


def test_the_jpeg_fixture_is_a_jpeg(jpeg):
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, min(image.size)) == ("JPEG", 48)
