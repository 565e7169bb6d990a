"""Check whether the installed engine accepts a configuration file, without starting it.

This builds the parser of `vllm serve` from parts of the engine that keep their place between versions. Since 0.23 they
look for a GPU before they parse the arguments. Another check tests the GPU, so here the platform claims to have one.
"""

import sys

try:
    from vllm.platforms.interface import UnspecifiedPlatform

    UnspecifiedPlatform.device_type = "cuda"
except ImportError:  # an engine without this check
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
