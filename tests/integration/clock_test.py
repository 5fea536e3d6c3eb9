"""A server under whose feet somebody sets the time of day, forward and back. usage: clock_test.py C3POD SHIFTED_CLOCK"""

import hashlib
import json
import os
import pathlib
import signal
import struct
import sys
import threading
import unittest

import grpc

import server_process
from service_calls import pb, srv
from serving_case import ServingCase

CLOCK = None  # The shared object of shifted_clock.cc.
YEAR = 366 * 86400
digest = lambda token: hashlib.sha256(token.encode()).hexdigest()


class ClockTest(ServingCase):
    @classmethod
    def start(cls, *flags, store="a"):
        folder = cls.folder / f"store-{store}"
        folder.mkdir(exist_ok=True)
        shift = folder / "shift"
        shift.write_bytes(struct.pack("<q", 0))
        # A sanitizer wants to be loaded first, and works all the same.
        sanitizer = os.environ.get("ASAN_OPTIONS", "")
        launcher = ("env", f"LD_PRELOAD={CLOCK}", f"C3PO_TEST_CLOCK_SHIFT={shift}",
                    "ASAN_OPTIONS=" + ":".join(filter(None, (sanitizer, "verify_asan_link_order=0"))))
        server = server_process.ServerProcess(cls.binary, folder, *cls.ROOM, *map(str, flags), model=cls.model, launcher=launcher)
        server.shift = shift
        return server

    def set_clock(self, seconds, server=None):
        """Of a running server, and sees from a line of its log that it counts."""
        server = server or self.server
        begun = len(server.log)
        with open(server.shift, "r+b") as file:
            file.write(struct.pack("<q", seconds))
        expected = self.year_of(server.log[0]) + seconds // YEAR

        def counts():  # absl asks the system every two seconds, and reckons in between.
            self.info(server)
            return any(abs(self.year_of(line) - expected) <= 1 for line in server.log[begun:])

        self.wait_until(counts, f"the clock shows {expected}", seconds=60)

    @staticmethod
    def year_of(line):
        return int(json.loads(line)["time"][:4]) if line.startswith("{") else -1

    def info(self, server=None, token="a"):
        stub = pb["server_pb2_grpc"].ServerServiceStub(self.own_channel(server))
        return stub.GetServerInfo(srv.GetServerInfoRequest(), metadata=[("authorization", f"Bearer {token}")], timeout=60)

    def test_removed_tokens_stop_being_valid_whatever_the_clock_says(self):
        tokens = self.folder / "tokens"
        tokens.write_text(f"ann administer {digest('a')}\nben administer {digest('b')}\n")
        before = tokens.stat()
        server = self.start("--auth-tokens", tokens, store="tokens")
        self.addCleanup(server.stop)
        for number, shift in enumerate((-10 * YEAR, 10 * YEAR)):
            with self.subTest(shift=shift):
                self.set_clock(shift, server)
                self.info(server, "b")
                loaded = lambda: sum('"tokens_loaded"' in line for line in server.log)
                times = loaded()
                tokens.write_text(f"ann administer {digest('a')}\n")
                os.utime(tokens, ns=(before.st_atime_ns, before.st_mtime_ns))
                self.wait_until(lambda: loaded() > times, "the tokens are read", seconds=60)
                self.fails(grpc.StatusCode.UNAUTHENTICATED, lambda: self.info(server, "b"))
                tokens.write_text(f"ann administer {digest('a')}\nben administer {digest('b')}\n")
                self.wait_until(lambda: loaded() > times + 1, "the tokens are read again", seconds=60)
        self.set_clock(0, server)

    def test_running_streams_live_and_take_new_ones_beside_them(self):
        stream = self.stream(90_000, timeout=3600)
        read = []
        ended = []

        def read_all():
            try:
                for _ in stream:
                    read.append(None)
            except grpc.RpcError as error:
                ended.append(error.code())

        reader = threading.Thread(target=read_all)
        reader.start()
        self.addCleanup(reader.join)
        self.addCleanup(stream.cancel)
        for shift in (10 * YEAR, -10 * YEAR, 0):
            self.set_clock(shift)
            before = len(read)
            self.wait_until(lambda: ended or len(read) > before + 50, "the stream goes on", seconds=60)
            self.assertEqual(ended, [])
            self.assertGreater(len(list(self.stream(5, timeout=600))), 0)
            self.assertLess(self.info().uptime_seconds, YEAR)
            self.assertGreaterEqual(self.info().uptime_seconds, 0)
            self.assertIn("ready", self.server.http("/readyz"))
        stream.cancel()
        reader.join()
        self.assertEqual(ended, [grpc.StatusCode.CANCELLED])
        self.wait_until(self.is_empty, "the server is empty")

    def test_a_drain_ends_by_its_limit_though_the_clock_is_set_back(self):
        server = self.start("--drain-seconds-max", 5, store="back")  # Longer than absl reckons without asking the system.
        stream = self.stream(90_000, generation=self.generation_of(server))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        self.wait_until(lambda: any('"draining"' in line for line in server.log), "it drains")
        with open(server.shift, "r+b") as file:
            file.write(struct.pack("<q", -10 * YEAR))
        self.assertEqual(server.wait(), 0)
        self.fails(grpc.StatusCode.UNAVAILABLE, lambda: list(stream))

    def test_a_drain_lets_calls_finish_though_the_clock_is_set_forward(self):
        server = self.start("--drain-seconds-max", 300, store="forward")
        stream = self.stream(6000, generation=self.generation_of(server))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        self.wait_until(lambda: any('"draining"' in line for line in server.log), "it drains")
        with open(server.shift, "r+b") as file:
            file.write(struct.pack("<q", 10 * YEAR))
        for message in stream:
            last = message
        self.assertEqual(last.WhichOneof("event"), "summary")
        self.assertEqual(server.wait(), 0)

    def generation_of(self, server):
        return pb["generation_pb2_grpc"].GenerationServiceStub(self.own_channel(server))


if __name__ == "__main__":
    CLOCK = pathlib.Path(sys.argv.pop(2)).resolve(strict=True)
    ServingCase.binary = sys.argv.pop(1)
    unittest.main(verbosity=2)
