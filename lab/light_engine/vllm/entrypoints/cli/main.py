"""The program `vllm`."""

from vllm import __version__
from vllm.entrypoints.cli.benchmark import BenchmarkSubcommand
from vllm.entrypoints.cli.serve import cmd_init
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main():
    """Parse the command line and run the command."""
    parser = FlexibleArgumentParser(prog="vllm")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    commands = {command.name: command for command in [*cmd_init(), BenchmarkSubcommand()]}
    for command in commands.values():
        command.subparser_init(subparsers)
    args = parser.parse_args()
    commands[args.subparser].validate(args)
    commands[args.subparser].cmd(args)
