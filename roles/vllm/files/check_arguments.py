"""Ask the installed engine whether it would accept a configuration file, without starting it.

The command `vllm serve` is built from the engine's own parts, which keep their place from version to version. Since
0.23 these look for a GPU before they look at the arguments; whether a GPU answers is checked elsewhere, so they are
told of one here.
"""

import sys

try:
    from vllm.platforms.interface import UnspecifiedPlatform

    UnspecifiedPlatform.device_type = "cuda"
except ImportError:  # an engine that does not ask for a platform
    pass

from vllm.entrypoints.cli.serve import cmd_init

try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:  # before 0.12
    from vllm.utils import FlexibleArgumentParser

try:
    parser = FlexibleArgumentParser(prog="vllm")
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    (serve,) = cmd_init()
    serve.subparser_init(subparsers)
    serve.validate(parser.parse_args(["serve", "--config", sys.argv[1]]))
except RuntimeError as error:
    if "Failed to infer device type" not in str(error):
        raise
    sys.exit(
        "The engine finds no GPU, so it did not look at the arguments. Run nvidia-smi, then run the playbook again."
    )
