"""no_grad: whose results are constants, and whose are not."""

import asyncio
import contextvars
import threading

import numpy as np
import pytest

import needle as ndl
from needle import nn

X = ndl.Tensor([1.0, 2.0])


def records():
    return (X * 2).requires_grad


def in_a_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_another_thread_goes_on_recording():
    with ndl.no_grad():
        assert in_a_thread(records)
        assert not records()
    assert records()


@pytest.mark.parametrize("shared", [False, True])
def test_overlapping_uses_in_two_threads_restore_the_mode(shared):
    one = ndl.no_grad()
    entered, left, seen = threading.Event(), threading.Event(), []

    def other():
        with one if shared else ndl.no_grad():
            entered.set()
            left.wait(10)
            seen.append(records())
        seen.append(records())

    thread = threading.Thread(target=other)
    with one:
        thread.start()
        entered.wait(10)
    assert records()
    left.set()
    thread.join()
    assert seen == [False, True]
    assert records()


def test_training_beside_a_thread_that_evaluates():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    x, stop = ndl.Tensor(np.ones((4, 2)), dtype="float32"), threading.Event()
    started, constants = threading.Event(), []

    def evaluate():
        while not stop.is_set():
            with ndl.no_grad():
                constants.append(not model(x).requires_grad)
                started.set()

    thread = threading.Thread(target=evaluate)
    thread.start()
    started.wait(10)
    try:
        for _ in range(300):
            model(x).sum().backward()
    finally:
        stop.set()
        thread.join()
    assert all(constants)


def test_a_decorated_generator_switches_while_it_runs_and_not_in_between():
    closed = []

    @ndl.no_grad()
    def steps(first):
        assert first == 1
        try:
            sent = yield records()
            try:
                yield sent, records()
            except KeyError:
                yield "caught", records()
            return records()
        finally:
            closed.append(records())

    running = steps(1)
    assert next(running) is False
    assert records()
    assert running.send("sent") == ("sent", False)
    assert records()
    assert running.throw(KeyError()) == ("caught", False)
    with pytest.raises(StopIteration) as stop:
        next(running)
    assert stop.value.value is False
    unfinished = steps(1)
    next(unfinished)
    unfinished.close()
    assert closed == [False, False]
    assert records()


def test_a_decorated_generator_passes_errors_on():
    @ndl.no_grad()
    def fails():
        yield 1
        raise ZeroDivisionError

    running = fails()
    next(running)
    with pytest.raises(ZeroDivisionError):
        next(running)
    assert records()


def test_a_generator_that_is_closed_elsewhere_than_it_began_leaves_the_mode_there():
    def evaluates():
        with ndl.no_grad():
            yield records()

    running = evaluates()
    assert contextvars.copy_context().run(next, running) is False
    assert records()
    running.close()
    assert records()


def test_the_mode_can_be_named():
    mode = ndl.no_grad()
    with mode as named:
        assert named is mode


def test_tasks_do_not_switch_each_other():
    async def main():
        turn = asyncio.Event()

        @ndl.no_grad()
        async def evaluates():
            before = records()
            turn.set()
            await asyncio.sleep(0)
            return before, records()

        @ndl.no_grad()
        async def yields():
            try:
                yield records()
            except KeyError:
                yield records()

        async def trains():
            await turn.wait()
            return records()

        evaluated, trained = await asyncio.gather(evaluates(), trains())
        streamed = yields()
        found = [await anext(streamed), records(), await streamed.athrow(KeyError()), records()]
        await streamed.aclose()
        return evaluated, trained, found, [item async for item in yields()], records()

    assert asyncio.run(main()) == ((False, False), True, [False, True, False, True], [False], True)


def test_a_decorated_function_keeps_its_name_and_nests():
    @ndl.no_grad()
    def outer(depth):
        return (outer(depth - 1) if depth else []) + [records()]

    assert outer.__name__ == "outer"
    assert outer(2) == [False] * 3
    assert records()
