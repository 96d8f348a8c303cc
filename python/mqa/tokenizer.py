"""Text to tokens and back, with the tokenizer that comes with a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mqa.text_stream import TextStream


class Tokenizer:
    """The tokenizer of a model, and its chat template if it has one.

    Args:
        hugging_face: what does the work.
        source: where it comes from, for messages.
    """

    def __init__(self, hugging_face: PreTrainedTokenizerBase, source: Path) -> None:
        self.hugging_face = hugging_face
        self.source = source

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, after what the model expects in front, which comes once."""
        tokens: list[int] = self.hugging_face(text)["input_ids"]
        first = self.hugging_face.bos_token_id
        return tokens[1:] if first is not None and tokens[:2] == [first, first] else tokens

    def encode_chat(self, text: str) -> list[int]:
        """The tokens of a chat in which the user has said `text` and the model is to answer.

        Raises:
            ValueError: there is no chat template, or it fails.
        """
        if not self.hugging_face.chat_template:
            raise ValueError(f"encode_chat: {self.source} has no chat template")
        try:
            chat = self.hugging_face.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of its own
            raise ValueError(
                f"encode_chat: the chat template of {self.source} fails ({error})"
            ) from error
        # The template writes what comes in front itself.
        tokens: list[int] = self.hugging_face(chat, add_special_tokens=False)["input_ids"]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, without special ones."""
        text: str = self.hugging_face.backend_tokenizer.decode(list(tokens))
        return text

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """For the text of tokens that follow `prompt`, as they come."""
        from mqa.text_stream import TextStream

        return TextStream(self.hugging_face.backend_tokenizer, prompt)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder or of a GGUF file.

    Args:
        path: a folder with `tokenizer.json` (what else the model expects is in
            `tokenizer_config.json` and `chat_template.jinja`), or a .gguf file.

    Raises:
        OSError: there is no such file.
        ValueError: it cannot be read, or a Python package for that is missing.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"load_tokenizer: no file {file}")
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
        from transformers.utils import logging

        logging.set_verbosity_error()
        if path.is_dir():
            # Not the class of the model's family, which may have its own idea of tokenizer.json.
            return Tokenizer(PreTrainedTokenizerFast.from_pretrained(path), path)
        return Tokenizer(AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), path)
    except ImportError as error:
        raise ValueError(
            f"load_tokenizer: {error.name or error} is missing: pip install mqa[text]"
        ) from error
    except Exception as error:  # whatever the package meets in a file that it does not know
        raise ValueError(
            f"load_tokenizer: cannot read the tokenizer of {path} ({error})"
        ) from error
