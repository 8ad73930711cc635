"""Tokenizers of all kinds behind one interface; what they save is what the engine reads."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import spikelet  # noqa: E402
from spikelet.training import (  # noqa: E402
    DataError,
    SpikeGPT,
    SpikeGPTConfig,
    export_model,
    train_tokenizer,
)
from spikelet.training.data import (  # noqa: E402
    as_tokenizer,
    load_tokenizer,
    load_tokens,
    padded_batch,
)
from spikelet.training.data.tokenizers import FileTokenizer  # noqa: E402
from training.duck import DuckTokenizer, FastDuckTokenizer  # noqa: E402
from training.tiny import DOCUMENTS  # noqa: E402

TEXT = "Story 3. A dog ran over the hill! déjà 🦀"
GPT2 = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"


def tiny_model(vocab_size: int) -> SpikeGPT:
    return SpikeGPT(SpikeGPTConfig(vocab_size, 8, "RWKV", 1, 8, spike_embedding=False))


def test_d02_an_object_with_the_usual_methods_is_enough(tmp_path: Path) -> None:
    words = DuckTokenizer(sorted({word for text in DOCUMENTS for word in text.split()}))
    data = load_tokens(DOCUMENTS, words, cache=tmp_path, valid_every=10)
    assert data.vocab_size == words.vocab_size
    assert words.decode(data.valid.tolist()) == " ".join(DOCUMENTS[9::10])
    assert int((data.valid == 0).sum()) == 4  # one end per text: those of encode() are not taken
    calls = words.calls
    load_tokens(DOCUMENTS, words, cache=tmp_path, valid_every=10)
    assert words.calls == calls + 1  # the probe of its hash: nothing is tokenised again
    other = DuckTokenizer(words.words[:1:-1])
    assert as_tokenizer(other).hash != as_tokenizer(words).hash
    with pytest.raises(DataError, match=r"DuckTokenizer.*has no save_pretrained"):
        as_tokenizer(words).save(tmp_path)


@pytest.mark.parametrize("missing", ["encode", "vocab_size", "eos_token_id"])
def test_d02_what_an_object_lacks_is_named(missing: str) -> None:
    parts = {"encode": lambda text: [1], "decode": str, "vocab_size": 3, "eos_token_id": 0}
    del parts[missing]
    with pytest.raises(DataError, match=missing):
        as_tokenizer(types.SimpleNamespace(**parts))


def test_d02_our_gpt2_gives_the_engines_ids(tmp_path: Path) -> None:
    if not GPT2.is_dir():
        pytest.skip("GPT-2's files are not beside this checkout")
    tokenizer = as_tokenizer(GPT2)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    model = tiny_model(50257)
    export_model(model, tmp_path / "files")
    for name in ("gpt2_vocab.json", "gpt2_merges.txt"):
        (tmp_path / "files" / name).symlink_to(GPT2 / name)
    export_model(model, tmp_path / "saved")
    tokenizer.save(tmp_path / "saved")
    engine = spikelet.load(tmp_path / "files").tokenizer
    saved = spikelet.load(tmp_path / "saved").tokenizer
    text = TEXT + " \n\n  def f(x):\t return 'don\\'t'  <|endoftext|> 日本語 1234.5"
    assert tokenizer.encode(text) == engine.encode(text) == saved.encode(text)
    assert tokenizer.encode("<|endoftext|>") == [50256]


def test_d03_padding_with_the_end_of_text_is_left_out_of_the_loss() -> None:
    tokenizer = as_tokenizer(train_tokenizer(DOCUMENTS, 300))
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.eos_token == "<|endoftext|>"
    end = tokenizer.eos_token_id
    rows = [[*tokenizer.encode(text), end] for text in ("The cat sat.", "Why does the bird sing?")]
    inputs, targets = padded_batch(rows, pad_id=end)
    assert inputs.shape == targets.shape == (2, max(map(len, rows)) - 1)
    assert targets[0, len(rows[0]) - 2] == end  # the real end of the text counts
    assert (targets[0, len(rows[0]) - 1 :] == -100).all()
    model = tiny_model(300).eval()
    with torch.no_grad():
        together = float(model(inputs, targets))
        alone = [float(model(torch.tensor([r[:-1]]), torch.tensor([r[1:]]))) for r in rows]
    lengths = [len(row) - 1 for row in rows]
    expected = sum(a * n for a, n in zip(alone, lengths, strict=True)) / sum(lengths)
    assert together == pytest.approx(expected, rel=1e-5)


def test_d03_a_tokenizer_of_the_hub_takes_any_padding(tmp_path: Path) -> None:
    backend = train_tokenizer(DOCUMENTS, 300)
    wrapped = FastDuckTokenizer(backend)
    wrapped.pad_token = wrapped.eos_token
    tokenizer = as_tokenizer(wrapped)
    assert tokenizer.encode(TEXT) == backend.encode(TEXT).ids
    assert tokenizer.hash == as_tokenizer(backend).hash
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).hash == tokenizer.hash


@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars"])
def test_what_is_saved_is_what_the_engine_reads(tmp_path: Path, kind: str) -> None:
    tokenizer = as_tokenizer(
        train_tokenizer(DOCUMENTS, 300) if kind == "bpe" else kind, [*DOCUMENTS, TEXT]
    )
    assert tokenizer.decode([*tokenizer.encode(TEXT), tokenizer.eos_id]) == TEXT
    export_model(tiny_model(tokenizer.vocab_size), tmp_path, tokenizer)
    engine = spikelet.load(tmp_path).tokenizer
    assert engine.encode(TEXT) == tokenizer.encode(TEXT)
    assert engine.eos_id == tokenizer.eos_id
    assert load_tokenizer(tmp_path).hash == tokenizer.hash


def test_characters_outside_the_list_are_named() -> None:
    tokenizer = as_tokenizer("chars", ["abc"])
    assert tokenizer.encode("cab") == [3, 1, 2]
    with pytest.raises(DataError, match="'d' is not among the 4"):
        tokenizer.encode("cabd")
    with pytest.raises(DataError, match="'chars' needs the text"):
        as_tokenizer("chars")


def test_models_by_name_lend_their_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path))
    tokenizer = train_tokenizer(DOCUMENTS, 300)
    export_model(tiny_model(300), tmp_path / "models" / "fox", tokenizer)
    assert as_tokenizer("fox").hash == as_tokenizer(tokenizer).hash


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"gone\.json: no such tokenizer"):
        as_tokenizer("gone.json")
    path.unlink()
    with pytest.raises(DataError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_d04_tokenizers_by_name_come_from_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = train_tokenizer(DOCUMENTS, 300)
    module = types.ModuleType("transformers")
    load = {"gpt2": FastDuckTokenizer(backend)}.__getitem__
    module.AutoTokenizer = types.SimpleNamespace(from_pretrained=load)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    found = as_tokenizer("gpt2")
    assert isinstance(found, FileTokenizer)
    assert found.encode(TEXT) == backend.encode(TEXT).ids
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(DataError, match=r"'gpt9' is no file.*HF_ENDPOINT \(now not set\)"):
        as_tokenizer("gpt9")


MIRROR = """
import sys
sys.modules["transformers"] = None
from spikelet.training.data import as_tokenizer
print(as_tokenizer("someone/gpt2").encode("The cat sat"))
"""


def test_d04_a_mirror_is_asked_in_place_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    tokenizer = train_tokenizer(DOCUMENTS, 300)
    body = tokenizer.to_str().encode()
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            known = self.path.endswith("/tokenizer.json")
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if self.path.endswith("/tokenizer.json"):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    try:
        run = subprocess.run(
            [sys.executable, "-c", MIRROR], env=env, capture_output=True, text=True, check=False
        )
    finally:
        server.shutdown()
        server.server_close()
    assert run.stdout == f"{tokenizer.encode('The cat sat').ids}\n", run.stderr
    assert any("someone/gpt2" in path for path in asked)
