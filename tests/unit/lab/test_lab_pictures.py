"""Checking dashboards: the content of a panel is judged, and pictures are compressed without visible changes."""

import struct
import zlib

import numpy
import pytest

from lab import figures, pictures, png


@pytest.mark.parametrize(
    "needs, drawn, alerts, legend, has, problem",
    [
        ("", True, (), ("gpu1",), set(), ""),
        ("", True, (), ("gpu1", "limit"), set(), ""),
        ("", True, (), ("limit",), set(), "d, p: no data"),
        ("", False, (), (), set(), "d, p: no data"),
        ("", True, ("parse error",), ("gpu1",), set(), "d, p: parse error"),
        ("a GPU", True, (), ("at least",), set(), ""),
        ("a GPU", True, (), ("at least",), {"a GPU"}, "d, p: no data"),
        ("a GPU", True, ("parse error",), (), set(), "d, p: parse error"),
    ],
)
def test_a_panel_is_judged_by_what_it_shows(needs, drawn, alerts, legend, has, problem):
    assert pictures.Seen("d", "p", needs, drawn, alerts, legend).problem(has) == problem


def test_what_the_figures_lack_is_what_panels_need():
    assert "a GPU" in figures.has()
    assert not figures.has() & figures.LACKS


def test_every_page_of_the_stand_in_is_scraped_once():
    jobs = figures.scraped("pages", "node", "store", "agent")["scrape_configs"]
    places = [(one["static_configs"][0]["targets"][0], one["metrics_path"], one["job_name"]) for one in jobs]
    assert len(set(places)) == len(places)
    assert {one["static_configs"][0]["labels"]["job"] for one in jobs} >= {"vllm", "ai_server", "vmagent"}


def encoded(pixels, filters):
    """Return a PNG whose rows have the given filters, as browsers encode them."""
    height, width, channels = pixels.shape
    rows, above = b"", numpy.zeros(width * channels, int)
    for number, kind in enumerate(filters):
        line = pixels[number].reshape(-1).astype(int)
        left = numpy.concatenate([numpy.zeros(channels, int), line[:-channels]])
        corner = numpy.concatenate([numpy.zeros(channels, int), above[:-channels]])
        guess = left + above - corner
        near = numpy.stack([abs(guess - left), abs(guess - above), abs(guess - corner)]).argmin(axis=0)
        paeth = numpy.choose(near, [left, above, corner])
        taken = [0 * line, left, above, (left + above) // 2, paeth][kind]
        rows += bytes([kind]) + ((line - taken) & 255).astype(numpy.uint8).tobytes()
        above = line
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text)) for kind, text in chunks
    )


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_of_every_filter_are_read(channels):
    pixels = numpy.random.default_rng(7).integers(0, 256, (10, 6, channels), numpy.uint8)
    read = png.pixels_of(encoded(pixels, [0, 1, 2, 3, 4] * 2))
    assert (read == pixels[:, :, :3]).all()


def palette_and_rows(picture):
    palette = numpy.frombuffer(picture[picture.index(b"PLTE") + 4 :][: 3 * 256], numpy.uint8)
    data = zlib.decompress(picture[picture.index(b"IDAT") + 4 : -16])
    return palette, data


def test_a_picture_of_few_colours_stays_as_it_is():
    pixels = numpy.zeros((2, 3, 3), numpy.uint8)
    pixels[0, 0], pixels[1, 2] = (255, 0, 0), (0, 0, 255)
    palette, data = palette_and_rows(png.lean(pixels))
    rows = [data[1:4], data[5:8]]
    assert [[tuple(palette[3 * one : 3 * one + 3]) for one in row] for row in rows] == [
        [(255, 0, 0), (0, 0, 0), (0, 0, 0)],
        [(0, 0, 0), (0, 0, 0), (0, 0, 255)],
    ]


def test_a_large_picture_gets_fewer_colours():
    chance = numpy.random.default_rng(7)
    colours = chance.integers(0, 256, (400, 3), numpy.uint8)
    noise = colours[chance.integers(0, len(colours), (400, 700))]
    assert len(png.lean(noise)) < png.LARGEST < len(png.with_palette(noise, 256, 0))


def test_few_colours_are_different_ones():
    pixels = numpy.full((40, 40, 3), 255, numpy.uint8)
    pixels[:10] = numpy.arange(200, 240, dtype=numpy.uint8)[:, None]  # many greys
    pixels[30, 5] = (230, 25, 75)
    palette, _ = palette_and_rows(png.with_palette(pixels, 16, 120))
    assert (230, 25, 75) in [tuple(palette[at : at + 3]) for at in range(0, 48, 3)]
