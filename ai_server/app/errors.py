"""What goes wrong, in the shape that OpenAI's clients read."""

from http.client import responses

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

TRANSIENT = {429, 500, 502, 503, 504}


class Problem(HTTPException):
    """An answer other than success: its HTTP status and one sentence for whoever asked.

    Raise it anywhere under a request or a job. A transient one may be gone at the next try.
    """

    @property
    def transient(self) -> bool:
        return self.status_code in TRANSIENT

    @property
    def body(self) -> dict:
        return {"message": self.detail, "type": responses.get(self.status_code, "Error"), "code": self.status_code}


class Permanent(Problem):
    """One that the next try would meet again, whatever its status: an answer that cannot be read, a fault of ours."""

    transient = False


async def answer(request: Request, error: HTTPException) -> JSONResponse:
    """FastAPI's exception handler for Problem and for what the framework raises itself (404, 405)."""
    problem = Problem(error.status_code, error.detail, error.headers)
    return JSONResponse({"error": problem.body}, problem.status_code, problem.headers)


async def unforeseen(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's exception handler for a fault of ours: the log has the trace, the caller has none of it."""
    return JSONResponse({"error": Problem(500, "The server met a fault; its log tells more.").body}, 500)
