"""Whatever people call an image becomes uint8 RGB, upright; whatever is none is refused as corrupt.

Colours are compared with a tolerance where the format is lossy.
"""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import Normalize
from torchvision.transforms.v2 import functional as ops

from dogbreed import preprocessing
from dogbreed.preprocessing import CorruptImageError, PreprocessSpec, decode

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

# Orientation -> what was done to the upright picture before it was stored (Exif 2.32, tag 0x0112).
ORIENTATIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixel(tensor, x=0, y=0):
    return tuple(tensor[:, y, x].tolist())


def quarters():
    """24 x 16: red and green above, blue and white below."""
    image = Image.new("RGB", (24, 16), WHITE)
    image.paste(RED, (0, 0, 12, 8))
    image.paste(GREEN, (12, 0, 24, 8))
    image.paste(BLUE, (0, 8, 12, 16))
    return image


def assert_is_quarters(tensor, tolerance=0):
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, (3, 16, 24))
    for x, y, colour in ((3, 2, RED), (20, 2, GREEN), (3, 13, BLUE), (20, 13, WHITE)):
        assert pixel(tensor, x, y) == pytest.approx(colour, abs=tolerance)


# What is decoded


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(orientation, form):
    stored = quarters() if ORIENTATIONS[orientation] is None else quarters().transpose(ORIENTATIONS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_is_quarters(decode(encode(stored, form, exif=exif)), tolerance=40)


@pytest.mark.parametrize("form", ["BMP", "PNG", "TIFF", "GIF"])
def test_lossless_formats_keep_every_pixel(form):
    assert_is_quarters(decode(encode(quarters(), form)))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_keep_the_picture(form):
    assert_is_quarters(decode(encode(quarters(), form, quality=95)), tolerance=40)


def test_of_a_phones_multi_picture_file_the_first_counts():
    data = encode(quarters(), "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (24, 16), RED)])
    assert_is_quarters(decode(data), tolerance=40)


@pytest.mark.parametrize(
    ("mode", "colour", "form", "expected"),
    [
        ("L", 100, "PNG", (100, 100, 100)),
        ("L", 100, "JPEG", (100, 100, 100)),
        ("1", 1, "PNG", WHITE),
        ("1", 0, "PNG", (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "TIFF", RED),
        ("RGBA", (0, 0, 255, 255), "PNG", BLUE),
        ("RGBA", (0, 0, 0, 0), "PNG", WHITE),
        ("RGBA", (0, 0, 0, 51), "PNG", (204, 204, 204)),
        ("RGBA", (255, 0, 0, 128), "WEBP", (255, 127, 127)),
        ("LA", (0, 0), "PNG", WHITE),
        ("LA", (50, 255), "PNG", (50, 50, 50)),
        ("F", 0.0, "TIFF", (0, 0, 0)),
        ("F", 1.0, "TIFF", WHITE),
        ("F", 0.2, "TIFF", (51, 51, 51)),
        ("F", 200.0, "TIFF", (200, 200, 200)),
        ("I", 65535, "TIFF", WHITE),
        ("I;16", 65535, "PNG", WHITE),
        ("I;16", 257 * 77, "PNG", (77, 77, 77)),
        ("I;16", 200, "PNG", (200, 200, 200)),
        ("I;16", 32896, "TIFF", (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, form, expected):
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    found = decode(encode(Image.new(mode, (5, 4), colour), form, **options))
    assert tuple(found.shape) == (3, 4, 5)
    assert pixel(found) == pytest.approx(expected, abs=1)


def test_a_cmyk_jpeg_keeps_its_colours():
    # What Photoshop writes is inverted and says so in an Adobe marker; Pillow reads and writes both.
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert pixel(decode(encode(cmyk, "JPEG", quality=95)), 8, 8) == pytest.approx(RED, abs=4)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(form):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 3), 1)
    found = decode(encode(image, form, transparency=0))
    assert pixel(found, 0, 0) == WHITE
    assert pixel(found, 3, 3) == (200, 100, 50)


def test_a_transparent_colour_of_an_rgb_png_becomes_white():
    image = Image.new("RGB", (4, 4), RED)
    image.putpixel((3, 3), BLUE)
    found = decode(encode(image, "PNG", transparency=RED))
    assert (pixel(found, 0, 0), pixel(found, 3, 3)) == (WHITE, BLUE)


def test_a_transparent_grey_of_a_grey_png_becomes_white():
    image = Image.new("L", (4, 4), 9)
    image.putpixel((3, 3), 90)
    found = decode(encode(image, "PNG", transparency=9))
    assert (pixel(found, 0, 0), pixel(found, 3, 3)) == (WHITE, (90, 90, 90))


def test_a_16_bit_ramp_keeps_its_shape():
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None, :].repeat(2, axis=0)
    found = decode(encode(Image.fromarray(ramp), "PNG"))
    assert found[0, 0].tolist() == found[2, 1].tolist() == list(range(256))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert pixel(decode(data), 4, 4) == pytest.approx(RED, abs=2)


def test_a_single_pixel_is_an_image():
    assert decode(encode(Image.new("RGB", (1, 1), BLUE), "PNG")).tolist() == [[[0]], [[0]], [[255]]]


def test_bytes_and_path_give_the_same_tensor(tmp_path, jpeg):
    file = tmp_path / "image.jpg"
    file.write_bytes(jpeg)
    assert torch.equal(decode(jpeg), decode(file))


def test_the_name_of_a_file_does_not_decide_its_format(tmp_path):
    file = tmp_path / "really-a-png.jpg"
    file.write_bytes(encode(quarters(), "PNG"))
    assert_is_quarters(decode(file))


def test_a_tensor_is_the_callers_own(jpeg):
    decode(jpeg).zero_()
    assert decode(jpeg).any()


def by_pillow(monkeypatch, data):
    """What `decode` makes of data when torchvision takes no part."""
    with monkeypatch.context() as patched:
        patched.setattr(preprocessing, "_decode_jpeg", lambda *_: None)
        return decode(data)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_plain_jpeg_has_the_pixels_that_pillow_gives(monkeypatch, mode, orientation, progressive, subsampling):
    noise = np.random.default_rng(orientation).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif, "progressive": progressive, "quality": 80}
    data = encode(Image.fromarray(noise).convert(mode), "JPEG", subsampling=subsampling, **options)
    expected = by_pillow(monkeypatch, data)
    monkeypatch.setattr(preprocessing, "_to_rgb", lambda _image: pytest.fail("left to Pillow"))
    assert torch.equal(decode(data), expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_says_nothing_else_never_meets_pillow(monkeypatch, mode, progressive):
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise).convert(mode), "JPEG", progressive=progressive, quality=80)
    expected = by_pillow(monkeypatch, data)
    monkeypatch.setattr(preprocessing.Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    assert torch.equal(decode(data), expected)


def test_a_plain_jpeg_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(preprocessing, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(CorruptImageError, match="24x16 pixels are more than the allowed 383"):
        decode(encode(quarters(), "JPEG"), max_pixels=383)
    with pytest.raises(CorruptImageError, match="4x1000 pixels are too long a strip"):
        decode(encode(Image.new("RGB", (4, 1000)), "JPEG"))


def test_an_orientation_in_xmp_counts_as_pillow_counts_it(monkeypatch):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(quarters(), "JPEG", xmp=xmp, quality=95)
    found = decode(data)
    assert tuple(found.shape) == (3, 24, 16)
    assert torch.equal(found, by_pillow(monkeypatch, data))


def test_what_torchvision_refuses_is_pillows(monkeypatch):
    data = encode(quarters(), "JPEG", quality=95)
    expected = decode(data)

    def refuse(*_arguments, **_options):
        raise RuntimeError("no")

    monkeypatch.setattr(preprocessing, "decode_jpeg", refuse)
    assert torch.equal(decode(data), expected)


def test_a_cmyk_jpeg_is_left_to_pillow(monkeypatch):
    monkeypatch.setattr(preprocessing, "decode_jpeg", lambda *_, **__: pytest.fail("given to torchvision"))
    assert pixel(decode(encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")), 8, 8) == WHITE


# What is refused


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8\xff", b"GIF89a", b"just text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x00" * 1000],
)
def test_what_is_no_image_is_corrupt(data, tmp_path):
    with pytest.raises(CorruptImageError) as error:
        decode(data)
    assert str(error.value)
    file = tmp_path / "image.jpg"
    file.write_bytes(data)
    with pytest.raises(CorruptImageError):
        decode(file)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_image_is_corrupt(form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    with pytest.raises(CorruptImageError):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("form", ["ICO", "PPM", "PDF", "EPS"])
def test_a_format_that_is_not_allowed_is_corrupt(form):
    with pytest.raises(CorruptImageError):
        decode(encode(quarters(), form))


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda _self: pytest.fail("decoded"))
    with pytest.raises(CorruptImageError, match="24x16 pixels are more than the allowed 383"):
        decode(PNG_QUARTERS, max_pixels=24 * 16 - 1)


def test_a_jpeg_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(preprocessing, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(CorruptImageError, match="24x16 pixels are more than the allowed 383"):
        decode(encode(quarters(), "JPEG"), max_pixels=24 * 16 - 1)


def repeated_scans(size, times, **options):
    """A progressive JPEG whose last scan, in which next to nothing is said, comes so many times more."""
    data = encode(Image.new("RGB", size, RED), "JPEG", progressive=True, **options)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * times + data[-2:]


@pytest.mark.parametrize("exif", [False, True], ids=["plain", "EXIF"])
def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(monkeypatch, exif):
    options = {"exif": Image.Exif()} if exif else {}
    if exif:
        options["exif"][0x0112] = 6
    # Beside the 10 that Pillow writes.
    most, more, few = (repeated_scans((24, 16), times, **options) for times in (90, 91, 3))
    assert decode(most).shape[0] == 3
    monkeypatch.setattr(preprocessing, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda _self: pytest.fail("decoded"))
    with pytest.raises(CorruptImageError, match="101 scans of 24x16 pixels are more than the allowed 100"):
        decode(more)
    monkeypatch.setattr(preprocessing, "MAX_SCANNED_PIXELS", 24 * 16 * 12)
    with pytest.raises(CorruptImageError, match="13 scans of 24x16 pixels are more than the allowed 12"):
        decode(few)


def test_the_largest_progressive_image_may_have_the_scans_that_such_have():
    preprocessing._check_scans(1, preprocessing.MAX_PIXELS, 10)


def test_the_same_bytes_are_refused_in_the_same_words(tmp_path):
    # A job counts corrupt images by path and reason.
    def reason():
        with pytest.raises(CorruptImageError) as error:
            decode(b"no image")
        return str(error.value)

    assert reason() == reason() == "not an image in one of the formats BMP, GIF, JPEG, PNG, TIFF, WEBP"


def test_as_many_pixels_as_allowed_are_decoded():
    assert_is_quarters(decode(PNG_QUARTERS, max_pixels=24 * 16))


def test_high_depth_is_the_same_by_strips_as_at_once(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 65536, (50, 30), dtype=np.uint16)
    data = encode(Image.fromarray(noise), "PNG")
    whole = decode(data)
    monkeypatch.setattr(preprocessing, "_STRIP_PIXELS", 70)
    assert torch.equal(decode(data), whole)
    assert whole[0].tolist() == np.rint(noise / 257).astype(int).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "transparent P", "transparent RGB", "CMYK"])
def test_every_mode_is_the_same_by_strips_as_at_once_and_no_step_holds_it_whole(monkeypatch, mode):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 30, 4), dtype=np.uint8))
    options = {"transparency": 3 if mode.endswith("P") else (0, 0, 0)} if mode.startswith("transparent") else {}
    mode = mode.removeprefix("transparent ")
    image = noise.convert("RGB").quantize(16) if mode == "P" else noise.convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG", **options)
    whole = decode(data)
    to_rgb = preprocessing._to_rgb

    def of_a_strip(part):
        assert part.height * part.width <= 70
        return to_rgb(part)

    monkeypatch.setattr(preprocessing, "_STRIP_PIXELS", 70)
    monkeypatch.setattr(preprocessing, "_to_rgb", of_a_strip)
    strips = decode(data)
    assert torch.equal(strips, whole)
    assert strips.stride() == whole.stride() == (1, 90, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "turned JPEG"])
def test_a_large_image_asks_once_before_it_is_decoded(monkeypatch, form):
    options = {}
    if form.startswith("turned"):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    data = encode(quarters(), form.removeprefix("turned "), **options)
    asked = []
    decode(data, admit=asked.append)
    assert asked == []
    monkeypatch.setattr(preprocessing, "LARGE_PIXELS", 24 * 16 - 1)
    decode(data, admit=asked.append)
    assert asked == [24 * 16]
    monkeypatch.setattr(preprocessing, "_decode_jpeg", lambda *_: None)  # and once where Pillow has to help
    decode(data, admit=asked.append)
    assert asked == [24 * 16] * 2


def test_what_is_not_a_number_is_black():
    values = np.array([[0.0, 1.0, np.nan, np.inf]], dtype=np.float32)
    assert [pixel(decode(encode(Image.fromarray(values), "TIFF")), x)[0] for x in range(4)] == [0, 0, 0, 255]


@pytest.mark.parametrize(("size", "taken"), [((200, 1), True), ((201, 1), False), ((1, 201), False), ((3, 603), False)])
def test_a_strip_that_resizing_would_make_enormous_is_refused(size, taken):
    data = encode(Image.new("RGB", size, RED), "PNG")
    if taken:
        assert pixel(decode(data)) == RED
    else:
        with pytest.raises(CorruptImageError, match="too long a strip: one side may be 200 times the other"):
            decode(data)


def test_pillows_own_bomb_error_is_a_corrupt_image(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(CorruptImageError):
        decode(PNG_QUARTERS)


def test_a_missing_file_is_an_os_error_and_not_a_corrupt_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "absent.jpg")


PNG_QUARTERS = encode(quarters(), "PNG")
SEEDS = [PNG_QUARTERS, *(encode(quarters(), form) for form in ("JPEG", "GIF", "WEBP", "TIFF", "BMP"))]


@settings(max_examples=200)
@given(st.sampled_from(SEEDS), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_are_an_image_or_corrupt_and_nothing_else(data, at, damage):
    at %= len(data)
    try:
        found = decode(data[:at] + damage + data[at + len(damage) :])
    except CorruptImageError:
        return
    assert (found.dtype, found.shape[0]) == (torch.uint8, 3)


# Views and normalisation


@pytest.mark.parametrize(("size_px", "resize_px"), [(224, 256), (64, 73), (16, 18), (299, 342)])
def test_the_preset_scales_torchvisions(size_px, resize_px):
    spec = PreprocessSpec.for_size(size_px)
    assert (spec.size_px, spec.resize_px) == (size_px, resize_px)
    assert (spec.mean, spec.std) == (preprocessing.IMAGENET_MEAN, preprocessing.IMAGENET_STD)


@pytest.mark.parametrize(
    ("height", "width"), [(48, 48), (48, 100), (100, 48), (1, 1), (1, 40), (40, 1), (37, 53), (300, 299)]
)
def test_a_view_is_a_square_whatever_the_picture(height, width):
    view = PreprocessSpec.for_size(32).centre_view(torch.full((3, height, width), 7, dtype=torch.uint8))
    assert (view.dtype, tuple(view.shape)) == (torch.uint8, (3, 32, 32))
    assert view.unique().tolist() == [7]


@pytest.mark.parametrize("portrait", [False, True])
def test_a_view_shows_the_centre(portrait):
    image = torch.zeros(3, 30, 90, dtype=torch.uint8)
    image[0, :, 30:60] = 255
    view = PreprocessSpec(size_px=30, resize_px=30).centre_view(image.transpose(1, 2) if portrait else image)
    assert (view[0] == 255).all()
    assert not view[1:].any()


def test_a_view_of_the_same_size_changes_nothing():
    image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(PreprocessSpec(size_px=24, resize_px=24).centre_view(image), image)


# Not to a single pixel: of some images torch 2.11 fails an assertion of its own then, in torchvision as well.
@given(*[st.integers(1, 90)] * 2, *[st.integers(2, 90)] * 2, st.sampled_from(["CHW", "HWC", "part"]))
def test_resizing_is_torchvisions(height, width, new_height, new_width, order):
    noise = torch.randint(0, 256, (height + 2, width + 3, 3), dtype=torch.uint8)
    image = noise[1 : height + 1, 2 : width + 2].permute(2, 0, 1)
    if order == "CHW":
        image = image.contiguous()
    elif order == "HWC":
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    theirs = ops.resize(image, [new_height, new_width], antialias=True)
    assert torch.equal(preprocessing.resize(image, (new_height, new_width)), theirs)


def test_resizing_is_torchvisions_on_other_processors(monkeypatch):
    monkeypatch.setattr(preprocessing, "_RESIZES_BYTES", False)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    assert torch.equal(preprocessing.resize(image, (20, 30)), ops.resize(image, [20, 30], antialias=True))


def test_normalising_leaves_the_bytes_alone():
    images = torch.full((1, 3, 2, 2), 7, dtype=torch.uint8)
    PreprocessSpec.for_size(2).normalise(images)
    assert images.unique().tolist() == [7]


def test_making_an_image_smaller_is_antialiased():
    # One bright column in eight, between the points that plain interpolation would look at.
    lines = torch.zeros(3, 64, 64, dtype=torch.uint8)
    lines[:, :, ::8] = 240
    view = PreprocessSpec(size_px=8, resize_px=8).centre_view(lines)
    assert view.float().mean() == pytest.approx(30, abs=4)


def test_normalising_removes_the_statistics():
    spec = PreprocessSpec(size_px=2, resize_px=2, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    found = spec.normalise(images)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (2, 3, 2, 2))
    assert found[:, :, 0, 0].tolist() == [[0.0, -1.0, -4.0], [1.0, 1.0, 0.0]]


def test_normalising_is_torchvisions():
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = Normalize(preprocessing.IMAGENET_MEAN, preprocessing.IMAGENET_STD)(images.float() / 255)
    torch.testing.assert_close(PreprocessSpec.for_size(5).normalise(images), theirs)
