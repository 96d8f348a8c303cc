"""The configuration of a model file, field by field."""

from collections.abc import Collection, Mapping
from typing import Any


class Fields:
    """Fields that are read one by one, so that none is skipped silently.

    At the end, `refuse_unread` makes an error of every field that nobody asked for, unless it is
    known not to matter or switched off.
    """

    def __init__(self, values: Mapping[str, Any], irrelevant: Collection[str] = ()) -> None:
        self._values = values
        self._read = set(irrelevant)

    def ignore(self, names: Collection[str]) -> None:
        """Take fields for read that do not matter."""
        self._read.update(names)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a field, or `default` where there is no such field."""
        self._read.add(name)
        return self._values.get(name, default)

    def size(self, name: str, default: int | None = None) -> int:
        """The value of a field that is a positive integer; null counts as missing."""
        value = self.get(name)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"expected {name} to be a positive integer, got {value!r}")
        return value

    def choice(self, name: str, choices: Mapping[Any, str], default: str | None = None) -> str:
        """What `choices` makes of the value of a field."""
        value = self.get(name, default)
        if value not in choices:
            wanted = " or ".join(repr(choice) for choice in choices)
            raise ValueError(f"expected {name} to be {wanted}, got {value!r}")
        return choices[value]

    def expect(self, name: str, wanted: Any) -> None:
        """Refuse a field that has another value than the only one that is supported."""
        value = self.get(name, wanted)
        if value != wanted:
            raise ValueError(f"expected {name} to be {wanted!r}, got {value!r}")

    def refuse_unread(self, kind: str) -> None:
        """Refuse what nobody asked for in a file of this `kind`."""
        for name, value in self._values.items():
            if name not in self._read and value:
                raise ValueError(f"expected {kind} as Decoder computes it, got {name} = {value!r}")
