"""Where tasks run: inline, in worker processes (host platforms) or in threads (devices); same tasks, same results.

Worker processes are loky's: they do not import the user's script, take functions defined in it by value, and are
reused by later calls.  They ignore Ctrl-C (the parent kills them) and end themselves when the parent is gone.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, TypeVar

from couloir.errors import SimulationError

Task = TypeVar("Task")
Result = TypeVar("Result")

_WORKER_FLAG = "COULOIR_WORKER"
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", _WORKER_FLAG), "1")
_IDLE_SECONDS = 300
_GROUP_SECONDS = 0.02
"""Time that a group of short tasks is to take: handing over one costs about half a millisecond."""
_seconds: dict[Callable[..., Any], float] = {}
"""What a task of each function took on average, the last time that tasks of unknown length were run."""
_threads: dict[int, ThreadPoolExecutor] = {}


def available_cores() -> int:
    """Return the number of cores this process may use; a worker has one."""
    if _WORKER_FLAG in os.environ:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    *,
    processes: bool,
    on_done: Callable[[int, Result], None] | None = None,
    short: bool = False,
) -> list[Result]:
    """Run ``function`` on every task and return the results in order.

    Parameters
    ----------
    function : importable, or picklable by value.
    workers : how many run at once; one worker or one task runs inline, and so does everything inside a worker.
    processes : worker processes; otherwise threads.
    on_done : called with (index, result) in the calling thread as tasks finish.
    short : tasks may take so little time that several are handed over together, if those before did.

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
                left = [i for i in range(len(tasks)) if i not in results]
                size = _group_size(function, len(left), workers) if short else 1
                groups = [left[k : k + size] for k in range(0, len(left), size)]
                took = _run_pooled(partial(_group, function), [[tasks[i] for i in g] for g in groups], groups, workers, processes, finish)
                if short:
                    _seconds[function] = took / len(left)
                break
            except BrokenExecutor:
                continue
        else:
            raise SimulationError(
                f"worker processes died twice; {len(results)} of {len(tasks)} tasks had finished",
                "the machine may be out of memory: use fewer workers",
            )
    return [results[i] for i in range(len(tasks))]


def _group(function: Callable[[Task], Result], tasks: Sequence[Task]) -> tuple[list[Result], float]:
    """Return the results of some tasks, and how long they took."""
    begin = time.perf_counter()
    return [function(task) for task in tasks], time.perf_counter() - begin


def _group_size(function: Callable[..., Any], n_tasks: int, workers: int) -> int:
    """Return how many tasks to hand over together: as many as take long enough, but no fewer than two groups for each worker."""
    expected = _seconds.get(function, _GROUP_SECONDS)
    return max(1, min(math.ceil(_GROUP_SECONDS / max(expected, 1e-6)), n_tasks // (2 * workers)))


def _run_pooled(
    function: Callable[[Sequence[Task]], tuple[list[Result], float]],
    groups: Sequence[Sequence[Task]],
    indices: Sequence[Sequence[int]],
    workers: int,
    processes: bool,
    finish: Callable[[int, Result], None],
) -> float:
    """Run groups of tasks, hand over each result with its index, and return the seconds that all took together."""
    executor, total = _executor(workers, processes), 0.0
    futures: dict[Future[tuple[list[Result], float]], Sequence[int]] = {}
    try:
        for group, where in zip(groups, indices, strict=True):
            futures[executor.submit(function, group)] = where
        for future in as_completed(futures):
            results, seconds = future.result()
            total += seconds
            for index, result in zip(futures[future], results, strict=True):
                finish(index, result)
    except BrokenExecutor:
        raise
    except BaseException:  # Ctrl-C or an error: nothing may go on running behind the user's back
        for future in futures:
            future.cancel()
        if processes:
            executor.shutdown(wait=True, kill_workers=True)  # type: ignore[call-arg]
        raise
    return total


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
