"""A PostgreSQL for a test, in a folder of its own, reached by a Unix socket. Its server does not run as root."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse

OWNER = "c3po"


def programs() -> pathlib.Path:
    """The newest version's; one of deploy/install_deps.sh."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise AssertionError("no PostgreSQL: deploy/install_deps.sh installs it")
    return found[-1].parent


class PostgresProcess:
    """fsync is off: what is killed here is the server, not the machine."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="c3po_pg_", dir="/tmp"))  # Short, as a socket's path is.
        self.user = None
        if os.getuid() == 0:
            self.user = next(name for name in ("postgres", "nobody") if any(entry.pw_name == name for entry in pwd.getpwall()))
            shutil.chown(self.folder, self.user)
        self.folder.chmod(0o755)
        self.log = (self.folder / "log").open("ab")
        self._run("initdb", "-D", self.data, "-U", OWNER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        self.process = None
        self.start()

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def url(self, database="postgres") -> str:
        return f"postgresql://{OWNER}@/{database}?host={urllib.parse.quote(str(self.folder), safe='')}"

    def _run(self, program, *arguments):
        subprocess.run([programs() / program, *arguments], check=True, user=self.user, cwd="/", stdout=self.log, stderr=self.log)

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.data}/postmaster.pid")
        self.process = subprocess.Popen(
            [programs() / "postgres", "-D", self.data, "-k", self.folder, "-c", "listen_addresses=", "-c", "fsync=off",
             "-c", "shared_buffers=16MB", "-c", "unix_socket_permissions=0777"],
            user=self.user, cwd="/", stdout=self.log, stderr=self.log, start_new_session=True)
        for _ in range(600):
            if subprocess.run([programs() / "pg_isready", "-q", "-h", self.folder], check=False).returncode == 0:
                return
            if self.process.poll() is not None:  # Children of one that was killed hold its shared memory for a moment.
                time.sleep(0.1)
                return self.start()
            time.sleep(0.05)
        raise AssertionError(f"PostgreSQL does not start: {(self.folder / 'log').read_text()[-2000:]}")

    def sql(self, statements, database="postgres") -> list[str]:
        """The lines of the answer: fields separated by |."""
        done = subprocess.run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statements],
                              capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        return done.stdout.splitlines()

    def new_database(self, name) -> str:
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def _processes(self) -> list[int]:
        """The postmaster first, which would start others."""
        ids = [self.process.pid]
        for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(status.read_text().rsplit(")", 1)[1].split()[1]) == self.process.pid:
                    ids.append(int(status.parent.name))
        return ids

    def _signal(self, how):
        os.kill(self.process.pid, signal.SIGSTOP)
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, how)

    def pause(self):
        """As a machine that hangs: nothing is answered, and nothing refused."""
        self._signal(signal.SIGSTOP)

    def resume(self):
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def kill(self):
        self._signal(signal.SIGKILL)
        self.process.wait(timeout=60)

    def remove(self):
        if self.process.poll() is None:
            self.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
