"""Threads, asyncio, Ctrl-C: the engine works beside Python, not instead of it."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

import spikelet


def test_threads_share_a_model(golden: Path) -> None:
    model = spikelet.load(golden / "spikegpt-tiny", threads=2)

    def ids(seed: int) -> list[int]:
        return model.generate([seed], max_new_tokens=80, seed=seed).run().ids

    alone = [ids(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ids, range(8))) == alone


def test_two_threads_on_one_generation_share_its_tokens(writer: spikelet.Model) -> None:
    whole = writer.generate("abc", seed=1, max_new_tokens=200).run().ids
    generation = writer.generate("abc", seed=1, max_new_tokens=200)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda _: [token.id for token in generation], range(2)))
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert generation.ids == whole


def test_two_threads_on_one_session(writer: spikelet.Model) -> None:
    """Each call stands for itself: the tokens of all of them are remembered, in some order."""
    session = writer.session()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: session.feed("x" * n), [3, 5, 7, 11] * 5))
    assert 0 < session.num_tokens <= 26 * 5


def test_other_threads_run_during_a_pass(model: spikelet.Model) -> None:
    ticks, over = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.is_set():
            ticks += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    # A thread that waits for the interpreter now gets it only when the other lets go by itself.
    sys.setswitchinterval(60)
    thread = threading.Thread(target=tick)
    try:
        thread.start()
        before = ticks
        # One pass may be over before the system has woken the other thread; many are not.
        deadline = time.monotonic() + 20
        while ticks == before and time.monotonic() < deadline:
            model.forward(range(200), model.new_state(), all_logits=False)
        assert ticks > before
    finally:
        over.set()
        sys.setswitchinterval(interval)
        thread.join()


def test_async_iteration_gives_the_same_tokens(writer: spikelet.Model) -> None:
    async def ids() -> list[int]:
        return [token.id async for token in writer.generate("abc", seed=1, max_new_tokens=50)]

    assert asyncio.run(ids()) == writer.generate("abc", seed=1, max_new_tokens=50).run().ids


def test_the_event_loop_goes_on_meanwhile(writer: spikelet.Model) -> None:
    async def main() -> tuple[int, list[list[int]]]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        async def ids(seed: int) -> list[int]:
            generation = writer.generate("abc", seed=seed, max_new_tokens=40)
            return [token.id async for token in generation]

        ticker = asyncio.create_task(tick())
        found = await asyncio.gather(*(ids(seed) for seed in range(4)))
        ticker.cancel()
        return ticks, found

    ticks, found = asyncio.run(main())
    assert ticks > 40
    assert found == [
        writer.generate("abc", seed=seed, max_new_tokens=40).run().ids for seed in range(4)
    ]


def test_a_cancelled_task_loses_no_token(writer: spikelet.Model) -> None:
    whole = writer.generate("abc", seed=1, max_new_tokens=100).run().ids
    generation = writer.generate("abc", seed=1, max_new_tokens=100)

    async def main() -> list[int]:
        found = []

        async def consume() -> None:
            async for token in generation:
                found.append(token.id)
                await asyncio.sleep(0)

        for _ in range(5):
            task = asyncio.create_task(consume())
            for _ in range(9):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await consume()
        return found

    assert asyncio.run(main()) == whole == generation.ids


def test_errors_come_out_of_async_iteration(writer: spikelet.Model) -> None:
    async def main() -> None:
        with pytest.raises(StopAsyncIteration):
            await anext(writer.generate("abc", max_new_tokens=0))
        with writer.generate("abc", max_new_tokens=50) as generation:
            await anext(generation)
        assert [token async for token in generation] == []

    asyncio.run(main())


def test_closing_from_another_thread_ends_it(writer: spikelet.Model) -> None:
    generation = writer.generate("abc", max_new_tokens=10**9, ignore_eos=True)
    closer = threading.Timer(0.1, generation.close)
    closer.start()
    done = generation.run()
    closer.join()
    assert done.finish_reason == "cancelled"
    assert done.stats.num_generated_tokens == len(done.ids)


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Ctrl-C comes after so long: a signal handler raises KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_ctrl_c_ends_a_run_and_what_was_made_stays(writer: spikelet.Model) -> None:
    generation = writer.generate("abc", seed=1, max_new_tokens=10**9, ignore_eos=True)
    with interrupted_after(0.1):
        generation.run()
    made = len(generation.ids)
    assert made > 0
    assert generation.finish_reason is None
    next(generation)
    generation.close()
    assert generation.finish_reason == "cancelled"
    assert made <= len(generation.ids) <= made + 1


LONG = list(range(256)) * 4000

CALLS: dict[str, Callable[[spikelet.Model], object]] = {
    "prefill": lambda model: next(model.generate(LONG)),
    "batch": lambda model: model.generate_batch(["a", "b"], max_new_tokens=10**9, ignore_eos=True),
    "score": lambda model: model.score(LONG),
    "trace": lambda model: model.trace(LONG),
    "forward": lambda model: model.forward(LONG, model.new_state(), all_logits=False),
}


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_ends_every_long_call(writer: spikelet.Model, name: str) -> None:
    with interrupted_after(0.1):
        CALLS[name](writer)
    assert len(writer.generate("abc", max_new_tokens=5, ignore_eos=True).run().ids) == 5


def test_ctrl_c_leaves_states_and_sessions_as_they_were(writer: spikelet.Model) -> None:
    state = writer.new_state()
    writer.forward([1, 2], state)
    with interrupted_after(0.1):
        writer.forward(LONG, state, all_logits=False)
    assert state.position == 2
    with interrupted_after(0.1):
        writer.score(LONG, state)
    assert state.position == 2
    session = writer.session()
    session.feed("abc")
    with interrupted_after(0.1):
        session.feed(LONG)
    assert session.num_tokens == 3
    other = writer.session()
    other.feed("abc")
    after = [s.generate(seed=1, max_new_tokens=9).run().ids for s in (session, other)]
    assert after[0] == after[1]
