"""Three c3pods over one PostgreSQL for some minutes, with writers and readers, while servers are killed or stopped, the database is killed
or paused, and connections that listen are cut. Every call is recorded; `check` reads the record afterwards.
usage: replicas_chaos.py C3POD [--seconds 300] [--seed N] [--record FILE]"""

import argparse
import dataclasses
import json
import pathlib
import random
import signal
import sys
import threading
import time

import grpc

import postgres_process
import server_process
from service_calls import pb, ref

COLLECTION, LIVE_MAX = "chaos", 700  # A search finds 1000 at most.


@dataclasses.dataclass
class Call:
    """What a client asked and heard. `generation` of a change that was acknowledged holds it; of a read it is the one asked for."""
    kind: str  # add, delete, read
    ids: list
    began: float
    ended: float = 0.0
    ok: bool = False
    generation: int = 0
    seen: int = 0  # index_generation of a read's answer
    found: list = dataclasses.field(default_factory=list)
    error: str = ""


def check(calls: list[Call]) -> list[str]:
    """What a reader must not have seen, in words. An id is added once and deleted at most once, by one writer, so that a read at
    generation g has to have it where its addition was acknowledged at g or before and no deletion had begun when the read ended; and
    must not have it where its deletion was acknowledged at g or before, or its addition began after the read had ended."""
    wrong = []
    added, deleted = {}, {}
    for call in calls:
        for each in call.ids if call.kind in ("add", "delete") else ():
            (added if call.kind == "add" else deleted)[each] = call
    for read in (call for call in calls if call.kind == "read" and call.ok):
        if read.seen < read.generation:
            wrong.append(f"asked for {read.generation}, answered from {read.seen}")
        found = set(read.found)
        if len(found) != len(read.found):
            wrong.append(f"at {read.seen} something was found twice")
        for each, add in added.items():
            gone = deleted.get(each)
            must = add.ok and add.generation <= read.seen and (gone is None or gone.began > read.ended)
            must_not = (gone is not None and gone.ok and gone.generation <= read.generation) or add.began > read.ended
            if must and each not in found:
                wrong.append(f"{each}, added at {add.generation}, is missing at {read.seen}")
            if must_not and each in found:
                wrong.append(f"{each}, deleted at {gone.generation if gone else '-'}, is there at {read.generation}..{read.seen}")
        wrong += [f"{each} is there, and nobody added it" for each in found - set(added)]
    return wrong


class Server:
    """One of the replicas, whichever process it is at the moment."""

    def __init__(self, binary, folder, url):
        self.arguments = (binary, folder, "--store", url, "--drain-seconds-max", "1")
        self.lock = threading.Lock()
        self.start()

    def start(self):
        process = server_process.ServerProcess(*self.arguments)
        if process.port is None:
            raise AssertionError(f"c3pod does not start: {process.log[-5:]}")
        with self.lock:
            self.process, self.channel = process, process.channel()
            self.references = pb["reference_pb2_grpc"].ReferenceServiceStub(self.channel)

    def kill(self):
        self.process.process.kill()
        self.process.process.wait()
        self.channel.close()


class Chaos:
    def __init__(self, binary, seed):
        self.random = random.Random(seed)
        self.folder = server_process.fresh_folder()
        self.postgres = postgres_process.PostgresProcess()
        url = self.postgres.new_database("chaos")
        self.servers = [Server(binary, self.folder, url) for _ in range(3)]
        self.calls, self.calls_lock = [], threading.Lock()
        self.latest = 0  # Acknowledged, by any writer.
        self.live = 0
        self.ends = threading.Event()
        self.faults = {}

    def record(self, call, run):
        try:
            run(call)
            call.ok = True
        except grpc.RpcError as error:
            call.error = error.code().name
        except ValueError as error:  # The channel was closed, as its server was killed.
            call.error = str(error)
        call.ended = time.monotonic()
        with self.calls_lock:
            self.calls.append(call)
            if call.ok and call.kind != "read":
                self.latest = max(self.latest, call.generation)

    def write(self, number):
        choose, made, mine = random.Random(f"writer {number} {self.random.random()}"), 0, []
        while not self.ends.is_set():
            server = choose.choice(self.servers)
            if mine and (choose.random() < 0.4 or self.live > LIVE_MAX):
                gone = mine.pop(choose.randrange(len(mine)))
                call = Call("delete", [gone], time.monotonic())

                def delete(call, server=server):
                    answer = server.references.Delete(ref.DeleteReferencesRequest(ids=call.ids), timeout=10)
                    call.generation = answer.index_generation
                self.record(call, delete)
                self.live -= 1
            else:
                batch = [f"w{number}.{made + i}" for i in range(choose.randint(1, 3))]
                made += len(batch)
                call = Call("add", [f"{COLLECTION}:{each}" for each in batch], time.monotonic())

                def add(call, server=server, batch=batch):
                    requests = [ref.AddReferencesRequest(collection=COLLECTION, sample=ref.ReferenceSample(
                        prompt=f"What is {each}?", answer=f" {each}", id=each)) for each in batch]
                    told = 0
                    for answer in server.references.Add(iter(requests), timeout=10):
                        call.generation, told = answer.index_generation, told + len(answer.verdicts)
                    if told != len(batch):
                        raise ValueError("verdicts are missing")
                self.record(call, add)
                if call.ok:
                    mine += call.ids
                    self.live += len(batch)
            time.sleep(choose.uniform(0, 0.05))

    def read(self, number):
        choose = random.Random(f"reader {number} {self.random.random()}")
        while not self.ends.is_set():
            call = Call("read", [], time.monotonic(), generation=self.latest)
            self.record(call, lambda call: self.search(choose.choice(self.servers), call))
            time.sleep(choose.uniform(0, 0.02))

    @staticmethod
    def search(server, call):
        try:
            answer = server.references.Search(ref.SearchReferencesRequest(
                collection=COLLECTION, text="What is it?", k=1000, min_index_generation=call.generation or None), timeout=10)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            raise ValueError("nothing is there") from error
        call.found, call.seen = [hit.reference.id for hit in answer.hits], answer.index_generation

    def disturb(self):
        kinds = ("kill server", "stop server", "kill database", "pause database", "cut notifications")
        while not self.ends.wait(self.random.uniform(2, 6)):
            kind, server = self.random.choice(kinds), self.random.choice(self.servers)
            self.faults[kind] = self.faults.get(kind, 0) + 1
            if kind == "kill server":
                server.kill()
                server.start()
            elif kind == "stop server":
                server.process.process.send_signal(signal.SIGSTOP)
                time.sleep(2)
                server.process.process.send_signal(signal.SIGCONT)
            elif kind == "kill database":
                self.postgres.kill()
                time.sleep(1)
                self.postgres.start()
            elif kind == "pause database":
                self.postgres.pause()
                time.sleep(self.random.uniform(1, 8))
                self.postgres.resume()
            else:
                self.postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'chaos'")

    def stored(self):
        found, token = [], ""
        while True:
            page = self.servers[0].references.List(ref.ListReferencesRequest(collection=COLLECTION, page_size=1000, page_token=token), timeout=60)
            found += [each.id for each in page.references]
            token = page.next_page_token
            if not token:
                return found

    def run(self, seconds):
        threads = [threading.Thread(target=self.write, args=(n,)) for n in range(4)]
        threads += [threading.Thread(target=self.read, args=(n,)) for n in range(3)]
        threads.append(threading.Thread(target=self.disturb))
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.ends.set()
        for thread in threads:
            thread.join()

    def settle(self):
        """What is wrong once all is quiet: the replicas hold the same, all that was acknowledged, and nothing twice."""
        for _ in range(600):
            try:
                stored, generation = self.stored(), self.servers[0].references.GetStats(ref.GetStatsRequest(), timeout=60).index_generation
                break
            except grpc.RpcError:
                time.sleep(0.1)
        wrong = [] if len(stored) == len(set(stored)) else ["the store holds an id twice"]
        for number, server in enumerate(self.servers):
            for attempt in range(100):
                call = Call("read", [], time.monotonic(), generation=generation)
                self.record(call, lambda call, server=server: self.search(server, call))
                if call.ok:
                    break
                time.sleep(0.1)
            if set(call.found) != set(stored):
                wrong.append(f"replica {number} holds {len(call.found)} references, the store {len(stored)}: "
                             f"{sorted(set(call.found) ^ set(stored))[:5]} {call.error}")
        return wrong

    def close(self):
        for server in self.servers:
            server.kill()
        self.postgres.remove()
        server_process.remove_folder(self.folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("c3pod")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--record", type=pathlib.Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    chaos = Chaos(arguments.c3pod, arguments.seed)
    try:
        chaos.run(arguments.seconds)
        wrong = chaos.settle()
    finally:
        chaos.close()
    if arguments.record:
        arguments.record.write_text("".join(json.dumps(dataclasses.asdict(call)) + "\n" for call in chaos.calls))
    wrong += check(chaos.calls)
    counts = {kind: [sum(call.kind == kind and call.ok for call in chaos.calls), sum(call.kind == kind for call in chaos.calls)]
              for kind in ("add", "delete", "read")}
    print(json.dumps({"calls": counts, "faults": chaos.faults, "wrong": len(wrong)}))
    for line in wrong[:20]:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
