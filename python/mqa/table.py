"""Tables for the terminal."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns: the first to the left, the others, which hold numbers, to the right.

    Example:
        >>> print(format_table(["name", "size"], [["a", "10"], ["b", "9"]]))
        name  size
        ----  ----
        a       10
        b        9
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (header, rule, *rows)
    )
