"""Chat templates, as models on Hugging Face have them."""

from dataclasses import dataclass
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MESSAGE = "the message of the user"


@dataclass(frozen=True)
class ChatTemplate:
    """How a chat model is asked.

    Attributes:
        text: the Jinja template, `tokenizer.chat_template` in Hugging Face's `transformers`.
        bos_token: what the template calls so, such as "<bos>".
        eos_token: what the template calls so.
    """

    text: str
    bos_token: str = ""
    eos_token: str = ""

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation so far, up to where the model answers.

        Args:
            messages: each with "role" ("system", "user" or "assistant") and "content".

        Raises:
            ValueError: the template cannot be rendered, or refuses these messages.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(self.text).render(
                messages=messages,
                add_generation_prompt=True,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"ChatTemplate: cannot render the template: {error}") from error

    def frame(self) -> tuple[str, str]:
        """What stands before and after the message of the user that begins a conversation.

        Raises:
            ValueError: the template cannot be rendered, or does not contain the message once.
        """
        parts = self.render([{"role": "user", "content": _MESSAGE}]).split(_MESSAGE)
        if len(parts) != 2:
            raise ValueError(
                "ChatTemplate: expected a template with the user's message in one place, "
                f"got it in {len(parts) - 1}"
            )
        return parts[0], parts[1]


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)
