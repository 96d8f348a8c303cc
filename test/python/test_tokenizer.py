"""Tokenizers that come with models: encoding, chats, streams, bad files."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

import bpe
from mqa.tokenizer import Tokenizer, load_tokenizer

CHAT = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
TEXT = "Der Wärter, 灯台守 🎉👩‍👩‍👧!"


def save(folder: Path, **options: Any) -> Path:
    """A folder with a small tokenizer that puts <|end|> in front of a text."""
    tokenizer = bpe.train()
    first = tokenizer.token_to_id("<|end|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", first)]
    )
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", **options
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(save(tmp_path_factory.mktemp("chat"), chat_template=CHAT))


def test_what_comes_in_front_comes_once(tokenizer: Tokenizer) -> None:
    first = tokenizer.hugging_face.bos_token_id
    tokens = tokenizer.encode(TEXT)
    assert tokens[0] == first
    assert tokenizer.encode("<|end|>" + TEXT) == tokens
    assert tokenizer.decode(tokens) == TEXT
    chat = tokenizer.encode_chat(TEXT)
    assert chat[:2] == [first, tokenizer.hugging_face.convert_tokens_to_ids("<|im_start|>")]
    assert chat.count(first) == 1
    assert tokenizer.decode(chat) == TEXT


def test_a_stream_gives_whole_characters(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT)
    prompt, new = tokens[:3], tokens[3:]
    stream = tokenizer.stream(prompt)
    pieces = [stream.push(token) for token in new]
    assert stream.finish() == ""
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces  # some characters take several tokens
    assert stream.text == "".join(pieces) == TEXT.removeprefix(tokenizer.decode(prompt))


def test_a_character_cut_off_is_said_so_at_the_end(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("A 👩")
    stream = tokenizer.stream([])
    assert "".join(stream.push(token) for token in tokens[:-1]) == "A "
    assert stream.finish() == "\ufffd"
    assert stream.text == "A \ufffd"


def test_without_a_chat_template_there_is_no_chat(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"encode_chat: {tmp_path} has no chat template"):
        load_tokenizer(save(tmp_path)).encode_chat("Hi")


def test_a_template_that_fails_says_why(tmp_path: Path) -> None:
    broken = load_tokenizer(save(tmp_path, chat_template="{{ raise_exception('no users') }}"))
    with pytest.raises(ValueError, match=r"the chat template of .* fails \(no users\)"):
        broken.encode_chat("Hi")


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no file {tmp_path}/tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=f"cannot read the tokenizer of {tmp_path}"):
        load_tokenizer(tmp_path)
    (tmp_path / "bad.gguf").write_text("GGUF")
    with pytest.raises(ValueError, match=r"cannot read the tokenizer of .*bad.gguf"):
        load_tokenizer(tmp_path / "bad.gguf")
