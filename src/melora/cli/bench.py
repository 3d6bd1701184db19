"""melora bench: the options and the work are melora.bench's own."""

import argparse

from ..bench import cli


def run(args: argparse.Namespace, rest: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="melora bench", description=cli.__doc__)
    cli.add_arguments(parser)
    return int(cli.run(parser.parse_args(rest)))
