"""Processes that never outlive the test session, however it ends.

Airflow's processes fork, and their children change their process group, their title (and with it the visible
environment) and sometimes their session. What they keep is the working directory, or they take one in the
temporary folder, which is in the same home. So all that runs *inside a folder* belongs to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil


def processes_in(home: Path) -> list[psutil.Process]:
    """All living processes whose working directory is the folder or one below it, except the caller."""
    home = home.resolve()
    found = []
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            if pid != os.getpid() and Path(process.cwd()).is_relative_to(home):
                found.append(process)
        # It has just ended (psutil may pass the OSError on), is a zombie, or belongs to somebody else.
        except (psutil.Error, OSError):
            continue
    return found


def kill_processes_in(home: Path) -> None:
    """Kill all processes of the folder, until those that were just starting are gone as well."""
    while processes := processes_in(home):
        for process in processes:
            with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                process.kill()
        time.sleep(0.01)


class Guard:
    """A process beside the tests that kills everything in a folder as soon as the tests let go of it.

    It waits for the end of a pipe, which the operating system closes even for tests that were killed. With `remove`
    the folder goes as well when they were.
    """

    def __init__(self, home: Path, *, remove: bool = False) -> None:
        self.home = home
        # -P: this file's folder must not become a place to import from.
        command = [sys.executable, "-P", __file__, str(home), *(["remove"] if remove else [])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def close(self) -> None:
        """Kill what is left in the folder, now."""
        try:
            kill_processes_in(self.home)
        finally:
            self._process.kill()
            self._process.communicate()


if __name__ == "__main__":
    sys.stdin.buffer.read()
    kill_processes_in(Path(sys.argv[1]))
    if sys.argv[2:] == ["remove"]:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
