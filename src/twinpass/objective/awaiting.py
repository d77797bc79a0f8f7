"""Coroutines, all in one event loop of this process: clients and locks belong to the loop that they were first used in."""

import asyncio
import threading
from collections.abc import Awaitable
from functools import cache
from typing import Any


def awaited(found: Awaitable[Any]) -> Any:
    """What it comes to; it is cancelled where the waiting is broken off.

    Raises:
        RuntimeError: it asked for the end of the process, which would end the loop alone; and whatever else it raises.
    """
    waiting = asyncio.run_coroutine_threadsafe(_result(found), _loop())
    try:
        return waiting.result()
    except BaseException:
        waiting.cancel()
        raise


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
