"""Installs a package for the file that it carries."""

import subprocess
import sys
from pathlib import Path


def pip_install(target: Path, *arguments: str) -> None:
    """Lets pip install what `arguments` say into the folder `target`.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    options = ["--quiet", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *arguments], check=True)
