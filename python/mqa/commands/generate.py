"""`mqa generate`: continues a prompt with a model from a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqa.commands.plan import positive

if TYPE_CHECKING:
    from mqa import Decoder, Drafter, GenerationStats
    from mqa.text_stream import TextStream
    from mqa.tokenizer import Tokenizer

HELP = "text from a model, streamed; with sampling, fewer KV heads, 8-bit caches, drafts"
DESCRIPTION = """Continues a prompt and streams the text. The model is a Hugging Face folder or a
.gguf file. Ctrl-C ends the text where it is."""

DTYPES = ("float32", "bfloat16", "float16")
CACHE_DTYPES = ("auto", "int8", "float8_e4m3fn")
MAX_THREADS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `mqa generate`."""
    parser.add_argument("model", type=Path, help="a Hugging Face folder or a .gguf file")
    prompt = parser.add_argument_group("prompt").add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument(
        "--prompt-file", metavar="FILE", help="a file with the text to continue; - is stdin"
    )
    prompt.add_argument(
        "--tokens", type=token_ids, metavar="IDS", help="token ids to continue, such as 1,2,3"
    )
    parser.add_argument(
        "--chat", action="store_true", help="the text is what a user says: use the chat template"
    )

    choice = parser.add_argument_group("choice of tokens")
    choice.add_argument(
        "--max-new-tokens",
        type=positive,
        default=128,
        metavar="N",
        help="when to stop at the latest; default: 128",
    )
    choice.add_argument(
        "--temperature",
        type=temperature,
        default=0.0,
        metavar="X",
        help="0, the default, takes the likeliest token",
    )
    choice.add_argument(
        "--top-k", type=positive, metavar="N", help="sample among that many likeliest tokens"
    )
    choice.add_argument(
        "--top-p",
        type=share,
        metavar="X",
        help="sample among the fewest likeliest tokens that have this probability together",
    )
    choice.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="of the random numbers; default: 0"
    )
    choice.add_argument(
        "--ignore-eos", action="store_true", help="go on after an end-of-text token"
    )

    how = parser.add_argument_group("model and cache")
    how.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    how.add_argument(
        "--kv-heads", type=positive, metavar="N", help="convert the model; 1 is multi-query"
    )
    how.add_argument(
        "--capacity", type=positive, metavar="N", help="slots of the cache; default: as needed"
    )
    how.add_argument(
        "--cache-dtype",
        choices=CACHE_DTYPES,
        default="auto",
        help="of the cache; auto, the default, is that of the model",
    )
    how.add_argument("--threads", type=threads, metavar="N", help="to compute with")

    speculative = parser.add_argument_group(
        "guesses", "which change the speed alone"
    ).add_mutually_exclusive_group()
    speculative.add_argument(
        "--prompt-lookup",
        type=positive,
        metavar="N",
        help="guess N tokens from where the text had the same words before",
    )
    speculative.add_argument(
        "--draft", type=Path, metavar="MODEL", help="guess with a smaller model"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end instead of the text"
    )


def run(arguments: argparse.Namespace) -> None:
    """Generates and prints.

    Raises:
        OSError: A file cannot be read.
        ValueError: The model, its tokenizer or the prompt cannot be used.
        KeyboardInterrupt: Ctrl-C; what there is until then has been printed.
    """
    import mqa

    text = _prompt_text(arguments)
    model = _load_model(arguments)
    tokenizer = _load_tokenizer(arguments)
    prompt = _prompt_tokens(arguments, text, tokenizer)
    output = Output(tokenizer.stream(prompt) if tokenizer else None, is_silent=arguments.json)
    stats = mqa.GenerationStats()
    drafter = _drafter(arguments)
    try:
        mqa.generate(
            model,
            [prompt],
            arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            stop_tokens=() if arguments.ignore_eos else None,
            capacity=arguments.capacity,
            cache_dtype=arguments.cache_dtype,
            drafter=drafter,
            on_token=lambda b, token: output.push(token),
            stats=stats,
        )
    except KeyboardInterrupt:
        _finish(arguments, prompt, output, stats)
        raise
    _finish(arguments, prompt, output, stats)


class Output:
    """The new tokens and their text, printed as they come unless `is_silent`.

    Without a tokenizer the text is the tokens' ids.
    """

    def __init__(self, stream: TextStream | None, is_silent: bool) -> None:
        self.stream = stream
        self.is_silent = is_silent
        self.tokens: list[int] = []
        self.text = ""

    def push(self, token: int) -> None:
        """Add a token."""
        self.tokens.append(token)
        self._print(self.stream.push(token) if self.stream else f"{token} ")

    def finish(self) -> None:
        """Add what is left of the text."""
        if self.stream:
            self._print(self.stream.finish())
        if not self.is_silent:
            print(flush=True)

    def _print(self, text: str) -> None:
        self.text += text
        if not self.is_silent:
            print(text, end="", flush=True)


@dataclass(frozen=True)
class _Rate:
    count: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.count / self.seconds if self.count else 0.0


def _finish(
    arguments: argparse.Namespace, prompt: list[int], output: Output, stats: GenerationStats
) -> None:
    """Prints the rest of the text and the summary, or the JSON object."""
    import torch

    output.finish()
    prefill = _Rate(stats.prefill_tokens, stats.prefill_seconds)
    decode = _Rate(stats.decode_tokens, stats.decode_seconds)
    guesses = arguments.prompt_lookup is not None or arguments.draft is not None
    if arguments.json:
        report: dict[str, Any] = {
            "prompt_tokens": prompt,
            "tokens": output.tokens,
            "text": output.text,
            "prefill_seconds": prefill.seconds,
            "decode_seconds": decode.seconds,
            "prefill_tokens_per_second": prefill.per_second,
            "decode_tokens_per_second": decode.per_second,
            "cache_bytes": stats.cache_bytes,
            "threads": torch.get_num_threads(),
        }
        if guesses:
            report["drafted_tokens"] = stats.drafted_tokens
            report["accepted_tokens"] = stats.accepted_tokens
        print(json.dumps(report))
        return
    summary = (
        f"prefill: {prefill.count} tokens, {prefill.per_second:.4g} tokens/s; "
        f"decode: {stats.decode_steps} steps, {decode.per_second:.4g} tokens/s; "
        f"cache: {stats.cache_bytes} bytes"
    )
    if guesses:
        summary += f"; drafts: {stats.accepted_tokens} of {stats.drafted_tokens} accepted"
    print(summary, file=sys.stderr)


def _prompt_text(arguments: argparse.Namespace) -> str | None:
    if arguments.chat and arguments.tokens is not None:
        raise ValueError("expected the prompt as text with --chat, got --tokens")
    if arguments.prompt_file is None:
        return arguments.prompt
    try:
        if arguments.prompt_file == "-":
            return sys.stdin.buffer.read().decode()
        return Path(arguments.prompt_file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text in {arguments.prompt_file}, got {error}") from error


def _load_model(arguments: argparse.Namespace) -> Decoder:
    import torch

    import mqa

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, arguments.dtype)
    return model if arguments.kv_heads is None else mqa.convert(model, arguments.kv_heads)


def load_model(path: Path, dtype: str) -> Decoder:
    """`mqa.load`, where a missing package is bad input, too."""
    import torch

    import mqa

    try:
        return mqa.load(path, getattr(torch, dtype))
    except ImportError as error:
        raise ValueError(
            f"the Python package {error.name}, which reads {path}, is missing: "
            "pip install mqa[models]"
        ) from error


def _load_tokenizer(arguments: argparse.Namespace) -> Tokenizer | None:
    from mqa.tokenizer import load_tokenizer

    try:
        return load_tokenizer(arguments.model)
    except (OSError, ValueError) as error:
        if arguments.tokens is None:
            raise ValueError(f"{error}; the prompt can be given as --tokens") from error
        print(f"mqa generate: prints token ids, for {error}", file=sys.stderr)
        return None


def _prompt_tokens(
    arguments: argparse.Namespace, text: str | None, tokenizer: Tokenizer | None
) -> list[int]:
    if text is None or tokenizer is None:
        return arguments.tokens
    return tokenizer.encode_chat(text) if arguments.chat else tokenizer.encode(text)


def _drafter(arguments: argparse.Namespace) -> Drafter | None:
    import mqa

    if arguments.prompt_lookup is not None:
        return mqa.PromptLookup(arguments.prompt_lookup)
    if arguments.draft is not None:
        return mqa.DraftModel(load_model(arguments.draft, arguments.dtype))
    return None


def number(
    text: str, kind: type[int] | type[float], accepts: Callable[[float], bool], expectation: str
) -> Any:
    """A number of the command line that `accepts` takes; `expectation` says which those are."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not accepts(value):
        raise argparse.ArgumentTypeError(f"expected {expectation}, got '{text}'")
    return value


def whole(text: str) -> int:
    """A whole number from 0 of the command line."""
    return number(text, int, lambda x: 0 <= x < 2**63, "a whole number from 0")


def threads(text: str) -> int:
    """A number of threads of the command line."""
    expectation = f"a whole number from 1 to {MAX_THREADS}"
    return number(text, int, lambda x: 1 <= x <= MAX_THREADS, expectation)


def temperature(text: str) -> float:
    """A temperature of the command line."""
    return number(text, float, lambda x: 0 <= x < math.inf, "a finite number from 0")


def share(text: str) -> float:
    """A probability of the command line."""
    return number(text, float, lambda x: 0 < x <= 1, "a number in (0, 1]")


def token_ids(text: str) -> list[int]:
    """Token ids of the command line."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"expected token ids such as 1,2,3, got '{text}'")
    return [int(token) for token in text.split(",")]
