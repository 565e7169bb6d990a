"""The text of scanned pages: one small interface, and the HTTP service behind it.

The service is asked with `POST <OCR_URL>`, `Authorization: Bearer <OCR_API>`, the PDF as the multipart field
`document`, and answers `{"pages": [{"text": "…"}, …]}`, one element a page, in order. Another service is another
class with the same `read`.
"""

import logging
from pathlib import Path
from typing import Protocol

import httpx

from app.errors import Permanent, Problem
from app.settings import Settings

MENDABLE = {401, 403, 404, 408, 425, 429}

logger = logging.getLogger(__name__)


class Ocr(Protocol):
    async def read(self, pdf: Path) -> list[str]:
        """Return each page's text; raise Problem with 503 (away or not set up), 504 (silent) or 502 (nonsense)."""

    async def close(self) -> None:
        """Give up the connections."""


class HttpOcr:
    """The OCR service at OCR_URL."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.ocr_url
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {settings.ocr_api.get_secret_value()}"},
            timeout=settings.http_timeout_sec,
            trust_env=settings.ocr_uses_proxy,  # a proxy sees the key where the address is http://
            verify=httpx.create_ssl_context(),  # SSL_CERT_FILE counts all the same
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def read(self, pdf: Path) -> list[str]:
        if self._url is None:
            raise Permanent(503, "This PDF is a scan, and this server has no OCR service: OCR_URL is not set.")
        try:
            document = ("document.pdf", pdf.read_bytes(), "application/pdf")
            response = await self._http.post(self._url, files={"document": document})
            response.raise_for_status()
            return [_text(page) for page in response.json()["pages"]]
        except httpx.ConnectTimeout as error:
            raise _failed(503, "is not reachable", error) from None
        except httpx.TimeoutException as error:
            raise _failed(504, "did not answer in time", error) from None
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            # The operator can mend a key or an address, and a busy service calms down; a refused document stays one.
            kind = Permanent if 400 <= status < 500 and status not in MENDABLE else Problem
            raise _failed(502, f"answered {status}", error, kind) from None
        except httpx.HTTPError as error:
            raise _failed(503, "is not reachable", error) from None
        except (ValueError, KeyError, TypeError) as error:
            raise _failed(502, "gave an answer without pages", error, Permanent) from None


def _text(page: dict) -> str:
    """Return a page's text; a page without words may have null. Raises TypeError for what is no text."""
    text = page["text"]
    if text is not None and not isinstance(text, str):
        raise TypeError(type(text).__name__)
    return text or ""


def _failed(status: int, reason: str, error: Exception, kind: type[Problem] = Problem) -> Problem:
    logger.warning("the OCR service %s", reason, extra={"error": type(error).__name__})
    return kind(status, f"The OCR service {reason}.")
