"""The laboratory's light stand-in of vLLM: its commands, routes and failures, without an engine.

It starts in a second and answers with meaningless words; it is only for tests of an engine's surroundings. The local
part of its version selects a fault: `+hangs` never becomes ready, `+dies` exits at its first request.
"""

from importlib.metadata import version

__version__ = version("vllm-light")
