"""Test properties of all bodies, headers and streams with examples that hypothesis generates."""

import asyncio
import hashlib
import itertools
import json
import string

from hypothesis import given, settings
from hypothesis import strategies as some

from app import sse
from app.body import read_object
from app.callers import Callers
from app.errors import Problem
from app.policy import FIELDS, Policy
from app.settings import Settings
from app.upstream import UsageFilter

KEY = "caller-key-0123456"
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, database=None)
settings.load_profile("ci")

scalars = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20)
values = some.recursive(
    scalars,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
names = some.sampled_from(sorted(set().union(*FIELDS.values()) | {"priority", "ignore_eos"}))
bodies = some.dictionaries(names, values, max_size=6)


def received(*pieces: bytes):
    """Return a `receive` that delivers a body in these pieces and then the disconnect."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages += [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict:
        return messages.pop(0)

    return receive


def read(*pieces: bytes) -> dict | None:
    """Return the parsed object, or None if the body is rejected."""
    try:
        return asyncio.run(read_object(received(*pieces), 1000))
    except Problem as problem:
        assert problem.status_code == 400
        return None


@given(some.binary(max_size=60))
def test_whatever_is_sent_is_an_object_or_refused(content):
    body = read(content)
    assert body is None or json.loads(content) == body


@given(bodies, some.data())
def test_an_object_is_read_however_it_is_cut_and_can_be_carried_on(body, data):
    written = json.dumps(body).encode()
    cut = data.draw(some.integers(0, len(written)))
    got = read(written[:cut], written[cut:])
    try:
        carried = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        assert got is None
    else:
        assert got is not None and json.dumps(got, ensure_ascii=False).encode() == carried


class Bounds:
    """The limits in the settings' defaults."""

    extra_fields: tuple = ()
    max_choices, max_answer_tokens, max_logprobs, max_stops, max_schema_bytes = (
        Settings.model_fields[name].default
        for name in ("max_choices", "max_answer_tokens", "max_logprobs", "max_stops", "max_schema_bytes")
    )


@given(some.sampled_from(sorted(FIELDS)), bodies)
def test_what_passes_is_on_the_list_and_within_bounds(path, body):
    try:
        Policy(Bounds).check(path, body)
    except Problem as problem:
        assert problem.status_code == 400 and len(problem.detail) < 300 and "\n" not in problem.detail
        return
    assert set(body) <= FIELDS[path]
    for name, most in (("n", Bounds.max_choices), ("max_tokens", Bounds.max_answer_tokens)):
        if isinstance(body.get(name), (int, float)):
            assert body[name] <= most


header_text = some.text(some.characters(codec="latin-1"), max_size=80)


@given(some.sampled_from(["Bearer ", "bearer\t", "Basic ", ""]), header_text)
def test_only_the_key_is_the_key(scheme, rest):
    assert Callers([KEY]).name(scheme + rest) is None or rest.strip() == KEY


@given(some.sampled_from(["Bearer", "bearer", "BEARER"]), some.text(" ", min_size=1, max_size=3))
def test_a_key_is_found_however_the_scheme_is_written(scheme, space):
    assert Callers([KEY]).name(f"{scheme}{space}{KEY}") == hashlib.sha256(KEY.encode()).hexdigest()[:8]


def cut(content: bytes, places: list[int]) -> list[bytes]:
    """Return the content, split at these positions."""
    ends = sorted({place % (len(content) + 1) for place in places} | {0, len(content)})
    return [content[begin:end] for begin, end in itertools.pairwise(ends)]


def collected(pieces: list[bytes]) -> list[tuple[str, str]]:
    async def chunks():
        for piece in pieces:
            yield piece

    async def collect() -> list[tuple[str, str]]:
        return [event async for event in sse.events(chunks())]

    return asyncio.run(collect())


lines = some.text(some.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]), max_size=20)
places = some.lists(some.integers(0, 400), max_size=8)


@given(
    some.lists(some.tuples(some.text(string.ascii_lowercase, max_size=6), some.lists(lines, min_size=1, max_size=3))),
    some.sampled_from(["\n", "\r\n", "\r"]),
    places,
)
def test_events_are_the_same_however_they_are_cut_and_ended(events, end, places):
    text = ""
    for kind, data in events:
        named = [f"event: {kind}"] if kind else []
        text += "".join(line + end for line in [*named, *(f"data: {line}" for line in data), ": a comment", ""])
    assert collected(cut(text.encode(), places)) == [(kind or "message", "\n".join(data)) for kind, data in events]


@given(some.binary(max_size=200), places)
def test_any_bytes_are_some_events_and_the_same_ones(content, places):
    assert collected(cut(content, places)) == collected([content])


chunk = some.builds(
    lambda text: f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode(), lines
)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"total_tokens":7,"completion_tokens":4}}\n\n'


@given(some.lists(chunk, max_size=4), some.booleans(), places)
def test_a_stream_passes_unchanged_except_for_the_added_usage(chunks, ours, places):
    before, end = b"".join(chunks), b"data: [DONE]\n\n"
    passing = UsageFilter(ours)
    passed = b"".join(passing.passed(piece) for piece in cut(before + USAGE + end, places)) + passing.rest()
    assert passed == before + (b"" if ours else USAGE) + end
    assert passing.usage["completion_tokens"] == 4
