"""Uploaded PDFs: kept under RESOURCES_DIRECTORY, and read.

A PDF comes from outside and may be hostile. It is parsed in a process of its own (`python -m app.uploads PDF PAGES`),
with limits on time and memory, so that it can neither stall the streams of others nor exhaust the machine.
"""

import asyncio
import hashlib
import json
import os
import resource
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pypdf import PdfReader

from app.errors import Permanent, Problem
from app.ocr import Ocr
from app.text import well_formed

PARSER_TIMEOUT_SEC = 30
PARSER_MEMORY_BYTES = 1024**3
PARSERS = 2
MAX_CHARACTERS = 4_000_000  # far beyond any model's context; a bound for what a few compressed bytes can become
BLOCK = 1024 * 1024
ROOT = Path(__file__).parents[1]


class Uploads:
    """The directory of the uploads, and the way from a PDF to its text.

    max_pages: longer documents are refused. ocr: asked for pages that are pictures.
    """

    def __init__(self, directory: Path, max_pages: int, ocr: Ocr) -> None:
        self._directory, self._max_pages, self._ocr = directory, max_pages, ocr
        self._parsers = asyncio.Semaphore(PARSERS)

    async def keep(self, content: BinaryIO) -> str:
        """Store a PDF whole or not at all; return its name here: its SHA-256, so that the same PDF is the same file.

        Raises Problem: 415 for what is not a PDF, 500 when the directory is gone or full.
        """
        return await asyncio.to_thread(self._keep, content)

    def _keep(self, content: BinaryIO) -> str:
        content.seek(0)
        if content.read(5) != b"%PDF-":
            raise Problem(415, "The file is not a PDF.")
        content.seek(0)
        part = self._directory / f".{uuid.uuid4().hex}.part"
        digest = hashlib.sha256()
        try:
            with part.open("xb") as file:
                while block := content.read(BLOCK):
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            name = f"{digest.hexdigest()}.pdf"
            part.rename(self._directory / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise Problem(500, f"The upload cannot be kept in RESOURCES_DIRECTORY: {error.strerror}.") from error
        return name

    async def text(self, name: str) -> str:
        """Return a kept PDF's text, pages separated by an empty line; scanned pages come from the OCR service.

        Raises Problem: 422 for a PDF that cannot be read, has too many pages or no text at all; the OCR service's.
        """
        path = self._directory / name
        async with self._parsers:
            document = await self._parse(path)
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
    resource.setrlimit(resource.RLIMIT_AS, (PARSER_MEMORY_BYTES, PARSER_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PARSER_TIMEOUT_SEC, PARSER_TIMEOUT_SEC))
    json.dump(parse(Path(sys.argv[1]), int(sys.argv[2])), sys.stdout)
