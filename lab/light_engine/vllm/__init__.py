"""The laboratory's light stand-in of vLLM: its commands, routes and ways to die, and no engine behind them.

It starts in a second, answers in words that mean nothing, and is only for tests of what surrounds an engine. The local
part of its version is what is wrong with it: `+hangs` never gets ready, `+dies` ends at its first request.
"""

from importlib.metadata import version

__version__ = version("vllm-light")
