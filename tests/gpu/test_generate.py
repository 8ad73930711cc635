"""Text from a GPU, on an emulated driver: the CPU's, and clear errors when things go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import spikelet

from . import emulator

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
BEGIN = """
import ctypes, json, os, sys
import spikelet

GOLDEN = sys.argv[1]
MODELS = [f"{GOLDEN}/spikegpt-tiny", f"{GOLDEN}/rwkv4-tiny"]
TINY = MODELS[0]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]

def setting(name, value):
    library = ctypes.CDLL("libcuda.so")
    library.simt_set(f"SIMT_{name}".encode(), None if value is None else str(value).encode())

def ids(model, **options):
    options = {"max_new_tokens": 24, "seed": 5, "ignore_eos": True, **options}
    return model.generate(PROMPT, **options).run().ids

def refusal(function):
    try:
        function()
    except spikelet.SpikeletError as error:
        return [type(error).__name__, str(error)]
    return None

def tell(**found):
    print(json.dumps(found))
"""


def run(
    code: str,
    tmp_path: Path,
    *,
    driver: bool = True,
    arguments: tuple[str, ...] = (),
    **settings: str,
) -> Any:
    """What a process prints in the end; one that dies, or says anything else, fails the test."""
    environment = {**os.environ, **settings, "SPIKELET_CACHE": str(tmp_path)}
    environment.pop("SPIKELET_DEVICE", None)
    if driver:
        folder = str(emulator.build(private=False).parent)
        environment["LD_LIBRARY_PATH"] = folder
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + textwrap.dedent(code), str(GOLDEN), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_texts_are_those_of_the_cpu(tmp_path: Path) -> None:
    found = run(
        """
        ways = [
            {"temperature": 0},
            {"temperature": 0.8, "top_p": 0.9},
            {"temperature": 1.2, "top_k": 20},
            {"preset": "rwkv", "temperature": 1.1, "top_k": 50, "top_p": 0.8},
            {"min_p": 0.05}, {"repetition_penalty": 1.2}, {"logprobs": 3},
            {"speculative": "ngram"}, {"speculative": "off"},
            *({"speculative": spikelet.SpeculativeConfig("ngram", verify=rule, **how)}
              for rule in ("coupled", "token", "block")
              for how in ({"num_speculative_tokens": 3}, {"num_speculative_tokens": 12})),
            {"speculative": spikelet.SpeculativeConfig("ngram", forced_acceptance=0.5)},
        ]
        differ = []
        for path in MODELS:
            cpu, gpu = (spikelet.load(path, device=device) for device in ("cpu", "cuda"))
            for way in ways:
                options = {"max_new_tokens": 20, "seed": 5, "ignore_eos": True, **way}
                texts = [model.generate(PROMPT, **options).run() for model in (cpu, gpu)]
                made = [[(token.id, token.logprob) for token in text.tokens] for text in texts]
                if made[0] != made[1]:
                    differ.append([path, way])
            prompts = [PROMPT, [7], PROMPT * 9, [1, 2]]
            way = {"max_new_tokens": 12, "seed": 1}
            both = [model.generate_batch(prompts, **way) for model in (cpu, gpu)]
            both = [[text.ids for text in texts] for texts in both]
            if both[0] != both[1]:
                differ.append([path, "batch"])
            if cpu.score(PROMPT * 20).tobytes() != gpu.score(PROMPT * 20).tobytes():
                differ.append([path, "score"])
        tell(differ=differ, device=gpu.device, repr=repr(gpu), reason=gpu.device_reason)
        """,
        tmp_path,
    )
    assert found["differ"] == []
    assert found["device"] == "cuda:0"
    assert found["repr"].endswith("f32 on cuda:0>")
    assert found["reason"] == "it was asked for"


def test_a_prophet_drafts_for_a_model_on_a_gpu(tmp_path: Path) -> None:
    if "bundled" not in spikelet.local_models():
        pytest.skip("this checkout has no bundled model")
    found = run(
        """
        texts, drafted = [], []
        for device in ("cpu", "cuda"):
            model = spikelet.load(device=device, threads=1)
            prophet = spikelet.SpeculativeConfig("prophet", num_speculative_tokens=4)
            options = {"max_new_tokens": 16, "seed": 4}
            text = model.generate("Once upon a time", speculative=prophet, **options)
            texts.append([[token.id, token.logprob] for token in text])
            drafted.append([token.drafted for token in text.tokens])
        off = model.generate("Once upon a time", speculative="off", **options).run()
        tell(texts=texts, drafted=drafted, off=off.ids)
        """,
        tmp_path,
    )
    assert found["texts"][0] == found["texts"][1]
    assert found["off"] == [token for token, _ in found["texts"][0]]
    assert found["drafted"][0] == found["drafted"][1]
    assert any(found["drafted"][1])


def test_sessions_go_from_one_device_to_the_other(tmp_path: Path) -> None:
    found = run(
        """
        cpu, gpu = (spikelet.load(TINY, device=device) for device in ("cpu", "cuda"))
        texts = []
        for first, then in ((cpu, cpu), (gpu, cpu), (cpu, gpu), (gpu, gpu)):
            session = first.session()
            options = {"max_new_tokens": 9, "seed": 2, "ignore_eos": True}
            text = session.generate(PROMPT, **options).run().ids
            session.save("session")
            text += then.load_session("session").generate([], **options).run().ids
            texts.append(text)
        states = [model.new_state() for model in (cpu, gpu)]
        pairs = zip((cpu, gpu), states)
        logits = [model.forward(PROMPT, state).tobytes() for model, state in pairs]
        arrays = [b"".join(a.tobytes() for a in state.to_numpy().values()) for state in states]
        same = [logits[0] == logits[1], arrays[0] == arrays[1]]
        tell(texts=len({tuple(text) for text in texts}), same=same)
        """,
        tmp_path,
    )
    assert found == {"texts": 1, "same": [True, True]}


def test_auto_takes_a_gpu_that_can_be_used(tmp_path: Path) -> None:
    code = "model = spikelet.load(TINY); tell(device=model.device, reason=model.device_reason)"
    found = run(code, tmp_path)
    assert found["device"] == "cuda:0"
    assert found["reason"].endswith("can be used")
    for name, value, reason in (
        ("CAPABILITY", "7.5", "compute capability 7.5; 8.0 or later is needed"),
        ("DRIVER_VERSION", "11040", "too old: it is for CUDA 11.4"),
        ("DEVICES", "0", "CUDA_VISIBLE_DEVICES"),
        ("REFUSE_PTX", "1", "refuses spikelet's kernels"),
        ("MEMORY", "100000", "out of memory"),
    ):
        found = run(code, tmp_path, **{f"SIMT_{name}": value})
        assert found["device"] == "cpu", name
        assert reason in found["reason"]
    found = run(code.replace("TINY", "TINY, dtype='q4'"), tmp_path)
    assert found == {"device": "cpu", "reason": 'dtype "q4" computes on the CPU only'}
    found = run(f"os.environ['SPIKELET_DEVICE'] = 'cpu'\n{code}", tmp_path)
    assert found == {"device": "cpu", "reason": "SPIKELET_DEVICE asks for it"}


def test_what_cannot_be_used_is_refused_in_words_and_the_cpu_goes_on(tmp_path: Path) -> None:
    found = run(
        """
        cpu = spikelet.load(TINY, device="cpu")
        text = ids(cpu)
        cases = [("CAPABILITY", "7.5"), ("DRIVER_VERSION", 11040), ("DEVICES", 0)]
        cases += [("REFUSE_PTX", 1), ("MEMORY", 100000)]
        said = {}
        for name, value in cases:
            setting(name, value)
            said[name] = refusal(lambda: spikelet.load(TINY, device="cuda"))
            assert ids(cpu) == text, name
            setting(name, None)
            assert ids(spikelet.load(TINY, device="cuda")) == text, name
        said["ordinal"] = refusal(lambda: spikelet.load(TINY, device="cuda:1"))
        said["q4"] = refusal(lambda: spikelet.load(TINY, device="cuda", dtype="q4"))
        said["trace"] = refusal(lambda: spikelet.load(TINY, device="cuda").trace(PROMPT))
        tell(**said)
        """,
        tmp_path,
    )
    words = {
        "CAPABILITY": ("DeviceError", "7.5"),
        "DRIVER_VERSION": ("DeviceError", "525"),
        "DEVICES": ("DeviceError", "CUDA_VISIBLE_DEVICES"),
        "REFUSE_PTX": ("DeviceError", "kernels"),
        "MEMORY": ("DeviceError", "out of memory: "),
        "ordinal": ("DeviceError", "device cuda:1: there is no such GPU; this process sees 1 GPU"),
        "q4": ("UnsupportedError", '"q8"'),
        "trace": ("UnsupportedError", 'device "cpu"'),
    }
    for name, (kind, part) in words.items():
        assert found[name][0] == kind, found[name]
        assert part in found[name][1], found[name]


def test_memory_that_runs_out_when_rows_join_leaves_the_others(tmp_path: Path) -> None:
    found = run(
        """
        model = spikelet.load(TINY, device="cuda")
        text = ids(model)
        library = ctypes.CDLL("libcuda.so")
        library.simt_memory_in_use.restype = ctypes.c_size_t
        setting("MEMORY", library.simt_memory_in_use() + 200_000)
        many = {"max_new_tokens": 4, "batch_size": 400}
        said = refusal(lambda: model.generate_batch([PROMPT] * 400, **many))
        after = ids(model)
        setting("MEMORY", None)
        rows = model.generate_batch([PROMPT] * 40, max_new_tokens=4, batch_size=40)
        tell(said=said, same=after == text and ids(model) == text, rows=len(rows))
        """,
        tmp_path,
    )
    assert found["said"][0] == "DeviceError"
    assert "out of memory" in found["said"][1]
    assert found["same"]
    assert found["rows"] == 40


def test_a_device_that_is_lost_in_the_middle_of_a_text(tmp_path: Path) -> None:
    found = run(
        """
        cpu, gpu = (spikelet.load(TINY, device=device) for device in ("cpu", "cuda"))
        options = {"max_new_tokens": 40, "seed": 5, "ignore_eos": True, "speculative": "off"}
        text = [int(token.id) for token in cpu.generate(PROMPT, **options)]
        beside = iter(cpu.generate(PROMPT, **options))
        made, others = [], [next(beside).id for _ in range(3)]
        generation = gpu.generate(PROMPT, **options)
        try:
            for token in generation:
                made.append(token.id)
                if len(made) == 7:
                    setting("LOST_AFTER", 1)
        except spikelet.DeviceError as error:
            said = str(error)
        again = [refusal(lambda: ids(gpu)), refusal(lambda: gpu.score(PROMPT))]
        again.append(refusal(lambda: gpu.forward(PROMPT, gpu.new_state())))
        others += [token.id for token in beside]
        del generation, gpu
        setting("LOST_AFTER", None)
        new = spikelet.load(TINY, device="cuda")
        made = 7 <= len(made) < 40 and made == text[:len(made)]
        after = [token.id for token in new.generate(PROMPT, **options)]
        tell(said=said, made=made, again=again, beside=others == text, new=after == text)
        """,
        tmp_path,
    )
    assert "device cuda:0: " in found["said"]
    assert [kind for kind, _ in found["again"]] == ["DeviceError"] * 3
    assert found["made"]
    assert found["beside"]
    assert found["new"]


def test_without_a_driver_nothing_is_said_and_nothing_is_missing(tmp_path: Path) -> None:
    code = """
        model = spikelet.load(TINY)
        said = refusal(lambda: spikelet.load(TINY, device="cuda"))
        tell(device=model.device, reason=model.device_reason, said=said, text=len(ids(model)))
        """
    found = run(code, tmp_path, driver=False)
    if found["device"] != "cpu":
        pytest.skip("this machine has a GPU")
    assert found["said"][0] == "DeviceError"
    assert found["text"] == 24


def test_nobody_looks_for_a_driver_unless_a_gpu_is_asked_for(tmp_path: Path) -> None:
    found = run(
        """
        def mapped():
            with open("/proc/self/maps") as maps:
                return "libcuda.so" in maps.read()
        seen = [mapped()]
        cpu = spikelet.load(TINY, device="cpu")
        text = ids(cpu)
        seen.append(mapped())
        spikelet.load(TINY)
        seen.append(mapped())
        tell(seen=seen)
        """,
        tmp_path,
    )
    assert found["seen"] == [False, False, True]


def test_doctor_tries_the_gpu(tmp_path: Path) -> None:
    code = """
        from spikelet.cli.doctor import examine
        report = examine(TINY)
        tell(gpu=report["gpu"], ok=report["ok"], levels=report["self_test"]["levels"])
        """
    found = run(code, tmp_path)
    (card,) = found["gpu"]["devices"]
    assert found["gpu"]["chosen"] == "cuda:0"
    assert (card["device"], card["capability"], card["problem"]) == ("cuda:0", [9, 0], None)
    assert card["memory_total"] >= card["memory_free"] > 0
    assert found["levels"][-1]["level"] == "cuda:0"
    assert found["ok"], found["levels"]
    found = run(code, tmp_path, SIMT_CAPABILITY="6.1")
    assert found["gpu"]["chosen"] == "cpu"
    assert "6.1" in found["gpu"]["devices"][0]["problem"]
    assert found["ok"], found["levels"]
