"""Several c3pods over one PostgreSQL: each sees what another changes, a request sees at least the generation that it asks for, and
nothing of it is lost where a server is killed, the database is paused or killed, or notifications are. usage: replicas_test.py C3POD C3PO"""

import json
import subprocess
import sys
import time
import unittest
import urllib.error
import urllib.request

import grpc

import postgres_process
import server_process
import vllm_calls
from service_calls import details, gen, opt, pb, ref, samples
from serving_case import SLOWDOWN, ServingCase

BINARY, CLI = sys.argv.pop(1), sys.argv.pop(1)
FAR = opt.GateOptions(max_neighbor_distance=2)
SERVING = b"\x08\x01"  # Of grpc.health.v1's answer, field 1.
SECONDS = 20 * SLOWDOWN  # For what takes milliseconds where the machine has nothing else to do.


class Replica:
    """A server over the shared store, and its stubs."""

    def __init__(self, folder, url, *flags):
        self.process = server_process.ServerProcess(BINARY, folder, "--store", url, *server_process.FEW_STEPS, *flags)
        self.channel = self.process.channel()
        self.references = pb["reference_pb2_grpc"].ReferenceServiceStub(self.channel)
        self.generation = pb["generation_pb2_grpc"].GenerationServiceStub(self.channel)

    def close(self):
        self.channel.close()
        self.process.process.kill()

    def add(self, collection, all_samples):
        """The verdicts, and the generation that holds them."""
        verdicts, generation = [], 0
        requests = (ref.AddReferencesRequest(collection=collection, sample=sample) for sample in all_samples)
        for response in self.references.Add(requests, timeout=60 * SLOWDOWN):
            verdicts += response.verdicts
            generation = response.index_generation
        return verdicts, generation

    def search(self, collection, at_least=None, k=1000, timeout=60 * SLOWDOWN):
        answer = self.references.Search(ref.SearchReferencesRequest(collection=collection, text="What is 3 modulo seven?", k=k,
                                                                    min_index_generation=at_least), timeout=timeout)
        return {hit.reference.id for hit in answer.hits}, answer.index_generation

    def ids(self, collection, at_least=None):
        try:
            return self.search(collection, at_least)[0]
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return set()
            raise

    def score(self, collection, **options):
        options = {"method": opt.METHOD_KERNEL_REGRESSION, "k": 3, "gate": FAR, "reference_selection": opt.REFERENCE_SELECTION_ALL, **options}
        return self.generation.Score(gen.ScoreRequest(prompt="What is 3 modulo seven?", continuations=[" 3", " 4"],
                                                      optimization=opt.OptimizationOptions(collection=collection, **options)),
                                     timeout=60 * SLOWDOWN)

    def delete(self, **request):
        return self.references.Delete(ref.DeleteReferencesRequest(**request), timeout=60 * SLOWDOWN)

    def stored(self, collection):
        """As the store itself has it."""
        found, token = set(), ""
        while True:
            page = self.references.List(ref.ListReferencesRequest(collection=collection, page_size=1000, page_token=token),
                                        timeout=60 * SLOWDOWN)
            found |= {each.id for each in page.references}
            token = page.next_page_token
            if not token:
                return found

    def metric(self, name):
        for line in self.process.http("/metrics").splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def health(self):
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes)
        return check(b"", timeout=60)


class ReplicasTest(unittest.TestCase):
    wait_until = ServingCase.wait_until

    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        cls.postgres = postgres_process.PostgresProcess()
        cls.addClassCleanup(cls.postgres.remove)
        cls.addClassCleanup(server_process.remove_folder, cls.folder)
        cls.url = cls.postgres.new_database("replicas")
        cls.flags = ("--http-listen", "127.0.0.1:0", "--generation-wait-seconds-max", str(3 * SLOWDOWN))
        cls.replicas = [Replica(cls.folder, cls.url, *cls.flags) for _ in range(2)]

    @classmethod
    def tearDownClass(cls):
        for replica in cls.replicas:
            replica.close()

    def setUp(self):
        self.a, self.b = self.replicas
        self.collection = self.id().rsplit(".", 1)[-1]
        for replica in self.replicas:  # The test before may have taken the database away.
            self.wait_until(lambda: replica.metric("c3po_store_silent_seconds") < 1.5, "the database answers", SECONDS)

    def fails(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return (*details(caught.exception), caught.exception.details())

    def equal(self):
        """All show what the store has, once they have caught up."""
        for replica in self.replicas:
            self.wait_until(lambda: replica.metric("c3po_index_generations_behind") == 0, "caught up", SECONDS)
        collections = {line.split("|")[0] for line in self.postgres.sql("SELECT DISTINCT collection FROM c3po.reference", "replicas")}
        for collection in collections:
            stored = self.a.stored(collection)
            for replica in self.replicas:
                self.wait_until(lambda: replica.ids(collection) == stored, f"{collection} is as the store has it", SECONDS)

    def test_what_one_writes_another_reads_by_its_generation(self):
        verdicts, added = self.a.add(self.collection, samples(40))
        self.assertEqual(len(verdicts), 40)
        ids = {verdict.id for verdict in verdicts}
        found, generation = self.b.search(self.collection, added)
        self.assertEqual(found, ids)
        self.assertGreaterEqual(generation, added)
        score = self.b.score(self.collection, min_index_generation=added)
        self.assertEqual(len(score.optimization.neighbors), 3)
        self.assertGreaterEqual(score.optimization.index_generation, added)
        self.assertEqual(score.provenance.index_generation, score.optimization.index_generation)
        gone = sorted(ids)[:7]
        answer = self.b.delete(ids=[*gone, "nobody"])
        self.assertEqual((answer.deleted, list(answer.not_found)), (7, ["nobody"]))
        self.assertEqual(self.a.ids(self.collection, answer.index_generation), ids - set(gone))
        # An id that a has not heard of may be deleted there.
        new, _ = self.b.add(self.collection, [ref.ReferenceSample(prompt="Who?", answer=" I", id="mine")])
        self.assertEqual(self.a.delete(ids=[new[0].id]).deleted, 1)
        self.assertEqual(self.a.delete(collection=self.collection).deleted, 33)
        self.wait_until(lambda: self.b.ids(self.collection) == set(), "the collection is gone", SECONDS)
        self.equal()

    def test_profiles_priors_and_offsets_of_one_serve_the_requests_of_another(self):
        name = self.collection
        _, added = self.a.add(name, samples(24))
        self.assertEqual(self.b.ids(name, added), self.a.ids(name))
        self.b.score(name, min_index_generation=added)  # It looks for a profile, and knows that there is none.
        profile = opt.OptimizationOptions(method=opt.METHOD_KERNEL_REGRESSION, k=5, gate=FAR,
                                          reference_selection=opt.REFERENCE_SELECTION_ALL)
        stored = self.a.references.SetProfile(ref.SetProfileRequest(collection=name, profile=profile, notes='{"by": "a"}'), timeout=60)
        seen = self.b.references.GetCollection(
            ref.GetCollectionRequest(collection=name, min_index_generation=stored.index_generation), timeout=60)
        self.assertEqual((seen.profile, seen.profile_notes), (profile, '{"by": "a"}'))
        self.assertGreaterEqual(seen.index_generation, stored.index_generation)
        answer = self.b.generation.Score(gen.ScoreRequest(
            prompt="a", continuations=[" 3", " 4"],
            optimization=opt.OptimizationOptions(collection=name, min_index_generation=stored.index_generation)), timeout=60)
        self.assertEqual(len(answer.optimization.neighbors), 5)
        # A prior, learned on b.
        self.fails(grpc.StatusCode.NOT_FOUND, lambda: self.a.score(name, method=opt.METHOD_COLLECTION_PRIOR))
        tune = ref.TunePriorRequest(collection=name, epochs=1, batch_size=8, learning_rate=0.3, validation_fraction=0.2)
        last = list(self.b.references.TunePrior(tune, timeout=120 * SLOWDOWN))[-1]
        if last.HasField("stored"):
            report = self.a.score(name, method=opt.METHOD_COLLECTION_PRIOR, min_index_generation=last.index_generation).optimization
            self.assertEqual(report.method, opt.METHOD_COLLECTION_PRIOR)
        # Shifts of each reference, found on a.
        self.b.score(name, method=opt.METHOD_AMORTIZED_SHIFT)
        amortized = list(self.a.references.AmortizeShifts(ref.AmortizeShiftsRequest(
            collection=name, optimization=opt.OptimizationOptions(steps=1)), timeout=120 * SLOWDOWN))[-1]
        self.b.ids(name, amortized.index_generation)
        counts = {replica.references.GetCollection(ref.GetCollectionRequest(collection=name), timeout=60).amortized_shifts
                  for replica in self.replicas}
        self.assertEqual(counts, {24})
        # The profile goes.
        removed = self.b.references.SetProfile(ref.SetProfileRequest(collection=name), timeout=60)
        seen = self.a.references.GetCollection(
            ref.GetCollectionRequest(collection=name, min_index_generation=removed.index_generation), timeout=60)
        self.assertFalse(seen.HasField("profile"))

    def test_hidden_states_that_one_made_are_not_made_again(self):
        name = self.collection
        options = {"neighbor_source": opt.NEIGHBOR_SOURCE_CRITICAL_LAYER, "critical_layers": [2, 3]}
        _, added = self.a.add(name, samples(12))
        for replica in self.replicas:
            self.assertEqual(len(replica.score(name, min_index_generation=added, **options).optimization.neighbors), 3)
        made = [[line["made"] for line in replica.process.logged(event="reference_states", collection=name)] for replica in self.replicas]
        self.assertEqual(made, [[12], [0]])

    def test_a_generation_that_does_not_come_is_waited_for_within_bounds(self):
        _, added = self.a.add(self.collection, samples(3))
        began = time.monotonic()
        reason, _, pause, message = self.fails(grpc.StatusCode.UNAVAILABLE, lambda: self.b.search(self.collection, added + 1000))
        self.assertEqual((reason, pause), ("BEHIND", 1.0))
        self.assertIn(f"not {added + 1000}", message)
        self.assertLess(time.monotonic() - began, SECONDS)
        with self.assertRaises(grpc.RpcError) as caught:  # The client's own clock may be first.
            self.b.search(self.collection, added + 1000, timeout=0.5)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertEqual(self.fails(grpc.StatusCode.UNAVAILABLE, lambda: self.b.score(self.collection, min_index_generation=2**62))[0], "BEHIND")
        reason, fields, *_ = self.fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: self.b.score(self.collection, min_index_generation=2**63))
        self.assertEqual((reason, fields), ("INVALID_FIELD", ["optimization.min_index_generation"]))
        profile = opt.OptimizationOptions(min_index_generation=1)
        request = ref.SetProfileRequest(collection=self.collection, profile=profile)
        self.assertEqual(self.fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: self.a.references.SetProfile(request, timeout=60))[1],
                         ["profile.min_index_generation"])

    def test_every_way_in_takes_a_generation(self):
        name = self.collection
        _, added = self.a.add(name, samples(12))
        body = {"prompt": "What is 3 modulo seven?", "max_tokens": 2,
                "c3po": {"collection": name, "method": "kernel", "k": 2, "min_index_generation": added, "gate": {"maxNeighborDistance": 2}}}
        status, answer = self.post(body)
        self.assertEqual(status, 200, answer)
        self.assertGreaterEqual(int(json.loads(answer)["c3po"]["index_generation"]), added)
        body["c3po"]["min_index_generation"] = added + 1000
        status, answer, headers = self.post(body, with_headers=True)
        self.assertEqual((status, json.loads(answer)["error"]["reason"], headers["retry-after"]), (503, "BEHIND", "1"), answer)
        run = lambda *arguments: subprocess.run([CLI, "--server", f"127.0.0.1:{self.b.process.port}", "--timeout", "60", *arguments],
                                                capture_output=True, text=True, timeout=120 * SLOWDOWN, check=False)
        found = run("refs", "search", "What is 3?", "--collection", name, "--min-generation", str(added), "--json")
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertGreaterEqual(int(json.loads(found.stdout)["index_generation"]), added)
        asked = run("score", "What is 3?", "--choices", " 3", " 4", "--collection", name, "--min-generation", str(added), "--json")
        self.assertEqual(asked.returncode, 0, asked.stderr)
        self.assertEqual(list(self.vllm("c3po-min-generation", str(added), name)), ["c3po-gate", "c3po-index-generation", "c3po-method"])

    def post(self, body, with_headers=False):
        request = urllib.request.Request(f"http://127.0.0.1:{self.b.process.http_port}/v1/completions", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60 * SLOWDOWN) as response:
                answer = response.status, response.read().decode(), dict(response.headers)
        except urllib.error.HTTPError as error:
            answer = error.code, error.read().decode(), {key.lower(): value for key, value in error.headers.items()}
        return answer if with_headers else answer[:2]

    def vllm(self, key, value, collection):
        call = vllm_calls.engine(self.b.channel).Generate(
            vllm_calls.request(max_tokens=2), timeout=60,
            metadata=[(key, value), ("c3po-collection", collection), ("c3po-method", "kernel")])
        list(call)
        return sorted(name for name, _ in call.trailing_metadata() if name.startswith("c3po-"))

    def test_one_that_is_killed_in_an_import_loses_nothing_that_was_acknowledged(self):
        victim = Replica(self.folder, self.url)
        acknowledged, generation = set(), 0
        try:
            requests = (ref.AddReferencesRequest(collection=self.collection, sample=sample) for sample in samples(2000))
            for response in victim.references.Add(requests, timeout=60 * SLOWDOWN):
                acknowledged |= {verdict.id for verdict in response.verdicts}
                generation = response.index_generation
                if len(acknowledged) >= 60:
                    victim.process.process.kill()
        except grpc.RpcError:
            pass
        victim.close()
        for replica in self.replicas:
            self.assertLessEqual(acknowledged, replica.ids(self.collection, generation))
        self.equal()

    def test_lost_notifications_cost_a_second_at_most(self):
        every = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'replicas' AND pid <> pg_backend_pid()"
        for round_ in range(3):
            cut = self.postgres.sql(every, "replicas")
            self.assertGreaterEqual(len(cut), 2, "at least the connections that listen")
            verdicts, _ = self.a.add(self.collection, list(samples(3 * round_ + 3))[3 * round_:])
            ids = {verdict.id for verdict in verdicts}
            began = time.monotonic()
            self.wait_until(lambda: ids <= self.b.ids(self.collection), "it is seen all the same", SECONDS)
            self.assertLess(time.monotonic() - began, 5 * SLOWDOWN)
        self.equal()

    def away(self, replica, seconds):
        """What calls do while the database does not answer."""
        # Calls that begin in the first six seconds of a silence may ask the database.
        self.wait_until(lambda: replica.metric("c3po_store_silent_seconds") > 7, "the gauge tells", seconds)
        self.wait_until(lambda: replica.process.logged(event="store_not_followed"), "the log tells", seconds)
        self.assertEqual(len(replica.search(self.collection)[0]), 12)
        score = replica.score(self.collection)
        self.assertEqual(len(score.optimization.neighbors), 3)
        events = list(replica.generation.Generate(gen.GenerateRequest(
            prompt="a", sampling=gen.SamplingOptions(max_tokens=2), optimization=opt.OptimizationOptions(collection=self.collection)),
            timeout=60 * SLOWDOWN))
        self.assertEqual(events[-1].WhichOneof("event"), "summary")
        self.assertEqual(replica.health(), SERVING)
        for change in (lambda: replica.delete(collection=self.collection), lambda: replica.add(self.collection, samples(20)),
                       lambda: replica.references.SetProfile(ref.SetProfileRequest(collection=self.collection), timeout=60),
                       lambda: replica.stored(self.collection)):
            reason, _, pause, message = self.fails(grpc.StatusCode.UNAVAILABLE, change)
            self.assertEqual((reason, pause), ("STORE_AWAY", 1.0), message)
            self.assertNotIn("does not answer", message, "nobody waited for the database")

    def back(self):
        for replica in self.replicas:
            self.wait_until(lambda: replica.metric("c3po_store_silent_seconds") < 2, "it answers", SECONDS)

        def changes():
            try:
                return len(self.a.add(self.collection, samples(15))[0]) == 15
            except grpc.RpcError:
                return False
        self.wait_until(changes, "changes are taken again", SECONDS)
        self.equal()
        self.assertEqual(len(self.b.ids(self.collection)), 15)

    def test_with_the_database_paused_requests_are_answered_from_memory(self):
        _, added = self.a.add(self.collection, samples(12))
        self.b.ids(self.collection, added)
        self.postgres.pause()
        try:
            for replica in self.replicas:
                self.away(replica, SECONDS)
        finally:
            self.postgres.resume()
        self.back()

    def test_with_the_database_killed_requests_are_answered_from_memory(self):
        _, added = self.a.add(self.collection, samples(12))
        self.b.ids(self.collection, added)
        self.postgres.kill()
        try:
            for replica in self.replicas:
                self.away(replica, SECONDS)
        finally:
            self.postgres.start()
        self.back()

    def test_one_that_starts_without_the_database_waits_for_it(self):
        url = f"{self.url}&password=s3cret"
        self.postgres.kill()
        try:
            late = server_process.ServerProcess(BINARY, self.folder, "--store", url, "--store-wait-seconds", "1")
            self.assertIsNone(late.port)
            self.assertEqual(late.wait(), 1)
            log = "".join(late.log)
            self.assertIn("--store-wait-seconds", log)
            self.assertNotIn("s3cret", log)
            process = subprocess.Popen([*late.command[:-4], "--store", url], stderr=subprocess.PIPE, text=True)
            self.addCleanup(process.kill)
            for line in process.stderr:
                if '"store_awaited"' in line:
                    break
        finally:
            self.postgres.start()
        for line in process.stderr:
            if '"serving"' in line:
                break
        else:
            self.fail("it does not serve")
        process.terminate()
        self.assertIn('"stopped"', process.stderr.read())
        self.assertEqual(process.wait(timeout=60), 0)


if __name__ == "__main__":
    unittest.main()
