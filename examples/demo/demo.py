"""Runs a demo: SmolLM2 as MHA, GQA and MQA, or Gemma, which is MQA as trained."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

# Everything is in files: this keeps `transformers` from asking a server about them.
os.environ["HF_HUB_OFFLINE"] = "1"

import gemma_demo
import variants_demo
from checks import CheckError

DEMOS = {"smollm2": variants_demo.run, "gemma": gemma_demo.run}


def main() -> None:
    """Reads the command line and runs a demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=DEMOS, default="smollm2")
    DEMOS[parser.parse_args().model]()


if __name__ == "__main__":
    try:
        main()
    except CheckError as error:
        sys.exit(f"demo: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: {Path(error.cmd[0]).name} failed with exit code {error.returncode}")
    except FileNotFoundError as error:
        sys.exit(f"demo: expected the file {error.filename}, which scripts/setup makes")
