"""Decoded images, reduced to a shorter side and kept in mapped files.

Decoding and reducing a photo costs several times what a random view of the reduced image does, and gives the same
pixels every time. So each image is written to a store when it is first read, and mapped from then on. The store is
nothing but a memory: with it, without it, with half of it on a full disk, the views get the same pixels, and so does a
job that goes on elsewhere. What does change the pixels is the reduction: a random crop of a reduced image is not bit
for bit the crop of the original, and where it is smaller than the network's input it is blurred. The centre view is the
same, bit for bit, if ``shorter_px`` is `PreprocessSpec.resize_px`.

A store is any number of segments: a file of pixels, image after image, and an index. A process writes segments of its
own and reads those of all others, so that several ranks, trials and jobs fill one store together. Every image carries
a checksum, which is compared when a process first reads it; a segment with a wrong one is removed, and its images are
decoded again.

Legend: H W pixels of an image, M images of a segment.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from dogbreed.preprocessing import decode, resize_shorter
from dogbreed.training import mapped
from dogbreed.training.sources import Sample, digest_files

logger = logging.getLogger(__name__)

_FORMAT = 2
# A lost process loses at most this much, and the kernel maps it without asking how much memory there is.
_SEGMENT_BYTES = 1024**3
_RESERVE_BYTES = 2 * 1024**3
_MAX_SIDE = 1_000_000

# Columns of an index.
_POSITION, _OFFSET, _HEIGHT, _WIDTH, _CHECKSUM = range(5)


class ReducedImages:
    """The images of a split with at most ``shorter_px`` on their shorter side; an `ImageSource` that threads share.

    Args:
        samples: the split.
        shorter_px: images whose shorter side is longer are reduced to it; smaller ones stay as they are.
        folder: of the store; None keeps nothing.
        contents: of the samples' files, see `digest_files`; None reads them.
        reserve_bytes: is left free on the disk; what does not fit is decoded again in every epoch.
        segment_bytes: size at which a segment is closed.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        shorter_px: int,
        folder: Path | None,
        *,
        contents: Sequence[str] | None = None,
        reserve_bytes: int = _RESERVE_BYTES,
        segment_bytes: int = _SEGMENT_BYTES,
    ) -> None:
        self._samples = samples
        self._shorter_px = shorter_px
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._segment_bytes = segment_bytes
        self._digest = ""
        if folder is not None:
            self._digest = _digest(digest_files(samples) if contents is None else contents, shorter_px)
        self._lock = threading.Lock()
        self._segments: list[_Segment | None] = []
        self._known: set[str] = set()
        # Per position the segment and the row in it, or -1.
        self._places: NDArray[np.int32] = np.full((len(samples), 2), -1, dtype=np.int32)
        self._writer: _Writer | None = None
        self._writes = folder is not None
        if folder is not None:
            mapped.remove_abandoned(folder)
            self._adopt()

    @property
    def stored(self) -> int:
        """Number of images that a segment holds."""
        return int((self._places[:, 0] >= 0).sum())

    def read(self, position: int) -> Tensor:
        """The image at a position, uint8 [3, H, W]; do not change it.

        Raises:
            CorruptImageError: its file cannot be decoded.
            OSError: its file cannot be opened.
        """
        number, row = self._places[position].tolist()
        segment = self._segments[number] if number >= 0 else None
        if segment is not None:
            stored: Tensor | None = segment.read(row)
            if stored is not None:
                return stored
            self._drop(number)
        image: Tensor = decode(self._samples[position].path)
        if min(image.shape[-2:]) > self._shorter_px:
            image = resize_shorter(image, self._shorter_px)
        self._keep(position, image)
        return image

    def end_epoch(self) -> None:
        """Makes what was written readable, here and for others, and takes over what others have written."""
        with self._lock:
            self._seal()
            self._adopt()

    def _keep(self, position: int, image_CHW: Tensor) -> None:
        if not self._writes:
            return
        pixels_HWC = image_CHW.permute(1, 2, 0).contiguous().numpy()
        checksum = _checksum(position, pixels_HWC)
        with self._lock:
            try:
                self._write(position, pixels_HWC, checksum)
            except OSError as error:
                self._give_up(str(error))

    def _write(self, position: int, pixels_HWC: NDArray[np.uint8], checksum: int) -> None:
        if not self._writes or self._folder is None:
            return
        if self._writer is None:
            self._writer = _Writer(self._folder)
        free = shutil.disk_usage(self._folder).free
        if free < self._reserve_bytes + pixels_HWC.nbytes:
            self._give_up(f"{free / 1e9:.1f} GB are free there and {self._reserve_bytes / 1e9:.1f} GB are left free")
            return
        self._writer.add(position, pixels_HWC, checksum)
        if self._writer.size >= self._segment_bytes:
            self._seal()

    def _seal(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None or self._folder is None:
            return
        try:
            self._take(writer.seal(self._folder, self._digest))
        except (OSError, ValueError) as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        """Goes on with what is stored; once."""
        self._writes = False
        logger.warning(
            "the decoded images are not stored in %s any more (%s): the others are decoded again in every epoch; free "
            "some space, or name another folder in DOGBREED_CACHE_DIR",
            self._folder,
            reason,
        )
        self._seal()

    def _adopt(self) -> None:
        """Takes over the segments that are new in the folder."""
        if self._folder is None:
            return
        for index in sorted(self._folder.glob(f"{self._digest}.*.npy")):
            if index.name not in self._known:
                try:
                    self._take(_Segment.open(index, len(self._samples)))
                except (OSError, ValueError) as error:
                    self._known.add(index.name)
                    logger.warning("the stored images %s are not usable and are decoded again: %s", index, error)
                    _remove(index)

    def _take(self, segment: _Segment) -> None:
        self._known.add(segment.file.name)
        positions = segment.index[:, _POSITION]
        new = self._places[positions, 0] < 0
        rows = np.flatnonzero(new).astype(np.int32)
        self._segments.append(segment)
        # The row first: a thread that reads meanwhile finds both, or none.
        self._places[positions[new], 1] = rows
        self._places[positions[new], 0] = len(self._segments) - 1

    def _drop(self, number: int) -> None:
        """Forgets and removes a segment in which an image is damaged."""
        with self._lock:
            segment, self._segments[number] = self._segments[number], None
            if segment is None:
                return
            self._places[self._places[:, 0] == number] = -1
            logger.warning("the stored images %s are damaged and are decoded again", segment.file)
            _remove(segment.file)


@dataclass(frozen=True)
class _Segment:
    """A file of pixels and its index.

    Attributes:
        file: the index, ``DIGEST.WRITER.npy``; the pixels are ``DIGEST.WRITER.u8``.
        pixels: uint8 [bytes], mapped.
        index: int64 [M, 5], see the columns above.
        checked: bool [M], images whose checksum was found to be right.
    """

    file: Path
    pixels: Tensor
    index: NDArray[np.int64]
    checked: NDArray[np.bool_]

    @classmethod
    def open(cls, file: Path, samples: int, *, checked: bool = False) -> _Segment:
        """Raises OSError or ValueError when it cannot be one of a split with so many samples."""
        index = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
        if index.dtype != np.int64 or index.ndim != 2 or index.shape[1] != 5:
            raise ValueError(f"its index is {index.dtype} {index.shape}")
        pixels = mapped.map_bytes(file.with_suffix(".u8"))
        position, offset, height, width, _ = index.T
        sides = (height >= 1) & (height <= _MAX_SIDE) & (width >= 1) & (width <= _MAX_SIDE)
        within = (offset >= 0) & (offset <= len(pixels)) & (offset + 3 * height * width <= len(pixels))
        if not ((position >= 0) & (position < samples) & sides & within).all():
            raise ValueError("its index points outside of it")
        return cls(file, pixels, index, np.full(len(index), checked))

    def read(self, row: int) -> Tensor | None:
        """An image, uint8 [3, H, W]; None when its checksum is wrong."""
        position, offset, height, width, checksum = self.index[row].tolist()
        pixels_HWC = self.pixels[offset : offset + 3 * height * width].view(height, width, 3)
        if not self.checked[row]:
            if _checksum(position, pixels_HWC.numpy()) != checksum:
                return None
            self.checked[row] = True
        return pixels_HWC.permute(2, 0, 1)


class _Writer:
    """A segment in the making."""

    def __init__(self, folder: Path) -> None:
        self._partial, self._stream = mapped.begin(folder)
        self._rows: list[tuple[int, int, int, int, int]] = []
        self.size = 0

    def add(self, position: int, pixels_HWC: NDArray[np.uint8], checksum: int) -> None:
        """Appends an image. Raises OSError."""
        self._stream.write(pixels_HWC.data)
        height, width = pixels_HWC.shape[:2]
        self._rows.append((position, self.size, height, width, checksum))
        self.size += pixels_HWC.nbytes

    def seal(self, folder: Path, digest: str) -> _Segment:
        """Gives the files their names, the index last. Raises OSError or ValueError; then nothing is left behind."""
        writer = self._partial.name.removeprefix(".").split(".")[0]
        pixels, file = folder / f"{digest}.{writer}.u8", folder / f"{digest}.{writer}.npy"
        index = io.BytesIO()
        np.save(index, np.array(self._rows, dtype=np.int64).reshape(-1, 5))
        try:
            with self._stream:
                self._stream.flush()
                self._partial.replace(pixels)
            mapped.write_whole(file, index.getvalue())
            return _Segment.open(file, 1 + max((row[_POSITION] for row in self._rows), default=0), checked=True)
        except (OSError, ValueError):
            self._partial.unlink(missing_ok=True)
            _remove(file)
            raise


def _digest(contents: Sequence[str], shorter_px: int) -> str:
    """Names the segments: all that the pixels depend on."""
    versions = f"Pillow {PIL.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    parts = (str(_FORMAT), *contents, str(shorter_px), versions, torch.backends.cpu.get_cpu_capability())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _checksum(position: int, pixels_HWC: NDArray[np.uint8]) -> int:
    """Of an image with its shape and place: what is whole but somewhere else is wrong as well."""
    return zlib.crc32(pixels_HWC.data, zlib.crc32(f"{position} {pixels_HWC.shape}".encode()))


def _remove(index: Path) -> None:
    try:
        index.unlink(missing_ok=True)
        index.with_suffix(".u8").unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s cannot be removed: %s", index, error)
