"""Store uploaded PDFs under RESOURCES_DIRECTORY and extract their text.

A PDF comes from outside and may be malicious. A separate process parses it (`python -m app.uploads PDF PAGES`), with
limits on time and memory, so that it can neither stall other callers' streams nor exhaust the machine.
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
PARSER_WAIT_SEC = 15  # together with the timeout above, less than the usual 60 s of proxies
PARSERS = 2
STALE_PART_SEC = 3600  # no upload takes that long: an older part is from a killed process
MAX_CHARACTERS = 4_000_000  # more than any model's context; limits what a few compressed bytes can expand to
BLOCK = 1024 * 1024
ROOT = Path(__file__).parents[1]


class Uploads:
    """The directory of uploads, and the text of its PDFs.

    ocr: reads the pages that are pictures.
    """

    def __init__(self, settings: Settings, ocr: Ocr) -> None:
        self._directory, self._quota = settings.resources_directory, settings.upload_quota_bytes
        self._max_pages, self._ocr = settings.max_pdf_pages, ocr
        self._parsers = asyncio.Semaphore(PARSERS)
        self._turns: dict[str, asyncio.Lock] = {}  # by caller; never deleted, as callers are few

    async def keep(self, content: BinaryIO) -> str:
        """Store a PDF and return its file name: its SHA-256, so that the same PDF is stored once.

        The file appears only when it is complete. Raises Problem: 415 if it is not a PDF, 507 over the quota, 503 if
        the directory is missing or full.
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
                    os.utime(kept)  # restarts its retention time
                    return name
                if sum(found.st_size for _, found in self._files()) + size > self._quota:
                    raise Problem(507, f"All uploads together may have {self._quota} bytes, and this quota is used up.")
                with part.open("xb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)  # so that other uploads count it
            with part.open("r+b") as file:
                content.seek(0)
                while block := content.read(BLOCK):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            with self._alone() as directory:
                part.rename(kept)
                os.fsync(directory)  # the name, too, must survive a power failure
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise Problem(503, f"The upload cannot be kept in RESOURCES_DIRECTORY: {error.strerror}.") from error
        return name

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Lock the directory and yield its file descriptor.

        No other thread or process can then remove an upload while `keep` finds that it exists.
        """
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield directory
        finally:
            os.close(directory)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._directory.iterdir():
            with suppress(FileNotFoundError):  # removed meanwhile
                yield path, path.stat()

    def remove(self, older_than: float, needed: set[str]) -> int:
        """Remove the uploads last sent before this time (seconds since the epoch), unless needed; return their number.

        Also removes parts that a killed process left. Raises OSError.
        """
        removed = 0
        with self._alone():
            for path, found in self._files():
                if path.suffix == ".pdf" and found.st_mtime < older_than and path.name not in needed:
                    path.unlink(missing_ok=True)
                    removed += 1
                elif path.suffix == ".part" and found.st_mtime < time.time() - STALE_PART_SEC:
                    path.unlink(missing_ok=True)
        return removed

    async def text(self, name: str, caller: str) -> str:
        """Return a stored PDF's text, pages separated by an empty line; the OCR service reads scanned pages.

        Raises Problem: 422 if the PDF cannot be read, has too many pages or no text; 410 if it was removed; 503 if it
        waits too long for a parser; and those of the OCR service.
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
        """Parse a PDF when it is the caller's turn: each caller has at most one parser, or one place in the queue."""
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
                raise Problem(503, "Other PDFs, this caller's first, are being read; try again later.", wait)
            return await parsing
        finally:
            parsing.cancel()
            await asyncio.gather(parsing, return_exceptions=True)

    async def _parse(self, path: Path) -> dict:
        parser = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.uploads", str(path), str(self._max_pages)),
            cwd=ROOT,
            env={},  # it needs no keys
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
    """Return the hex digest of the complete content; the position is at its end then."""
    digest = hashlib.sha256()
    content.seek(0)
    while block := content.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def parse(path: Path, max_pages: int) -> dict:
    """Return `{"pages": [text, …], "scanned": [index of a page that is only a picture, …]}` or `{"refused": why}`."""
    reader = PdfReader(path)
    if len(reader.pages) > max_pages:
        return {"refused": f"it has {len(reader.pages)} pages; at most {max_pages} are allowed"}
    pages = [page.extract_text() for page in reader.pages]
    if sum(map(len, pages)) > MAX_CHARACTERS:
        return {"refused": f"it has more than {MAX_CHARACTERS} characters"}
    scanned = [i for i, text in enumerate(pages) if not text.strip() and reader.pages[i].images]
    return {"pages": pages, "scanned": scanned}


if __name__ == "__main__":
    os.nice(10)  # streams have priority
    resource.setrlimit(resource.RLIMIT_AS, (PARSER_MEMORY_BYTES, PARSER_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PARSER_TIMEOUT_SEC, PARSER_TIMEOUT_SEC))
    json.dump(parse(Path(sys.argv[1]), int(sys.argv[2])), sys.stdout)
