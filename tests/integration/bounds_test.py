"""What one client can make a server hold: streams and threads of imports, bytes of requests and answers, places for backups; and what
a profile may be stored for. usage: bounds_test.py C3POD"""

import pathlib
import queue
import random
import socket
import sys
import threading
import time
import unittest

import grpc

import server_process
from server_case import ServerCase
from service_calls import details, gen, opt, pb, ref, samples

sys.path.insert(0, str(pathlib.Path(server_process.SOURCE) / "deploy" / "attack"))
import http2_frames as h2  # noqa: E402

BINARY = sys.argv.pop(1)
LIST, BACKUP = "/c3po.v1.ReferenceService/List", "/c3po.v1.ReferenceService/BackupStore"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = b"\x3a\x00"  # ServerReflectionRequest.list_services, field 7: empty.
KIB = 1 << 10


class Import:
    """An Add stream that stays open."""

    def __init__(self, references, collection):
        self.requests, self.collection = queue.SimpleQueue(), collection
        self.stream = references.Add(iter(self.requests.get, None))

    def add(self, sample):
        """The sample's verdict."""
        self.requests.put(ref.AddReferencesRequest(collection=self.collection, sample=sample))
        return next(self.stream).verdicts[0].verdict

    def end(self):
        self.requests.put(None)
        return list(self.stream)


class BoundsTest(ServerCase):
    binary = BINARY
    FLAGS = ("--import-streams-max", "100", "--call-memory-mb", "8", "--unread-seconds-max", "1")

    def metric(self, name):
        for line in self.server.http("/metrics").splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def wait_until(self, holds, what, seconds=60):
        end = time.monotonic() + seconds
        while not holds():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.05)

    def refused(self, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, caught.exception.details())
        self.assertEqual(details(caught.exception)[0], "CAPACITY")
        return caught.exception.details()

    def raw_calls(self, path, payload, count):
        """A connection whose client reads nothing of `count` calls, and never says that it has."""
        made = socket.create_connection(("127.0.0.1", self.server.port), timeout=10)
        self.addCleanup(made.close)
        made.sendall(h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.SETTINGS, h2.ACK, 0))
        for i in range(count):
            made.sendall(h2.headers(2 * i + 1, h2.call_fields(path)) + h2.data(2 * i + 1, h2.message(payload)))
        return made

    # --- Imports ---

    def test_an_import_that_waits_takes_no_thread(self):
        some = list(samples(42))
        first = Import(self.references, "threads")
        first.add(some[0])
        before = self.metric("process_threads")
        others = [Import(self.references, "threads") for _ in range(40)]
        for stream, sample in zip(others, some[1:]):
            self.assertIn(stream.add(sample), (ref.VERDICT_SUCCESSFUL, ref.VERDICT_FAILED))
        self.assertEqual(self.metric("c3po_import_streams"), 41)
        self.assertLess(self.metric("process_threads") - before, 20)  # gRPC makes some.
        for stream in (first, *others):  # Each goes on where it was.
            self.assertEqual(stream.add(some[0]), ref.VERDICT_DUPLICATE)
            stream.end()
        self.wait_until(lambda: self.metric("c3po_import_streams") == 0, "their places are given back")

    def test_a_caller_has_half_of_the_places_for_imports(self):
        sample = next(samples(1))
        streams = [Import(self.references, "places") for _ in range(50)]
        for stream in streams:
            stream.add(sample)
        beyond = Import(self.references, "places")
        self.assertIn("--import-streams-max", self.refused(lambda: beyond.add(sample)))
        for stream in streams:
            stream.end()
        self.wait_until(lambda: self.metric("c3po_import_streams") == 0, "their places are given back")
        again = Import(self.references, "places")
        self.assertEqual(again.add(sample), ref.VERDICT_DUPLICATE)
        again.end()

    def test_a_cancelled_import_gives_its_place_back(self):
        stream = Import(self.references, "cancelled")
        stream.add(next(samples(1)))
        stream.stream.cancel()
        self.wait_until(lambda: self.metric("c3po_import_streams") == 0, "its place is given back")

    def test_imports_may_end_at_any_moment(self):
        # gRPC may be done with a call before the event that ended it has returned.
        ended = []

        def import_and_leave(number):
            pick = random.Random(number)
            for stream in range(150):
                requests = [ref.AddReferencesRequest(collection="moments", sample=ref.ReferenceSample(
                    prompt=f"{number} {stream} {i}", answer=" 1")) for i in range(pick.choice([0, 1, 2, 5]))]
                call = self.references.Add(iter(requests), timeout=60)
                if pick.random() < 0.5:
                    time.sleep(pick.random() * 0.01)
                    call.cancel()
                try:
                    list(call)
                    ended.append(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    ended.append(error.code())

        threads = [threading.Thread(target=import_and_leave, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertIsNone(self.server.process.poll(), self.server.log[-3:])
        self.assertEqual(len(ended), 8 * 150)
        self.assertEqual(set(ended), {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED})
        self.wait_until(lambda: self.metric("c3po_import_streams") == 0, "their places are given back")

    # --- Bytes ---

    def test_requests_are_held_up_to_a_callers_share_and_small_ones_always(self):
        text = "a" * (5 << 20)  # Of 8 MiB half are one caller's.
        self.assertIn("--call-memory-mb", self.refused(lambda: self.generation.Tokenize(gen.TokenizeRequest(text=text))))
        self.assertGreater(len(self.generation.Tokenize(gen.TokenizeRequest(text="Hello")).ids), 0)
        self.wait_until(lambda: self.metric("c3po_call_message_bytes") == 0, "nothing is held")

    def test_answers_that_nobody_reads_are_bounded_and_others_are_served(self):
        large = [ref.ReferenceSample(prompt=f"What is {i}?", answer=" 1", metadata={"text": "x" * 15_000}) for i in range(240)]
        stream = Import(self.references, "large")
        for sample in large:
            stream.requests.put(ref.AddReferencesRequest(collection="large", sample=sample))
        stream.end()
        self.wait_until(lambda: self.metric("c3po_call_message_bytes") == 0, "nothing is held")
        request = ref.ListReferencesRequest(collection="large", page_size=1000)
        connection = self.raw_calls(LIST, request.SerializeToString(), 30)  # 90 MiB of answers.
        self.wait_until(lambda: self.rpcs("List", "RESOURCE_EXHAUSTED") == 29, "all but one are refused")
        self.assertGreater(self.metric("c3po_call_message_bytes"), 2 << 20)
        self.assertLessEqual(self.metric("c3po_call_message_bytes"), 4 << 20)
        self.assertGreater(len(self.generation.Tokenize(gen.TokenizeRequest(text="Hello")).ids), 0)
        connection.close()
        self.wait_until(lambda: self.metric("c3po_call_message_bytes") == 0, "what nobody read is given back")
        self.assertGreater(len(self.references.List(request).references), 100)

    def rpcs(self, method, code):
        return self.metric(f'c3po_rpc_total{{code="{code}",method="{method}",service="ReferenceService"}}')

    def test_reflection_streams_are_bounded_and_others_are_served(self):
        reflect = self.channel.stream_stream(REFLECTION, request_serializer=bytes, response_deserializer=bytes)
        left = threading.Event()
        self.addCleanup(left.set)

        def silent():
            left.wait(600)
            yield from ()

        before = self.metric("process_threads")
        held = [reflect(silent()) for _ in range(80)]
        self.wait_until(lambda: sum(call.done() for call in held) >= 50, "those that find no thread end")
        self.assertEqual({call.code() for call in held if call.done()}, {grpc.StatusCode.RESOURCE_EXHAUSTED})
        self.assertLess(self.metric("process_threads") - before, 30)
        self.generation.Tokenize(gen.TokenizeRequest(text="a"), timeout=60)
        for call in held:
            call.cancel()

        def reflects():
            try:
                return b"ServerReflection" in next(reflect(iter([LIST_SERVICES]), timeout=60))
            except grpc.RpcError:
                return False

        self.wait_until(reflects, "a thread is free again")

    def test_the_ids_of_one_delete_are_bounded(self):
        for field, ids in (("ids", ["x"] * 10_001), ("ids[1]", ["x", "x" * 200])):
            with self.assertRaises(grpc.RpcError) as caught:
                self.references.Delete(ref.DeleteReferencesRequest(ids=ids))
            self.assertEqual(details(caught.exception)[:2], ("INVALID_FIELD", [field]))

    # --- Backups ---

    def test_a_backup_that_nobody_reads_is_cut_off(self):
        stream = Import(self.references, "backed-up")  # 64 KiB are the client's to take without a word.
        for sample in samples(100):
            stream.requests.put(ref.AddReferencesRequest(collection="backed-up", sample=sample))
        stream.end()
        self.raw_calls(BACKUP, b"", 1)
        def cut_off():
            calls = self.server.logged(event="call", method="ReferenceService/BackupStore", status="RESOURCE_EXHAUSTED")
            return any("does not read" in call.get("message", "") for call in calls)
        self.wait_until(cut_off, "the backup is cut off")

        def read():
            try:
                return list(self.references.BackupStore(ref.BackupStoreRequest(), timeout=60))
            except grpc.RpcError:  # A client that stands still for a second is cut off, too.
                return []

        self.wait_until(read, "one that is read is whole")

    # --- Profiles ---

    def test_a_profile_needs_references_and_is_listed_when_they_are_gone(self):
        profile = opt.OptimizationOptions(k=2)
        with self.assertRaises(grpc.RpcError) as caught:
            self.references.SetProfile(ref.SetProfileRequest(collection="made-up", profile=profile))
        self.assertEqual(details(caught.exception)[0], "NOT_FOUND")
        self.assertIn("made-up", caught.exception.details())
        stream = Import(self.references, "gone")
        stream.add(next(samples(1)))
        stream.end()
        self.references.SetProfile(ref.SetProfileRequest(collection="gone", profile=profile))
        stats = lambda: {c.collection: c for c in self.references.GetStats(ref.GetStatsRequest()).collections}
        self.assertEqual((stats()["gone"].references, stats()["gone"].profile), (1, True))
        listed = self.references.List(ref.ListReferencesRequest(collection="gone")).references
        self.references.Delete(ref.DeleteReferencesRequest(ids=[one.id for one in listed]))
        self.assertEqual((stats()["gone"].references, stats()["gone"].profile), (0, True))
        self.assertEqual(self.references.GetCollection(ref.GetCollectionRequest(collection="gone")).profile.k, 2)
        self.assertTrue(self.references.SetProfile(ref.SetProfileRequest(collection="gone")).removed)
        self.assertNotIn("gone", stats())


    # --- Numbers ---

    def ask(self, sampling=None, **options):
        options.setdefault("collection", "numbers")
        options.setdefault("gate", opt.GateOptions(enabled=False))
        return list(self.generation.Generate(gen.GenerateRequest(
            prompt="What is 5 modulo seven?", sampling=gen.SamplingOptions(max_tokens=2, **(sampling or {})),
            optimization=opt.OptimizationOptions(reference_selection=opt.REFERENCE_SELECTION_ALL, **options)), timeout=60))

    def invalid(self, field, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(details(caught.exception)[:2], ("INVALID_FIELD", [field]), caught.exception.details())
        return caught.exception.details()

    def test_numbers_beyond_what_a_model_can_compute_with_are_refused_by_their_name(self):
        stream = Import(self.references, "numbers")
        for sample in samples(12):
            stream.add(sample)
        stream.end()
        inf, nan = float("inf"), float("nan")
        beyond = {"learning_rate": (0, -1, 10.5, 1e308, inf, nan), "bandwidth": (0, 1e-7, 1e7, 1e308, inf, nan),
                  "epsilon": (0, 2.5, inf, nan), "alpha": (-0.1, 1.1, inf, nan), "step_scale": (0, 1.1, inf, nan)}
        of_gate = {"max_neighbor_distance": (-1, 2.5, inf, nan), "neighbor_distance_quantile": (0, 1.1, nan),
                   "max_base_confidence": (0, 1.1, nan), "min_loss_reduction": (-0.1, 1, nan),
                   "min_validation_loss_reduction": (-0.1, 1, nan), "min_optimized_confidence": (0, 1.1, nan)}
        cases = [(name, {name: value}) for name, values in beyond.items() for value in values]
        cases += [(f"gate.{name}", {"gate": opt.GateOptions(**{name: value})}) for name, values in of_gate.items() for value in values]
        for name, options in cases:
            with self.subTest(field=name, options=str(options)):
                self.invalid(f"optimization.{name}", lambda: self.ask(**options))
                self.invalid(f"profile.{name}", lambda: self.references.SetProfile(
                    ref.SetProfileRequest(collection="numbers", profile=opt.OptimizationOptions(**options))))
        self.assertIn("1e+308, must be in (0, 10]", self.invalid("optimization.learning_rate", lambda: self.ask(learning_rate=1e308)))
        for name, values in {"temperature": (-1, 101, inf, nan), "repetition_penalty": (0, 0.001, 101, inf, nan),
                             "top_p": (0, 1.0000001, nan), "min_p": (-0.1, 1, nan)}.items():
            for value in values:
                self.invalid(f"sampling.{name}", lambda: self.ask(sampling={name: value}))
        self.assertIn("1.0000001 is not in (0, 1]", self.invalid("sampling.top_p", lambda: self.ask(sampling={"top_p": 1.0000001})))
        for name, values in {"learning_rate": (0, 11, inf, nan), "weight_decay": (-1, 101, inf, nan), "patience": (0, 1001)}.items():
            for value in values:
                self.invalid(name, lambda: list(self.references.TunePrior(ref.TunePriorRequest(collection="numbers", **{name: value}))))

    def test_requests_are_answered_at_the_ends_of_the_ranges(self):
        stream = Import(self.references, "ends")
        for sample in samples(12):
            stream.add(sample)
        stream.end()
        for rule in (opt.APPLICATION_RULE_LAST_PROMPT_TOKEN, opt.APPLICATION_RULE_EVERY_NEW_TOKEN, opt.APPLICATION_RULE_ROUTER_SHIFT):
            for step_rule in (opt.STEP_RULE_GRADIENT, opt.STEP_RULE_NORMALIZED, opt.STEP_RULE_ADAM):
                for rate in (1e-300, 10):
                    profile = opt.OptimizationOptions(learning_rate=rate, application_rule=rule, step_rule=step_rule, steps=30, k=2)
                    self.references.SetProfile(ref.SetProfileRequest(collection="ends", profile=profile))
                    self.assertTrue(self.ask(collection="ends")[-1].HasField("summary"))
        for bandwidth in (1e-6, 1e6):
            for kernel in (opt.KERNEL_GAUSSIAN, opt.KERNEL_MATERN, opt.KERNEL_LINEAR, opt.KERNEL_POLYNOMIAL):
                for method in (opt.METHOD_MODE_FINDING, opt.METHOD_KERNEL_REGRESSION):
                    self.assertTrue(self.ask(collection="ends", bandwidth=bandwidth, kernel=kernel, method=method)[-1].HasField("summary"))
        self.assertTrue(self.ask(sampling=dict(temperature=100, repetition_penalty=0.01), method=opt.METHOD_NONE)[-1].HasField("summary"))


if __name__ == "__main__":
    unittest.main()
