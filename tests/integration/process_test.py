"""The process among others: signals, standard streams that are closed or that nobody reads. usage: process_test.py C3POD C3PO"""

import fcntl
import hashlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import unittest

import grpc

import server_process
from service_calls import pb, srv
from serving_case import ServingCase

digest = lambda token: hashlib.sha256(token.encode()).hexdigest()


class ProcessTest(ServingCase):
    FLAGS = ("--log-level", "debug", "--drain-seconds-max", 300)

    def info(self, server, token=None):
        stub = pb["server_pb2_grpc"].ServerServiceStub(self.own_channel(server))
        metadata = [("authorization", f"Bearer {token}")] if token else None
        return stub.GetServerInfo(srv.GetServerInfoRequest(), metadata=metadata, timeout=60)

    def test_hang_up_reads_the_tokens_again_and_ends_nothing(self):
        tokens = self.folder / "tokens"
        tokens.write_text(f"ann administer {digest('a')}\n")
        server = self.start("--auth-tokens", tokens, store="hup")
        self.addCleanup(server.stop)
        self.info(server, "a")
        before = tokens.stat()
        tokens.write_text(f"ben administer {digest('b')}\n")
        os.utime(tokens, ns=(before.st_atime_ns, before.st_mtime_ns))  # A clock that stands still: only the signal tells.
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
        self.wait_until(lambda: any('"tokens_loaded"' in line for line in server.log), "the tokens are read")
        self.info(server, "b")
        with self.assertRaises(grpc.RpcError) as caught:
            self.info(server, "a")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)

    def test_a_second_stop_ends_the_process_at_once(self):
        server = self.start("--drain-seconds-max", 300, store="twice")
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(self.own_channel(server))
        stream = self.stream(90_000, generation=generation)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        self.wait_until(lambda: any('"draining"' in line for line in server.log), "it drains")
        self.assertIsNone(server.process.poll())
        self.assertEqual(server.stop(), 128 + signal.SIGTERM)

    def on_a_socket(self, *flags, closing=None, **process):
        """A server that speaks over a socket alone, so that its standard streams are the test's, once it serves: the process and a call."""
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        address = f"unix:{folder}/socket"
        command = [self.binary, "--model", str(self.model), "--store", str(folder / "store.db"), "--embedder", "model", "--listen", address,
                   "--metrics-port", "-1", *flags]
        if closing:
            command = ["sh", "-c", f'exec "$@" {closing}', "sh", *command]
        started = subprocess.Popen(command, **process)
        self.addCleanup(started.kill)
        channel = grpc.insecure_channel(address)
        self.addCleanup(channel.close)
        stub = pb["server_pb2_grpc"].ServerServiceStub(channel)
        call = lambda: stub.GetServerInfo(srv.GetServerInfoRequest(), timeout=60, wait_for_ready=True)
        self.wait_until(lambda: self.answers(call), "it serves", seconds=60)
        return started, call, folder

    def test_standard_streams_may_be_closed(self):
        for closing in ("<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"):
            with self.subTest(closing=closing):
                process, _, folder = self.on_a_socket(closing=closing, stderr=subprocess.DEVNULL)
                for stream in (0, 1, 2):  # Nothing of the server's got their numbers.
                    self.assertFalse(os.readlink(f"/proc/{process.pid}/fd/{stream}").startswith(("socket:", str(folder))))
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(60), 0)

    def test_a_log_that_nobody_reads_costs_lines_and_no_call(self):
        unread, log = os.pipe()
        capacity = fcntl.fcntl(log, fcntl.F_GETPIPE_SZ)
        process, call, _ = self.on_a_socket("--log-level", "debug", stderr=log)
        os.close(log)
        for _ in range(1500):  # A line of some 200 bytes each: four times what the pipe holds.
            call()
        with open(unread, "rb", buffering=0) as pipe:
            os.set_blocking(unread, False)
            held = len(pipe.read(1 << 20))  # A line is written whole or not at all: what is left of the last page may be too short for one.
            self.assertGreater(held, capacity - select.PIPE_BUF, "the pipe was full")
            process.send_signal(signal.SIGTERM)
            os.set_blocking(unread, True)
            rest = b"".join(iter(lambda: pipe.read(1 << 16), b""))
        self.assertEqual(process.wait(60), 0)
        self.assertIn("stopped", [json.loads(line)["event"] for line in rest.splitlines()[1:]])

    def test_a_stop_is_heeded_though_nobody_reads_the_log(self):
        unread, log = os.pipe()
        self.addCleanup(os.close, unread)
        os.set_blocking(log, False)
        try:
            while True:
                os.write(log, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(log, True)
        process, _, _ = self.on_a_socket(stderr=log)
        os.close(log)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), 0)

    @staticmethod
    def answers(call):
        try:
            return bool(call().version)
        except grpc.RpcError:
            return False


if __name__ == "__main__":
    sys.argv.pop(2)
    ServingCase.binary = sys.argv.pop(1)
    pathlib.Path(ServingCase.binary).resolve(strict=True)
    unittest.main(verbosity=2)
