"""Prediction by the name of a run: which checkpoint, which length, what text."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import spikelet  # noqa: E402
from spikelet import OptionError  # noqa: E402
from spikelet.training import (  # noqa: E402
    RWKV4,
    DataError,
    RWKV4Config,
    Trainer,
    TrainerConfig,
    TrainingError,
    train_tokenizer,
)
from spikelet.training.data import as_tokenizer  # noqa: E402
from spikelet.training.predicter import LanguageModelPredicter, Predicter  # noqa: E402
from spikelet.training.stepwise import step_by_step  # noqa: E402
from training.duck import DuckTokenizer  # noqa: E402
from training.saved import save_run, tiny_model  # noqa: E402
from training.tiny import DOCUMENTS  # noqa: E402

PROMPT = "The cat"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path / "home"))
    for name in ("DARWIN_KIT_HOME", "DSPIKE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predicter, "_subclasses", dict(Predicter._subclasses))


def bpe() -> Any:
    return train_tokenizer(DOCUMENTS, 300)


def text(predicter: Any, prompt: str = PROMPT, **options: Any) -> str:
    return "".join(predicter.predict(prompt, **({"seed": 1, "max_new_tokens": 12} | options)))


def learns(sentence: str) -> Any:
    """A byte model that has learned to write one sentence over and over."""
    model = tiny_model(256, n_layer=1, n_embd=32)
    ids = torch.tensor([list((sentence * 8).encode())])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.05
    return model


def test_p01_the_newest_checkpoint_and_its_tokenizer_are_loaded() -> None:
    assert spikelet.Predicter is Predicter
    tokenizer = bpe()
    weights = {"iter-9-ckpt": (1, 300), "complete": (2, 100), "iter-10-ckpt": (3, 200)}
    for name, (seed, time) in weights.items():
        save_run("fox", tiny_model(seed=seed), tokenizer, checkpoint=name, time=time)
    predicter = Predicter.from_pretrained("fox")
    assert isinstance(predicter, LanguageModelPredicter)
    assert not predicter.model.training
    newest = tiny_model(seed=1).state_dict()  # by time, not by step
    assert all(torch.equal(v, newest[k]) for k, v in predicter.model.state_dict().items())
    assert predicter.tokenizer.encode("A dog") == tokenizer.encode("A dog").ids
    assert len(text(predicter)) > 0


def test_p02_a_checkpoint_and_a_device_by_name() -> None:
    for seed, name in enumerate(("iter-1-ckpt", "complete")):
        save_run("fox", tiny_model(seed=seed), bpe(), checkpoint=name, time=1000 + seed)
    first = Predicter.from_pretrained("fox", device="cpu", checkpoint="iter-1-ckpt")
    expected = tiny_model(seed=0).state_dict()
    assert torch.equal(first.model.state_dict()["head.weight"], expected["head.weight"])
    assert first.device == torch.device("cpu")
    message = r"fox has no checkpoint 'iter-2-ckpt' \(there are: iter-1-ckpt, complete\)"
    with pytest.raises(FileNotFoundError, match=message):
        Predicter.from_pretrained("fox", checkpoint="iter-2-ckpt")
    with pytest.raises(FileNotFoundError, match=r"there is no run 'fix' \(known: fox;"):
        Predicter.from_pretrained("fix")
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="device is 'cuda', but torch sees no GPU"):
            Predicter.from_pretrained("fox", device="cuda")


@pytest.mark.parametrize("forked", [False, True])
def test_p03_pieces_come_one_by_one(monkeypatch: pytest.MonkeyPatch, forked: bool) -> None:
    save_run("fox", learns("one two. "), "bytes")
    monkeypatch.setattr(LanguageModelPredicter, "inject_script", lambda model, _name: model)
    predicter = Predicter.from_pretrained("fox")
    predicter.forked = forked
    made: list[int] = []
    if forked:
        hidden = predicter.model.hidden
        predicter.model.hidden = lambda *given: made.append(1) or hidden(*given)
    else:

        class Engine:
            def generate(self, *words: object, **options: object) -> Iterator[object]:
                for token in predicter._engine_here.generate(*words, **options):
                    made.append(1)
                    yield token

        predicter._engine_here = predicter.engine
        predicter._engine = Engine()
    stream = predicter.predict("one two. one", max_new_tokens=50, temperature=0.0)
    assert not made  # nothing runs before the first piece is asked for
    assert next(stream) == " "
    assert len(made) == 1
    assert "".join(stream).startswith("two. one")
    assert len(made) == 50


def test_p04_the_prompt_sets_the_state_and_ctx_len_bounds_prompt_and_text() -> None:
    save_run("fox", tiny_model(256), "bytes")
    predicter = Predicter.from_pretrained("fox")
    model = predicter.engine
    for prompt, ctx_len in (("The cat", 20), ("The cat", 8), ("A", 2)):
        whole = model.generate(prompt, max_new_tokens=ctx_len - len(prompt), temperature=0.0).run()
        assert text(predicter, prompt, max_new_tokens=None, ctx_len=ctx_len, temperature=0.0) == (
            whole.text
        )
        assert len(whole.ids) <= ctx_len - len(prompt)
    assert text(predicter, "The cat") != text(predicter, "The dog")
    assert text(predicter) == text(predicter)  # no state is left from one call to the next
    assert text(predicter, ctx_len=10, max_new_tokens=100) == text(predicter, max_new_tokens=3)
    with pytest.raises(OptionError, match=r"prompt has 7 tokens and ctx_len is 7.*max_new_tokens"):
        predicter.predict("The cat", ctx_len=7)
    assert isinstance(text(predicter, ""), str)  # an empty prompt is the beginning of a text


@pytest.mark.parametrize("forked", [False, True])
def test_p05_the_text_ends_at_the_end_of_text(forked: bool) -> None:
    save_run("fox", learns("one two.\0"), "bytes")
    predicter = Predicter.from_pretrained("fox")
    predicter.forked = forked
    assert text(predicter, "one", temperature=0.0, max_new_tokens=100) == " two."
    # A tokenizer that the engine cannot read: its end of text counts all the same.
    predicter.tokenizer = as_tokenizer(types.SimpleNamespace(**ASCII))
    predicter._engine = None
    assert text(predicter, "one", temperature=0.0, max_new_tokens=100) == " two."


ASCII = {
    "encode": lambda text: list(text.encode("ascii")),
    "decode": lambda ids: bytes(ids).decode("latin-1"),
    "vocab_size": 256,
    "eos_token_id": 0,
}


@dataclass
class LineConfig:
    size: int = 12


class LineModel(torch.nn.Module):
    def __init__(self, config: LineConfig) -> None:
        super().__init__()
        self.config = config
        self.line = torch.nn.Linear(config.size, config.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)


class LinePredicter(Predicter):
    def __init__(self, name: str, model: torch.nn.Module, device: str = "cpu") -> None:
        super().__init__(name, model, device)

    @classmethod
    def get_model(cls, name: str, checkpoint: str | None = None) -> torch.nn.Module:
        model = LineModel(LineConfig(**cls.get_model_config_json(name)))
        saved = torch.load(cls.get_checkpoint(name, checkpoint), weights_only=True)
        model.load_state_dict(saved["state_dict"])
        return model

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.to(self.device))


def test_p06_a_module_of_ones_own(tmp_path: Path) -> None:
    model = LineModel(LineConfig())
    save_run("line", model)
    x = torch.randn(12)
    assert torch.equal(LinePredicter.from_pretrained("line").predict(x), model(x))
    with pytest.raises(ValueError, match="a LineModel, for which no predicter is registered"):
        Predicter.from_pretrained("line")
    Predicter.register("LineModel", LinePredicter)
    found = Predicter.from_pretrained("line")
    assert isinstance(found, LinePredicter)
    assert isinstance(Predicter("line", model), LinePredicter)
    assert torch.equal(found.predict(x), model(x))

    class Elsewhere(LinePredicter):
        @classmethod
        def get_root(cls) -> Path:
            return tmp_path / "cache"

    with pytest.raises(FileNotFoundError, match="known: none"):
        Elsewhere.from_pretrained("line")
    save_run("line", model, folder=tmp_path / "cache" / "line" / "training")
    assert torch.equal(Elsewhere.from_pretrained("line").predict(x), model(x))


def test_p06_what_a_subclass_lacks_is_said() -> None:
    class Empty(Predicter):
        pass

    save_run("line", LineModel(LineConfig()))
    Predicter.register("LineModel", Empty)
    with pytest.raises(NotImplementedError, match="Empty has no get_model"):
        Predicter.from_pretrained("line")
    with pytest.raises(NotImplementedError, match="Empty has no predict"):
        Empty("line", LineModel(LineConfig())).predict("x")


def test_p07_helpers_of_the_class(own_home: Path) -> None:
    model = tiny_model()
    folder = save_run("fox", model, bpe())
    assert Predicter.get_root() == own_home / "runs"
    assert Predicter.get_save_directory("fox") == folder
    assert Predicter.get_checkpoint("fox") == folder / "complete.pth"
    assert Predicter.get_checkpoint("fox", "complete") == folder / "complete.pth"
    assert Predicter.get_model_config_json("fox") == asdict(model.config)
    assert Predicter.get_trainer_config_json("fox") == {"device": "cuda"}
    external = Predicter.get_external_config_json("fox")
    assert external == {"model_class": "SpikeGPT", "series": {}, "fork": None}
    assert Predicter.get_fork_directory("x") == own_home / "forks" / "x"
    assert Predicter.get_fork_directory(None) is None
    assert type(Predicter.get_model("fox")) is type(model)
    assert LanguageModelPredicter.get_tokenizer("fox").vocab_size == 300
    (folder / "external_config.json").unlink()
    assert Predicter.get_external_config_json("fox") is None
    assert isinstance(Predicter.from_pretrained("fox"), LanguageModelPredicter)


def test_p08_registering() -> None:
    Predicter.register("LineModel", LinePredicter)

    class Other(LinePredicter):
        pass

    with pytest.warns(UserWarning, match="LineModel has a predicter already, LinePredicter"):
        Predicter.register("LineModel", Other)
    assert Predicter._subclasses["LineModel"] is LinePredicter
    Predicter.register("LineModel", LinePredicter)  # the same again, as in a notebook: no warning
    for wrong in (dict, "LinePredicter"):
        with pytest.raises(ValueError, match="is not a subclass of Predicter"):
            Predicter.register("Wrong", wrong)  # type: ignore[arg-type]


def test_p10_no_character_is_broken() -> None:
    sentence = "é🦀日本. "
    save_run("fox", learns(sentence), "bytes")
    predicter = Predicter.from_pretrained("fox")
    for forked in (False, True):
        predicter.forked = forked
        found = list(predicter.predict(sentence * 4, temperature=0.0, max_new_tokens=60))
        assert "".join(found).startswith(sentence * 3)
        assert "".join(found[:-1]).count("\ufffd") == 0
        assert set("".join(found[:-1])) <= set(sentence)
        assert len(found) > 15


def test_p10_words_that_hang_together_keep_their_spaces() -> None:
    words = DuckTokenizer(["The", "cat", "sat"])  # decode puts spaces between words
    model = tiny_model(5)
    save_run("fox", model)
    predicter = Predicter.from_pretrained("fox", tokenizer=words)
    ids, seed = [], -1
    while len(ids) < 3:  # a text that does not end at once
        seed += 1
        options = {"max_new_tokens": 9, "seed": seed, "stop_ids": [0]}
        ids = [token.id for token in predicter.engine.generate([2, 3], **options)]
    found = text(predicter, "The cat", seed=seed, max_new_tokens=9)
    assert "The cat" + found == words.decode([2, 3, *ids])
    with pytest.raises(DataError, match=r"fox has no tokenizer .*from_pretrained\(name, tokeni"):
        Predicter.from_pretrained("fox")


def test_every_id_is_read_once_with_the_state_carried_on() -> None:
    model = tiny_model()
    model.train()
    seen: list[list[int]] = []
    hidden = model.hidden

    def spy(ids: torch.Tensor, state: object = None) -> object:
        seen.append(ids[0].tolist())
        assert not model.training
        return hidden(ids, state)

    model.hidden = spy
    drawn = list(step_by_step(model, [5, 6, 7], 10, temperature=0.8, top_p=0.9, seed=1))
    assert seen == [[5, 6, 7], *([one] for one in drawn[:-1])]
    # Each step has the logits of a fresh pass over everything before it.
    for n in range(1, 10):
        logits = model(torch.tensor([[5, 6, 7, *drawn[:n]]]))[0, -1]
        kept = step_by_step(model, [5, 6, 7, *drawn[:n]], 1, temperature=0)
        assert next(kept) == int(logits.argmax())
    greedy = list(step_by_step(model, [5, 6, 7], 10, temperature=0))
    assert greedy == model.generate([5, 6, 7], 10, temperature=0)


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_p": 0}, {"temperature": float("nan")}]
)
def test_options_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        step_by_step(tiny_model(), [1], 1, **options)


def test_options_of_the_engine_alone() -> None:
    save_run("fox", tiny_model(), bpe())
    predicter = Predicter.from_pretrained("fox")
    assert text(predicter, top_k=1) == text(predicter, temperature=0.0)
    predicter.forked = True
    with pytest.raises(OptionError, match="top_k is an option of the engine"):
        predicter.predict(PROMPT, top_k=1)


def test_rwkv4_predicts_too() -> None:
    torch.manual_seed(0)
    save_run("plain", RWKV4(RWKV4Config(300, 32, n_layer=2, n_embd=16)), bpe())
    assert text(Predicter.from_pretrained("plain"))


@pytest.mark.parametrize("layout", ["models/lm", "models/base", "base"])
def test_t08_a_run_of_darwinkit_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setenv("DARWIN_KIT_HOME", str(tmp_path / "darkit"))
    model = tiny_model()
    folder = tmp_path / "darkit" / layout / "old"
    save_run("old", model, bpe(), folder=folder, model_class="GPT")
    theirs = ("vocab_size", "ctx_len", "model_type", "n_layer", "n_embd")
    config = {name: value for name, value in asdict(model.config).items() if name in theirs}
    (folder / "config.json").write_text(json.dumps(config))
    before = sorted(path.name for path in folder.rglob("*"))
    ours = tmp_path / "home" / "runs" / "same" / "training"
    shutil.copytree(folder, ours)
    assert text(Predicter.from_pretrained("old")) == text(Predicter.from_pretrained("same"))
    assert sorted(path.name for path in folder.rglob("*")) == before
    (folder / "config.json").write_text(json.dumps(config | {"head_qk": 1}))
    with pytest.raises(OptionError, match=r"unknown keys \['head_qk'\]"):
        Predicter.from_pretrained("old")


def test_t08_a_run_of_darwinkit_lends_its_weights_to_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARWIN_KIT_HOME", str(tmp_path / "darkit"))
    old = tiny_model()
    folder = tmp_path / "darkit" / "models" / "lm" / "old"
    save_run("old", old, bpe(), folder=folder, model_class="GPT")
    config = TrainerConfig(name="new", device="cpu", max_step=1)
    trainer = Trainer(tiny_model(seed=9), bpe(), config, resume="old")
    weights = trainer.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in old.state_dict().items())
    assert trainer.current_step == 0
    with pytest.raises(TrainingError, match="a run of DarwinKit, which is read and never changed"):
        Trainer(tiny_model(), bpe(), TrainerConfig(name="old", device="cpu"), resume="old")
    assert not (tmp_path / "home" / "runs" / "old").exists()


def test_a_file_that_would_run_code_is_refused(own_home: Path) -> None:
    folder = save_run("fox", tiny_model(), bpe())

    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (own_home / "ran",))

    torch.save({"model_class": "SpikeGPT", "state_dict": Bad()}, folder / "complete.pth")
    with pytest.raises(TrainingError, match=r"complete\.pth: not a whole checkpoint"):
        Predicter.from_pretrained("fox")
    assert not (own_home / "ran").exists()
    (folder / "complete.pth").write_bytes(b"short")
    with pytest.raises(TrainingError, match=r"complete\.pth: not a whole checkpoint"):
        Predicter.from_pretrained("fox")
    torch.save({"weights": 1}, folder / "complete.pth")
    with pytest.raises(TrainingError, match="it lacks"):
        Predicter.from_pretrained("fox")


def test_weights_of_another_shape_are_refused() -> None:
    folder = save_run("fox", tiny_model(), bpe())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 24}))
    with pytest.raises(TrainingError, match="does not fit the configuration"):
        Predicter.from_pretrained("fox")
