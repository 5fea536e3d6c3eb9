"""Who is attacked, and who attacks: part of attack.py."""

import os
import threading
import time

import grpc

SLOWDOWN = int(os.environ.get("C3PO_TEST_SLOWDOWN", "1"))  # More than 1: a build with a sanitizer, see deploy/attack.sh.
HOSTILE = {"metadata": [("authorization", "Bearer token-mallory")], "timeout": 120 * SLOWDOWN}
VICTIM = {"metadata": [("authorization", "Bearer token-victim")], "timeout": 120 * SLOWDOWN}


class Victim:
    """Asks for the server's information every tenth of a second, over a connection of its own."""

    def __init__(self, port: int, pb: dict):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
        self.stub = pb["server_pb2_grpc"].ServerServiceStub(self.channel)
        self.request = pb["server_pb2"].GetServerInfoRequest()
        self.longest, self.failed, self.ending = 0.0, 0, threading.Event()
        self.ask()
        self.longest = 0.0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def ask(self) -> bool:
        start = time.monotonic()
        try:
            self.stub.GetServerInfo(self.request, **VICTIM)
        except grpc.RpcError:
            self.failed += 1
            return False
        finally:
            self.longest = max(self.longest, time.monotonic() - start)
        return True

    def run(self) -> None:
        while not self.ending.wait(0.1):
            self.ask()

    def end(self) -> None:
        self.ending.set()
        self.thread.join()
        self.channel.close()
