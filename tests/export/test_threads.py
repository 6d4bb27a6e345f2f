"""Files read several at a time: in order, no more than needed, and no obstacle to the end of the process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reducto_provider.export.formats import check_format
from reducto_provider.export.sink import open_sink
from reducto_provider.export.threads import map_in_threads
from tests.airflows import DELTA

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

READING = """
import threading, time
from contextlib import suppress
from reducto_provider.export.threads import ReadingThread, _is_exiting, map_in_threads

begun = threading.Semaphore(0)

def work(item):
    begun.release()
    _is_exiting.wait()
    time.sleep(0.2)
    print("read\\n", end="", flush=True)

def read():
    with suppress(RuntimeError):
        map_in_threads(work, range(9), {count})

ReadingThread(read, "reader").start()
for _ in range({count}):
    begun.acquire()
"""
READ_IN_THREADS = """
import json, sys, threading
from datetime import date
from reducto_provider.export.reader import read_usage

importers = []

class Watch:
    def find_spec(self, name, path, target=None):
        if name == "pyarrow.lib":  # which loads what crashes
            importers.append(threading.current_thread())

sys.meta_path.insert(0, Watch())
rows = []

def read():
    rows.append(len(read_usage(sys.argv[1], org_id="org_abc123", start=date(2026, 6, 17), end=date(2026, 6, 18))))

for _ in range(3):
    reader = threading.Thread(target=read)
    reader.start()
    reader.join()
ended = [each.name for each in importers if not each.is_alive()]
print(json.dumps({"rows": rows, "imports": len(importers), "ended": ended}))
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


def run(*arguments):
    """Run code in a new process, and return its output."""
    project = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", *arguments], cwd=project, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_hangs_holds_up_no_exit():
    assert run(HANGING) == "the end\n"


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_being_read_is_awaited_when_python_exits_and_nothing_else_is_begun(count):
    assert run(READING.format(count=count)) == "read\n" * count


@pytest.mark.parametrize(
    ("output_format", "compression"),
    [("parquet", None), ("jsonl", "zstd"), pytest.param("delta", None, marks=DELTA)],
)
def test_pyarrow_is_imported_by_a_thread_that_lasts(make_export, tmp_path, output_format, compression):
    """Else pyarrow 25.0.0 crashes the process that reads usage in a web server's threads, which end."""
    export = make_export(("2026-06-17", "parse", "1.5", 1), ("2026-06-18", "parse", "2", 2))
    sink = open_sink(str(tmp_path / "usage"), None, check_format(output_format, compression), export.query.filters())
    sink.check()
    sink.publish(export.report, export.query)

    found = json.loads(run(READ_IN_THREADS, str(tmp_path / "usage")).splitlines()[-1])
    assert found == {"rows": [2, 2, 2], "imports": 1, "ended": []}


def test_without_pyarrow_its_import_is_an_error_of_the_thread_that_needs_it():
    code = """
import sys, threading
from reducto_provider.export.threads import import_pyarrow

sys.path_importer_cache.clear()
sys.path[:] = [path for path in sys.path if "site-packages" not in path]

def need():
    try:
        import_pyarrow()
    except ImportError as error:
        print(error)

needs = threading.Thread(target=need)
needs.start()
needs.join()
lasting = [each for each in threading.enumerate() if each.name == "reducto-pyarrow"]
print([each.name for each in lasting if each.join(10) or each.is_alive()])
"""
    assert run(code) == "No module named 'pyarrow'\n[]\n"
