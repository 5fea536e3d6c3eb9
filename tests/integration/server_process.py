"""Starts a real c3pod for a test, on free ports, and speaks to it with grpcio and stubs made from the .proto files only."""

import functools
import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import grpc

SOURCE = pathlib.Path(__file__).resolve().parents[2]
TINY_MODEL = SOURCE / "tests" / "golden" / "model" / "mixtral_tiny"


# Defaults of few neighbors and steps, all of them fitted, for tests of what a request's own settings do.
FEW_STEPS = ("--neighbors", "3", "--validation-neighbors", "0", "--steps", "10", "--learning-rate", "0.1", "--application-rule", "every",
             "--references", "successful", "--objective", "answer", "--critical-layers", "5", "--core-experts", "20")


def cache_folder() -> pathlib.Path:
    """Where deploy/fetch_models.sh puts models."""
    return pathlib.Path(os.environ.get("C3PO_CACHE_DIR") or pathlib.Path.home() / ".cache" / "c3po")


def make_stubs() -> dict:
    """The generated modules of c3po.v1 by name, made anew in a temporary folder. c3po_client can be imported then, too."""
    protos = sorted(path.stem for path in (SOURCE / "proto" / "c3po" / "v1").glob("*.proto"))
    sys.path[:0] = python_path()
    return {f"{stem}{suffix}": importlib.import_module(f"c3po.v1.{stem}{suffix}") for stem in protos for suffix in ("_pb2", "_pb2_grpc")}


@functools.cache
def python_path() -> list[str]:
    """Where the clone's c3po_client and its stubs are: for sys.path, and PYTHONPATH of client/python/examples."""
    sys.path.append(str(SOURCE / "client" / "python"))
    return importlib.import_module("make_stubs").import_path()


def example(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program of client/python/examples with this interpreter."""
    command = [sys.executable, str(SOURCE / "client" / "python" / "examples" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(python_path()), **environment})


def token_line(name: str, role: str, token: str, fields: str = "") -> str:
    """A line of the tokens file, made as server/README.md says."""
    digest = subprocess.run(["sh", "-c", f"printf %s {token} | sha256sum | cut -d' ' -f1"], capture_output=True,
                            text=True, check=True).stdout.strip()
    return f"{name} {role} {digest} {fields}\n"


class ServerProcess:
    """Its lines on stderr are read as they come, into `log`: nobody reading, the pipe would fill and the server wait."""

    def __init__(self, binary: str, folder: pathlib.Path, *flags: str, model: pathlib.Path = TINY_MODEL,
                 launcher: tuple = ()):
        self.command = [*launcher, binary, "--model", str(model), "--store", str(folder / "store.db"), "--listen", "127.0.0.1:0",
                        "--metrics-port", "0", "--embedder", "model", *flags]
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        self.log = []
        self.port = self.metrics_port = self.http_port = None
        for line in self.process.stderr:
            self.log.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                self.port = int(event["address"].rsplit(":", 1)[1])
                self.metrics_port, self.http_port = event["metrics_port"], event["http_port"]
                break
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def logged(self, **fields) -> list[dict]:
        """The lines of the log so far that have these fields, as far as they were read."""
        lines = (json.loads(line) for line in list(self.log) if line.startswith("{"))
        return [line for line in lines if fields.items() <= line.items()]

    def wait_for_log(self, **fields) -> dict:
        """The last line with these fields. The line of a call may be written behind its answer, and a thread reads it here: it is
        never there for certain when the call returns."""
        for _ in range(3000):
            if found := self.logged(**fields):
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"no line of the log has {fields}; the last are {self.log[-5:]}")

    def http(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=60) as response:
            return response.read().decode()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        """For one that was told to stop: a second signal would end it at once."""
        code = self.process.wait(timeout=120)
        self.reader.join()
        self.process.stderr.close()
        return code


def fresh_folder() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(prefix="c3po_test_"))


def remove_folder(folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
