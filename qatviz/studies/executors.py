"""Where cells are run: anything with ``submit()``. Here is only what heals it."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from typing import Any


def processes(jobs: int) -> Callable[[], ProcessPoolExecutor]:
    """Processes of this machine, as ``study`` takes them.

    Each is a fresh interpreter: forked ones hang once torch has computed with several threads.
    They end with this process, also where it is killed.
    A script must therefore be guarded by ``if __name__ == "__main__"``.

    Args:
        jobs: How many, at least 1.

    Returns:
        A factory of pools, which ``study`` calls again when a pool breaks.

    Raises:
        ValueError: If ``jobs`` is below 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs!r}")
    context = multiprocessing.get_context("spawn")
    own = {"initializer": live_with, "initargs": (os.getpid(),)}
    return partial(ProcessPoolExecutor, jobs, mp_context=context, **own)


def live_with(parent: int) -> None:
    """In a worker: end this process once the one that started it is gone, by whatever means.

    Args:
        parent: Its number.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # whoever would have heard of the result is gone

    threading.Thread(target=watch, daemon=True).start()


class Pool:
    """An executor that is replaced when a worker's death broke it.

    Args:
        executor: Something with ``submit()``, or a factory of it without arguments. A
            ``ProcessPoolExecutor`` that forks is replaced at once by one that does not, and any
            other is replaced when it breaks, by one of the same size.

    Raises:
        ValueError: If it is neither.
    """

    def __init__(self, executor: Any) -> None:
        if not (hasattr(executor, "submit") or callable(executor)):
            raise ValueError(
                f"executor must have submit(), or be a factory of what has, got {executor!r}"
            )
        self._renew = _renewal(executor)
        self._own = not hasattr(executor, "submit") or _forks(executor)
        self.executor = self._renew() if self._own else executor

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Hand over a call.

        Args:
            function: What to call.
            args: Its arguments.
            kwargs: Its arguments by name.

        Returns:
            The future.
        """
        return self.executor.submit(function, *args, **kwargs)

    def renew(self) -> bool:
        """Replace a broken executor.

        Returns:
            Whether it could be.
        """
        if self._renew is None:
            return False
        if self._own:
            self.executor.shutdown(wait=True)
        self.executor, self._own = self._renew(), True
        return True

    def close(self, *, at_once: bool = False) -> None:
        """Shut down what was made here; an executor that was given stays as it is.

        Args:
            at_once: Whether to end the processes amid their work, which can be gone on with.
        """
        if not self._own:
            return
        workers = list((getattr(self.executor, "_processes", None) or {}).values())
        self.executor.shutdown(wait=not at_once)  # loky's takes nothing else
        for worker in workers if at_once else ():
            worker.terminate()


def broke(error: BaseException) -> bool:
    """Whether an executor broke, so that what was in it is lost, guilty or not.

    Args:
        error: What a future raised.

    Returns:
        True for broken pools.
    """
    return isinstance(error, BrokenExecutor)


def _forks(executor: Any) -> bool:
    context = getattr(executor, "_mp_context", None)
    plain = type(executor) is ProcessPoolExecutor
    return plain and context is not None and context.get_start_method() == "fork"


def _renewal(executor: Any) -> Callable[[], Any] | None:
    """How to make another such executor, if it can be known."""
    if not hasattr(executor, "submit"):
        return executor
    size = getattr(executor, "_max_workers", None)
    if type(executor) is ProcessPoolExecutor:
        context = None if _forks(executor) else executor._mp_context
        context = context or multiprocessing.get_context("spawn")
        first = (executor._initializer, executor._initargs)
        return partial(ProcessPoolExecutor, size, context, *first)
    loky = sys.modules.get("loky")
    if loky is not None and isinstance(executor, loky.ProcessPoolExecutor):
        return partial(loky.get_reusable_executor, max_workers=size)
    return None
