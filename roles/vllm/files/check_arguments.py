"""Ask the installed engine whether it would accept a configuration file, without starting it.

The command `vllm serve` is built from the engine's own parts, which keep their place from version to version.
"""

import sys

from vllm.entrypoints.cli.serve import cmd_init

try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:  # before 0.12
    from vllm.utils import FlexibleArgumentParser

parser = FlexibleArgumentParser(prog="vllm")
subparsers = parser.add_subparsers(required=True, dest="subparser")
(serve,) = cmd_init()
serve.subparser_init(subparsers)
serve.validate(parser.parse_args(["serve", "--config", sys.argv[1]]))
