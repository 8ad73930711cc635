"""LAMBADA, BLiMP and PIQA on a few items, checked by hand from logits."""

from __future__ import annotations

import doctest
import gzip
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spikelet
import spikelet.evaluation
from evaluation.naive import naive_score
from spikelet.errors import FormatError, OptionError
from spikelet.evaluation import evaluate


def write(path: Path, items: Iterable[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def by_hand(model: spikelet.Model, context: str, continuation: str) -> tuple[float, bool]:
    """Of a pair whose tokens do not depend on the border."""
    encode = model.tokenizer.encode
    start = encode(context) or [model.config.eos_token_id or 0]
    ids = encode(context + continuation)
    assert not context or ids[: len(start)] == start
    return naive_score(model, start, ids[len(start) :] if context else ids)


def test_lambada_is_the_likeliest_last_word(bundled: spikelet.Model, tmp_path: Path) -> None:
    prompt = "Once upon a time there was a little girl. She was"
    word = bundled.generate(prompt, temperature=0, max_new_tokens=8, top_p=1.0).run().text
    word = " " + word.split()[0]
    passages = [(prompt, word), (prompt, " zebra-crossing"), ("The café was —", " “geschlossen”")]
    file = write(tmp_path / "l.jsonl", [{"text": before + last} for before, last in passages])
    result = evaluate(bundled, {"lambada": file})["lambada"]
    hand = [by_hand(bundled, *passage) for passage in passages]
    assert [greedy for _, greedy in hand] == [True, False, False]
    assert result.metrics["acc"].value == 1 / 3
    expected = np.exp(-np.mean([log_prob for log_prob, _ in hand]))
    assert result.metrics["perplexity"].value == pytest.approx(expected, rel=1e-5)
    assert result.num_items == 3


def test_the_last_word_is_all_after_the_last_space(writer: spikelet.Model, tmp_path: Path) -> None:
    """White space of other kinds does not end a word, as in lm-evaluation-harness."""
    file = write(tmp_path / "l.jsonl", [{"text": "was some kind of\n\nPower"}])
    result = evaluate(writer, {"lambada": file})["lambada"]
    log_prob, _ = by_hand(writer, "was some kind", " of\n\nPower")
    assert result.metrics["perplexity"].value == pytest.approx(np.exp(-log_prob), rel=1e-5)


PIQA = [
    {"goal": "Boil an egg", "sol1": "Use water.", "sol2": "Use a very long piece of sand."},
    {"goal": "Öffne — the door", "sol1": "ééééé", "sol2": "abcde"},
    {"goal": "x", "sol1": "a", "sol2": "a a a a a a a a a"},
]


def test_piqa_by_sum_and_by_sum_per_character(writer: spikelet.Model, tmp_path: Path) -> None:
    chosen, chosen_norm = [], []
    for item in PIQA:
        solutions = [item["sol1"], item["sol2"]]
        context = f"Question: {item['goal']}\nAnswer:"
        sums = [by_hand(writer, context, f" {solution}")[0] for solution in solutions]
        chosen.append(int(np.argmax(sums)))
        chosen_norm.append(
            int(np.argmax([s / len(t) for s, t in zip(sums, solutions, strict=True)]))
        )
    assert chosen_norm[1] == 1  # as long in characters, half as long in bytes
    assert chosen != chosen_norm
    for labels in ([0, 0, 0], [1, 1, 1], [0, 1, 1]):
        items = [{**item, "label": label} for item, label in zip(PIQA, labels, strict=True)]
        metrics = evaluate(writer, {"piqa": write(tmp_path / "p.jsonl", items)})["piqa"].metrics
        assert metrics["acc"].value == pytest.approx(np.mean(np.equal(chosen, labels)))
        assert metrics["acc_norm"].value == pytest.approx(np.mean(np.equal(chosen_norm, labels)))


def blimp_items() -> list[dict[str, Any]]:
    words = ["The cats sleep.", "The cats sleeps.", "Who ran?", "Ran who?", "A — é.", "É — a."]
    kinds = [("one", "binding"), ("two", "binding"), ("three", "quantifiers")]
    items = []
    for number in range(12):
        paradigm, term = kinds[min(number // 4, 2)]
        good, bad = words[number % 6], words[(number + 1 + number // 6) % 6]
        items.append({"UID": paradigm, "linguistics_term": term, "pairID": str(number)})
        items[-1] |= {"sentence_good": good, "sentence_bad": bad}
    return [*items, dict(items[-1], UID="four", linguistics_term="other", field="pragmatics")]


def test_blimp_is_the_likelier_sentence(writer: spikelet.Model, tmp_path: Path) -> None:
    items = blimp_items()
    right: dict[str, list[bool]] = {}
    for item in items:
        sums = [
            by_hand(writer, "", f" {item[key]}")[0] for key in ("sentence_good", "sentence_bad")
        ]
        right.setdefault(item["UID"], []).append(sums[0] >= sums[1])
    result = evaluate(writer, {"blimp": write(tmp_path / "b.jsonl.gz", items)})["blimp"]
    share = {name: float(np.mean(found)) for name, found in right.items()}
    assert 0 < sum(share.values()) < len(share)
    groups = {
        kind: {name: metric.value for name, metric in found.items()}
        for kind, found in result.groups.items()
    }
    assert groups["paradigm"] == pytest.approx(share)
    # Each paradigm counts the same, however many pairs it has.
    binding = (share["one"] + share["two"]) / 2
    rest = {"three": share["three"], "four": share["four"]}
    expected = {"binding": binding, "quantifiers": rest["three"], "other": rest["four"]}
    assert groups["term"] == pytest.approx(expected)
    expected = {"syntax_semantics": binding, "semantics": rest["three"], "pragmatics": rest["four"]}
    assert groups["field"] == pytest.approx(expected)
    assert result.metrics["acc"].value == pytest.approx(np.mean(list(share.values())))
    assert result.metrics["acc"].count == 13


def test_equal_sentences_count_as_right(writer: spikelet.Model, tmp_path: Path) -> None:
    item = {"UID": "x", "sentence_good": "Same.", "sentence_bad": "Same."}
    result = evaluate(writer, {"blimp": write(tmp_path / "b.jsonl", [item])})["blimp"]
    assert result.metrics["acc"].value == 1.0
    assert set(result.groups["field"]) == {"unknown"}


def test_blimp_may_be_the_folder_of_its_files(writer: spikelet.Model, tmp_path: Path) -> None:
    items = blimp_items()
    whole = evaluate(writer, {"blimp": write(tmp_path / "all.jsonl", items)})["blimp"]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "README").write_text("no items here")
    write(folder / "a.jsonl", items[:5])
    write(folder / "b.jsonl.gz", items[5:])
    assert evaluate(writer, {"blimp": folder})["blimp"].groups == whole.groups


def test_a_limit_takes_the_first_of_each_paradigm(writer: spikelet.Model, tmp_path: Path) -> None:
    items = blimp_items()
    few = [item for item in items if item["pairID"] in ("0", "1", "4", "5", "8", "9")]
    few.append(items[-1])
    limited = evaluate(writer, {"blimp": write(tmp_path / "b.jsonl", items)}, limit=2)["blimp"]
    first = evaluate(writer, {"blimp": write(tmp_path / "c.jsonl", few)})["blimp"]
    assert limited.groups == first.groups
    assert limited.num_items == 7


def test_a_seed_draws_the_same_items_every_time(writer: spikelet.Model, tmp_path: Path) -> None:
    file = write(tmp_path / "l.jsonl", [{"text": f"It was number {n}"} for n in range(40)])
    found = [
        evaluate(writer, {"lambada": file}, limit=5, seed=seed)["lambada"].metrics
        for seed in (None, 1, 1, 2)
    ]
    assert found[1] == found[2]
    assert len({metrics["perplexity"].value for metrics in found}) == 3


def test_nothing_is_computed_before_all_files_are_read(
    writer: spikelet.Model, tmp_path: Path
) -> None:
    good = write(tmp_path / "l.jsonl", [{"text": "a b"}])
    seen: list[str] = []
    with pytest.raises(FileNotFoundError):
        evaluate(
            writer,
            {"lambada": good, "piqa": tmp_path / "absent"},
            report=lambda name, done, total: seen.append(f"{name} {done}/{total}"),
        )
    assert seen == []
    evaluate(
        writer, {"lambada": good}, report=lambda *found: seen.append("{} {}/{}".format(*found))
    )
    assert seen == ["lambada 1/1"]


GOOD = {"UID": "u", "sentence_good": "a", "sentence_bad": "b"}


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("lambada", b"{", "not JSON"),
        ("lambada", b'{"text": "\xff"}', "not UTF-8 at byte 10"),
        ("lambada", b"[1]", "needs an object, found list"),
        ("lambada", b'{"txt": "a b"}', "needs a text 'text', found only 'txt'"),
        ("lambada", b'{"text": 5}', "needs a text 'text', found 5"),
        ("lambada", b'{"text": ""}', 'found ""'),
        ("piqa", b'{"goal": "a", "sol1": "b", "sol2": "c"}', "needs a number 'label' from 0 to 1"),
        ("piqa", b'{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}', "found 2"),
        ("piqa", b'{"goal": "a", "sol1": "b", "sol2": "c", "label": true}', "found true"),
        ("blimp", json.dumps({**GOOD, "UID": None}).encode(), "needs a text 'UID', found null"),
        ("blimp", json.dumps({**GOOD, "field": 1}).encode(), "needs a text 'field', found 1"),
    ],
)
def test_a_wrong_item_is_named_by_file_and_line(
    writer: spikelet.Model, tmp_path: Path, task: str, line: bytes, message: str
) -> None:
    valid = {"lambada": {"text": "a b"}, "piqa": {**PIQA[0], "label": 1}, "blimp": GOOD}[task]
    file = tmp_path / "items.jsonl"
    file.write_bytes(json.dumps(valid).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(FormatError) as error:
        evaluate(writer, {task: file})
    assert str(error.value).startswith(f"{file}:3: ")
    assert message in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\x1f\x8b broken", gzip.compress(b"{}\n")[:-9]])
def test_a_file_without_items_is_named(writer: spikelet.Model, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(data)
    with pytest.raises(FormatError, match=str(file)):
        evaluate(writer, {"lambada": file})


def test_wrong_options(writer: spikelet.Model, model: spikelet.Model, tmp_path: Path) -> None:
    file = write(tmp_path / "l.jsonl", [{"text": "a b"}])
    with pytest.raises(OptionError, match="no task 'hellaswag', there are lambada, blimp, piqa"):
        evaluate(writer, {"hellaswag": file})
    with pytest.raises(OptionError, match="limit"):
        evaluate(writer, {"lambada": file}, limit=0)
    with pytest.raises(spikelet.TokenizerError):
        evaluate(model, {"lambada": file})


def test_results_are_plain_values(writer: spikelet.Model, tmp_path: Path) -> None:
    file = write(tmp_path / "b.jsonl", blimp_items())
    result = evaluate(writer, {"blimp": file})["blimp"]
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert values["source"] == str(file)
    assert values["metrics"]["acc"]["value"] == result.metrics["acc"].value
    assert values["chance"] == {"acc": 0.5}
    # A paradigm of one pair has no standard error, so neither has a mean that it is part of.
    assert values["metrics"]["acc"]["stderr"] is None
    assert values["groups"]["paradigm"]["one"]["stderr"] is not None


def test_it_needs_no_torch() -> None:
    code = "import sys, spikelet.evaluation.harness; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_example_runs_and_all_is_documented(bundled: spikelet.Model) -> None:
    assert bundled is not None
    found = doctest.testmod(spikelet.evaluation)
    assert (found.failed, found.attempted > 0) == (0, True)
    for name in set(spikelet.evaluation.__all__) - {"TASKS"}:
        assert vars(spikelet.evaluation)[name].__doc__
