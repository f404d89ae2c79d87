"""A picture after TensorFlow's JPEG round trip, to the bit: `decode_image(encode_jpeg(picture))` with its defaults.

Pillow will not do: TensorFlow decodes with libjpeg's fast integer transform (its own default, `INTEGER_FAST`), which
Pillow does not offer, and the difference is up to 15 grey levels. Huffman coding loses nothing, so it is left out; what
remains is arithmetic on whole numbers, written here from ITU-T T.81 and the fixed-point conventions of libjpeg: colours
by 16-bit fractions, chroma halved both ways, accurate forward transform (Loeffler, Ligtenberg and Moschytz, 13-bit
constants), tables of quality 95, fast inverse transform (Arai, Agui and Nakajima, 8-bit constants), triangle-filter
upsampling. Equal to TensorFlow 2.21 in every pixel compared (tests/data/openvla), for pictures over four pixels wide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vla_bench.types import Image

Ints = NDArray[np.int32]

QUALITY = 95  # tf.image.encode_jpeg's default
_LUMINANCE = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""  # T.81 table K.1
_CHROMINANCE = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
"""  # T.81 table K.2


def through_jpeg(picture: Image) -> Image:
    """uint8 (H, W, 3) -> the same shape."""
    height, width = picture.shape[:2]
    luma, *chroma = _to_ycc(_padded(picture, 2, 16))
    planes = [_coded(_padded(luma, 16, 16), _quantiser(_LUMINANCE))]
    for plane in chroma:
        halved = _padded(_halved(plane), 8, 8)
        decoded = _coded(halved, _quantiser(_CHROMINANCE))
        planes.append(_doubled(decoded[: (height + 1) // 2, : (width + 1) // 2]))
    return _to_rgb(*(plane[:height, :width] for plane in planes))


def _padded(values: NDArray[np.generic], rows: int, columns: int) -> Ints:
    """The last row and column repeated up to multiples of these."""
    height, width = values.shape[:2]
    more = ((0, -height % rows), (0, -width % columns), *[(0, 0)] * (values.ndim - 2))
    return np.pad(values.astype(np.int32), more, mode="edge")


def _coded(plane: Ints, quantiser: Ints) -> Ints:
    """(H, W), multiples of 8, transformed, quantised and back."""
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    blocks = plane.reshape(rows, 8, columns, 8).transpose(1, 3, 0, 2)  # (8, 8, rows, columns)
    coefficients = _forward(blocks - 128)
    divisor = (quantiser << 3)[:, :, None, None]  # the forward transform is 8 times too large
    levels = np.sign(coefficients) * ((np.abs(coefficients) + (divisor >> 1)) // divisor)
    return _inverse(levels, quantiser).transpose(2, 0, 3, 1).reshape(plane.shape)


def _quantiser(text: str) -> Ints:
    """(8, 8) of a standard table at our quality."""
    table = np.array(text.split(), np.int32).reshape(8, 8)
    return np.clip((table * (200 - 2 * QUALITY) + 50) // 100, 1, 255)


# Colours


def _fraction(number: float) -> int:
    return int(number * (1 << 16) + 0.5)


def _to_ycc(picture: Ints) -> tuple[Ints, Ints, Ints]:
    red, green, blue = (picture[..., channel] for channel in range(3))
    half = 1 << 15
    middle = (128 << 16) + half - 1
    luma = _fraction(0.299) * red + _fraction(0.587) * green + _fraction(0.114) * blue + half
    to_blue = -_fraction(0.16874) * red - _fraction(0.33126) * green + _fraction(0.5) * blue + middle
    to_red = _fraction(0.5) * red - _fraction(0.41869) * green - _fraction(0.08131) * blue + middle
    return luma >> 16, to_blue >> 16, to_red >> 16


def _to_rgb(luma: Ints, to_blue: Ints, to_red: Ints) -> Image:
    half = 1 << 15
    to_blue, to_red = to_blue - 128, to_red - 128
    red = luma + ((_fraction(1.402) * to_red + half) >> 16)
    green = luma + ((-_fraction(0.34414) * to_blue - _fraction(0.71414) * to_red + half) >> 16)
    blue = luma + ((_fraction(1.772) * to_blue + half) >> 16)
    picture = np.stack([red, green, blue], axis=-1)
    return picture.clip(0, 255).astype(np.uint8)


def _halved(plane: Ints) -> Ints:
    """Means of 2 x 2, rounded down and up in turn along a row."""
    sums = plane[0::2, 0::2] + plane[0::2, 1::2] + plane[1::2, 0::2] + plane[1::2, 1::2]
    return (sums + 1 + np.arange(sums.shape[1], dtype=np.int32) % 2) >> 2


def _doubled(plane: Ints) -> Ints:
    """Each pixel as 2 x 2, three quarters of itself and one of its neighbour, down and then across."""
    above, below = np.vstack([plane[:1], plane[:-1]]), np.vstack([plane[1:], plane[-1:]])
    tall = np.stack([3 * plane + above, 3 * plane + below], axis=1).reshape(-1, plane.shape[1])
    left, right = np.hstack([tall[:, :1], tall[:, :-1]]), np.hstack([tall[:, 1:], tall[:, -1:]])
    return np.stack([(3 * tall + left + 8) >> 4, (3 * tall + right + 7) >> 4], axis=2).reshape(len(tall), -1)


# Transforms of (8, 8, ...) blocks; each works along the first axis


def _rounded(values: Ints, bits: int) -> Ints:
    return (values + (1 << (bits - 1))) >> bits


def _forward(blocks: Ints) -> Ints:
    """8 times the cosine transform: rows with two extra bits, then columns without them."""
    rows = _forward_once(blocks.swapaxes(0, 1), extra=2).swapaxes(0, 1)
    return _forward_once(rows, extra=-2)


def _forward_once(x: Ints, extra: int) -> Ints:
    sums, differences = x[:4] + x[:3:-1], (x[:4] - x[:3:-1])[::-1]
    outer, inner = sums[:2] + sums[:1:-1], sums[:2] - sums[:1:-1]
    even = [outer[0] + outer[1], outer[0] - outer[1]]
    shared = (inner[0] + inner[1]) * 4433
    bits = 13 - extra
    turned = [_rounded(shared + inner[0] * 6270, bits), _rounded(shared - inner[1] * 15137, bits)]
    a, b, c, d = differences  # of the pairs 3-4, 2-5, 1-6, 0-7
    common = (a + b + c + d) * 9633
    ad, bc = (a + d) * -7373, (b + c) * -20995
    ac, bd = (a + c) * -16069 + common, (b + d) * -3196 + common
    odd = [d * 12299 + ad + bd, c * 25172 + bc + ac, b * 16819 + bc + bd, a * 2446 + ad + ac]
    first, third, fifth, seventh = (_rounded(value, bits) for value in odd)
    zeroth, fourth = (value << extra if extra > 0 else _rounded(value, -extra) for value in even)
    return np.stack([zeroth, first, turned[0], third, fourth, fifth, turned[1], seventh])


_SCALES = np.array([16384, 22725, 21407, 19266, 16384, 12873, 8867, 4520], np.int64)
"""cos(k pi / 16) sqrt(2) in 14 bits, 1 for k = 0: what the fast transform leaves to the dequantiser."""


def _inverse(levels: Ints, quantiser: Ints) -> Ints:
    """Pixels 0 to 255 of quantised coefficients: columns, then rows."""
    scales = (np.outer(_SCALES, _SCALES) + (1 << 13)) >> 14
    dequantiser = ((quantiser * scales + (1 << 11)) >> 12).astype(np.int32)
    columns = _inverse_once(levels * dequantiser[:, :, None, None])
    rows = _inverse_once(columns.swapaxes(0, 1)).swapaxes(0, 1)
    pixels: Ints = ((rows >> 5) + 128).clip(0, 255)
    return pixels


def _inverse_once(x: Ints) -> Ints:
    sums, differences = x[0] + x[4], x[0] - x[4]
    sixth = x[2] + x[6]
    second = ((x[2] - x[6]) * 362 >> 8) - sixth
    even = [sums + sixth, differences + second, differences - second, sums - sixth]
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    common = (z10 + z12) * 473 >> 8
    seven = z11 + z13
    six = (z10 * -669 >> 8) + common - seven
    five = ((z11 - z13) * 362 >> 8) - six
    four = (z12 * 277 >> 8) - common + five
    odd = [seven, six, five, -four]
    first = [e + o for e, o in zip(even, odd, strict=True)]
    return np.stack([*first, *(e - o for e, o in zip(even[::-1], odd[::-1], strict=True))])
