"""Screenshots of a browser, compressed to a size fit for the repository."""

from __future__ import annotations

import struct
import zlib

import numpy

from lab.host import Problem

LARGEST = 200_000  # bytes of a picture
# At most how many colours, and their least distance: otherwise the few most frequent ones would all be greys.
STEPS = ((256, 0), (64, 30), (32, 60), (16, 120))


def lean(pixels: numpy.ndarray) -> bytes:
    """Return a picture (rows of RGB pixels) as PNG, with as few colours as its size requires."""
    for most, apart in STEPS:
        png = with_palette(pixels, most, apart)
        if len(png) < LARGEST:
            break
    return png


def with_palette(pixels: numpy.ndarray, most: int, apart: int) -> bytes:
    """Return a picture as PNG with its `most` most frequent colours that are more than `apart` apart.

    Every other colour is replaced by the nearest one.
    """
    codes = pixels.astype(numpy.uint32) @ numpy.array([1 << 16, 1 << 8, 1], numpy.uint32)
    found, index, counts = numpy.unique(codes, return_inverse=True, return_counts=True)
    colours = numpy.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(int)
    kept: list[int] = []
    for number in numpy.argsort(counts)[::-1]:
        if not kept or distances(colours[kept], colours[number]).min() > apart:
            kept.append(number)
        if len(kept) == most:
            break
    chosen = colours[kept]
    nearest = numpy.array([distances(chosen, colour).argmin() for colour in colours], numpy.uint8)
    index = nearest[index]
    palette = chosen.astype(numpy.uint8).tobytes()
    height, width = pixels.shape[:2]
    rows = numpy.zeros((height, width + 1), numpy.uint8)
    rows[:, 1:] = index.reshape(height, width)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 9)
    chunks = (b"IHDR", header), (b"PLTE", palette), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, text) for kind, text in chunks)


def distances(colours: numpy.ndarray, one: numpy.ndarray) -> numpy.ndarray:
    """Return the distance of each colour from one colour."""
    return numpy.abs(colours - one).sum(axis=1)


def pixels_of(png: bytes) -> numpy.ndarray:
    """Return the pixels of a PNG as browsers write it: 8 bits, RGB or RGBA, not interlaced."""
    position, data, width, height, channels = 8, b"", 0, 0, 3
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind, text = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        position += length + 12
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", text)
            if depth != 8 or colour not in (2, 6) or interlaced:
                raise Problem("The browser's picture has an unsupported PNG format.")
            channels = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            data += text
    raw = zlib.decompress(data)
    stride = width * channels
    above = numpy.zeros(stride, numpy.uint8)
    rows = numpy.empty((height, stride), numpy.uint8)
    for number in range(height):
        start = number * (stride + 1)
        line = numpy.frombuffer(raw, numpy.uint8, stride, start + 1)
        above = rows[number] = unfiltered(raw[start], line, above, channels)
    return rows.reshape(height, width, channels)[:, :, :3]


def unfiltered(kind: int, line: numpy.ndarray, above: numpy.ndarray, channels: int) -> numpy.ndarray:
    """Return the unfiltered row of a PNG; the filters are 0 none, 1 sub, 2 up, 3 average, 4 Paeth."""
    if kind == 0:
        return line
    if kind == 1:
        return numpy.cumsum(line.reshape(-1, channels), axis=0, dtype=numpy.uint8).reshape(-1)
    if kind == 2:
        return line + above
    row, up, out = line.tolist(), above.tolist(), [0] * len(line)
    for i, value in enumerate(row):
        a = out[i - channels] if i >= channels else 0
        b = up[i]
        c = up[i - channels] if i >= channels else 0
        if kind == 3:
            guess = (a + b) // 2
        else:
            guess = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        out[i] = (value + guess) & 255
    return numpy.array(out, numpy.uint8)
