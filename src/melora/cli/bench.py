"""melora bench: the options and the work are melora.bench's own."""

import argparse

from melora_cli import Parser

from ..bench import cli


def run(args: argparse.Namespace, rest: list[str]) -> int:
    parser = Parser(prog="melora bench", description=cli.__doc__)
    cli.add_arguments(parser)
    return int(cli.run(parser.parse_args(rest)))
