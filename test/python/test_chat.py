"""Chat templates: rendered as `transformers` does, and what stands around a message."""

import pytest
from transformers import PreTrainedTokenizerFast

from bpe import train
from mqa import ChatTemplate

# Like those of SmolLM2, Gemma and LLaMA 2: a default system prompt, names, refusals, white space.
CHATML = """\
{% for message in messages %}
    {% if loop.first and message.role != "system" %}
{{ "<|im_start|>system\\nBe brief.<|im_end|>\\n" }}
    {% endif %}
{{ "<|im_start|>" + message["role"] + "\\n" + message["content"] | trim + "<|im_end|>" }}
{% endfor %}
{% if add_generation_prompt %}
{{ "<|im_start|>assistant\\n" -}}
{% endif %}
"""
GEMMA = """\
{{ bos_token }}
{%- for message in messages -%}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message["role"] == "assistant" else message["role"] -%}
    {{ "<start_of_turn>" + role + "\n" + message["content"] + "<end_of_turn>\n" }}
    {%- if loop.index0 > 5 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<start_of_turn>model\n" }}{%- endif -%}
"""
LLAMA2 = """\
{% for message in messages %}{% if message["role"] == "user" %}\
{{ bos_token + "[INST] " + message["content"] + " [/INST]" }}{% else %}\
{{ " " + message["content"] + " " + eos_token }}{% endif %}{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "llama2": LLAMA2}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS = [
    [message("user", "Who lit it?")],
    [
        message("user", "Why?"),
        message("assistant", " Because.\n"),
        message("user", "{{ bos_token }}"),
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_text_is_that_of_transformers(name: str, messages: list[dict[str, str]]) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train(), bos_token="<s>", eos_token="</s>", chat_template=TEMPLATES[name]
    )
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(TEMPLATES[name], "<s>", "</s>").render(messages) == expected


def test_what_stands_around_a_message() -> None:
    assert ChatTemplate(GEMMA, bos_token="<bos>").frame() == (
        "<bos><start_of_turn>user\n",
        "<end_of_turn>\n<start_of_turn>model\n",
    )
    assert ChatTemplate(LLAMA2, bos_token="<s>").frame() == ("<s>[INST] ", " [/INST]")


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("no message", "expected a template with the user's message in one place, got it in 0"),
        ("{{ messages[0].content * 2 }}", "in one place, got it in 2"),
        ("{{ raise_exception('only tools') }}", "cannot render the template: only tools"),
        ("{% if %}", "cannot render the template: Expected an expression"),
        ("{{ messages[0].content + 1 }}", "cannot render the template: can only concatenate str"),
        ("{{ nobody.content }}", "cannot render the template: 'nobody' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "cannot render the template: access to attribute"),
    ],
)
def test_what_is_no_template_for_a_message_is_refused(template: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^ChatTemplate: .*{sentence}"):
        ChatTemplate(template).frame()
