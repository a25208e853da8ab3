"""The tokenizer of the pocket model: byte-level BPE in which each word of the tasks and each digit is a token.

Any text encodes, because every byte is a token. Each word counts once in training, however often the tasks
use it, and merging goes on until all of them are whole.
"""

import re
from itertools import islice
from typing import Any, Final

from . import arithmetic, choice, recall, text
from .splits import Split, documents

END: Final = "<|end|>"
"""Begins and ends every document."""
PIECE: Final = r" ?[A-Za-z]+| ?[^A-Za-z0-9\s]+|[0-9]|\s+"
"""What a token may not reach beyond."""
LARGEST: Final = 2048
"""Merging ends well below this size, when nothing is left to merge."""


def train() -> Any:
    """Train the tokenizer on the words of the training split. Returns a ``tokenizers.Tokenizer``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECE), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def _pieces() -> list[str]:
    pieces = {"\n\n"}
    for kind in (arithmetic, choice, recall, text):
        for document in islice(documents(kind.make, kind.LEVELS, Split.TRAIN, "tokenizer"), 2000):
            pieces.update(re.findall(PIECE, document.prompt + document.target))
    return sorted(pieces)
