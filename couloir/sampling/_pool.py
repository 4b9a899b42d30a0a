"""Where tasks run: inline, in worker processes (host platforms) or in threads (devices); same tasks, same results.

Worker processes are loky's: they do not import the user's script, take functions defined in it by value, and are
reused by later calls.  They ignore Ctrl-C (the parent kills them) and end themselves when the parent is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from couloir.errors import SimulationError

Task = TypeVar("Task")
Result = TypeVar("Result")

_WORKER_FLAG = "COULOIR_WORKER"
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", _WORKER_FLAG), "1")
_IDLE_SECONDS = 300
_threads: dict[int, ThreadPoolExecutor] = {}


def available_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    *,
    processes: bool,
    on_done: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Run ``function`` on every task and return the results in order.

    Parameters
    ----------
    function : importable, or picklable by value.
    workers : how many run at once; one worker or one task runs inline, and so does everything inside a worker.
    processes : worker processes; otherwise threads.
    on_done : called with (index, result) in the calling thread as tasks finish.

    Raises
    ------
    SimulationError : worker processes died twice over the same tasks.
    """
    results: dict[int, Result] = {}

    def finish(index: int, result: Result) -> None:
        results[index] = result
        if on_done is not None:
            on_done(index, result)

    workers = min(workers, len(tasks))
    if workers <= 1 or _WORKER_FLAG in os.environ:
        for index, task in enumerate(tasks):
            finish(index, function(task))
    else:
        for _attempt in range(2):  # tasks are pure functions of their data, so a lost worker's task is simply run again
            try:
                _run_pooled(function, {i: t for i, t in enumerate(tasks) if i not in results}, workers, processes, finish)
                break
            except BrokenExecutor:
                continue
        else:
            raise SimulationError(
                f"worker processes died twice; {len(results)} of {len(tasks)} tasks had finished",
                "the machine may be out of memory: use fewer workers",
            )
    return [results[i] for i in range(len(tasks))]


def _run_pooled(
    function: Callable[[Task], Result], tasks: dict[int, Task], workers: int, processes: bool, finish: Callable[[int, Result], None]
) -> None:
    executor = _executor(workers, processes)
    futures: dict[Future[Result], int] = {}
    try:
        for index, task in tasks.items():
            futures[executor.submit(function, task)] = index
        for future in as_completed(futures):
            finish(futures[future], future.result())
    except BrokenExecutor:
        raise
    except BaseException:  # Ctrl-C or an error: nothing may go on running behind the user's back
        for future in futures:
            future.cancel()
        if processes:
            executor.shutdown(wait=True, kill_workers=True)  # type: ignore[call-arg]
        raise


def _executor(workers: int, processes: bool) -> Executor:
    if processes:
        from loky import get_reusable_executor

        executor: Executor = get_reusable_executor(
            max_workers=workers, timeout=_IDLE_SECONDS, initializer=_start_worker, initargs=(os.getpid(),), env=_ENVIRONMENT
        )
        return executor
    if workers not in _threads:
        _threads[workers] = ThreadPoolExecutor(workers, thread_name_prefix="couloir")
    return _threads[workers]


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> Any:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="couloir-parent-watch").start()
