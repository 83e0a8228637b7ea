from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

COMPILES = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from xuni.cli.engines import workers_end_with_us

def work(seconds):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(seconds)

if __name__ == "__main__":
    with workers_end_with_us(), ProcessPoolExecutor(2) as pool:
        for future in [pool.submit(work, 600) for _ in range(9)]:
            future.result()
"""


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and waits for its parent does not."""
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("number", "whole_group"), [
    (signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, False),
])
def test_workers_end_with_the_command(number: signal.Signals, whole_group: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", COMPILES], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          start_new_session=True) as process:
        try:
            assert process.stdout is not None
            workers = [int(process.stdout.readline()) for _ in range(2)]
            assert all(map(alive, workers))
            if whole_group:  # as the terminal does
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            assert process.wait(60) == 128 + number
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    until = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < until, "a worker goes on alone"
        time.sleep(0.05)
