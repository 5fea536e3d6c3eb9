"""A real PostgreSQL for a test, in a folder of its own, reached by a Unix socket in it. As PostgreSQL refuses to be run by root, it
is run by the user postgres then, or nobody."""

import glob
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse

OWNER = "c3po_owner"


def programs() -> pathlib.Path:
    """The folder with initdb, postgres and psql of the newest version, 15 or later."""
    found = [path for path in map(pathlib.Path, glob.glob("/usr/lib/postgresql/*/bin")) if (path / "initdb").exists() and path.parent.name.isdigit()]
    newest = max(found, key=lambda path: int(path.parent.name), default=None)
    if newest is None or int(newest.parent.name) < 15:
        raise AssertionError("PostgreSQL 15 or later is not in /usr/lib/postgresql: install postgresql-15, as deploy/install_deps.sh does")
    return newest


class PostgresServer:
    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="c3po-postgres-", dir="/tmp"))  # Short: a socket's path has 107 characters.
        self.programs, self.user, self.databases = programs(), {}, 0
        if os.getuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            self.user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        with open(self.folder / "log", "w", encoding="utf-8") as log:
            subprocess.run([self.programs / "initdb", f"--pgdata={self.folder}/data", f"--username={OWNER}", "--auth=trust", "--encoding=UTF8",
                            "--locale=C", "--no-sync"], check=True, cwd=self.folder, stdout=log, stderr=log, **self.user)
        self.start()

    def start(self) -> None:
        command = [self.programs / "postgres", "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses=", "-c", "fsync=off",
                   "-c", "shared_buffers=16MB", "-c", "max_connections=60"]
        for _ in range(100):
            (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
            with open(self.folder / "log", "a", encoding="utf-8") as log:
                self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self.user)
            while self.process.poll() is None:
                if self.sql("postgres", "SELECT 1", check=False) == "1":
                    return
                time.sleep(0.05)
            time.sleep(0.05)  # Children of one that was killed may hold the shared memory for a moment longer.
        raise AssertionError((self.folder / "log").read_text(encoding="utf-8"))

    def sql(self, database: str, sql: str, check: bool = True) -> str:
        command = [self.programs / "psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", sql]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60).stdout.strip()

    def url(self, database: str, user: str = OWNER) -> str:
        return f"postgresql://{user}@{urllib.parse.quote(str(self.folder), safe='')}/{database}"

    def new_database(self) -> str:
        self.databases += 1
        name = f"test_{self.databases}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    def processes(self) -> list[int]:
        """The server's own first, which would start others."""
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False).stdout
        return [self.process.pid, *map(int, children.split())]

    def signal_all(self, how: signal.Signals) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        for process in self.processes():
            try:
                os.kill(process, how)
            except ProcessLookupError:
                pass

    def kill(self) -> None:
        """Every process at once, as a crash does."""
        self.signal_all(signal.SIGKILL)
        self.process.wait(timeout=60)

    def pause(self) -> None:
        self.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        for process in self.processes():
            os.kill(process, signal.SIGCONT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
