"""Errors, in the format that OpenAI's clients read."""

from http.client import responses

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

# Shown for an unknown path; the endpoints are in routes.py and main.py.
ENDPOINTS = (
    "GET /v1/models, GET /v1/models/{id}, POST /v1/chat/completions, POST /v1/completions, POST /v1/embeddings, "
    "POST /v1/responses, POST /v1/easy-contract, POST /v1/checklist, GET /v1/jobs/{job_id}"
)
TRANSIENT = {429, 500, 502, 503, 504}


class Problem(HTTPException):
    """An error response: its HTTP status and one sentence for the caller.

    Raise it anywhere inside a request or a job. If it is transient, a retry may succeed.
    """

    @property
    def transient(self) -> bool:
        return self.status_code in TRANSIENT

    @property
    def body(self) -> dict:
        return {"message": self.detail, "type": responses.get(self.status_code, "Error"), "code": self.status_code}


class Permanent(Problem):
    """A Problem that a retry cannot solve, whatever its status: an unreadable answer, a bug in this server."""

    transient = False


def no_such_path(path: str, why: str = "no such path") -> Problem:
    """Return a 404 that lists the endpoints."""
    return Problem(404, f"{path[:100]}: {why}. There are: {ENDPOINTS}.")


async def answer(request: Request, error: HTTPException) -> JSONResponse:
    """FastAPI's exception handler for Problem and for the framework's own errors (404, 405)."""
    if error.status_code == 404 and not isinstance(error, Problem):
        error = no_such_path(request.url.path)
    problem = Problem(error.status_code, error.detail, error.headers)
    return JSONResponse({"error": problem.body}, problem.status_code, problem.headers)


async def store_unavailable(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's exception handler for sqlite3.OperationalError: on a full disk even opening a store may fail."""
    return await answer(request, Problem(503, f"A store in STATE_DIRECTORY cannot be used: {error}."))


async def unforeseen(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's exception handler for unexpected errors: the traceback is in the log, not in the response."""
    return JSONResponse({"error": Problem(500, "Internal error; see the server log.").body}, 500)
