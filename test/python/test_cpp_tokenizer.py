"""The tokenizer of the C++ program against Hugging Face's `tokenizers`, id by id."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from bpe import (
    ALPHABET,
    BYTES_ONLY,
    CHARACTER_TOKENIZERS,
    CORPUS,
    MARK,
    PRE_TOKENIZERS,
    SPECIAL_TOKENS,
    train,
)
from programs import ROOT, program, refusal
from reference import load_tokenizer
from smollm2 import install

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "I'm sure we'd've met; IT'S you'll 'tis y'all're",
    "In 1899 there were 12345678 steps, 3.14 and ½, ² and Ⅷ and ١٢٣",
    "  two  spaces\tand\t\ttabs \n\n\nlines\r\n  \r\nend   ",
    "a\u00a0b\u2003c\u3000d\u200be\u0085f",
    "灯台守は毎晩階段を上った。",
    "كان الضوء بعيدا",
    "👩‍👩‍👧🎉 e\u0301 é",
    "<|im_start|>user\nHi<|im_end|>\n<|im_end|>ed <|im_en|> <|end|><|end|>",
    "the lighthouse keeper's 光",
    "Ġ Ċ á¼ are letters, not bytes",
    "\0\x01\x7f\u00ad",
    f"{MARK}the keeper{MARK}{MARK} {MARK}<|end|>the keeper <|end|> the keeper",
    "<0x0A><0xZZ> <0x0a>",
    "the keeper\n\n\n\n\nof the 灯台灯光\n",
    "x.e..e.",
    "e" * 3000 + " " * 3000 + "\n" * 3000,
    *CORPUS,
]
# Without a pre_tokenizer 100 kB are one word: squared, they would take minutes.
LONG_WORD = "The keeper's light. " * 5_000
# Characters that this Python knows: libraries differ in how new a Unicode they know. Without
# U+180E, which PCRE2 counts as white space though Unicode no longer does.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="\u180e")
PARTS = st.one_of(
    st.sampled_from(
        [*SPECIAL_TOKENS, "lighthouse keeper", "the", "'ll", "'S", "19", " ", "\n", MARK]
    ),
    st.text(CHARACTERS, max_size=5),
)
ANY_TEXT = st.lists(PARTS, max_size=10).map("".join)


class CppTokenizer:
    """The program `tokenize`, which answers each line with one line."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        file = folder / "tokenizer.json"
        file.write_text(tokenizer.to_str(), encoding="utf-8")
        self.process = subprocess.Popen(
            [program("tokenize"), file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(self, text: str) -> tuple[list[int], str]:
        """The ids of `text`, and what they decode to."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(text).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["ids"], answer["text"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


Pair = tuple[CppTokenizer, Tokenizer]


def assert_same(pair: Pair, text: str) -> None:
    cpp, reference = pair
    ids = reference.encode(text).ids
    assert cpp(text) == (ids, reference.decode(ids))


@pytest.fixture(scope="module", params=[*PRE_TOKENIZERS, *CHARACTER_TOKENIZERS])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """A tokenizer of each kind, in C++ and in Python."""
    if request.param in PRE_TOKENIZERS:
        reference = train(PRE_TOKENIZERS[request.param])
    else:
        reference = CHARACTER_TOKENIZERS[request.param]()
    with CppTokenizer(reference, tmp_path_factory.mktemp("tokenizer")) as cpp:
        yield cpp, reference


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_decoded_text_are_those_of_tokenizers(pair: Pair, text: str) -> None:
    assert_same(pair, text)


def test_a_long_word(pair: Pair) -> None:
    assert_same(pair, LONG_WORD)


@given(ANY_TEXT)
def test_any_text(pair: Pair, text: str) -> None:
    assert_same(pair, text)


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2(smollm2: Pair, text: str) -> None:
    assert_same(smollm2, text)


@settings(max_examples=300)
@given(ANY_TEXT)
def test_smollm2_on_any_text(smollm2: Pair, text: str) -> None:
    assert_same(smollm2, text)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    reference = load_tokenizer(install(ROOT / "build/demo/smollm2"))
    with CppTokenizer(reference, tmp_path_factory.mktemp("smollm2")) as cpp:
        yield cpp, reference


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The 262,144 tokens of Gemma 3."""
    gguf = os.environ.get("MQA_GEMMA_GGUF")
    if gguf is None:
        pytest.skip("needs MQA_GEMMA_GGUF, the path of Gemma 3 as a GGUF file")
    reference = load_tokenizer(Path(gguf))
    with CppTokenizer(reference, tmp_path_factory.mktemp("gemma")) as cpp:
        yield cpp, reference


def test_gemma(gemma: Pair) -> None:
    for text in [*TEXTS, LONG_WORD]:
        assert_same(gemma, text)


@settings(max_examples=300)
@given(ANY_TEXT)
def test_gemma_on_any_text(gemma: Pair, text: str) -> None:
    assert_same(gemma, text)


# The first or last character with its leading byte. Without its second byte no character begins.
EDGES = "\u0800\ud7ff\U00010000\U0010ffff"
SECOND_BYTES = [BYTES_ONLY.pre_tokenize_str(edge)[0][0][1] for edge in EDGES]

VARIANTS: dict[str, Callable[[], Tokenizer]] = {
    "bytes without a token vanish": lambda: train(without=ALPHABET[::2]),
    "bytes without a token are unknown": lambda: train(without=ALPHABET[::2], unk_token="<|end|>"),
    "characters lose their second byte": lambda: train(without=SECOND_BYTES),
    "whole words before merges": lambda: words_first(train()),
    "merges that take each other's letters": lambda: rivals(train()),
    "a template around the text": lambda: framed(train()),
}


def rivals(tokenizer: Tokenizer) -> Tokenizer:
    """In "abcd", "bc" comes first and then takes "d", not "a"."""
    tokens = ["a", "b", "c", "d", "bc", "ab", "bcd", "abc"]
    merges = [("b", "c"), ("a", "b"), ("bc", "d"), ("a", "bc")]
    tokenizer.model = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    return tokenizer


def words_first(tokenizer: Tokenizer) -> Tokenizer:
    """With a word in the vocabulary that its merges do not lead to."""
    description = json.loads(tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    vocabulary["xyzzy"] = len(vocabulary) + 10
    description["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(description))


def framed(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|im_start|> <|end|> $A <|im_end|>",
                special_tokens=[(name, tokenizer.token_to_id(name)) for name in SPECIAL_TOKENS],
            ),
        ]
    )
    return tokenizer


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, tmp_path: Path) -> None:
    reference = VARIANTS[variant]()
    with CppTokenizer(reference, tmp_path) as cpp:
        for text in [*TEXTS, EDGES, "xyzzy xyzz", "abcd abc bcd"]:
            assert_same((cpp, reference), text)


def test_merges_written_as_one_string(tmp_path: Path) -> None:
    reference = train()
    description = json.loads(reference.to_str())
    description["model"]["merges"] = [" ".join(pair) for pair in description["model"]["merges"]]
    with CppTokenizer(Tokenizer.from_str(json.dumps(description)), tmp_path) as cpp:
        for text in TEXTS:
            assert_same((cpp, reference), text)


REFUSALS: dict[str, tuple[list[str | int], Any]] = {
    'of type "BPE", got "WordPiece"': (["model", "type"], "WordPiece"),
    "without dropout, got 0.1": (["model", "dropout"], 0.1),
    'to have "zq"': (["model", "merges"], [["z", "q"]]),
    'to have "<unk>"': (["model", "unk_token"], "<unk>"),
    'two tokens, got "abc"': (["model", "merges"], ["abc"]),
    "Prepend, Replace or a Sequence of them, got NFC": (["normalizer"], {"type": "NFC"}),
    'to replace a String, got {"Regex":"a"}': (
        ["normalizer"],
        {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"},
    ),
    "Metaspace, Split or a Sequence of them, got Whitespace": (
        ["pre_tokenizer"],
        {"type": "Whitespace"},
    ),
    "'prepend_scheme' not found": (
        ["pre_tokenizer"],
        {"type": "Metaspace", "replacement": MARK, "add_prefix_space": True},
    ),
    "Split without invert": (
        ["pre_tokenizer"],
        {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": True},
    ),
    'got "Removed"': (
        ["pre_tokenizer"],
        {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Removed", "invert": False},
    ),
    "missing closing parenthesis": (
        ["pre_tokenizer"],
        {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False},
    ),
    "with a decoder, got null": (["decoder"], None),
    "Strip or a Sequence of them, got WordPiece": (["decoder"], {"type": "WordPiece"}),
    "only Strip after Fuse in the decoder of the tokenizer, got ByteFallback": (
        ["decoder"],
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]},
    ),
    "one Strip after Fuse": (
        ["decoder"],
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ),
    "with stop 0": (
        ["decoder"],
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 1},
            ],
        },
    ),
    "without lstrip": (["added_tokens", 0, "lstrip"], True),
    "got BertProcessing": (["post_processor"], {"type": "BertProcessing"}),
    "type must be": (["added_tokens", 0, "id"], "zero"),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_what_is_not_implemented_is_refused(sentence: str, tmp_path: Path) -> None:
    (*keys, last), value = REFUSALS[sentence]
    description = json.loads(train().to_str())
    place = description
    for key in keys:
        place = place[key]
    place[last] = value
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(description))
    assert sentence in refusal(program("tokenize"), file)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    assert f"cannot read {file}" in refusal(program("tokenize"), file)
    file.write_text('{"model": ')
    assert "parse error" in refusal(program("tokenize"), file)
    file.write_text("{}")
    assert "'model' not found" in refusal(program("tokenize"), file)
