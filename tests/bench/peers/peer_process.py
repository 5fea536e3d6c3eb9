"""A server in a process group of its own, which can be paused while another one is measured."""

import collections
import contextlib
import os
import pathlib
import signal
import subprocess
import time

STOP_SECONDS = 20
PAUSE_SECONDS_MAX = 20


class PeerFailed(Exception):
    pass


def group_states(group: int) -> dict:
    """Process id to state, a letter as in /proc/PID/stat, of every process of the group that has not ended."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # It may have ended meanwhile.
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()  # state, ppid, pgrp, ...
            if int(fields[2]) == group and fields[0] not in "ZX":
                found[int(folder.name)] = fields[0]
    return found


class PeerProcess:
    def __init__(self, command: list, log: pathlib.Path, environment: dict = {}):
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                            env={**os.environ, **environment}, start_new_session=True)
        self.group = self.process.pid

    def pause(self) -> None:
        """Returns once they all stand still."""
        os.killpg(self.group, signal.SIGSTOP)
        deadline = time.monotonic() + PAUSE_SECONDS_MAX
        while set(group_states(self.group).values()) - {"T"} and time.monotonic() < deadline:
            time.sleep(0.001)

    def resume(self) -> None:
        os.killpg(self.group, signal.SIGCONT)

    def resident_bytes(self) -> int:
        """Of all processes of the group, added up."""
        total = 0
        for member in group_states(self.group):
            with contextlib.suppress(OSError):
                total += int(pathlib.Path(f"/proc/{member}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return total

    def wait_until(self, ready, seconds: float) -> None:
        """PeerFailed, with the end of its log, when it ends before `ready()` holds or takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise PeerFailed(f"ended with {self.process.returncode}: {self.log_end()}")
            if time.monotonic() > deadline:
                raise PeerFailed(f"not ready after {seconds:.0f} s: {self.log_end()}")
            time.sleep(0.1)

    def log_end(self, lines: int = 15) -> str:
        with open(self.log, errors="replace") as file:
            return "".join(collections.deque(file, lines)).strip()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.resume()
            os.killpg(self.group, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # Members that outlive the first one, too.
            os.killpg(self.group, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + STOP_SECONDS
        while group_states(self.group) and time.monotonic() < deadline:  # They die when they next run.
            time.sleep(0.01)


class OneAtATime:
    """Of several peers at most one runs; the others are paused. Used as a context, it resumes all of them at its end."""

    def __init__(self, processes: dict):
        self.processes = processes

    def __enter__(self):
        for process in self.processes.values():
            process.pause()
        return self

    def let_run(self, name: str) -> None:
        for other, process in self.processes.items():
            if other != name:
                process.pause()
        self.processes[name].resume()

    def __exit__(self, *_):
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.resume()
