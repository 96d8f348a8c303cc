"""Where the demos find and put their files, and how they say what they do."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "build/demo"
PROGRAM = ROOT / "build/release/examples/generate/generate"
PASSAGE = Path(__file__).with_name("passage.txt")


def stage(text: str) -> None:
    """Says what happens next."""
    print(f"\n== {text}", flush=True)
