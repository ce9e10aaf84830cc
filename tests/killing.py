"""Processes that are killed with signal 9 at a chosen moment of a run."""

import multiprocessing
import os
import signal

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["qatviz.training"])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def counting(moment, real, *, before):
    """``real``, but its n-th call kills the process, before or after it."""
    calls = []

    def function(*args, **more):
        calls.append(1)
        if before and len(calls) == moment:
            die()
        result = real(*args, **more)
        if len(calls) == moment:
            die()
        return result

    return function


def half_written(moment, real):
    """``os.fdopen``, but what the n-th file is given is cut in half on its way to the disk."""
    calls = []

    def fdopen(*args, **more):
        file = real(*args, **more)
        calls.append(1)
        if len(calls) == moment:
            write = file.write

            def part(content):
                write(content[: len(content) // 2])
                file.flush()
                die()

            return type(
                "Half",
                (),
                {"__enter__": lambda s: s, "write": lambda s, c: part(c)}
                | {"__exit__": lambda s, *a: None},
            )()
        return file

    return fdopen


def arrange(phase, moment):
    """Make the coming calls die: the n-th of their kind."""
    import torch

    if phase == "forward":  # before the gradients of a step
        torch.stack = counting(moment, torch.stack, before=True)
    elif phase == "step":  # weights moved, nothing written
        torch.optim.SGD.step = counting(moment, torch.optim.SGD.step, before=False)
    elif phase == "write":  # half of the file is there
        os.fdopen = half_written(moment, os.fdopen)
    elif phase == "written":  # all of it is there, under the wrong name
        os.fsync = counting(moment, os.fsync, before=False)
    elif phase == "rename":
        os.replace = counting(moment, os.replace, before=True)
    elif phase == "renamed":
        os.replace = counting(moment, os.replace, before=False)
    else:
        raise ValueError(phase)


def _run(phase, moment, function, args):
    import torch

    torch.set_num_threads(1)
    if phase:
        arrange(phase, moment)
    function(*args)


def in_process(function, *args, phase=None, moment=0):
    """Run a function of a module in a fresh process; its exit code, −9 if it was killed."""
    process = CONTEXT.Process(target=_run, args=(phase, moment, function, args))
    process.start()
    process.join(120)
    return process.exitcode
