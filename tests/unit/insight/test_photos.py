import base64
import io
from pathlib import Path

from PIL import Image

from dogbreed.insight.photos import wrong_photo


def test_a_thumbnail_is_a_small_square_jpeg_that_stands_upright(tmp_path: Path) -> None:
    folder = tmp_path / "Beagle"
    folder.mkdir()
    image = Image.new("RGB", (600, 400), "red")
    image.paste("blue", (0, 0, 600, 100))
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    image.save(folder / "a.jpg", exif=exif)
    photo = wrong_photo(folder / "a.jpg", true="Beagle", predicted="Boxer", confidence=0.9)
    assert (photo.name, photo.true, photo.predicted, photo.confidence) == ("Beagle/a.jpg", "Beagle", "Boxer", 0.9)
    small = Image.open(io.BytesIO(base64.b64decode(photo.thumbnail)))
    assert (small.format, small.size) == ("JPEG", (160, 160))
    red, _, blue = small.getpixel((80, 5))
    assert red > 150 > blue
    assert small.getpixel((80, 155))[2] > 150
    assert len(photo.thumbnail) < 10_000


def test_a_photo_that_cannot_be_read_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert wrong_photo(tmp_path / "b.jpg", true="a", predicted="b", confidence=1.0).thumbnail == ""
    assert wrong_photo(tmp_path / "gone.jpg", true="a", predicted="b", confidence=1.0).thumbnail == ""
