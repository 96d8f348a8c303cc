"""Small BPE tokenizers, byte-level and over characters, trained on a few sentences."""

import json
from collections.abc import Callable, Collection
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL_TOKENS = ["<|end|>", "<|im_start|>", "<|im_end|>", "<|im_end|>ed"]
CORPUS = [
    "The keeper climbed the 199 steps of the lighthouse, as they'd done in 1899 and in 1989.",
    "I'm sure we've met; you'll remember what she'd said: it's the keeper's light that wouldn't.",
    "def main(argv):\n    if len(argv) > 2:\n\t\treturn 0\n\n\nprint('   done', 3.14159)\r\n",
    "Der Wärter stieg täglich über die Treppe, größer als je. Élégant, naïf\u00a0; coûteux\u2003!",
    "灯台守は毎晩階段を上った。\u3000一九八九年、灯台の光は消えた。",
    "صعد الحارس الدرج كل مساء في عام ١٩٨٩، وكان الضوء بعيدا.",
    "Смотритель поднимался по лестнице каждый вечер 🎉🎉👩‍👩‍👧 ½ ² Ⅷ",
] * 3

# LLaMA 3's words: up to three digits, and one other character before letters.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE_TOKENIZERS = {
    "byte_level": BYTE_LEVEL,
    "bytes_only": BYTES_ONLY,
    "prefix_space": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "single_digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTE_LEVEL]),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    ),
    "llama3": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"), BYTES_ONLY]
    ),
    "split_at_string": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(".e", "isolated"), BYTE_LEVEL]
    ),
}


def train(
    pre_tokenizer: pre_tokenizers.PreTokenizer = BYTE_LEVEL,
    *,
    without: Collection[str] = (),
    **model_options: Any,
) -> Tokenizer:
    """A tokenizer whose merges also cross words, so that every cut of `pre_tokenizer` matters.

    Its vocabulary lacks the letters `without` of the byte alphabet.
    """
    tokenizer = Tokenizer(models.BPE(**model_options))
    tokenizer.pre_tokenizer = BYTES_ONLY
    alphabet = [letter for letter in ALPHABET if letter not in without]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["lighthouse keeper", "光"])
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# Characters with bytes as a last resort, as in SentencePiece: spaces are written as MARK.
MARK = "\u2581"
MARKED_SPACES = normalizers.Replace(" ", MARK)
MARKED_BEGINNING = normalizers.Sequence([normalizers.Prepend(MARK), MARKED_SPACES])
TO_TEXT = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
TO_STRIPPED_TEXT = [*TO_TEXT, decoders.Strip(" ", 1, 0)]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def train_characters(
    normalizer: normalizers.Normalizer | None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None,
    decoder: list[decoders.Decoder],
    **model_options: Any,
) -> Tokenizer:
    """A tokenizer that knows the commonest characters of the corpus only."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = MARKED_SPACES
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        limit_alphabet=60,
        special_tokens=["<unk>", "<bos>", *SPECIAL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    model.update(model_options)
    if model["byte_fallback"]:
        first = len(model["vocab"])
        model["vocab"] |= {token: first + i for i, token in enumerate(BYTE_TOKENS)}
    tokenizer = Tokenizer.from_str(json.dumps(description))
    # Found before normalization, and after it.
    tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in (1, 2, 3)])
    tokenizer.add_tokens(
        [AddedToken(text, normalized=True) for text in ("the keeper", "光", "灯台")]
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(decoder)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return Tokenizer.from_str(tokenizer.to_str())  # which normalizes the added tokens anew


FALLBACK = {"byte_fallback": True, "fuse_unk": True}
CHARACTER_TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "gemma": lambda: train_characters(
        MARKED_SPACES, pre_tokenizers.Split(" ", "merged_with_previous"), TO_TEXT, **FALLBACK
    ),
    "llama2": lambda: train_characters(MARKED_BEGINNING, None, TO_STRIPPED_TEXT, **FALLBACK),
    "metaspace_first": lambda: train_characters(
        None,
        pre_tokenizers.Metaspace(MARK, prepend_scheme="first", split=False),
        TO_STRIPPED_TEXT,
        **FALLBACK,
    ),
    "metaspace_always": lambda: train_characters(
        None,
        pre_tokenizers.Metaspace(MARK, prepend_scheme="always", split=True),
        TO_STRIPPED_TEXT,
        **FALLBACK,
    ),
    "metaspace_never": lambda: train_characters(
        None,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"[\s,]"), "merged_with_next"),
                pre_tokenizers.Metaspace(MARK, prepend_scheme="never", split=True),
            ]
        ),
        TO_TEXT,
        **FALLBACK,
    ),
    "merged_with_previous": lambda: train_characters(
        None, pre_tokenizers.Split(Regex(r"[\se]"), "merged_with_previous"), TO_TEXT, **FALLBACK
    ),
    "unknown": lambda: train_characters(MARKED_SPACES, None, TO_TEXT),
    "fused_unknown": lambda: train_characters(MARKED_SPACES, None, TO_TEXT, fuse_unk=True),
}
