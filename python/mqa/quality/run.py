"""Trains all variants with all seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from mqa.config import DecoderConfig
from mqa.decoder import Decoder
from mqa.quality.decode import decode_rates
from mqa.quality.variants import num_parameters
from mqa.training.corpus import Corpus
from mqa.training.from_scratch import train_new
from mqa.training.schedule import Schedule

LOGGED = 25  # losses of a run, about
DECODE_STEPS, DECODE_ROUNDS = 8, 5


def describe(config: DecoderConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What the report says of a variant."""
    cache_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    return {
        "config": asdict(config),
        "num_parameters": num_parameters(config),
        "cache_bytes": cache_bytes,
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


def decode_speed(
    configs: Mapping[str, DecoderConfig], dtype: torch.dtype, batch: int, context: int
) -> dict[str, float]:
    """Tokens per second of each variant, which do not depend on what it has learnt."""
    models = {
        name: Decoder(replace(config, max_position=context)).requires_grad_(False).to(dtype)
        for name, config in configs.items()
    }
    return decode_rates(
        models, batch=batch, context=context, steps=DECODE_STEPS, rounds=DECODE_ROUNDS
    )
