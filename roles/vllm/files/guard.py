"""Demand the engine's key on every route that is not declared open.

vLLM asks for its key under /v1 and a few more prefixes alone. Sleep mode needs its development routes, which put the
engine to sleep, run methods on its workers and tell its settings to whoever reaches the port. The engine loads this
class by `--middleware`: it is added last, so it sees a request before everything else. Source: vLLM 0.15.1 and 0.32.0.
"""

import hashlib
import hmac
import os

OPEN = "LLM_SERVER_OPEN_ROUTES"  # paths, by spaces
KEY = "VLLM_API_KEY"
REFUSED = b'{"error": "Unauthorized"}'


class Guard:
    """ASGI middleware; ValueError at the start without a key, since nothing would be guarded."""

    def __init__(self, app):
        key = os.environ.get(KEY, "")
        if not key:
            raise ValueError(f"{KEY} is empty: the guard of the development routes has no key to ask for")
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
        """Tell whether a request needs no key, or shows it; a browser's preflight cannot show one and does nothing."""
        if scope.get("method") == "OPTIONS":
            return True
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return path.removesuffix("/") in self.open or self.shown(scope["headers"])

    def shown(self, headers) -> bool:
        """Tell whether the first Authorization header has the key; digests are compared, in constant time."""
        given = next((value for name, value in headers if name.lower() == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(digest(key), self.key)


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
