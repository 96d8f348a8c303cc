"""Text from tokens, one at a time."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of the tokens that follow a prompt, in whole characters.

    Args:
        tokenizer: decodes.
        prompt: the tokens before, on which the text of the first ones may depend.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.text = ""
        self._stream = DecodeStream(ids=self.prompt, skip_special_tokens=True)

    def push(self, token: int) -> str:
        """What `token` completes; nothing while it takes more to have a whole character."""
        self.tokens.append(token)
        new = self._stream.step(self.tokenizer, token) or ""
        self.text += new
        return new

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that has remained incomplete."""
        before = self.tokenizer.decode(self.prompt)
        rest = self.tokenizer.decode(self.prompt + self.tokens)[len(before) + len(self.text) :]
        self.text += rest
        return rest
