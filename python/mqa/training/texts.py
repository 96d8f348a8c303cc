"""Text files as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mqa.tokenizer import Tokenizer
from mqa.training.corpus import Corpus


@dataclass(frozen=True)
class TextReader:
    """Reads the texts of a training.

    Attributes:
        tokenizer: of the model.
        vocab_size: of the model.
        context: tokens of a sequence; a text has to be longer.
    """

    tokenizer: Tokenizer
    vocab_size: int
    context: int

    @property
    def first_token(self) -> int | None:
        """The token that the tokenizer puts before every text, if it does."""
        first = self.tokenizer.hugging_face.bos_token_id
        return first if first is not None and self.tokenizer.encode("")[:1] == [first] else None

    def corpus(self, paths: Sequence[Path]) -> Corpus:
        """All files; the last tenth of each is for validation.

        Raises:
            OSError: a file cannot be read.
            ValueError: one is no UTF-8 text, too short, or has a token that the model lacks.
        """
        parts = [self._split(path) for path in paths]
        return Corpus(
            torch.cat([part.training for part in parts]),
            torch.cat([part.validation for part in parts]),
        )

    def held_out(self, path: Path) -> Tensor:
        """The tokens int64 `[N]` of a file for validation alone.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no UTF-8 text, too short, or has a token that the model lacks.
        """
        tokens = self._read(path)
        if len(tokens) <= self.context:
            raise ValueError(
                f"{path}: expected a text of more than {self.context} tokens (the context), "
                f"got {len(tokens)}"
            )
        return tokens

    def _split(self, path: Path) -> Corpus:
        try:
            return Corpus.split(self._read(path), self.context)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _read(self, path: Path) -> Tensor:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected UTF-8 text, got {error}") from error
        tokens = torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)
        if len(tokens) > 0 and (largest := int(tokens.max())) >= self.vocab_size:
            raise ValueError(
                f"{path}: expected tokens below {self.vocab_size}, the vocabulary of the model, "
                f"from the tokenizer of {self.tokenizer.source}, got {largest}"
            )
        return tokens
