"""Small byte-level BPE tokenizers, trained on a few sentences."""

from collections.abc import Collection
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

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
