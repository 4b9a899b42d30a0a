"""One call measured in a process of its own: nothing imported, compiled or allocated before it counts, and it can be stopped."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What a call returned, its shortest time (s), and by how much the process grew at most during it (MB)."""

    value: Any
    seconds: float
    megabytes: float


def alone(prepare: Callable[..., Callable[[], Any]], *arguments: Any, limit: float, calls: int = 1) -> Measured | None:
    """Return how ``prepare(*arguments)()`` fares in a new process; None when it takes longer than ``limit`` seconds.

    Parameters
    ----------
    prepare : a function of a module, whose own time and memory do not count.
    calls : made at least; one shorter than 15 s is made three times, and again until 2 s are over: the first one also
        pays for fresh memory.

    Raises
    ------
    RuntimeError : the call failed.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(send, prepare, arguments, calls))
    process.start()
    send.close()
    try:
        # ``prepare`` reports when it is done; only then the clock runs.
        receive.recv()
        return receive.recv() if receive.poll(limit) else None
    except EOFError:
        raise RuntimeError(f"{prepare.__name__}{arguments} failed in its process, see above") from None
    finally:
        process.kill()
        process.join()


def _measure(send: Any, prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], calls: int) -> None:
    task = prepare(*arguments)
    send.send(None)
    best, done, spent, value = float("inf"), 0, 0.0, None
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    while done < calls or (best < 15.0 and (done < 3 or spent < 2.0)):
        start = time.perf_counter()
        value = task()
        seconds = time.perf_counter() - start
        best, done, spent = min(best, seconds), done + 1, spent + seconds
    send.send(Measured(value, best, _resident("VmHWM") - before))


def _resident(which: str) -> float:
    """Return a line of /proc/self/status, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1000
