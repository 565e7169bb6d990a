"""Uploaded PDFs: kept under RESOURCES_DIRECTORY, and read.

A PDF comes from outside and may be hostile. It is parsed in a process of its own (`python -m app.uploads PDF PAGES`),
with limits on time and memory, so that it can neither stall the streams of others nor exhaust the machine.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import resource
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pypdf import PdfReader

from app.errors import Permanent, Problem
from app.ocr import Ocr
from app.settings import Settings
from app.text import well_formed

PARSER_TIMEOUT_SEC = 30
PARSER_MEMORY_BYTES = 1024**3
PARSER_WAIT_SEC = 15  # with the time-out above less than the 60 s that proxies usually wait
PARSERS = 2
LEFT_OVER_SEC = 3600  # no upload takes so long: its part is what a killed process left
MAX_CHARACTERS = 4_000_000  # far beyond any model's context; a bound for what a few compressed bytes can become
BLOCK = 1024 * 1024
ROOT = Path(__file__).parents[1]


class Uploads:
    """The directory of the uploads, and the way from a PDF to its text.

    ocr: asked for pages that are pictures.
    """

    def __init__(self, settings: Settings, ocr: Ocr) -> None:
        self._directory, self._quota = settings.resources_directory, settings.upload_quota_bytes
        self._max_pages, self._ocr = settings.max_pdf_pages, ocr
        self._parsers = asyncio.Semaphore(PARSERS)
        self._turns: dict[str, asyncio.Lock] = {}  # a caller -> its turn: callers are few, as their keys are

    async def keep(self, content: BinaryIO) -> str:
        """Store a PDF whole or not at all; return its name here: its SHA-256, so that the same PDF is the same file.

        Raises Problem: 415 for what is not a PDF, 507 beyond the quota, 503 when the directory is gone or full.
        """
        return await asyncio.to_thread(self._keep, content)

    def _keep(self, content: BinaryIO) -> str:
        content.seek(0)
        if content.read(5) != b"%PDF-":
            raise Problem(415, "The file is not a PDF.")
        name, size = f"{_sha256(content)}.pdf", content.tell()
        kept, part = self._directory / name, self._directory / f".{uuid.uuid4().hex}.part"
        try:
            with self._alone():
                if kept.exists():
                    os.utime(kept)  # its days begin again
                    return name
                if sum(found.st_size for _, found in self._files()) + size > self._quota:
                    raise Problem(507, f"All uploads together may have {self._quota} bytes, and they are taken.")
                with part.open("xb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)  # so that others count it already
            with part.open("r+b") as file:
                content.seek(0)
                while block := content.read(BLOCK):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            with self._alone() as directory:
                part.rename(kept)
                os.fsync(directory)  # the name too outlives a power cut
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise Problem(503, f"The upload cannot be kept in RESOURCES_DIRECTORY: {error.strerror}.") from error
        return name

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Keep other threads and processes out, so that no upload is removed while it is found to be kept.

        Yields the directory's descriptor.
        """
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield directory
        finally:
            os.close(directory)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._directory.iterdir():
            with suppress(FileNotFoundError):  # somebody was faster
                yield path, path.stat()

    def remove(self, older_than: float, needed: set[str]) -> int:
        """Remove uploads last sent before that time (seconds since the epoch) but those needed; return how many.

        What a killed process left of an upload goes too. Raises OSError.
        """
        removed = 0
        with self._alone():
            for path, found in self._files():
                if path.suffix == ".pdf" and found.st_mtime < older_than and path.name not in needed:
                    path.unlink(missing_ok=True)
                    removed += 1
                elif path.suffix == ".part" and found.st_mtime < time.time() - LEFT_OVER_SEC:
                    path.unlink(missing_ok=True)
        return removed

    async def text(self, name: str, caller: str) -> str:
        """Return a kept PDF's text, pages separated by an empty line; scanned pages come from the OCR service.

        Raises Problem: 422 for a PDF that cannot be read, has too many pages or no text at all; 410 when it was
        removed; 503 when the caller's turn does not come in time; the OCR service's.
        """
        path = self._directory / name
        if not path.exists():
            raise Problem(410, "The upload was removed before it was read.")
        document = await self._parse_in_turn(path, caller)
        pages: list[str] = document["pages"]
        if document["scanned"]:
            read = await self._ocr.read(path)
            if len(read) != len(pages):
                raise Permanent(502, f"The OCR service read {len(read)} pages of a document of {len(pages)}.")
            for index in document["scanned"]:
                pages[index] = read[index]
        text = well_formed("\n\n".join(page.strip() for page in pages if page.strip()))
        if not text:
            raise Problem(422, "The PDF has no text.")
        return text

    async def _parse_in_turn(self, path: Path, caller: str) -> dict:
        """Parse; but a caller has one parser at most, and queues for one at most: the others are for others."""
        turn = self._turns.setdefault(caller, asyncio.Lock())
        begun = asyncio.Event()

        async def parse() -> dict:
            async with turn, self._parsers:
                begun.set()
                return await self._parse(path)

        parsing = asyncio.create_task(parse())
        try:
            await asyncio.wait({parsing}, timeout=PARSER_WAIT_SEC)
            if not begun.is_set():
                wait = {"Retry-After": str(PARSER_WAIT_SEC)}
                raise Problem(503, "Other PDFs are being read, first of all this caller's; try again later.", wait)
            return await parsing
        finally:
            parsing.cancel()
            await asyncio.gather(parsing, return_exceptions=True)

    async def _parse(self, path: Path) -> dict:
        parser = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.uploads", str(path), str(self._max_pages)),
            cwd=ROOT,
            env={},  # it needs none of our keys
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            output, _ = await asyncio.wait_for(parser.communicate(), PARSER_TIMEOUT_SEC)
            document = json.loads(output) if parser.returncode == 0 else {"refused": "it is damaged or encrypted"}
        except asyncio.TimeoutError:
            document = {"refused": f"reading it takes longer than {PARSER_TIMEOUT_SEC} s"}
        finally:
            if parser.returncode is None:
                with suppress(ProcessLookupError):
                    parser.kill()
                await parser.wait()
        if "refused" in document:
            raise Problem(422, f"The PDF cannot be read: {document['refused']}.")
        return document


def _sha256(content: BinaryIO) -> str:
    """Hex; the content is read from its beginning to its end."""
    digest = hashlib.sha256()
    content.seek(0)
    while block := content.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def parse(path: Path, max_pages: int) -> dict:
    """Return `{"pages": [text, …], "scanned": [index of a page that is only a picture, …]}` or `{"refused": why}`."""
    reader = PdfReader(path)
    if len(reader.pages) > max_pages:
        return {"refused": f"it has {len(reader.pages)} pages, and {max_pages} are allowed"}
    pages = [page.extract_text() for page in reader.pages]
    if sum(map(len, pages)) > MAX_CHARACTERS:
        return {"refused": f"it has more than {MAX_CHARACTERS} characters"}
    scanned = [i for i, text in enumerate(pages) if not text.strip() and reader.pages[i].images]
    return {"pages": pages, "scanned": scanned}


if __name__ == "__main__":
    os.nice(10)  # the streams of others go first
    resource.setrlimit(resource.RLIMIT_AS, (PARSER_MEMORY_BYTES, PARSER_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PARSER_TIMEOUT_SEC, PARSER_TIMEOUT_SEC))
    json.dump(parse(Path(sys.argv[1]), int(sys.argv[2])), sys.stdout)
