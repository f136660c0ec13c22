"""Camera images as a policy sees them: cut to its aspect ratio, reduced to its size."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg

from dpvla.files import open_regular

Size = tuple[int, int]
"""(width, height) in pixels."""
Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""What Pillow may take a file for: others of its formats run programs."""
MOST_BYTES, MOST_PIXELS, LEAST_SIDE = 2**28, 2**26, 16
"""A camera's image has fewer bytes and pixels, and more pixels on either side."""

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error, Image.DecompressionBombError)
"""What Pillow and torchvision raise for files that hold no whole image."""


@dataclass(frozen=True)
class Crop:
    """The part of an image that is kept: in the middle, as large as can be. In its pixels, which may be divided."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of(cls, full: Size, size: Size) -> Crop:
        """With the aspect ratio of ``size``, of an image as large as ``full``."""
        width = min(full[0], full[1] * size[0] / size[1])
        height = min(full[1], full[0] * size[1] / size[0])
        return cls((full[0] - width) / 2, (full[1] - height) / 2, width, height)

    @property
    def is_whole_pixels(self) -> bool:
        """Whether it begins and ends between pixels."""
        return all(float(number).is_integer() for number in (self.left, self.top, self.width, self.height))

    def cut(self, image: Tensor) -> Tensor:
        """A view (3, height, width) of an image whose pixels it does not divide."""
        left, top, width, height = (int(number) for number in (self.left, self.top, self.width, self.height))
        return image.narrow(1, top, height).narrow(2, left, width)


def read_image(path: Path | str, size: Size) -> Pixels:
    """`decode_image` of a file."""
    return decode_image(_content(path), size)


def decode_image(content: Pixels, size: Size) -> Pixels:
    """(3, height, width) image of a file's bytes, cut to the aspect ratio of ``size`` (width, height), and reduced.

    The header, which Pillow reads, decides who decodes: torchvision a color or gray JPEG that is reduced to more than a
    quarter, which takes 0.4 of Pillow's time and gives its pixels up to a rounding here and there; Pillow everything
    else, and what torchvision refuses. EXIF rotations are not applied: cars' cameras have none.

    Raises one of UNREADABLE for a file that holds no whole image, or none that a camera takes.
    """
    with _opened(content) as image:
        crop, full = Crop.of(image.size, size), image.size
        is_jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
        if _draft(image, crop, size) or not is_jpeg or not crop.is_whole_pixels:
            return _by_pillow(image, crop, full, size)
        try:
            decoded = decode_jpeg(torch.from_numpy(content), mode=ImageReadMode.RGB)
        except RuntimeError:
            return _by_pillow(image, crop, full, size)  # says what is wrong with the file, or takes it
    return _reduced(crop.cut(decoded), size).contiguous().numpy()


def reduce_pixels(pixels: Pixels, size: Size) -> Pixels:
    """(3, height, width) of an image (height, width, 3) that somebody else has decoded, as `decode_image` makes of a
    JPEG that it decodes whole.

    Raises ValueError for one that no camera takes.
    """
    full = (pixels.shape[1], pixels.shape[0])
    _require_size(full)
    crop = Crop.of(full, size)
    if not crop.is_whole_pixels:
        return _by_pillow(Image.fromarray(pixels), crop, full, size)
    channels_first = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return _reduced(crop.cut(channels_first), size).contiguous().numpy()


def read_with_pillow(path: Path | str, size: Size) -> Pixels:
    """The reference for ``read_image``.

    JPEGs are decoded at a reduced scale that still has twice the pixels asked for, then resized bicubically.
    """
    with Image.open(path) as image:
        crop, full = Crop.of(image.size, size), image.size
        _draft(image, crop, size)
        return _by_pillow(image, crop, full, size)


def read_images(paths: Sequence[Path | str], size: Size, workers: int = 1) -> Pixels:
    """``read_image`` of several files, (image, 3, height, width), in ``workers`` threads.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: one holds no whole image; the message names it and says what to do.
    """
    if workers > 1 and len(paths) > 1:
        with ThreadPoolExecutor(min(workers, len(paths))) as pool:  # decoding releases the interpreter lock
            images = list(pool.map(lambda path: _read(path, size), paths))
    else:
        images = [_read(path, size) for path in paths]
    return np.stack(images) if images else np.zeros((0, 3, size[1], size[0]), dtype=np.uint8)


def read_images_on_gpu(paths: Sequence[Path | str], size: Size, device: torch.device | str) -> Tensor:
    """JPEGs decoded and reduced by an NVIDIA GPU, (image, 3, height, width) uint8 there.

    nvJPEG rounds otherwise than the CPU's decoder: pixels differ by one or two of 255 here and there.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the device is no GPU, torchvision was built without nvJPEG, or a file is no JPEG that can be read;
            nothing else decodes it then.
    """
    device = torch.device(device)
    if device.type != "cuda":
        raise ValueError(f"nvJPEG decodes on CUDA devices, found {device}; take decoder cpu")
    if not torch.cuda.is_available():
        raise ValueError("nvJPEG decodes on CUDA devices, and there is none; take decoder cpu")
    contents = []
    for path in paths:
        try:
            content = _content(path)
            contents.append(content)
            with _opened(content) as image:
                kind = f"{image.format} ({image.mode})"
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            raise unreadable(path, error) from error
        if kind not in ("JPEG (RGB)", "JPEG (L)"):
            raise ValueError(f"{path}: nvJPEG decodes color and gray JPEGs, found {kind}; take decoder cpu")
    try:
        decoded = decode_jpeg([torch.from_numpy(c) for c in contents], mode=ImageReadMode.RGB, device=device)
    except RuntimeError as error:
        raise ValueError(f"nvJPEG cannot decode {paths[0]} and its like: {error}. Take decoder cpu") from error
    crops = [Crop.of((image.shape[2], image.shape[1]), size) for image in decoded]
    if not all(crop.is_whole_pixels for crop in crops):
        raise ValueError(
            f"{paths[0]} and its like cannot be cut to {size[0]}x{size[1]} in whole pixels: take decoder cpu"
        )
    return torch.stack([_reduced(crop.cut(image), size) for crop, image in zip(crops, decoded)])


def read_whole(path: Path | str) -> Pixels:
    """(height, width, 3) image as it is; errors as ``read_images``."""
    try:
        with _opened(_content(path)) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: Exception) -> ValueError:
    """What to say of a file that holds no whole image."""
    return ValueError(
        f"{path}: not a readable image ({type(error).__name__}: {error}). Get the file again; or delete it, and start "
        "without its scene (--allow-missing, where the tool has it)"
    )


def _content(path: Path | str) -> Pixels:
    with open_regular(path, MOST_BYTES) as file:
        return np.fromfile(file, dtype=np.uint8)


def _opened(content: Pixels) -> Image.Image:
    """What the header says; ValueError for an image that no camera of a car takes."""
    image = Image.open(io.BytesIO(content.data), formats=FORMATS)
    _require_size(image.size)
    if image.mode[0] in "IF":  # which Pillow would clip, not scale
        raise ValueError(f"its pixels are of mode {image.mode}, not of 8 bits")
    return image


def _require_size(size: Size) -> None:
    width, height = size
    if width * height > MOST_PIXELS or min(width, height) < LEAST_SIDE:
        raise ValueError(f"{width}x{height} pixels are no camera image")


def _read(path: Path | str, size: Size) -> Pixels:
    try:
        return read_image(path, size)
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _draft(image: Image.Image, crop: Crop, size: Size) -> bool:
    """Let a JPEG be decoded at a scale with at least twice the pixels asked for; whether that is a reduced one."""
    full = image.size
    image.draft("RGB", (round(2 * size[0] * full[0] / crop.width), round(2 * size[1] * full[1] / crop.height)))
    return image.size != full


def _by_pillow(image: Image.Image, crop: Crop, full: Size, size: Size) -> Pixels:
    """Cut and reduce what is open, at the scale that it is decoded at; ``crop`` is of the ``full`` image."""
    scale_x, scale_y = image.size[0] / full[0], image.size[1] / full[1]
    left, top = crop.left * scale_x, crop.top * scale_y
    box = (left, top, left + crop.width * scale_x, top + crop.height * scale_y)
    small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return np.ascontiguousarray(np.asarray(small, dtype=np.uint8).transpose(2, 0, 1))


def _reduced(image: Tensor, size: Size) -> Tensor:
    """(3, height, width) uint8 of ``size``; bicubic and antialiased, which is Pillow's way, too."""
    on_cpu = image.device.type == "cpu"  # which rounds as it goes, and is faster so
    batch = image.unsqueeze(0) if on_cpu else image.unsqueeze(0).float()
    small = F.interpolate(batch, (size[1], size[0]), mode="bicubic", antialias=True).squeeze(0)
    return small if on_cpu else small.round_().clamp_(0, 255).to(torch.uint8)
