"""The table of known causes, and the search for rows that match lines."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .lines import DEBUG, INFO, WARNING, Line
from .literals import needed

# In this order a cause comes before another one, because it explains it.
AREAS = ("host", "gpu", "unit", "files", "engine", "client")
RANKS = ("cause", "general", "effect")
PATTERNS = ("unless", "after", "unless_after", "until", "frame")
TABLE = Path(__file__).resolve().parents[3] / "data" / "diagnosis"
# Services that a host can have several of, each with the name of the one that needs none.
ENGINES = {"vllm": "vllm", "llama_cpp": "llama-cpp"}
JOINED = 4  # maximum number of lines that a program breaks one message into
INNERMOST = 4  # frames of a traceback that show where it was raised
LONGEST = 4000  # characters of a line that are searched
NARROWEST = 30  # columns of a terminal that breaks lines in the middle of a word


@dataclass(frozen=True)
class Cause:
    """A row of the table; data/diagnosis/README.md describes its keys."""

    id: str
    area: str
    matches: tuple
    says: str
    cure: str = ""
    services: tuple = ()  # empty: for all
    unless: re.Pattern | None = None
    after: re.Pattern | None = None
    unless_after: re.Pattern | None = None
    until: re.Pattern | None = None
    frame: re.Pattern | None = None
    rank: str = "cause"
    levels: frozenset = frozenset()
    stops: bool = True
    kind_of: str = ""
    place: int = 0
    words: tuple = ()  # see literals.needed, for each of `matches`

    @property
    def order(self) -> tuple:
        """Sort key by likelihood: the smaller one is more likely."""
        return RANKS.index(self.rank), AREAS.index(self.area), self.place


@dataclass(frozen=True)
class Found:
    """A cause with its evidence: `line` is the original text, `index` its place."""

    cause: Cause
    says: str
    cure: str
    line: Line
    index: int
    values: tuple = field(default=())


@dataclass(frozen=True)
class Table:
    causes: tuple
    harmless: re.Pattern


def _texts(value) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def cause(row: dict, area: str, place: int) -> Cause:
    """Return a row of an area's file. Raises ValueError, KeyError or re.error if it is not valid."""
    unknown = set(row) - set(Cause.__dataclass_fields__) | {"area", "place", "words"} & set(row)
    if unknown:
        raise ValueError(f"{row['id']}: unknown keys {', '.join(sorted(unknown))}")
    patterns = {key: re.compile(row[key]) for key in PATTERNS if key in row}
    matches = tuple(re.compile(text) for text in _texts(row["matches"]))
    return Cause(
        **{
            **row,
            **patterns,
            "words": tuple(needed(pattern) for pattern in matches),
            "area": area,
            "place": place,
            "matches": matches,
            "services": () if row["services"] == "all" else tuple(row["services"]),
            "levels": frozenset(row.get("levels", ())),
        }
    )


def load(folder: Path = TABLE) -> Table:
    """Return the table; needs PyYAML, which is installed on a controller."""
    import yaml

    rows = []
    for area in AREAS:
        listed = yaml.safe_load((folder / "causes" / f"{area}.yml").read_text(encoding="utf-8"))
        rows += [cause(row, area, place) for place, row in enumerate(listed)]
    harmless = yaml.safe_load((folder / "harmless.yml").read_text(encoding="utf-8"))
    return Table(tuple(rows), re.compile("|".join(f"(?:{text})" for text in harmless)))


def windows(lines: list[Line]) -> list[tuple[int, str, int]]:
    """Return (index, text, length of the first line) for each line joined with those that its message may continue on.

    The frames of a traceback are not messages: they quote a program's text. A line that a terminal broke in the middle
    of a word is returned twice, the second time without the gap.
    """
    quoted = _quoted(lines)
    found = []
    for index, line in enumerate(lines):
        first = line.text.strip()[:LONGEST]
        if not first or index in quoted:
            continue
        text = tight = first
        for number in range(index + 1, min(index + JOINED, len(lines))):
            following = lines[number]
            if number in quoted or following.speaker != line.speaker or following.level not in (None, line.level):
                break
            more = following.text.strip()[:LONGEST]
            text += " " + more
            tight += ("" if _broken(lines[number - 1], following) else " ") + more
        found.append((index, re.sub(r"\s+", " ", text) if "  " in text else text, len(first)))
        if tight != text:
            found.append((index, re.sub(r"\s+", " ", tight), len(first)))
    return found


def _broken(line: Line, following: Line) -> bool:
    """Return whether a terminal may have continued a word in the next line: no prefix, and it begins with a letter."""
    before, after = line.raw.rstrip("\n"), following.raw
    return (
        len(before) >= NARROWEST and before[-1:].isalnum() and after[:1].isalnum() and after.startswith(following.text)
    )


def _quoted(lines: list[Line]) -> set[int]:
    """Return the indices of a traceback's frames: the file, its line of code, and the marks below it."""
    found: set[int] = set()
    for index, line in enumerate(lines):
        text = line.text.strip()
        after_file = index - 1 in found and lines[index - 1].text.lstrip().startswith('File "')
        if text.startswith('File "') or re.fullmatch(r"[~^ ]+", text) or (after_file and line.text[:1] == " "):
            found.add(index)
    return found


def found(lines: list[Line], table: Table, service: str | None = None, name: str = "") -> list[Found]:
    """Return the rows that match lines, in the order of the lines; `service` leaves out rows of other services.

    `service` is what runs, such as vllm; `name` is the service's own name, if several of them run on a host.
    """
    rows = [row for row in table.causes if not service or not row.services or service in row.services]
    by_level = {level: [row for row in rows if level in row.levels] for level in (INFO, WARNING)}
    agreeing, known, firsts = [], {}, {}

    def occurs(pattern: re.Pattern, until: int) -> bool:
        """Return whether one of the lines up to `until` matches the pattern."""
        if pattern not in firsts:
            firsts[pattern] = next((n for n, each in enumerate(lines) if pattern.search(each.text)), len(lines))
        return firsts[pattern] <= until

    for index, text, length in windows(lines):
        line = lines[index]
        if line.level == DEBUG or table.harmless.search(line.text):
            continue
        key = (text, line.level)
        if key not in known:
            known[key] = list(_matches(by_level.get(line.level, rows), text, length))
        for row, match in known[key]:
            if row.frame and not any(row.frame.search(each) for each in _frames(lines, index)):
                continue
            if row.after and not occurs(row.after, index):
                continue
            if row.unless_after and occurs(row.unless_after, index):
                continue
            if row.until and any(row.until.search(each.text) for each in lines[index + 1 :]):
                continue
            agreeing.append(_found(row, match, line, index, service or "", name))
    return agreeing


def _matches(rows: list[Cause], text: str, length: int):
    """Yield the rows that a message matches by itself, with the match, which begins in the first line."""
    for row in rows:
        for words, pattern in zip(row.words, row.matches, strict=True):
            if words and not any(word in text for word in words):
                continue
            match = pattern.search(text)
            if not match or match.start() > length:
                continue
            if not (row.unless and row.unless.search(text[: max(length, match.end())])):
                yield row, match
                break


def _frames(lines: list[Line], index: int) -> list[str]:
    """Return the innermost frames of the traceback that ends at a line."""
    frames = []
    for line in reversed(lines[max(0, index - 60) : index]):
        text = line.text.strip()
        if text.startswith("Traceback (") or len(frames) == INNERMOST:
            break
        if text.startswith('File "'):
            frames.append(text)
    return frames


def _found(row: Cause, match: re.Match, line: Line, index: int, service: str, name: str) -> Found:
    # A group of another pattern of the row is missing or empty: then its value is empty.
    values = [value.strip(" .,;:\"'") if value else "" for value in match.groups()]

    service = service or next(iter(row.services), "")
    name, cure = name or ENGINES.get(service, service), row.cure
    if service in ENGINES and name != ENGINES[service] and f"{service}_" in cure:
        cure += f" The entry {name} of engines has such variables without {service}_."

    def fill(text: str) -> str:
        text = text.replace("{service}", name)
        for number, value in enumerate(values, 1):
            text = text.replace(f"\\{number}", value)
        text = re.sub(r"\\\d", "", text)
        return re.sub(r" ?\(\W*\)", "", re.sub(r"\s+", " ", text)).replace(" .", ".").strip()

    return Found(row, fill(row.says), fill(cure), line, index, tuple(values))


def phase(journal: list[str], folder: Path = TABLE) -> str | None:
    """Return what a start is doing, by the last known phase in its journal; None before the first phase."""
    import yaml

    sentence = None
    for row in yaml.safe_load((folder / "phases.yml").read_text(encoding="utf-8")):
        match = next((match for line in journal if (match := re.search(row["matches"], line))), None)
        sentence = match.expand(row["says"]) if match else sentence
    return sentence
