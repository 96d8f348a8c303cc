"""The command `mqa` (also `python -m mqa`): one module of `mqa.commands` per subcommand."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from mqa.commands import bench, convert, cost, generate, plan, quality, uptrain

COMMANDS = {
    "plan": plan,
    "bench": bench,
    "generate": generate,
    "convert": convert,
    "uptrain": uptrain,
    "cost": cost,
    "quality": quality,
}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2, without argparse's lines of usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """The command line of `mqa`."""
    parser = Parser(prog="mqa", description="Multi-query attention and its key-value cache.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            subparsers.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit code, see `exit_code`.
    """
    arguments = make_parser().parse_args(argv)
    command = arguments.command
    return exit_code(command=f"mqa {command}", run=lambda: COMMANDS[command].run(arguments))


def exit_code(command: str, run: Callable[[], None]) -> int:
    """Runs a command: 0, 130 after Ctrl-C, or 2 after bad input, said in one sentence on stderr.

    Bad input is what the package raises as OSError or ValueError.
    """
    try:
        run()
    except OSError as error:
        return _fail(
            command, f"{error.filename}: {error.strerror}" if error.filename else str(error)
        )
    except ValueError as error:
        return _fail(command, str(error))
    except KeyboardInterrupt:
        return 130  # as shells say it: 128 and the signal's number
    return 0


def _fail(command: str, sentence: str) -> int:
    print(f"{command}: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
