"""The tokenizer of a loaded model. What the tokenizers themselves do is tested beside them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import spikelet


@given(text=st.text())
def test_text_comes_back(writer: spikelet.Model, text: str) -> None:
    tokenizer = writer.tokenizer
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(id) for id in ids) == text.encode()
    assert tokenizer.encode(text, special=False) == ids


def test_what_it_tells(writer: spikelet.Model) -> None:
    tokenizer = writer.tokenizer
    assert tokenizer.vocab_size == 256
    assert tokenizer.eos_id in (0, None)
    assert tokenizer.special_ids == []
    assert len(tokenizer.fingerprint) == 64
    assert tokenizer.id_to_token(97) == "a"
    assert tokenizer.token_to_id("a") == 97
    assert tokenizer.token_to_id("no such token") is None
    assert repr(tokenizer).startswith("<spikelet.Tokenizer: ")


def test_bytes_that_are_no_text(writer: spikelet.Model) -> None:
    assert writer.tokenizer.decode([0xF0, 0x9F, 0x98]) == "\ufffd"
    assert writer.tokenizer.token_bytes(0xF0) == b"\xf0"


def test_bad_ids_are_refused(writer: spikelet.Model) -> None:
    tokenizer = writer.tokenizer
    for call in (tokenizer.token_bytes, tokenizer.id_to_token, lambda one: tokenizer.decode([one])):
        with pytest.raises(spikelet.OptionError, match="token id 256 is outside"):
            call(256)
        with pytest.raises(spikelet.OptionError, match="found -1, needed token ids from 0 to 255"):
            call(-1)
    with pytest.raises(TypeError, match="a sequence of token ids is needed, found str"):
        tokenizer.decode("abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str"):
        tokenizer.encode(3)  # type: ignore[arg-type]
