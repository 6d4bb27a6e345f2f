"""Files read several at a time: in order, no more than needed, and no obstacle to the end of the process."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reducto_provider.export.threads import map_in_threads

HANGING = """
import threading
from reducto_provider.export.threads import map_in_threads

hanging = threading.Semaphore(0)

def work(item):
    hanging.release()
    threading.Event().wait()

threading.Thread(target=map_in_threads, args=(work, range(9), 3), daemon=True).start()
for _ in range(3):
    hanging.acquire()
print("the end")
"""


@pytest.mark.parametrize("count", [1, 3, 99])
@pytest.mark.parametrize("items", [[], [7], list(range(50))], ids=len)
def test_results_are_in_order(items, count):
    assert map_in_threads(str, items, count) == [str(item) for item in items]


def test_no_more_threads_than_allowed():
    together = threading.Barrier(3)
    names = map_in_threads(lambda _: (together.wait(60), threading.current_thread().name)[1], range(3), 3)
    assert len(names) == 3
    threads = set(map_in_threads(lambda _: threading.get_ident(), range(200), 3))
    assert len(threads) <= 3


@pytest.mark.parametrize("count", [1, 2])
def test_after_an_error_nothing_else_is_begun(count):
    begun = []

    def work(item):
        begun.append(item)
        raise OSError(f"no {item}")

    with pytest.raises(OSError, match=r"no [01]"):
        map_in_threads(work, range(100), count)
    assert len(begun) <= count


def test_what_hangs_holds_up_no_exit():
    project = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=project, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")
