"""Text to training windows: read, tokenise once, map into memory, deal in a fixed order."""

from spikelet.training.data.cache import SplitSizes, TokenData, load_tokens, prepare
from spikelet.training.data.sources import (
    END_OF_TEXT,
    deal_documents,
    read_documents,
    read_text,
    split_documents,
)
from spikelet.training.data.tokenizers import (
    TextTokenizer,
    as_tokenizer,
    end_of_text_id,
    load_tokenizer,
    train_on_source,
    train_tokenizer,
)
from spikelet.training.data.windows import (
    IGNORED,
    Streams,
    Windows,
    mask_tokens,
    pack,
    padded_batch,
    validation_batches,
)
from spikelet.training.files import write_atomically

__all__ = [
    "END_OF_TEXT",
    "IGNORED",
    "SplitSizes",
    "Streams",
    "TextTokenizer",
    "TokenData",
    "Windows",
    "as_tokenizer",
    "deal_documents",
    "end_of_text_id",
    "load_tokenizer",
    "load_tokens",
    "mask_tokens",
    "pack",
    "padded_batch",
    "prepare",
    "read_documents",
    "read_text",
    "split_documents",
    "train_on_source",
    "train_tokenizer",
    "validation_batches",
    "write_atomically",
]
