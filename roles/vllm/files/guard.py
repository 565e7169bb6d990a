"""Require the engine's key on every route that is not declared open.

vLLM only requires its key under /v1 and a few more prefixes. Sleep mode needs the development routes, with which anyone
who reaches the port could put the engine to sleep, run methods on its workers and read its settings. The engine loads
this class with `--middleware`: it is added last, so it handles a request before everything else. Source: vLLM 0.15.1
and 0.32.0.
"""

import hashlib
import hmac
import os

OPEN = "LLM_SERVER_OPEN_ROUTES"  # paths, separated by spaces
KEY = "VLLM_API_KEY"
REFUSED = b'{"error": "Unauthorized"}'


class Guard:
    """ASGI middleware; raises ValueError at the start if there is no key, since nothing would be protected."""

    def __init__(self, app):
        key = os.environ.get(KEY, "")
        if not key:
            raise ValueError(f"{KEY} is empty: the development routes would be unprotected")
        self.app, self.key = app, digest(key.encode())
        self.open = os.environ.get(OPEN, "").split()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or self.passes(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(REFUSED)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})

    def passes(self, scope) -> bool:
        """Return whether a request needs no key or has it; a browser's preflight has no key and changes nothing."""
        if scope.get("method") == "OPTIONS":
            return True
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return path.removesuffix("/") in self.open or self.shown(scope["headers"])

    def shown(self, headers) -> bool:
        """Return whether the first Authorization header has the key; compares digests in constant time."""
        given = next((value for name, value in headers if name.lower() == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(digest(key), self.key)


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
