"""Coroutines, all in one event loop of this process: clients and locks belong to the loop that they were first used in."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Sequence
from functools import cache
from typing import Any


def awaited(found: Sequence[Any]) -> list[Any]:
    """What each comes to. Those that are to be waited for are waited for side by side, and cancelled where one raises or the waiting is broken off.

    Raises:
        RuntimeError: one asked for the end of the process, which would end the loop alone; and whatever else they raise.
    """
    pending = [each for each in found if inspect.isawaitable(each)]
    if not pending:
        return list(found)
    waiting = asyncio.run_coroutine_threadsafe(_side_by_side(pending), _loop())
    try:
        values = iter(waiting.result())
    except BaseException:
        waiting.cancel()
        raise
    return [next(values) if inspect.isawaitable(each) else each for each in found]


async def _side_by_side(found: Sequence[Awaitable[Any]]) -> list[Any]:
    tasks = [asyncio.ensure_future(_result(each)) for each in found]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _result(found: Awaitable[Any]) -> Any:
    try:
        return await found
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"{type(error).__name__} in a coroutine") from error


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="awaiting").start()
    return loop
