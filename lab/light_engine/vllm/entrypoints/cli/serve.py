"""The command `vllm serve`."""

from __future__ import annotations

from argparse import BooleanOptionalAction

from vllm import gpu
from vllm.platforms.interface import UnspecifiedPlatform

VALUES = {
    **dict.fromkeys(("host", "api-key", "dtype", "quantization", "kv-cache-dtype", "tokenizer", "revision"), str),
    **dict.fromkeys(("port", "seed", "max-model-len", "max-num-seqs", "max-num-batched-tokens", "max-logprobs"), int),
    **dict.fromkeys(("max-lora-rank", "max-loras", "max-cpu-loras", "tensor-parallel-size", "block-size"), int),
    **dict.fromkeys(("kv-cache-memory-bytes", "swap-space"), int),
    "gpu-memory-utilization": float,
}
LISTS = ("served-model-name", "lora-modules", "allowed-media-domains", "middleware")
SWITCHES = (
    *("enable-lora", "enforce-eager", "trust-remote-code", "disable-fastapi-docs", "enable-prefix-caching"),
    "enable-sleep-mode",
)


class ServeSubcommand:
    """Serves completions on a port."""

    name = "serve"

    def subparser_init(self, subparsers):
        """Add the command and its arguments to a parser's commands."""
        if not (gpu.seen() or UnspecifiedPlatform.device_type):
            raise RuntimeError("Failed to infer device type, please set the environment variable VLLM_LOGGING_LEVEL")
        parser = subparsers.add_parser(self.name)
        parser.add_argument("model_tag", nargs="?")
        for name, kind in VALUES.items():
            parser.add_argument(f"--{name}", type=kind)
        for name in LISTS:
            parser.add_argument(f"--{name}", nargs="+", default=[])
        for name in SWITCHES:
            parser.add_argument(f"--{name}", action=BooleanOptionalAction, default=False)
        parser.set_defaults(host="0.0.0.0", port=8000, max_lora_rank=16)
        return parser

    def validate(self, args):
        """Refuse combinations of arguments that the parser accepts one by one."""
        if args.lora_modules and not args.enable_lora:
            raise ValueError("LoRA is not enabled. Use --enable-lora to enable LoRA.")

    @staticmethod
    def cmd(args):
        """Serve until the server exits."""
        from vllm import server

        server.run(args)


def cmd_init():
    """Return the commands of this module."""
    return [ServeSubcommand()]
