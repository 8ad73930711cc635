"""The prompts that come with the package, and files of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

import spikelet
from spikelet.bench import CLASSES, prompts, read_prompts


def test_every_class_has_several_prompts_of_a_few_hundred_bytes() -> None:
    for name in CLASSES:
        if name == "random":
            continue
        found = prompts.bundled_prompts(name)
        assert len(found) >= 4, name
        assert all(100 < len(text) < 600 for text in found), name
        assert all(text == text.rstrip("\n") for text in found)


def test_a_copied_passage_begins_again() -> None:
    for text in prompts.bundled_prompts("copy"):
        passage, *_, again = text.split("\n\n")
        assert passage.startswith(again)
        assert len(again) < len(passage)


def test_prompts_stand_between_marks(tmp_path: Path) -> None:
    assert read_prompts("a\nb\n%%\n\n%%\nc %% d\n") == ["a\nb", "c %% d"]
    file = tmp_path / "mine.txt"
    file.write_text("one\n%%\ntwo\n")
    assert prompts.file_prompts(file) == {"mine": ["one", "two"]}
    file.write_text("\n%%\n")
    with pytest.raises(spikelet.OptionError, match="no prompt"):
        prompts.file_prompts(file)


def test_classes_that_a_model_can_read(model: spikelet.Model, writer: spikelet.Model) -> None:
    assert prompts.choose_classes(model, None) == ["random"]
    assert prompts.choose_classes(writer, None) == list(CLASSES)
    assert prompts.choose_classes(model, ["prose"]) == ["prose"]


def test_ids(writer: spikelet.Model) -> None:
    found = prompts.token_ids(writer, ["prose", "random"], {"mine": ["abc", "d", "e"]}, 2)
    assert found["mine"] == [[97, 98, 99], [100]]
    assert [len(ids) for ids in found["random"]] == [prompts.RANDOM_LENGTH] * 2
    assert max(map(max, found["random"])) < writer.vocab_size
    assert found["random"] == prompts.random_ids(writer.vocab_size)[:2]
