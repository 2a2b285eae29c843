"""Every kind of image file has the right pixels, or is refused with the reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from dfkd.errors import DataError
from dfkd.models import InputSpec
from dfkd.real_data import Purpose, image_folder
from dfkd.real_data.pixels import decode, strict_about_size, to_tensor

RAMP = np.linspace(0, 255, 48).round().astype(np.uint8).reshape(6, 8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
LUMA = COLOURS @ np.array([0.299, 0.587, 0.114])


def file_of(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content, channels=3):
    with strict_about_size():
        return to_tensor(decode(content, channels))


def expected(values, channels=3):
    """Grey (H, W) or colours (H, W, 3) in [0, 1] as the network sees them."""
    values = torch.as_tensor(np.asarray(values, dtype=np.float32))
    if values.dim() == 2:
        return values.expand(channels, -1, -1)
    return values.permute(2, 0, 1)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(bits: int, colour_type: int, rows: bytes, width: int, height: int, *extra: bytes) -> bytes:
    """A PNG by hand, of bit depths that PIL does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)),
                     chunk(b"IEND", b"")])  # fmt: skip


DEEP = (RAMP.astype(np.uint16) * 257) ^ 0x55  # values between those of 8 bits


def deep_colours(kind):
    raw = DEEP[:, :, None].repeat(3, 2).astype(">u2")
    if kind == "PNG":
        return png(16, 2, b"".join(b"\0" + row.tobytes() for row in raw), 8, 6)
    return b"P6 8 6 65535\n" + raw.tobytes()


def shades(bits):
    return np.arange(2**bits)[None].repeat(2, 0) / (2**bits - 1)


def packed(bits):
    """A grey PNG of all 2^bits shades in a row, twice."""
    row = sum(value << (bits * (2**bits - 1 - value)) for value in range(2**bits))
    size = max(1, bits * 2**bits // 8)
    content = (row << (8 * size - bits * 2**bits)).to_bytes(size, "big")
    return png(bits, 0, 2 * (b"\0" + content), 2**bits, 2)


def palette():
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    return image


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]])[[[0, 1, 2], [2, 1, 0]]] / 255
OPAQUE = np.dstack([COLOURS, np.full_like(RAMP, 255)])
GREY = RAMP / 255

RIGHT = {
    "8 bits": (lambda: file_of(Image.fromarray(RAMP)), GREY, 0),
    "colours": (lambda: file_of(Image.fromarray(COLOURS)), COLOURS / 255, 0),
    "colours, BMP": (lambda: file_of(Image.fromarray(COLOURS), "BMP"), COLOURS / 255, 0),
    "colours, WebP": (lambda: file_of(Image.fromarray(COLOURS), "WEBP", lossless=True), COLOURS / 255, 0),
    "colours, TIFF": (lambda: file_of(Image.fromarray(COLOURS), "TIFF", compression="tiff_lzw"), COLOURS / 255, 0),
    "colours, PPM": (lambda: file_of(Image.fromarray(COLOURS), "PPM"), COLOURS / 255, 0),
    "16 bits, PNG": (lambda: file_of(Image.fromarray(DEEP)), DEEP / 65535, 0),
    "16 bits, TIFF": (lambda: file_of(Image.fromarray(DEEP), "TIFF"), DEEP / 65535, 0),
    "16 bits, big-endian TIFF": (lambda: big_endian_tiff(DEEP), DEEP / 65535, 0),
    "16 bits, PGM": (lambda: b"P5 8 6 65535\n" + DEEP.astype(">u2").tobytes(), DEEP / 65535, 0),
    "12 bits, PGM": (lambda: b"P5 8 6 4095\n" + (DEEP // 17).clip(max=4095).astype(">u2").tobytes(),
                     (DEEP // 17).clip(max=4095) / 4095, 1e-4),
    "7 shades, PGM": (lambda: b"P5 7 1 6\n" + bytes(range(7)), np.arange(7)[None] / 6, 1 / 500),
    "text, PGM": (lambda: b"P2 3 1 1000\n0 500 1000\n", np.array([[0, 0.5, 1]]), 1e-4),
    "16 bits, colour PNG": (lambda: deep_colours("PNG"), np.dstack([DEEP] * 3) / 65535, 1 / 255),
    "16 bits, colour PPM": (lambda: deep_colours("PPM"), np.dstack([DEEP] * 3) / 65535, 1 / 255),
    "1 bit": (lambda: file_of(Image.fromarray(RAMP > 99)), RAMP > 99, 0),
    "1 bit, PNG by hand": (lambda: packed(1), shades(1), 0),
    "2 bits": (lambda: packed(2), shades(2), 0),
    "4 bits": (lambda: packed(4), shades(4), 0),
    "1 bit, PBM": (lambda: file_of(Image.fromarray(RAMP > 99), "PPM"), RAMP > 99, 0),
    "1 bit, TIFF": (lambda: file_of(Image.fromarray(RAMP > 99), "TIFF", compression="group4"), RAMP > 99, 0),
    "a palette": (lambda: file_of(palette()), PALETTE, 0),
    "a palette of BMP": (lambda: file_of(palette(), "BMP"), PALETTE, 0),
    "a palette of TIFF": (lambda: file_of(palette(), "TIFF"), PALETTE, 0),
    "opaque alpha": (lambda: file_of(Image.fromarray(OPAQUE)), COLOURS / 255, 0),
    "opaque grey with alpha": (lambda: file_of(Image.fromarray(OPAQUE[:, :, [0, 3]], "LA")), GREY, 0),
    "an opaque palette with alpha": (lambda: file_of(palette(), transparency=b"\xff\xff\xff"), PALETTE, 0),
    "a transparent colour that is not there": (lambda: file_of(Image.fromarray(COLOURS), transparency=(1, 2, 3)),
                                               COLOURS / 255, 0),
    "CMYK, TIFF": (lambda: file_of(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS / 255, 0),
    "CMYK, JPEG": (lambda: file_of(Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK"), "JPEG", quality=95),
                   np.full((16, 16, 3), (200, 100, 50)) / 255, 3 / 255),
    "grey JPEG": (lambda: file_of(Image.new("L", (16, 16), 77), "JPEG"), np.full((16, 16), 77) / 255, 2 / 255),
    "YCbCr, TIFF": (lambda: file_of(Image.new("YCbCr", (16, 16), (128, 128, 128)), "TIFF"),
                    np.full((16, 16), 128) / 255, 1 / 255),
    "white is zero, 8 bits": (lambda: white_is_zero(RAMP), 1 - GREY, 0),
    "a stereo photo": (lambda: stereo(), np.full((16, 16), 77) / 255, 2 / 255),
}  # fmt: skip


def big_endian_tiff(values):
    image = Image.new("I;16B", values.shape[::-1])
    image.frombytes(values.astype(">u2").tobytes())
    return file_of(image, "TIFF")


def with_tag(content, tag, value):
    """A little-endian TIFF with another short value of a tag."""
    data = bytearray(content)
    (place,) = struct.unpack_from("<I", data, 4)
    for entry in range(struct.unpack_from("<H", data, place)[0]):
        start = place + 2 + 12 * entry
        if struct.unpack_from("<H", data, start)[0] == tag:
            struct.pack_into("<H", data, start + 8, value)
            return bytes(data)
    raise KeyError(tag)


def white_is_zero(values):
    return with_tag(file_of(Image.fromarray(values), "TIFF"), TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)


def stereo():
    first, second = Image.new("L", (16, 16), 77), Image.new("L", (16, 16), 200)
    return file_of(first, "MPO", save_all=True, append_images=[second])


@pytest.mark.parametrize("case", RIGHT)
def test_the_pixels_are_right(case):
    build, values, tolerance = RIGHT[case]
    torch.testing.assert_close(pixels(build()), expected(values), rtol=0, atol=tolerance + 1e-6)


@pytest.mark.parametrize("case", [name for name in RIGHT if "JPEG" not in name])
def test_a_grey_network_sees_how_light_they_are(case):
    build, values, tolerance = RIGHT[case]
    values = np.asarray(values, dtype=np.float32)
    grey = values if values.ndim == 2 else values @ np.array([0.299, 0.587, 0.114], np.float32)
    torch.testing.assert_close(pixels(build(), 1), expected(grey, 1), rtol=0, atol=tolerance + 1.1 / 255)
    if values.ndim == 2:
        torch.testing.assert_close(pixels(build(), 1), expected(grey, 1), rtol=0, atol=tolerance + 1e-6)


def test_a_network_of_four_channels_sees_alpha():
    alpha = np.dstack([COLOURS, RAMP])
    torch.testing.assert_close(pixels(file_of(Image.fromarray(alpha)), 4) * 255, expected(alpha), rtol=0, atol=1e-3)
    opaque = torch.cat([expected(COLOURS), torch.full((1, 6, 8), 255.0)])
    torch.testing.assert_close(pixels(file_of(Image.fromarray(COLOURS)), 4) * 255, opaque, rtol=0, atol=1e-3)
    deep = torch.cat([expected(DEEP / 65535), torch.ones(1, 6, 8)])
    torch.testing.assert_close(pixels(file_of(Image.fromarray(DEEP)), 4), deep)


CLEAR = np.dstack([COLOURS, RAMP])

REFUSED = {
    "32-bit float": (lambda: file_of(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "mode F"),
    "float, PFM": (lambda: b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0.5, 1.0), "mode F"),
    "32-bit integers": (lambda: file_of(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "mode I"),
    "signed 16 bits": (lambda: signed_tiff(), "mode I"),
    "16 bits, white is zero": (lambda: white_is_zero(DEEP), "with white as zero"),
    "12-bit TIFF": (lambda: with_tag(file_of(Image.fromarray(DEEP), "TIFF"), 258, 12), "12 bits|damaged"),
    "LAB": (lambda: file_of(Image.new("LAB", (4, 4)), "TIFF"), "mode LAB"),
    "alpha": (lambda: file_of(Image.fromarray(CLEAR)), "transparent pixels"),
    "alpha of WebP": (lambda: file_of(Image.fromarray(CLEAR), "WEBP"), "transparent pixels"),
    "grey with alpha": (lambda: file_of(Image.fromarray(CLEAR[:, :, [0, 3]], "LA")), "transparent pixels"),
    "a palette with alpha": (lambda: file_of(palette(), transparency=b"\xff\x00\xff"), "transparent pixels"),
    "a palette with a transparent colour": (lambda: file_of(palette(), transparency=1), "transparent pixels"),
    "a transparent colour": (lambda: file_of(Image.fromarray(COLOURS), transparency=tuple(COLOURS[0, 0].tolist())),
                             "transparent pixels"),
    "a transparent grey": (lambda: file_of(Image.fromarray(RAMP), transparency=0), "transparent pixels"),
    "a transparent grey of 16 bits": (lambda: png(16, 0, 2 * b"\0\0\1\2\3", 2, 2, chunk(b"tRNS", b"\0\1")),
                                      "transparent colour and 16 bits"),
    "pages": (lambda: file_of(Image.fromarray(RAMP), "TIFF", save_all=True, append_images=[Image.fromarray(RAMP)]),
              "2 pictures"),
    "an animation": (lambda: file_of(Image.fromarray(COLOURS), "WEBP", save_all=True,
                                     append_images=[Image.fromarray(COLOURS[::-1].copy())]), "2 pictures"),
    "an animated PNG": (lambda: file_of(Image.fromarray(COLOURS), "PNG", save_all=True,
                                        append_images=[Image.fromarray(COLOURS[::-1].copy())]), "2 pictures"),
    "too large": (lambda: png(8, 0, b"", 30_000, 30_000), "more than .* pixels"),
    "large": (lambda: png(8, 0, b"", 10_000, 9_500), "more than .* pixels"),
    "no image": (lambda: b"no image at all", "no format that PIL knows"),
    "cut PNG": (lambda: file_of(Image.fromarray(COLOURS))[:80], "damaged"),
    "cut JPEG": (lambda: file_of(Image.fromarray(COLOURS), "JPEG")[:-20], "damaged"),
    "cut WebP": (lambda: file_of(Image.fromarray(COLOURS), "WEBP")[:-20], "damaged|no format"),
    "cut TIFF": (lambda: file_of(Image.fromarray(COLOURS), "TIFF")[:60], "damaged|no format"),
    "cut BMP": (lambda: file_of(Image.fromarray(COLOURS), "BMP")[:60], "damaged"),
    "cut PGM": (lambda: b"P5 8 6 65535\n\0\0", "damaged"),
}  # fmt: skip


def signed_tiff():
    content = file_of(Image.fromarray(DEEP), "TIFF", tiffinfo={339: 1})
    return with_tag(content, 339, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_one_right_value_is_refused(case, channels):
    build, reason = REFUSED[case]
    with pytest.raises(DataError, match=reason), strict_about_size():
        decode(build(), channels)


def test_a_file_of_16_bits_is_scaled_and_named_where_it_cannot_be(tmp_path):
    spec = InputSpec((1, 6, 8), 2, (0.5,), (0.25,))
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(DEEP).save(tmp_path / split / name / "deep.png")
    source = image_folder(spec, str(tmp_path))
    source.check(spec, Purpose.EVALUATION)
    image, _ = source.open(Purpose.EVALUATION)[0]
    torch.testing.assert_close(image * 0.25 + 0.5, expected(DEEP / 65535, 1))
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "test" / "b" / "float.tiff")
    with pytest.raises(DataError, match=r"b/float.tiff \(PIL reads it in mode F, .* save it with 8 or 16 bits\)"):
        image_folder(spec, str(tmp_path)).check(spec, Purpose.EVALUATION)
