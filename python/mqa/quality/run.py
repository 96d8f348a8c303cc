"""Trains all variants with all seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from mqa.bench.timing import interleave
from mqa.config import DecoderConfig
from mqa.cost.steps import DTYPE, formula_bytes, random_pool, timed_step
from mqa.decoder import Decoder
from mqa.quality.variants import num_parameters
from mqa.training.corpus import Corpus
from mqa.training.from_scratch import train_new
from mqa.training.schedule import Schedule

LOGGED = 25  # losses of a run, about
DECODE_BUDGET = 8.0  # seconds, all variants together


def describe(config: DecoderConfig) -> dict[str, Any]:
    """What the report says of a variant."""
    return {
        "config": asdict(config),
        "num_parameters": num_parameters(config),
        "cache_bytes": formula_bytes(config, context=1, batch=1),
    }


def train_all(
    configs: Mapping[str, DecoderConfig],
    corpus: Corpus,
    schedule: Schedule,
    seeds: list[int],
    runs: list[dict[str, Any]],
    on_run: Callable[[], None],
) -> None:
    """Adds to `runs` those of `configs` and `seeds` that are not there yet, seed by seed.

    Args:
        configs: the variants, by name.
        corpus: what they learn.
        schedule: how long and how fast; `seeds` replace its seed.
        seeds: one run of each variant for each of them.
        runs: finished ones, each with `variant`, `seed` and `losses`.
        on_run: called after each.
    """
    done = {(run["variant"], run["seed"]) for run in runs}
    log_every = max(1, schedule.steps // LOGGED)
    for seed in seeds:
        for name, config in configs.items():
            if (name, seed) in done:
                continue
            _, losses = train_new(
                config,
                corpus,
                replace(schedule, seed=seed),
                log_every=log_every,
                name=f"{name}, seed {seed}",
            )
            runs.append({"variant": name, "seed": seed, "losses": asdict(losses)})
            on_run()


@torch.inference_mode()
def decode_speed(
    configs: Mapping[str, DecoderConfig], batch: int, context: int
) -> dict[str, float]:
    """Tokens per second of each variant, which do not depend on what it has learnt."""
    sizes = [formula_bytes(config, context, batch) for config in configs.values()]
    pool = random_pool(max(sizes), configs.values())
    steps = {
        name: timed_step(
            Decoder(replace(config, max_position=context)).to(DTYPE), pool, context, batch
        )
        for name, config in configs.items()
    }
    samples = interleave(steps, DECODE_BUDGET)
    return {name: batch / sample.median for name, sample in samples.items()}
