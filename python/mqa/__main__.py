"""The command `mqa` (also `python -m mqa`): one module of `mqa.commands` per subcommand."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from mqa.commands import bench, plan

COMMANDS = {"plan": plan, "bench": bench}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2, without argparse's lines of usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Bad input, which the package raises as OSError or ValueError, becomes one sentence on stderr.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit code: 0, or 2 after bad input.
    """
    parser = Parser(prog="mqa", description="Multi-query attention and its key-value cache.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            subparsers.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        )
    arguments = parser.parse_args(argv)
    try:
        COMMANDS[arguments.command].run(arguments)
    except OSError as error:
        sentence = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(arguments.command, sentence)
    except ValueError as error:
        return _fail(arguments.command, str(error))
    return 0


def _fail(command: str, sentence: str) -> int:
    print(f"mqa {command}: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
