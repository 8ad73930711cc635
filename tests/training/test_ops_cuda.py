"""The CUDA operators, from tensor to kernel, with an emulated driver that runs kernels on the CPU.

The arithmetic of kernels and engine is the same operation by operation, so most results are
compared bit by bit; the rest with the plain torch twins.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from gpu import emulator  # noqa: E402
from spikelet.training import SpikeGPT, SpikeGPTConfig, ops  # noqa: E402
from spikelet.training.ops import cpu, cuda, cuda_driver, operators  # noqa: E402

# Odd sizes on purpose: one token; parts of a chunk (16), of a tile (64), of what is loaded ahead
# (8), of a block (32, 128); more rows than the sum has lanes (8).
SIZES = [(1, 1, 1), (2, 7, 16), (3, 33, 17), (2, 64, 50), (1, 131, 130), (20, 16, 3)]
IDS = [f"B{b}-T{t}-C{c}" for b, t, c in SIZES]
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
ALL_SIZES = pytest.mark.parametrize("size", SIZES, ids=IDS)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """kernels/train.cu for the CPU."""
    return emulator.all_kernels()


@pytest.fixture(params=emulator.ORDERS)
def order(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Iterator[str]:
    """Threads run in this order."""
    emulator.set_order(library, request.param)
    yield request.param
    emulator.set_order(library, "forward")


@pytest.fixture(autouse=True)
def runtime(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> cuda_driver.Runtime:
    """What the operators launch on: CPU tensors, the emulated driver."""
    emulated = emulator.runtime(library)
    monkeypatch.setattr(cuda, "_runtime", lambda: emulated)
    return emulated


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-2))


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == other.dtype, i
        assert torch.equal(one, other), f"result {i}: {relative(one, other)}"


def wkv_inputs(size: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """w, u, k, v, state, gy, gstate_out."""
    batch, time, channels = size
    k, v = (3 * torch.randn(2, batch, time, channels)).to(dtype)
    aa, pp, bb = (*torch.randn(2, batch, channels), torch.rand(batch, channels) + 0.5)
    return [
        -torch.exp(torch.randn(channels)),
        torch.randn(channels),
        k,
        v,
        torch.stack((aa, bb, pp), dim=1),
        torch.randn(batch, time, channels),
        torch.randn(batch, 3, channels),
    ]


@ALL_SIZES
@TYPES
def test_wkv_has_the_bits_of_the_engine(
    size: tuple[int, int, int], dtype: torch.dtype, order: str
) -> None:
    w, u, k, v, state, gy, gstate_out = wkv_inputs(size, dtype)
    wide = w, u, k.float(), v.float(), state
    assert_same(cuda.wkv4_forward(w, u, k, v, state), cpu.wkv4_forward(*wide))
    gw, gu, gk, gv, gstate = cpu.wkv4_backward(*wide, gy, gstate_out)
    found = cuda.wkv4_backward(w, u, k, v, state, gy, gstate_out)
    assert_same(found, [gw, gu, gk.to(dtype), gv.to(dtype), gstate])


def test_wkv_equals_the_naive_twin() -> None:
    w, u, k, v, state, gy, _ = wkv_inputs((3, 37, 19), torch.float32)
    doubles = [x.double().requires_grad_() for x in (w, u, k, v, state)]
    expected, after = ops.naive_wkv4(*doubles)
    y, state_out = cuda.wkv4_forward(w, u, k, v, state)
    assert relative(y, expected) < 1e-6
    assert relative(state_out, after) < 1e-6
    found = cuda.wkv4_backward(w, u, k, v, state, gy, torch.zeros_like(state))
    gradients = torch.autograd.grad((expected * gy).sum(), doubles)
    for one, other in zip(found[:4], gradients[:4], strict=True):
        assert relative(one, other) < 2e-5
    assert relative(found[4][:, :2], gradients[4][:, :2]) < 2e-5


def test_wkv_of_an_empty_state_and_of_keys_that_overflow_exp() -> None:
    k = torch.tensor([[[500.0], [-500.0], [900.0], [899.0]]])
    v = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    w, u, state = torch.tensor([-1.0]), torch.tensor([0.0]), ops.empty_wkv_state(1, 1, k)
    y, after = cuda.wkv4_forward(w, u, k, v, state)
    assert_same([y, after], cpu.wkv4_forward(w, u, k, v, state))
    grads = cuda.wkv4_backward(w, u, k, v, state, torch.ones_like(y), torch.zeros_like(state))
    assert all(grad.isfinite().all() for grad in grads)


def lif_inputs(size: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """x, membrane, decay, gspikes, gmembrane_out."""
    batch, time, channels = size
    return [
        (2 * torch.randn(batch, time, channels)).to(dtype),
        torch.randn(batch, channels),
        0.1 + 0.8 * torch.rand(channels),
        torch.randn(batch, time, channels),
        torch.randn(batch, channels),
    ]


@ALL_SIZES
@TYPES
@pytest.mark.parametrize("learned", [False, True], ids=["half", "learned"])
def test_lif_has_the_bits_of_the_engine(
    size: tuple[int, int, int], dtype: torch.dtype, learned: bool, order: str
) -> None:
    x, membrane, decay, *gradients = lif_inputs(size, dtype)
    if not learned:
        decay = None
    spikes, after = cuda.lif_forward(x, membrane, decay)
    assert_same([spikes, after], cpu.lif_forward(x.float(), membrane, decay))
    gx, *rest = cpu.lif_backward(x.float(), membrane, decay, "atan", 2.0, *gradients)
    found = cuda.lif_backward(x, membrane, decay, "atan", 2.0, *gradients)
    assert_same(found, [gx.to(dtype), *rest])


SURROGATES = pytest.mark.parametrize(
    ("surrogate", "alpha"),
    [("atan", 2.0), ("atan", 3.5), ("sigmoid", 4.0), ("fast_sigmoid", 25.0)],
)


@SURROGATES
def test_every_surrogate_has_the_bits_of_the_engine(surrogate: str, alpha: float) -> None:
    x, membrane, decay, *gradients = lif_inputs((11, 37, 19), torch.float32)
    arguments = x, membrane, decay, surrogate, alpha, *gradients
    assert_same(cuda.lif_backward(*arguments), cpu.lif_backward(*arguments))


@SURROGATES
@TYPES
def test_lif_equals_the_naive_twin(surrogate: str, alpha: float, dtype: torch.dtype) -> None:
    x, membrane, decay, gspikes, gmembrane_out = lif_inputs((11, 37, 19), dtype)
    wide = [one.float().requires_grad_() for one in (x, membrane, decay)]
    spikes, after = ops.naive_lif(*wide, surrogate, alpha)
    assert 0.1 < spikes.mean() < 0.9
    assert_same(cuda.lif_forward(x, membrane, decay), (spikes, after))
    total = (spikes * gspikes).sum() + (after * gmembrane_out).sum()
    found = cuda.lif_backward(x, membrane, decay, surrogate, alpha, gspikes, gmembrane_out)
    for one, other in zip(found, torch.autograd.grad(total, wide), strict=True):
        assert relative(one, other) < (3e-3 if one.dtype == torch.bfloat16 else 2e-6)


@ALL_SIZES
@TYPES
@pytest.mark.parametrize("count", [1, 2, 3])
def test_token_mix_has_the_bits_of_the_engine(
    size: tuple[int, int, int], dtype: torch.dtype, count: int, order: str
) -> None:
    batch, time, channels = size
    x, last = torch.randn(batch, time, channels), torch.randn(batch, channels)
    mixes = [torch.rand(channels) for _ in range(count)]
    out = cuda.mix_forward(x, last, mixes, dtype)
    assert_same(out, cpu.mix_forward(x, last, mixes, dtype))
    gout = [torch.randn(batch, time, channels).to(dtype) for _ in mixes]
    gx, glast, gmixes = cuda.mix_backward(x, last, mixes, gout)
    expected = cpu.mix_backward(x, last, mixes, gout)
    assert_same([gx, glast], expected[:2])
    # Added up in tiles of 64 tokens instead of one chain.
    assert relative(gmixes, expected[2]) < 1e-6


def test_chunks_with_state_equal_the_whole() -> None:
    w, u, k, v, state, *_ = wkv_inputs((2, 41, 5), torch.float32)
    membrane = torch.randn(2, 5)
    whole = cuda.wkv4_forward(w, u, k, v, state), cuda.lif_forward(v, membrane, None)
    for cut in (1, 16, 40):
        y, s, spikes, m = [], state, [], membrane
        for kc, vc in zip(k.split([cut, 41 - cut], 1), v.split([cut, 41 - cut], 1), strict=True):
            yc, s = cuda.wkv4_forward(w, u, kc, vc, s)
            sc, m = cuda.lif_forward(vc, m, None)
            y.append(yc)
            spikes.append(sc)
        assert_same([torch.cat(y, 1), s], whole[0])
        assert_same([torch.cat(spikes, 1), m], whole[1])


def test_tensors_may_lie_in_any_order() -> None:
    x, last, mix = torch.randn(5, 2, 7), torch.randn(7, 2), torch.rand(14)[::2]
    turned = x.transpose(0, 1)
    assert not turned.is_contiguous()
    assert_same(
        cuda.mix_forward(turned, last.t(), [mix], torch.float32),
        cpu.mix_forward(
            turned.contiguous(), last.t().contiguous(), [mix.contiguous()], torch.float32
        ),
    )


def test_wrong_tensors_are_refused_before_a_launch(
    runtime: cuda_driver.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_launch(*_: object) -> None:
        raise AssertionError("launched")

    monkeypatch.setattr(runtime.driver, "launch", no_launch)
    w, u, k, v, state, gy, gstate = wkv_inputs((2, 3, 4), torch.float32)
    with pytest.raises(ValueError, match=r"wkv4_forward: w is \[3\], \[4\] is needed"):
        cuda.wkv4_forward(w[:3], u, k, v, state)
    with pytest.raises(ValueError, match=r"v is torch.float32, bfloat16 is needed"):
        cuda.wkv4_forward(w, u, k.bfloat16(), v, state)
    with pytest.raises(ValueError, match=r"k is torch.float64, float32 or bfloat16 is needed"):
        cuda.wkv4_backward(w, u, k.double(), v, state, gy, gstate)
    with pytest.raises(ValueError, match=r"state is \[2, 4\], \[2, 3, 4\] is needed"):
        cuda.wkv4_forward(w, u, k, v, state[:, 0])
    with pytest.raises(ValueError, match=r"a tensor is \[2, 0, 4\]"):
        cuda.lif_forward(k[:, :0], state[:, 0], None)
    with pytest.raises(ValueError, match=r"a tensor is on meta, a GPU is needed"):
        cuda.lif_forward(k.to("meta"), state[:, 0], None)
    with pytest.raises(ValueError, match=r"membrane is on meta, the others are on cpu"):
        cuda.lif_forward(k, state[:, 0].to("meta"), None)
    with pytest.raises(ValueError, match="surrogate is 'step', known are atan, sigmoid"):
        cuda.lif_backward(k, state[:, 0], None, "step", 2.0, gy, state[:, 0])
    with pytest.raises(ValueError, match="4 mixes, 1 to 3 are needed"):
        cuda.mix_forward(k, state[:, 0], [w] * 4, torch.float32)
    with pytest.raises(ValueError, match="1 gradients for 2 mixes"):
        cuda.mix_backward(k, state[:, 0], [w, u], [gy])
    with pytest.raises(ValueError, match=r"gout\[1\] is torch.bfloat16, float32 is needed"):
        cuda.mix_backward(k, state[:, 0], [w, u], [gy, gy.bfloat16()])
    with pytest.raises(ValueError, match=r"dtype is torch\.float16, float32 or bfloat16 is needed"):
        cuda.mix_forward(k, state[:, 0], [w], torch.float16)
    long = torch.zeros(1, 1, 1).expand(1, 65535 * 64 + 1, 1)
    with pytest.raises(ValueError, match="4194241 tokens are too many"):
        cuda.mix_forward(long, state[:1, 0, :1], [w[:1]], torch.float32)
    wide = torch.zeros(1, 1, 1).expand(2**16, 1, 2**15)
    with pytest.raises(ValueError, match=r"\[65536, 1, 32768\] is too large"):
        cuda.lif_forward(wide, wide[:, 0], None)


def test_every_struct_has_the_size_that_its_kernel_declares() -> None:
    structs = {
        "wkv4_forward": cuda.Wkv4Forward,
        "wkv4_backward": cuda.Wkv4Backward,
        "lif_forward": cuda.LifForward,
        "lif_backward": cuda.LifBackward,
        "mix_forward": cuda.MixForward,
        "mix_backward": cuda.MixBackward,
        "sum_rows": cuda.SumRows,
    }
    for capability, target in [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((12, 0), "sm_90")]:
        ptx = cuda_driver.ptx_for("train", capability).decode()
        assert f".target {target}\n" in ptx
        entries = ptx.split(".visible .entry spk_")[1:]
        assert len(entries) == 13
        for entry in entries:
            operator = entry.partition("(")[0].rpartition("_")[0]
            assert f"_param_0[{ctypes.sizeof(structs[operator])}]\n" in entry


def test_what_is_launched(runtime: cuda_driver.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[tuple[str, tuple[int, int], int, bytes, int]] = []

    def record(
        function: ctypes.c_void_p, grid: tuple[int, int], threads: int, params: ctypes.Structure,
        stream: int,
    ) -> None:  # fmt: skip
        names = [name for (_, name), found in runtime._functions.items() if found is function]
        launches.append((names[0], grid, threads, bytes(params), stream))

    monkeypatch.setattr(runtime.driver, "launch", record)
    monkeypatch.setattr(runtime, "stream", lambda device: 77)
    x, membrane, decay, gspikes, gmembrane_out = lif_inputs((3, 40, 50), torch.bfloat16)
    gx, gmembrane, _ = cuda.lif_backward(
        x, membrane, decay, "fast_sigmoid", 25.0, gspikes, gmembrane_out
    )
    (name, grid, threads, data, stream), reduction = launches
    assert (name, grid, threads, stream) == ("spk_lif_backward_bf16", (5, 1), 32, 77)
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, 72, 8)]
    tensors = (x, membrane, decay, gspikes, gmembrane_out)
    assert words[:5] == [tensor.data_ptr() for tensor in tensors]
    assert words[6:8] == [gx.data_ptr(), gmembrane.data_ptr()]
    ints = [int.from_bytes(data[i : i + 4], "little") for i in range(72, 88, 4)]
    assert ints == [3, 40, 50, 2]
    assert ctypes.c_float.from_buffer_copy(data[88:92]).value == 25.0
    assert reduction[:3] == ("spk_sum_rows_f32", (2, 1), 256)
    assert reduction[3][:8] == data[64:72]  # the rows that the first kernel leaves
    assert int.from_bytes(reduction[3][16:20], "little") == 3

    launches.clear()
    cuda.mix_forward(x.float(), membrane, [decay, decay], torch.float32)
    ((name, grid, threads, data, _),) = launches
    assert (name, grid, threads) == ("spk_mix_forward_f32", (2, 1), 128)
    assert data[32:40] == bytes(8)  # there is no third mix
    assert data[64:80] == b"".join(n.to_bytes(4, "little") for n in (3, 40, 50, 2))


def test_errors_of_the_driver_say_what_failed(runtime: cuda_driver.Runtime) -> None:
    driver = runtime.driver
    with driver.context(0):
        with pytest.raises(
            cuda_driver.CudaError, match=r"INVALID_PTX \(218\): ptxas fatal: no entry in 7"
        ):
            driver.load(b"nothing")
        module = driver.load(cuda_driver.ptx_for("train", (8, 0)))
        with pytest.raises(
            cuda_driver.CudaError, match=r"cuModuleGetFunction: .*NOT_FOUND \(500\)"
        ):
            driver.function(module, "spk_nothing")
        function = driver.function(module, "spk_sum_rows_f32")
        with pytest.raises(
            cuda_driver.CudaError, match=r"cuLaunchKernel: CUDA_ERROR_INVALID_VALUE"
        ):
            driver.launch(function, (1, 1), 512, cuda.SumRows(), 0)


@pytest.mark.parametrize("half", [False, True], ids=["f32", "autocast"])
def test_models_train_on_them(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SpikeGPT(SpikeGPTConfig(40, 24, "RWKV", 2, 24, neuron="plif", dropout=0.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    ids = torch.randint(0, 40, (2, 25))
    results = []
    for kernels in (cpu, cuda):
        monkeypatch.setattr(operators, "kernels", lambda device, kernels=kernels: kernels)
        spikes: list[Tensor] = []
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            hidden, _ = model.hidden(ids[:, :-1], spikes=spikes)
            loss = model(ids[:, :-1], ids[:, 1:])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        results.append(([*spikes, hidden], grads))
    (expected, gradients), (found, others) = results
    assert 0 < torch.cat(spikes).mean() < 1
    assert_same(found, expected)
    for (name, _), one, other in zip(model.named_parameters(), others, gradients, strict=True):
        # On CPU the cast before a kernel rounds the gradients of k and v to bfloat16 as well.
        assert relative(one, other) < 1e-5, name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # in opcheck itself
@TYPES
def test_operators_are_well_registered(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "kernels", lambda device: cuda)
    w, u, k, v, state, *_ = wkv_inputs((2, 5, 8), dtype)
    torch.library.opcheck(operators.wkv4, (w, u, k.requires_grad_(), v.requires_grad_(), state))
    x, membrane, decay, *_ = lif_inputs((2, 5, 8), dtype)
    torch.library.opcheck(
        operators.lif, (x.requires_grad_(), membrane, decay.requires_grad_(), "sigmoid", 4.0)
    )
    torch.library.opcheck(operators.lif, (x, membrane, None, "atan", 2.0))
    mixes = [w.requires_grad_(), u]
    torch.library.opcheck(
        operators.mix, (x.detach().float().requires_grad_(), membrane, mixes, dtype)
    )


def test_without_a_driver_nothing_is_printed() -> None:
    program = (
        "from spikelet.training.ops import cuda, operators\n"
        "assert not cuda.available() and operators.kernels('cuda') is None\n"
        "print(cuda.reason())\n"
        "try: cuda._runtime()\n"
        "except RuntimeError as error: print(error)\n"
    )
    hidden = (
        "import ctypes\n"
        "def refuse(name, *a, **k): raise OSError(name)\n"
        "import torch\n"
        "ctypes.CDLL = refuse\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", hidden + program],
        capture_output=True, text=True, check=True, env=os.environ | {"LD_PRELOAD": ""},
    )  # fmt: skip
    why = {
        "there is no NVIDIA driver: libcuda.so.1 was not found",
        "this PyTorch was built without CUDA",
    }
    reason, error = done.stdout.splitlines()
    assert reason in why
    assert error == f"CUDA operators cannot run: {reason}"
    assert done.stderr == ""


@pytest.fixture
def one_gpu(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """PyTorch believes in a GPU; what it says of it can be changed."""
    says: dict[str, object] = {"is_available": True, "device_count": 1, "current_device": 0}
    says |= {"get_device_capability": (9, 0), "get_device_name": "Some GPU"}
    for name in says:
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: says[name])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    return says


def test_what_keeps_kernels_from_running_is_told(
    one_gpu: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(cuda_driver.open_runtime(), cuda_driver.Runtime)
    monkeypatch.setattr(cuda_driver, "ptx_for", lambda *_: b"nothing")
    assert cuda_driver.open_runtime() == (
        "the kernels do not load: cuModuleLoadDataEx: CUDA_ERROR_INVALID_PTX (218): ptxas fatal: "
        "no entry in 7 bytes; driver 525 or later is needed"
    )
    one_gpu["get_device_capability"] = (7, 5)
    assert cuda_driver.open_runtime() == (
        "Some GPU has compute capability 7.5, and the kernels need 8.0 or later"
    )
    one_gpu["is_available"] = False
    assert "torch.cuda.is_available() is false" in str(cuda_driver.open_runtime())
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda_driver.open_runtime() == "this PyTorch was built without CUDA"
