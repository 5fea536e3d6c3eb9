"""c3pod is killed (SIGKILL) while several clients add and delete references, and started again on the same store, round after round:
what was acknowledged is there, once, as it was sent; what was acknowledged as deleted is gone. usage: kill_test.py C3POD"""

import random
import sys
import threading
import time
import unittest

import grpc

import server_process

BINARY = sys.argv.pop(1)
pb = server_process.make_stubs()
ref = pb["reference_pb2"]

SEED = 20261122
ROUNDS = 4
CLIENTS = 4
SHARED = 20  # Samples that all clients offer, so that they race for who stores them.


def sample(client, number):
    who = "everyone" if number < SHARED else f"client {client}"
    return ref.ReferenceSample(prompt=f"For {who}: what is {number} modulo seven?", answer=f" {number % 7}",
                               choices=[f" {c}" for c in range(7)] if number % 2 else [], metadata={"number": str(number)})


def number_of(prompt):
    return int(prompt.split()[-3])


def key(collection, one):
    return collection, one.prompt, one.answer, tuple(one.choices)


class Book:
    """What clients were told, by all of them, over all rounds."""

    def __init__(self):
        self.lock = threading.Lock()
        self.stored = {}  # key: id
        self.deleted = set()  # ids whose deletion was acknowledged
        self.perhaps_deleted = set()  # ids of deletions that got no answer
        self.next_number = [0] * CLIENTS
        self.round_start = [0] * CLIENTS
        self.acknowledged_in_round = 0

    def acknowledge(self, collection, sent, verdict):
        with self.lock:
            earlier = self.stored.setdefault(key(collection, sent), verdict.id)
            if earlier != verdict.id:
                raise AssertionError(f"{sent.prompt}: stored as {earlier} and as {verdict.id}")
            self.acknowledged_in_round += 1

    def deletable(self):
        """Ids of what this round's clients do not offer again: stored in rounds before."""
        with self.lock:
            return [i for (_, prompt, _, _), i in self.stored.items() if i not in self.deleted | self.perhaps_deleted and
                    any(f"client {client}:" in prompt and number_of(prompt) < self.round_start[client] for client in range(CLIENTS))]


class KillTest(unittest.TestCase):
    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.book = Book()
        self.errors = []

    def tearDown(self):
        server_process.remove_folder(self.folder)

    def run_server(self):
        server = server_process.ServerProcess(BINARY, self.folder)
        self.assertIsNotNone(server.port, server.log)
        self.addCleanup(server.process.kill)
        return server

    def stub(self, server):
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)])
        self.addCleanup(channel.close)
        return pb["reference_pb2_grpc"].ReferenceServiceStub(channel)

    def in_thread(self, work, *arguments):
        def guarded():
            try:
                work(*arguments)
            except grpc.RpcError as error:  # The kill, and nothing else, ends calls.
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    self.errors.append(f"{error.code()}: {error.details()}")
            except Exception as error:  # pylint: disable=broad-except
                self.errors.append(repr(error))
        thread = threading.Thread(target=guarded)
        thread.start()
        return thread

    def add(self, stub, client):
        """Adds samples until the server is gone; clients 0 and 1 to one collection, the others to another."""
        collection = "even" if client < 2 else "odd"
        sent = {}

        def requests():
            for sequence in range(10_000):
                one = sample(client, self.book.next_number[client])
                self.book.next_number[client] += 1
                sent[sequence] = one
                yield ref.AddReferencesRequest(collection=collection, sequence=sequence, sample=one)
                time.sleep(0.001)  # The verdicts keep up with what is sent.

        for response in stub.Add(requests()):
            for verdict in response.verdicts:
                if verdict.verdict in (ref.VERDICT_SUCCESSFUL, ref.VERDICT_FAILED, ref.VERDICT_DUPLICATE):
                    self.book.acknowledge(collection, sent[verdict.sequence], verdict)
                else:
                    self.errors.append(f"{sent[verdict.sequence].prompt}: {verdict.verdict} {verdict.message}")

    def delete(self, stub, choose):
        """Deletes acknowledged references, one after the other, until none is left or the server is gone."""
        ids = self.book.deletable()
        choose.shuffle(ids)
        for chosen in ids:
            with self.book.lock:
                self.book.perhaps_deleted.add(chosen)
            deleted = stub.Delete(ref.DeleteReferencesRequest(ids=[chosen])).deleted
            if deleted != 1:
                self.errors.append(f"{chosen} was acknowledged, and deleting it deleted {deleted}")
            with self.book.lock:
                self.book.deleted.add(chosen)
                self.book.perhaps_deleted.discard(chosen)
            time.sleep(0.02)

    def check(self, server):
        """The store against the book."""
        stub, listed, token = self.stub(server), [], ""
        while True:
            page = stub.List(ref.ListReferencesRequest(page_size=500, page_token=token))
            listed += page.references
            token = page.next_page_token
            if not token:
                break
        by_id = {one.id: one for one in listed}
        self.assertEqual(len(by_id), len(listed), "an id is there twice")
        keys = [key(one.collection, one.sample) for one in listed]
        self.assertEqual(len(set(keys)), len(keys), "a sample is there twice")
        gone = self.book.deleted | self.book.perhaps_deleted
        for sent, reference_id in self.book.stored.items():
            if reference_id not in gone:
                self.assertIn(reference_id, by_id, f"{sent[1]} was acknowledged and is gone")
                self.assertEqual(key(by_id[reference_id].collection, by_id[reference_id].sample), sent)
        for reference_id in self.book.deleted:
            self.assertNotIn(reference_id, by_id, "was acknowledged as deleted and is back")
        stats = {c.collection: c.references for c in stub.GetStats(ref.GetStatsRequest()).collections}
        self.assertEqual(sum(stats.values()), len(listed))
        # The index holds what the store does: a sample is its own nearest neighbor.
        for one in random.Random(len(listed)).sample(listed, 5):
            hits = stub.Search(ref.SearchReferencesRequest(collection=one.collection, text=one.sample.prompt, k=3)).hits
            self.assertLess(hits[0].distance, 1e-3)
            self.assertTrue(all(hit.reference.id in by_id for hit in hits))
        return len(listed)

    def test_what_was_acknowledged_survives_kills_and_is_there_once(self):
        choose = random.Random(SEED)
        print(f"seed {SEED}", file=sys.stderr)
        for round_number in range(ROUNDS):
            server = self.run_server()
            if round_number > 0:
                self.check(server)
            self.book.acknowledged_in_round = 0
            # Every client goes back a little: what it offered last may or may not have been stored.
            self.book.next_number = [max(0, number - 20) for number in self.book.next_number]
            self.book.round_start = list(self.book.next_number)
            threads = [self.in_thread(self.add, self.stub(server), client) for client in range(CLIENTS)]
            threads.append(self.in_thread(self.delete, self.stub(server), random.Random(round_number)))
            wanted = choose.randint(120, 260)
            deadline, deleted = time.monotonic() + 180, len(self.book.deleted)
            enough = lambda: self.book.acknowledged_in_round >= wanted and (
                len(self.book.deleted) >= deleted + 3 or not threads[-1].is_alive())  # Until all are deleted that may be.
            while not enough() and time.monotonic() < deadline and not self.errors:
                time.sleep(0.002)
            server.process.kill()
            server.stop()
            for thread in threads:
                thread.join(timeout=120)
                self.assertFalse(thread.is_alive())
            self.assertEqual(self.errors, [])
            self.assertGreaterEqual(self.book.acknowledged_in_round, wanted)
        self.assertGreater(len(self.book.deleted), ROUNDS)
        server = self.run_server()
        count = self.check(server)
        self.offer_everything_again(server)
        self.assertEqual(server.stop(), 0)
        print(f"{len(self.book.stored)} acknowledged, {len(self.book.deleted)} deleted, {count} there", file=sys.stderr)

    def offer_everything_again(self, server):
        """All that was acknowledged and not deleted is known, under its id, and nothing is stored anew."""
        stub = self.stub(server)
        gone = self.book.deleted | self.book.perhaps_deleted
        for collection in ("even", "odd"):
            kept = [(k, i) for k, i in self.book.stored.items() if k[0] == collection and i not in gone]
            requests = (ref.AddReferencesRequest(collection=collection, sequence=n,
                                                 sample=ref.ReferenceSample(prompt=k[1], answer=k[2], choices=k[3]))
                        for n, (k, _) in enumerate(kept))
            verdicts = {v.sequence: v for response in stub.Add(requests, timeout=120) for v in response.verdicts}
            self.assertEqual(len(verdicts), len(kept))
            for n, (_, reference_id) in enumerate(kept):
                self.assertEqual((verdicts[n].verdict, verdicts[n].id), (ref.VERDICT_DUPLICATE, reference_id))


if __name__ == "__main__":
    unittest.main(verbosity=2)
