"""Byte counts as people write and read them."""

import re

PREFIXES = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Bytes from a number with an optional decimal (GB) or binary (GiB) unit.

    Raises:
        ValueError: The text is no size.

    Example:
        >>> parse_size("80GB"), parse_size("24GiB"), parse_size("1.5k"), parse_size("512")
        (80000000000, 25769803776, 1500, 512)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT]?)|([KMGT])I)B?", text.upper())
    if not match:
        raise ValueError(f"expected a size such as 24GiB or 80GB, got '{text}'")
    number, decimal, binary = match.groups()
    base, power = (1024, PREFIXES[binary]) if binary else (1000, PREFIXES[decimal])
    return round(float(number) * float(base) ** power)


def format_bytes(count: int) -> str:
    """Three significant digits in decimal units.

    Example:
        >>> format_bytes(399_769_600_000), format_bytes(3_123_200_000), format_bytes(80_000_000)
        ('400 GB', '3.12 GB', '80 MB')
    """
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.10g} {unit}"
