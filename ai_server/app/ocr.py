"""The text of scanned pages: a small interface and its HTTP implementation.

The service gets `POST <OCR_URL>` with `Authorization: Bearer <OCR_API>` and the PDF as the multipart field `document`.
It answers `{"pages": [{"text": "…"}, …]}`, one element per page, in order. To support another service, write another
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
        """Return each page's text; raise Problem: 503 (down or not set up), 504 (timeout) or 502 (invalid answer)."""

    async def close(self) -> None:
        """Close the connections."""


class HttpOcr:
    """The OCR service at OCR_URL."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.ocr_url
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {settings.ocr_api.get_secret_value()}"},
            timeout=settings.http_timeout_sec,
            trust_env=settings.ocr_uses_proxy,  # a proxy sees the key if the URL is http://
            verify=httpx.create_ssl_context(),  # uses SSL_CERT_FILE even without trust_env
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
            # Retry what the operator can fix (key, address) and a busy service; a rejected document stays rejected.
            kind = Permanent if 400 <= status < 500 and status not in MENDABLE else Problem
            raise _failed(502, f"answered {status}", error, kind) from None
        except httpx.HTTPError as error:
            raise _failed(503, "is not reachable", error) from None
        except (ValueError, KeyError, TypeError) as error:
            raise _failed(502, "sent an answer without pages", error, Permanent) from None


def _text(page: dict) -> str:
    """Return a page's text; a page without words may have null. Raises TypeError for any other type."""
    text = page["text"]
    if text is not None and not isinstance(text, str):
        raise TypeError(type(text).__name__)
    return text or ""


def _failed(status: int, reason: str, error: Exception, kind: type[Problem] = Problem) -> Problem:
    logger.warning("the OCR service %s", reason, extra={"error": type(error).__name__})
    return kind(status, f"The OCR service {reason}.")
