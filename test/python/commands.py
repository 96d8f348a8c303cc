"""Runs the commands of `mqa` in this process."""

from mqa.__main__ import main


def exit_code(*arguments: str) -> object:
    """Of `mqa` with these arguments: argparse leaves by SystemExit, a command returns."""
    try:
        return main(list(arguments))
    except SystemExit as exit_:
        return exit_.code
