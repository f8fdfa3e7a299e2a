"""Image files to pixels: every kind of file that Pillow opens becomes uint8 RGB, or an error that names it."""

from __future__ import annotations

import functools
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from visionlab.data.problems import Policy, Problem

log = logging.getLogger(__name__)

# Left out on purpose: formats that start other programs (EPS) or hold no picture of their own (WMF, PDF, fonts).
Image.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX", "SGI")
    if name in Image.OPEN
)

# The suffixes by which image files are looked for in a folder; what a file is, its content decides.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif", ".mpo")

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

# Python's warning filters belong to the whole process, so only one thread at a time may change them.
_warnings_lock = threading.Lock()


class ImageError(ValueError):
    """An image file that gives no pixels; the message is one line with the file and the reason."""


def read_image(path: str | os.PathLike[str], *, truncated: bool = False) -> NDArray[np.uint8]:
    """Return the pixels of an image file as a viewer shows them.

    EXIF orientation is applied (an invalid one is ignored), gray, palette, CMYK and 1-bit images become RGB, 16-bit
    gray is scaled by 1/257, transparency lies over white, and of several frames the first counts.

    Args:
        path: the file; its content decides what it is, not its suffix.
        truncated: give what can be decoded of a cut or damaged file instead of an error; the rest is black or gray.

    Returns:
        ``(height, width, 3)`` uint8, RGB, contiguous, free to be written to.

    Raises:
        ImageError: if the file is missing, empty, damaged or no image.
    """
    with _named_errors(path):
        with open(path, "rb") as file:
            content = file.read()
        try:
            image = _decode(content)
        except Exception:
            if not truncated:
                raise
            image = _decode_part(content)
        with _quiet():
            orientation = _orientation(image)
            image = _to_rgb(image)
        if orientation in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[orientation])
        return np.array(image)


def read_thumbnail(path: str | os.PathLike[str], *, height: int, width: int) -> NDArray[np.uint8]:
    """Return an upright image, gray and small, each of whose pixels is the mean of a part of the image.

    JPEG files, the large ones, are decoded at an eighth to a half of their size, in a quarter of the time.

    Returns:
        ``(height, width)`` uint8.

    Raises:
        ImageError: if the file is missing, empty, damaged or no image.
    """
    with _named_errors(path), open(path, "rb") as file:
        file.peek()
        with _quiet():
            image = _open(file)
        image.draft("L", (8 * width, 8 * height))
        image.load()
        with _quiet():
            orientation = _orientation(image)
            image = (image if image.mode == "L" else _to_rgb(image)).convert("L")
        image = image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image
        return np.array(image.resize((width, height), Image.Resampling.BOX))


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return ``(height, width)`` of the pixels that ``read_image`` would give, from the file's header alone.

    Raises:
        ImageError: if the file is missing, empty or no image. A file whose header is sound may still be damaged.
    """
    with _named_errors(path), open(path, "rb") as file:
        file.peek()  # fills the buffer before the lock below is taken
        with _quiet(), _open(file) as image:
            width, height = image.size
            if image.format == "PNG" and _has_late_orientation(file):
                image.load()
            # Pillow turns the pixels and the size of TIFF by itself.
            sideways = image.format != "TIFF" and _orientation(image) in _SIDEWAYS
        return (width, height) if sideways else (height, width)


def read_image_sizes(paths: Sequence[str]) -> list[tuple[int, int] | ImageError]:
    """Return ``read_image_size`` of many files, read by eight threads, with the error in the place of a failed one."""

    def size_or_error(path: str) -> tuple[int, int] | ImageError:
        try:
            return read_image_size(path)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(size_or_error, paths))


def file_problem(file: str, error: ImageError, *, image_id: int | None = None, action: str = "") -> Problem:
    """Return the problem that an ImageError about a file is."""
    kind = "unreadable-file" if os.path.exists(file) else "missing-file"
    return Problem(kind, file, str(error).removeprefix(f"{file}: "), image_id=image_id, action=action)


def read_image_by_policy(path: str | os.PathLike[str], policy: Policy) -> NDArray[np.uint8]:
    """Return ``read_image(path)``, under the policy ``repair`` also of a damaged file, as far as it can be decoded.

    That a file is damaged stands in the log, once in each process.

    Raises:
        ImageError: if the file gives no pixels, or, under the policies ``skip`` and ``fail``, is damaged.
    """
    try:
        return read_image(path)
    except ImageError as error:
        if policy != "repair":
            raise
        pixels = read_image(path, truncated=True)
        _warn_once(f"{error}; the part that can be decoded is used")
        return pixels


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


@contextmanager
def _named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong with a file into an ImageError of one line."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{os.fspath(path)}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{os.fspath(path)}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{os.fspath(path)}: a folder, not an image file") from None
    except Exception as error:  # Pillow's decoders raise nearly every kind of exception on damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{os.fspath(path)}: cannot be read as an image: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings about odd metadata, which concern nobody who wants pixels."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(64).lstrip()
        if not start:
            raise ImageError("the file is empty") from None
        if start.startswith(b"<"):
            raise ImageError("an HTML or XML page, not an image") from None
        raise ImageError(f"not an image of a known format, it starts with {start[:12]!r}") from None


def _decode(content: bytes) -> Image.Image:
    with _quiet():
        image = _open(BytesIO(content))
    image.load()
    return image


def _decode_part(content: bytes) -> Image.Image:
    """Decode what Pillow does under LOAD_TRUNCATED_IMAGES, without that switch, which all threads share."""
    if content.startswith(b"\xff\xd8"):
        content += b"\xff\xd9"  # only at the end marker does the JPEG decoder give its last rows away
    with _quiet():
        image = _open(BytesIO(content))
    try:
        image.load()
    except Exception:
        image.tile = []  # type: ignore[attr-defined]  # pixels are decoded in place: those before the damage stand
        image.load()
    samples = np.asarray(image)
    if samples.min() == samples.max():
        raise ImageError("the file is damaged and nothing of it can be decoded")
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF (or XMP) orientation, 1 where it is missing, invalid or cannot be read."""
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # broken metadata raises nearly anything, and the pixels are sound without it
        return 1
    return value if value in _TRANSPOSE else 1


def _has_late_orientation(file: BinaryIO) -> bool:
    """Return whether a PNG file may state its orientation behind the pixels, where Pillow looks after decoding only."""
    file.seek(8)
    pixels = False
    while len(start := file.read(8)) == 8:
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        pixels = pixels or kind == b"IDAT"
        body = file.tell()
        late_text = pixels and kind in (b"iTXt", b"zTXt", b"tEXt")
        if late_text and file.read(21).startswith((b"XML:com.adobe.xmp", b"Raw profile type exif")):
            return True
        if pixels and kind == b"eXIf":
            return True
        file.seek(body + length + 4)
    return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("float pixels, and nothing says which range they span")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"integer pixels from {values.min()} to {values.max()}, expected 16 bits")
        rgb = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
        transparent = image.info.get("transparency")
        if transparent is None:
            return rgb
        alpha = Image.fromarray((values != transparent).astype(np.uint8) * 255)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb, alpha = rgba.convert("RGB"), rgba.getchannel("A")
    else:
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgb, mask=alpha)
    return white
