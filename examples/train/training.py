"""Trains one decoder and records its losses."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from corpus import Corpus, random_batch
from mqa import Decoder, DecoderConfig

WARM_UP_SHARE = 0.1
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
LARGEST_GRADIENT_NORM = 1.0
INITIAL_STD = 0.02
VALIDATION_BATCHES = 8


@dataclass(frozen=True)
class Schedule:
    """How long and on what to train.

    Raises:
        ValueError: a number is not positive.
    """

    steps: int
    log_every: int
    batch: int
    context: int
    learning_rate: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "batch", "context", "learning_rate"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise ValueError(f"expected {name} > 0, got {value}")

    def share_of_peak(self, step: int) -> float:
        """What part of `learning_rate` step 0, 1, ... has: warm-up, then a cosine towards zero."""
        warm_up = math.ceil(WARM_UP_SHARE * self.steps)
        progress = (step + 1 - warm_up) / (self.steps + 1 - warm_up)
        return (step + 1) / warm_up if progress < 0 else (1 + math.cos(math.pi * progress)) / 2


@dataclass
class Losses:
    """Nats per token at some of the steps: of the step's batch, and of validation after it."""

    steps: list[int] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def largest_difference(self, other: "Losses") -> float:
        """Between two runs with the same schedule; NaN if either has one."""
        ours = torch.tensor([self.training, self.validation], dtype=torch.float64)
        theirs = torch.tensor([other.training, other.validation], dtype=torch.float64)
        return (ours - theirs).abs().max().item()


def train(config: DecoderConfig, corpus: Corpus, schedule: Schedule, name: str) -> Losses:
    """Trains a new decoder with AdamW; shows and records its losses."""
    model = new_decoder(config, schedule.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), schedule.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
    )
    learning_rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.share_of_peak)
    batches = torch.Generator().manual_seed(schedule.seed)
    losses = Losses()
    start = time.perf_counter()
    with tqdm(total=schedule.steps, desc=name) as progress:
        for step in range(1, schedule.steps + 1):
            tokens = random_batch(corpus.training, schedule.batch, schedule.context, batches)
            loss = next_token_loss(model, tokens)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
            optimizer.step()
            learning_rates.step()
            if step % schedule.log_every == 0 or step in (1, schedule.steps):
                losses.steps.append(step)
                losses.training.append(loss.item())
                losses.validation.append(validation_loss(model, corpus.validation, schedule))
                progress.set_postfix(
                    loss=f"{losses.training[-1]:.3f}", validation=f"{losses.validation[-1]:.3f}"
                )
            progress.update()
    losses.seconds = time.perf_counter() - start
    return losses


def new_decoder(config: DecoderConfig, seed: int) -> Decoder:
    """A decoder with small random weights, the same for both of its attentions."""
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=INITIAL_STD, generator=generator)
    return model


def next_token_loss(model: Decoder, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of every token of `tokens [B, T + 1]` but the first, in nats."""
    logits = model.sequence_logits(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model: Decoder, tokens: Tensor, schedule: Schedule) -> float:
    """The mean over batches that are the same at every call."""
    batches = torch.Generator().manual_seed(schedule.seed)
    losses = [
        next_token_loss(model, random_batch(tokens, schedule.batch, schedule.context, batches))
        for _ in range(VALIDATION_BATCHES)
    ]
    return torch.stack(losses).mean().item()
