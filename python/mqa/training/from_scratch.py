"""Trains a new decoder and records its losses."""

import time
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from mqa.config import DecoderConfig
from mqa.decoder import Decoder
from mqa.training.corpus import Corpus
from mqa.training.schedule import Schedule
from mqa.training.trainer import Trainer

INITIAL_STD = 0.02


@dataclass
class Losses:
    """Nats per token at some of the steps: of the step's pieces, and of validation after it."""

    steps: list[int] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train_new(
    config: DecoderConfig, corpus: Corpus, schedule: Schedule, *, log_every: int, name: str
) -> tuple[Decoder, Losses]:
    """Trains a new decoder; shows and records its losses.

    Args:
        config: the decoder.
        corpus: what it learns and is validated with.
        schedule: how long and how fast; its seed decides the first weights, too.
        log_every: steps between recorded losses; the first and the last are recorded anyway.
        name: said beside the progress.
    """
    trainer = Trainer(new_decoder(config, schedule.seed), corpus.training, schedule)
    losses = Losses()
    start = time.perf_counter()
    with tqdm(total=schedule.steps, desc=name, leave=False) as progress:
        for step in range(1, schedule.steps + 1):
            loss = trainer.advance()
            if step % log_every == 0 or step in (1, schedule.steps):
                losses.steps.append(step)
                losses.training.append(loss)
                losses.validation.append(trainer.validate(corpus.validation))
                progress.set_postfix_str(f"loss {loss:.3f}, held out {losses.validation[-1]:.3f}")
            progress.update()
    losses.seconds = time.perf_counter() - start
    return trainer.model, losses


def new_decoder(config: DecoderConfig, seed: int) -> Decoder:
    """A decoder with small random weights, the same for both of its attentions."""
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=INITIAL_STD, generator=generator)
    return model
