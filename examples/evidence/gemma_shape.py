"""Trains a small decoder of Gemma 3's architecture, with a KV head for each query head.

Writes a Hugging Face folder, for `mqa convert`. Its tokens are bytes.
"""

import argparse
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mqa
from mqa.tokenizer import load_tokenizer
from mqa.training.from_scratch import train_new
from mqa.training.schedule import Schedule
from mqa.training.texts import TextReader

CONTEXT = 256
WINDOW = 64
CONFIG = mqa.DecoderConfig(
    num_layers=6,
    hidden_size=192,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=576,
    vocab_size=256,
    max_position=1024,
    rope_theta=1e6,
    local_rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_embeddings=True,
    norm="rms_float32",
    qk_norm=True,
    output_norms=True,
    activation="gelu_tanh",
    windows=(WINDOW,) * 5 + (0,),
    embedding_scale=192**0.5,
)


def main() -> None:
    """Trains, and writes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--dtype", default="bfloat16", help="of the training")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as source:
        byte_tokenizer().save_pretrained(source)
        reader = TextReader(load_tokenizer(source), CONFIG.vocab_size, CONTEXT)
        corpus = reader.corpus(arguments.text)
        schedule = Schedule(
            arguments.steps, batch=8, context=CONTEXT, learning_rate=1e-3, dtype=arguments.dtype
        )
        model, losses = train_new(CONFIG, corpus, schedule, log_every=50, name="Gemma's shape")
        mqa.save(model.requires_grad_(False), arguments.output, source)
    print(f"{arguments.output}: {losses.validation[-1]:.3f} nats per byte on held-out text")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


if __name__ == "__main__":
    main()
