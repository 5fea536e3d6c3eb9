"""Attacks by a failing machine, or by who has its hands on the server's files: part of attack.py."""

import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.error

import grpc

import server_process

SECONDS_MAX = 60  # For what happens within a second or two, on a machine that is slow.


class MachineAttacks:
    """Needs of the attacker: server, folder (the server's), command (of the binary, with the model), pb, random, many, faults, ADMINISTERS."""

    def becomes(self, holds, what: str) -> bool:
        for _ in range(SECONDS_MAX * 20):
            if holds():
                return True
            time.sleep(0.05)
        self.faults.append(f"not within {SECONDS_MAX} s: {what}")
        return False

    def ready(self) -> bool:
        try:
            return "ready" in self.server.http("/readyz")
        except urllib.error.HTTPError:
            return False

    def store_taken_away(self) -> None:
        """The store moved away or another file put in its place, while the server runs; then it is put back."""
        store, kept = self.folder / "store.db", self.folder / "kept.db"
        ref = self.pb["reference_pb2"]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            references = self.pb["reference_pb2_grpc"].ReferenceServiceStub(channel)
            for number in range(max(2, self.many(10))):
                store.rename(kept)
                how = "replaced" if number == 0 else self.random.choice(["moved", "replaced"])
                if how == "replaced":
                    store.write_bytes(self.random.choice([b"", kept.read_bytes()]))
                self.becomes(lambda: not self.ready(), f"a store that was {how} is noticed")
                sample = ref.ReferenceSample(prompt=f"lost {number}", answer=" 1")
                try:
                    list(references.Add(iter([ref.AddReferencesRequest(collection="lost", sample=sample)]), **self.ADMINISTERS))
                    self.faults.append(f"store_taken_away: a store that was {how} took a reference")
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.DATA_LOSS:
                        self.faults.append(f"store_taken_away: {how}: {error.code()}: {error.details()}")
                kept.replace(store)
                self.becomes(self.ready, "a store that was put back is served")

    def graphs_that_are_none(self) -> None:
        """A FIFO, a device, a folder and 40 GB of nothing in the place of a graph, before a start."""
        ref = self.pb["reference_pb2"]
        own = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        command = self.command[0], own, "--exact-references-max", "5"
        server = server_process.ServerProcess(*command, model=self.command[1])
        with server.channel() as channel:
            samples = (ref.ReferenceSample(prompt=f"What is {i}?", answer=f" {i}") for i in range(30))
            requests = (ref.AddReferencesRequest(collection="set", sample=sample) for sample in samples)
            list(self.pb["reference_pb2_grpc"].ReferenceServiceStub(channel).Add(requests, timeout=SECONDS_MAX))
        server.stop()
        graph = next((own / "store.db.graphs").iterdir())
        kinds = {"FIFO": lambda: os.mkfifo(graph), "device": lambda: graph.symlink_to("/dev/zero"), "folder": graph.mkdir,
                 "bytes, at most": lambda: graph.touch() or os.truncate(graph, 40 << 30)}
        for kind in self.random.sample(sorted(kinds), max(2, self.many(len(kinds)))):
            graph.rmdir() if graph.is_dir() else graph.unlink()
            kinds[kind]()
            server = server_process.ServerProcess(*command, model=self.command[1])
            if server.port is None or not any('"graph_refused"' in line and kind in line for line in server.log):
                self.faults.append(f"graphs_that_are_none: {kind}: {server.log[-3:]}")
            if server.stop() != 0:
                self.faults.append(f"graphs_that_are_none: {kind}: the server did not end well")

    def log_that_nobody_reads(self) -> None:
        """A log's pipe that is full from the start: calls are answered, and a signal to stop is heeded."""
        unread, log = os.pipe()
        os.set_blocking(log, False)
        try:
            while True:
                os.write(log, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(log, True)
        own = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        address = f"unix:{own}/socket"
        process = subprocess.Popen([self.command[0], "--model", str(self.command[1]), "--store", str(own / "store.db"), "--embedder", "model",
                                    "--listen", address, "--metrics-port", "-1", "--log-level", "debug"], stderr=log)
        os.close(log)
        try:
            with grpc.insecure_channel(address) as channel:
                stub = self.pb["server_pb2_grpc"].ServerServiceStub(channel)
                for number in range(max(200, self.many(4000))):
                    try:
                        stub.GetServerInfo(self.pb["server_pb2"].GetServerInfoRequest(), timeout=SECONDS_MAX, wait_for_ready=True)
                    except grpc.RpcError as error:
                        if number > 0 or error.code() != grpc.StatusCode.UNAVAILABLE:  # It loads.
                            self.faults.append(f"log_that_nobody_reads: call {number}: {error.code()}")
                            break
                        self.becomes(lambda: self.answers(stub), "a server with a full log answers")
            process.send_signal(signal.SIGTERM)
            if process.wait(SECONDS_MAX) != 0:
                self.faults.append("log_that_nobody_reads: the server did not end well")
        except subprocess.TimeoutExpired:
            self.faults.append("log_that_nobody_reads: SIGTERM is not heeded")
        finally:
            process.kill()
            process.wait()
            os.close(unread)

    def answers(self, stub) -> bool:
        try:
            return bool(stub.GetServerInfo(self.pb["server_pb2"].GetServerInfoRequest(), timeout=SECONDS_MAX).version)
        except grpc.RpcError:
            return False


MACHINE_ATTACKS = ("store_taken_away", "graphs_that_are_none", "log_that_nobody_reads")
