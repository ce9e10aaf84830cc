"""Executors that break, and what stands in for them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import loky
import pytest

from qatviz.studies.executors import Pool, broke, processes


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_are_fresh_interpreters():
    pool = processes(3)()
    assert pool._mp_context.get_start_method() == "spawn"
    assert pool._max_workers == 3
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        processes(0)


def test_a_pool_that_forks_is_replaced_and_left_alone():
    given = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    pool = Pool(given)
    assert pool.executor is not given
    assert pool.executor._mp_context.get_start_method() == "spawn"
    assert pool.executor._max_workers == 2
    pool.close()
    assert given.submit(int, "3").result() == 3
    given.shutdown()


def test_what_was_given_is_used_and_not_shut_down():
    with ThreadPoolExecutor(1) as given:
        pool = Pool(given)
        assert pool.executor is given
        assert pool.submit(int, "7").result() == 7
        assert pool.renew() is False
        pool.close(at_once=True)
        assert given.submit(int, "8").result() == 8


def test_what_was_made_here_is_shut_down():
    pool = Pool(lambda: ThreadPoolExecutor(1))
    pool.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["factory", "spawn", "loky"])
def test_a_broken_pool_is_replaced_by_one_of_the_same_size(kind):
    made = {
        "factory": lambda: processes(1),
        "spawn": lambda: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")),
        "loky": lambda: loky.get_reusable_executor(1),
    }[kind]()
    pool = Pool(made)
    with pytest.raises(BrokenExecutor):
        pool.submit(die).result()
    with pytest.raises(BrokenExecutor):
        pool.submit(int)
    assert pool.renew()
    assert pool.executor._max_workers == 1
    assert pool.submit(int, "5").result() == 5
    pool.close()


def test_what_broke_is_told_from_what_failed():
    assert broke(BrokenProcessPool())
    assert broke(loky.BrokenProcessPool())
    assert not broke(RuntimeError())


def test_what_is_no_executor_is_refused():
    with pytest.raises(ValueError, match=r"executor must have submit\(\), or be a factory"):
        Pool(3)


LONELY = """
import time
from qatviz.studies import processes
from tests.studies.grids import number_and_sleep

if __name__ == "__main__":
    pool = processes(1)()
    pool.submit(number_and_sleep, PATH)
    time.sleep(600)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    script, told = tmp_path / "lonely.py", tmp_path / "worker"
    script.write_text(LONELY.replace("PATH", repr(str(told))))
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, script], cwd=root, env=environment)
    try:
        wait_for(told.exists, 60)
        worker = int(told.read_text())
        assert alive(worker)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not alive(worker), 20)


def alive(process):
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True)
    return bool(found.stdout.strip()) and not found.stdout.startswith(b"Z")  # not yet buried


def wait_for(true, seconds):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
