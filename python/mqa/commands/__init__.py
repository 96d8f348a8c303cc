"""The subcommands of `mqa`.

Each module has `HELP`, `DESCRIPTION`, `add_arguments(parser)` and `run(arguments)`. It imports
torch and other slow packages inside `run`, so that no subcommand pays for another.
"""
