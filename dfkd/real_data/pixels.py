"""The pixels of an image file, in [0, 1]: the right ones, or a refusal that says why."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dfkd.errors import DataError

DECODING = 1  # raised when equal files give other pixels than before
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # PIL's, by the channels of a network's input
EIGHT_BITS = ("1", "L", "P", "LA", "La", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of a TIFF
WHITE_IS_ZERO = 0


def decode(content: bytes, channels: int) -> np.ndarray:
    """The pixels (H, W, channels) of a file's first and only picture, as uint8 or uint16 of full scale.

    Colours become what the network takes: grey is repeated, colours are weighed to grey, alpha is dropped where every
    pixel is opaque. Colour profiles and EXIF orientation are ignored, as torchvision does. Call it within
    `strict_about_size`.

    Raises:
        DataError: the file is damaged, too large, or there is no one right value for its pixels; the reason alone.
    """
    try:
        with Image.open(io.BytesIO(content), formats=formats()) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # of a stereo photo, the first is the photo
                raise DataError(f"it holds {image.n_frames} pictures: save the one that counts")  # type: ignore[attr-defined]
            image.load()
            return as_array(image, channels)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller") from error
    except UnidentifiedImageError as error:
        raise DataError("it is in no format that PIL knows") from error
    except DataError:
        raise
    except Exception as error:  # a damaged file makes PIL's readers raise anything
        raise DataError(f"it is damaged ({type(error).__name__}: {error})") from error


def formats() -> list[str]:
    """The formats that PIL opens by itself; for PostScript it would run an interpreter on the file."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


@contextmanager
def strict_about_size() -> Iterator[None]:
    """Within the context, PIL refuses pictures of a size that it would warn of, and is silent about odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def as_array(image: Image.Image, channels: int) -> np.ndarray:
    """A picture's pixels as `decode` gives them."""
    sixteen_bits = image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM")
    if sixteen_bits:
        grey = _sixteen_bit_grey(image)
        opaque = np.full_like(grey, 65535)
        return np.stack([grey] * min(channels, 3) + [opaque] * (channels == 4), axis=2)
    if image.mode not in EIGHT_BITS:
        raise DataError(
            f"PIL reads it in mode {image.mode}, whose values have no fixed scale: save it with 8 or 16 bits"
        )
    pixels = np.asarray(_without_alpha(image, channels).convert(MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _sixteen_bit_grey(image: Image.Image) -> np.ndarray:
    """(H, W) as uint16. PIL's own conversion to 8 bits would clip all values above 255."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(BITS_PER_SAMPLE, (16,)) != (16,) or tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise DataError(
            "it is a TIFF of 12 bits, or with white as zero, which PIL does not scale: save it with 16 bits"
        )
    if "transparency" in image.info:
        raise DataError("it has a transparent colour and 16 bits: save it without")
    return np.asarray(image).astype(np.uint16)


def _without_alpha(image: Image.Image, channels: int) -> Image.Image:
    if not (image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        return image
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # from colours multiplied by alpha
    whole = (image if straight is None else image.convert(straight)).convert("RGBA")
    if channels != 4 and whole.getchannel("A").getextrema()[0] != 255:
        # What lies beneath is anything, often black, and nobody sees it.
        raise DataError("it has transparent pixels, whose colour depends on the background: save it on the right one")
    return whole


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Pixels (H, W, C) of full scale as a tensor (C, H, W) in [0, 1]."""
    scale = np.iinfo(pixels.dtype).max
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous() / scale
