#!/usr/bin/env python3
"""Attacks a c3pod from outside, one kind after another, beside a victim that asks it simple questions: what the victim waits, what
memory the server takes, and whether all is as before.

  attack.py C3POD MODEL [--scale S] [--only NAME,...] [--descriptors N] [--seed N]

Starts a server of its own on loopback with a limit of file descriptors and with tokens: the victim's, and one of a hostile caller
who may read one collection and has a rate, and one of a caller who may do all and does too much of it. --scale 1 (default) is the full size; CI takes 0.05. Prints
a table in Markdown. Exit code 1 where the server ended, a victim's call failed after the attack, or memory did not come back to within
200 MiB (of a build without a sanitizer). Python 3.11 and grpcio; the stubs are made from the .proto files as tests/integration does it."""

import argparse
import json
import pathlib
import random
import resource
import socket
import sys
import threading
import time
import zlib

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests" / "integration"), str(pathlib.Path(__file__).resolve().parent)]
import grpc  # noqa: E402
import http2_frames as h2  # noqa: E402
import machine  # noqa: E402
import server_process  # noqa: E402
from costly_calls import COSTLY, PLACES, CostlyCalls  # noqa: E402
from legal_calls import LEGAL, LegalCalls  # noqa: E402
from victim import HOSTILE, SLOWDOWN, VICTIM, Victim  # noqa: E402

# A sanitizer keeps what was freed, and says at the end what is lost; how much memory the server holds says nothing then.
GROWTH_MAX_MIB = 200 if SLOWDOWN == 1 else float("inf")
LINES_PER_SECOND = 10  # Of gRPC's own in the log.
WATCHES_MAX, CALLS_PER_MINUTE = 40, 300
SECRET = "what nobody else may read"
WATCH, TOKENIZE = "/grpc.health.v1.Health/Watch", "/c3po.v1.GenerationService/Tokenize"


def memory_mib(pid: int, field: str) -> float:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(field)


class Attacker(LegalCalls, CostlyCalls, machine.MachineAttacks):
    """The connections of one attack, and what it got that it should not."""
    ADMINISTERS = VICTIM

    def __init__(self, server, folder: pathlib.Path, command: tuple, pb: dict, scale: float, seed: int):
        self.server, self.folder, self.command = server, folder, command
        self.port, self.pb, self.scale, self.sockets, self.faults = server.port, pb, scale, [], []
        self.random = random.Random(seed)

    def many(self, number: int) -> int:
        return max(1, int(number * self.scale))

    def connect(self, preface: bytes = b"") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.sockets.append(made)
        if preface:
            made.sendall(preface)
        return made

    def flood(self, made: socket.socket, parts) -> None:
        """Sends what it can; the server may close the connection, or read no more."""
        made.settimeout(5)
        reader = threading.Thread(target=self.drain, args=(made,), daemon=True)
        reader.start()
        try:
            batch = bytearray()
            for part in parts:
                batch += part
                if len(batch) > 1 << 16:
                    made.sendall(batch)
                    batch.clear()
            made.sendall(batch)
        except OSError:
            pass

    @staticmethod
    def drain(made: socket.socket) -> None:
        try:
            while made.recv(1 << 16):
                pass
        except OSError:
            pass

    def close(self) -> None:
        for made in self.sockets:
            made.close()

    # --- The attacks ---

    def silent_connections(self) -> None:
        """Connections that say nothing, more than there are file descriptors."""
        for _ in range(self.many(1100)):
            try:
                self.connect()
            except OSError:
                pass
        time.sleep(2)

    def streams_opened_and_reset(self) -> None:
        """Rapid reset: calls begun and taken back at once."""
        def parts():
            yield h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.SETTINGS, h2.ACK, 0)
            for i in range(self.many(20_000)):
                stream = 2 * i + 1
                yield h2.headers(stream, h2.call_fields(TOKENIZE)) + h2.frame(h2.RST_STREAM, 0, stream, b"\0\0\0\x08")
        self.together(4, parts)

    def inflating_messages(self) -> None:
        """A MiB of gzip that is a GiB of message."""
        press = zlib.compressobj(9, zlib.DEFLATED, 31)
        zeros = bytes(1 << 20)
        bomb = b"".join(press.compress(zeros) for _ in range(self.many(1024))) + press.flush()
        def parts():
            yield h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.SETTINGS, h2.ACK, 0)
            yield h2.headers(1, h2.call_fields(TOKENIZE, (b"grpc-encoding", b"gzip")))
            yield h2.data(1, h2.message(bomb, compressed=True))
        self.together(2, parts)
        time.sleep(2)

    def watches_without_settings(self) -> None:
        """Watches of health on connections that never acknowledge the settings, and with them the limit of streams."""
        def parts():
            yield h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0)
            for i in range(self.many(15_000)):
                stream = 2 * i + 1
                yield h2.headers(stream, h2.call_fields(WATCH)) + h2.data(stream, h2.message(b""))
        self.together(4, parts)
        time.sleep(1)

    def forged_log_lines(self) -> None:
        """Lines of a log in a header that gRPC writes to its own."""
        forged = b'http\n{"level":"info","event":"audit","action":"forged"}'
        def parts():
            yield h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.SETTINGS, h2.ACK, 0)
            for i in range(self.many(3000)):
                yield h2.headers(2 * i + 1, h2.call_fields(TOKENIZE, scheme=forged))
        self.together(1, parts)

    def wrong_headers_beyond_the_limit(self) -> None:
        """A wrong `te` or `:scheme`, then more headers than gRPC takes (CVE-2023-1428), in one frame or in many."""
        greeting = h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.SETTINGS, h2.ACK, 0)
        many = [(f"x-{i}".encode(), b"v" * 1000) for i in range(15)]
        for _ in range(self.many(100)):
            name, value = self.random.choice([(b"te", b"x"), (b"grpclb_client_stats", b"x"), (b"te", b"trailers")])
            scheme = self.random.choice([b"http", b"gopher"])
            fields = h2.call_fields(TOKENIZE, (name, value), *self.random.sample(many, 10), scheme=scheme)
            try:
                self.connect(greeting + h2.split_headers(1, fields, chunk=self.random.choice([500, 16384])))
            except OSError:
                pass

    def endless_header(self) -> None:
        """One header that does not end, in a frame after the other (CVE-2023-33953)."""
        def parts():
            yield h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.SETTINGS, h2.ACK, 0)
            length = b"\x7f" + b"\xff" * 3 + b"\x7f"  # 256 MiB.
            yield h2.frame(h2.HEADERS, 0, 1, b"\x00" + h2.literal(b"x-long") + length)
            for _ in range(self.many(800)):
                yield h2.frame(h2.CONTINUATION, 0, 1, b"v" * 16384)
        self.together(2, parts)

    def watches_beyond_the_limit(self) -> None:
        """Watches of health by a client that behaves, many more than one address may have."""
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)])
        watch = channel.unary_stream(WATCH, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)
        streams, taken, refused = [], 0, 0
        for _ in range(max(2 * WATCHES_MAX, self.many(200))):
            streams.append(watch(b"", timeout=600))
            try:
                next(streams[-1])
                taken += 1
            except grpc.RpcError as error:
                refused += error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        if taken > WATCHES_MAX or taken + refused != len(streams):
            self.faults.append(f"watches_beyond_the_limit: {taken} of {len(streams)} are open, {refused} refused")
        channel.close()

    def others_collections(self) -> None:
        """A caller who may read `mine` alone asks for what is in `secret`, in every way there is, and for what does not exist."""
        gen, ref, opt = self.pb["generation_pb2"], self.pb["reference_pb2"], self.pb["options_pb2"]
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)])
        generation = self.pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        references = self.pb["reference_pb2_grpc"].ReferenceServiceStub(channel)

        def ways(name: str) -> list:
            chosen = opt.OptimizationOptions(collection=name, k=1, steps=1)
            return [lambda: list(generation.Generate(gen.GenerateRequest(
                        prompt=SECRET, sampling=gen.SamplingOptions(max_tokens=1), optimization=chosen), **HOSTILE)),
                    lambda: generation.Score(gen.ScoreRequest(prompt=SECRET, continuations=[" 1"], optimization=chosen), **HOSTILE),
                    lambda: references.Search(ref.SearchReferencesRequest(collection=name, text=SECRET, k=100), **HOSTILE),
                    lambda: references.List(ref.ListReferencesRequest(collection=name), **HOSTILE),
                    lambda: references.GetCollection(ref.GetCollectionRequest(collection=name), **HOSTILE),
                    lambda: references.Get(ref.GetReferenceRequest(id=f"{name}:1"), **HOSTILE),
                    lambda: references.Delete(ref.DeleteReferencesRequest(collection=name), **HOSTILE),
                    lambda: references.SetProfile(ref.SetProfileRequest(collection=name), **HOSTILE),
                    lambda: list(references.Add(iter([ref.AddReferencesRequest(
                        collection=name, sample=ref.ReferenceSample(prompt="x", answer=" y"))]), **HOSTILE)),
                    lambda: list(references.BackupStore(ref.BackupStoreRequest(), **HOSTILE))]

        def answer(way):
            """What it says of the collection: a place that a call of before still holds says nothing."""
            for _ in range(300 * SLOWDOWN):
                try:
                    return way()
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                time.sleep(0.1)
            return way()

        answers: dict[int, set] = {}
        for number in self.random.choices(range(len(ways(""))), k=self.many(60)) + list(range(len(ways("")))):
            for name in ("secret", "nowhere"):
                try:
                    got = str(answer(ways(name)[number]))
                    self.faults.append(f"others_collections: way {number} into {name} is open: {got[:100]!r}")
                except grpc.RpcError as error:
                    said = (error.code(), (error.details() or "").replace(name, "?"))
                    if said[0] not in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND):
                        self.faults.append(f"others_collections: way {number} into {name}: {error.code()}: {error.details()}")
                    answers.setdefault(number, set()).add(said)
        self.faults += [f"others_collections: way {number} tells what exists: {said}" for number, said in answers.items() if len(said) > 1]
        for told in (references.GetStats(ref.GetStatsRequest(), **HOSTILE), references.List(ref.ListReferencesRequest(), **HOSTILE)):
            if "secret" in str(told) or SECRET in str(told):
                self.faults.append(f"others_collections: {type(told).__name__} tells of it")
        kept = references.List(ref.ListReferencesRequest(collection="secret"), **VICTIM).references
        if [reference.sample.prompt for reference in kept] != [SECRET]:
            self.faults.append(f"others_collections: {len(kept)} references are left of one")
        channel.close()

    def calls_beyond_the_rate(self) -> None:
        """One caller asks as fast as it can."""
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)])
        stub = self.pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        start, let_in, said = time.monotonic(), 0, set()
        for _ in range(CALLS_PER_MINUTE + self.many(4000)):
            try:
                stub.Tokenize(self.pb["generation_pb2"].TokenizeRequest(text="a"), metadata=[("authorization", "Bearer token-eager")], timeout=120)
                let_in += 1
            except grpc.RpcError as error:
                said.add(error.code())
        may = CALLS_PER_MINUTE * (1 + (time.monotonic() - start) / 60) + 1
        if let_in > may or said != {grpc.StatusCode.RESOURCE_EXHAUSTED}:
            self.faults.append(f"calls_beyond_the_rate: {let_in} were let in of {may:.0f}, the others: {said}")
        channel.close()

    def together(self, connections: int, parts) -> None:
        floods = [threading.Thread(target=self.flood, args=(self.connect(), parts())) for _ in range(connections)]
        for flood in floods:
            flood.start()
        for flood in floods:
            flood.join()


ATTACKS = ("silent_connections", "streams_opened_and_reset", "inflating_messages", "watches_without_settings", "forged_log_lines",
           "wrong_headers_beyond_the_limit", "endless_header", "watches_beyond_the_limit", "others_collections", "calls_beyond_the_rate",
           *LEGAL, *COSTLY, *machine.MACHINE_ATTACKS)


def keep_a_secret(port: int, pb: dict) -> None:
    ref = pb["reference_pb2"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(channel)
        sample = ref.ReferenceSample(prompt=SECRET, answer=" 1", choices=[" 1", " 2"], id="1")
        list(stub.Add(iter([ref.AddReferencesRequest(collection="secret", sample=sample)]), **VICTIM))


def is_ready(server) -> bool:
    """At once, or with the server's next connection to itself: it makes one every 5 seconds."""
    end = time.monotonic() + 20 * SLOWDOWN
    while True:
        try:
            return "ready" in server.http("/readyz")
        except OSError:  # 503 is one.
            if time.monotonic() > end:
                return False
            time.sleep(0.5)


def attack(name: str, server, pb: dict, attacker: Attacker, started: float) -> tuple[str, list[str]]:
    """A row of the table, and what was wrong. `started`: when the server was."""
    pid, wrong = server.process.pid, []
    before = memory_mib(pid, "VmRSS")
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins anew.
    victim = Victim(server.port, pb)
    try:
        getattr(attacker, name)()
    except OSError as error:
        wrong.append(f"{name}: the attacker could not go on: {error}")
    wrong += attacker.faults
    peak = memory_mib(pid, "VmHWM")
    attacker.close()
    victim.end()
    after = before + GROWTH_MAX_MIB + 1
    for _ in range(120):  # What was taken goes back when gRPC has closed the connections.
        after = memory_mib(pid, "VmRSS")
        if after <= before + GROWTH_MAX_MIB:
            break
        time.sleep(0.5)
    if after > before + GROWTH_MAX_MIB:
        wrong.append(f"{name}: {after - before:.0f} MiB more than before")
    if victim.failed:
        wrong.append(f"{name}: {victim.failed} calls of the victim failed")
    late = Victim(server.port, pb)
    late.end()
    if late.failed or not is_ready(server):
        wrong.append(f"{name}: a new connection is not served afterwards")
    for line in server.log:
        if not line.startswith("{") or json.loads(line).get("action") == "forged":
            wrong.append(f"{name}: a forged line: {line[:100]!r}")
            break
    of_grpc = sum('"event":"grpc"' in line for line in server.log)
    if of_grpc > LINES_PER_SECOND * (time.monotonic() - started + 2):
        wrong.append(f"{name}: {of_grpc} lines of gRPC's")
    return f"| {name} | {before:.0f} | {peak:.0f} | {after:.0f} | {1000 * victim.longest:.0f} | {victim.failed} |", wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("c3pod")
    parser.add_argument("model", nargs="?", default=str(server_process.TINY_MODEL))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(ATTACKS))
    parser.add_argument("--seed", type=int, default=1, help="of what attacks draw")
    parser.add_argument("--descriptors", type=int, default=1024, help="the server's limit, soft and hard")
    arguments = parser.parse_args()
    pb = server_process.make_stubs()
    folder = server_process.fresh_folder()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    launcher = ("prlimit", f"--nofile={arguments.descriptors}:{arguments.descriptors}")
    (folder / "tokens").write_text(
        server_process.token_line("victim", "administer", "token-victim")
        + server_process.token_line("mallory", "administer", "token-mallory", "read=mine")
        + server_process.token_line("glutton", "administer", "token-glutton")
        + server_process.token_line("eager", "generate", "token-eager", f"calls/min={CALLS_PER_MINUTE}"))
    server = server_process.ServerProcess(arguments.c3pod, folder, "--auth-tokens", str(folder / "tokens"), "--address-watches-max",
                                          str(WATCHES_MAX), "--pending-requests-max", str(PLACES), "--running-sequences-max", "4", model=pathlib.Path(arguments.model), launcher=launcher)
    wrong, started = [], time.monotonic()
    print("| attack | MiB before | at most | after | victim's longest ms | failed |\n|---|---:|---:|---:|---:|---:|", flush=True)
    try:
        keep_a_secret(server.port, pb)
        for name in arguments.only.split(","):
            command = (arguments.c3pod, pathlib.Path(arguments.model))
            row, faults = attack(name, server, pb, Attacker(server, folder, command, pb, arguments.scale, arguments.seed), started)
            print(row, flush=True)
            wrong += faults
        start = time.monotonic()
        code = server.stop()
        print(f"\nSIGTERM: ended with {code} after {time.monotonic() - start:.1f} s")
        wrong += [f"ended with {code}"] if code else []
    finally:
        server.process.kill()
        server_process.remove_folder(folder)
    print("\n".join(wrong) or "as before", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
