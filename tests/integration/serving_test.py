"""Limits, cancellation, drain and errors through a real channel, with Python's grpcio as the client.
usage: serving_test.py C3POD C3PO"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import time
import unittest
import urllib.error

import grpc
from google.rpc import error_details_pb2, status_pb2

import server_process

sys.argv.pop(2)
BINARY = sys.argv.pop(1)
pb = server_process.make_stubs()
gen, ref, opt, srv = pb["generation_pb2"], pb["reference_pb2"], pb["options_pb2"], pb["server_pb2"]

WINDOW = 100_000  # Positions: answers and prompts that take seconds.
DOCUMENTED = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", (server_process.SOURCE / "proto/c3po/v1/errors.md").read_text(), re.M))
NONE = opt.OptimizationOptions(method=opt.METHOD_NONE)


def long_model(folder):
    """The tiny model with a context window of WINDOW tokens: its positions are rotations, which have no end."""
    copy = folder / "long_tiny"
    copy.mkdir()
    for path in server_process.TINY_MODEL.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["max_position_embeddings"] = WINDOW
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def details(error):
    """(reason, violated fields, retry delay in seconds or None) of a failed call, whose reason is on the closed list."""
    metadata = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata.get("grpc-status-details-bin", b""))
    reason, fields, pause = None, [], None
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
        elif detail.Unpack(retry):
            pause = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    if DOCUMENTED.get(reason) != error.code().name:
        raise AssertionError(f"{error.code()} with reason {reason} is not documented: {error.details()}")
    return reason, fields, pause


def tokens_of(events):
    return [token for event in events if event.HasField("delta") for token in event.delta.token_ids]


def samples(count):
    for i in range(count):
        yield ref.ReferenceSample(prompt=f"What is {i} modulo seven?", answer=f" {i % 7}", choices=[f" {c}" for c in range(7)])


class ServingTest(unittest.TestCase):
    FLAGS = ()

    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        cls.model = long_model(cls.folder)
        cls.server = cls.start(*cls.FLAGS)
        cls.channel = cls.server.channel()
        cls.generation = pb["generation_pb2_grpc"].GenerationServiceStub(cls.channel)

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        code = cls.server.stop()
        server_process.remove_folder(cls.folder)
        if code != 0:
            raise AssertionError(f"c3pod exited with {code}: {cls.server.log[-20:]}")

    @classmethod
    def start(cls, *flags, store="a"):
        folder = cls.folder / f"store-{store}"
        folder.mkdir(exist_ok=True)
        return server_process.ServerProcess(BINARY, folder, "--kv-cache-tokens", "1000000", "--pending-tokens-max", "1000000",
                                            *map(str, flags), model=cls.model)

    def own_channel(self, server=None):
        """A connection that no other test shares."""
        channel = grpc.insecure_channel(f"127.0.0.1:{(server or self.server).port}", [("grpc.use_local_subchannel_pool", 1)])
        self.addCleanup(channel.close)
        return channel

    def stream(self, max_tokens, generation=None, metadata=None, timeout=None, priority=None, **request):
        request.setdefault("optimization", NONE)
        if "token_ids" not in request:
            request.setdefault("prompt", "a")
        sampling = gen.SamplingOptions(max_tokens=max_tokens, ignore_eos=True, **request.pop("sampling", {}))
        return (generation or self.generation).Generate(
            gen.GenerateRequest(sampling=sampling, priority=priority, **request), metadata=metadata, timeout=timeout)

    def fails(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return details(caught.exception)

    def metric(self, name, server=None):
        for line in (server or self.server).http("/metrics").splitlines():
            if line.startswith(name) and not line.startswith("#"):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def wait_until(self, holds, what, seconds=15):
        for _ in range(seconds * 50):
            if holds():
                return
            time.sleep(0.02)
        self.fail(f"not within {seconds} s: {what}")

    def is_empty(self, server=None):
        label = "{model_name=\"long_tiny\"}"
        return all(self.metric(f"vllm:{name}{label}", server) == 0
                   for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"))


class LimitsTest(ServingTest):
    FLAGS = ("--pending-requests-max", 8, "--running-sequences-max", 2, "--pending-tokens-max", 150_000,
             "--prompt-tokens-max", 40_000, "--output-tokens-max", 60_000, "--stop-strings-max", 2, "--stop-string-bytes-max", 10,
             "--continuations-max", 3, "--connection-streams-max", 20)

    @classmethod
    def start(cls, *flags, store="a"):
        digest = lambda token: hashlib.sha256(token.encode()).hexdigest()
        (cls.folder / "tokens").write_text(f"ann generate {digest('a')}\nben references {digest('b')}\ncleo administer {digest('c')}\n")
        return super().start(*flags, "--auth-tokens", cls.folder / "tokens", store=store)

    ANN, BEN, CLEO = ([("authorization", f"Bearer {token}")] for token in "abc")

    def hold(self, count, metadata, max_tokens=10_000):
        """`count` requests that stay until they are cancelled; those that run have begun to answer."""
        streams = [self.stream(max_tokens, metadata=metadata) for _ in range(count)]
        for stream in streams:
            self.addCleanup(stream.cancel)
        return streams

    def refused(self, metadata=None, max_tokens=10):
        """What a request gets that finds no place."""
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stream(max_tokens, metadata=metadata or self.ANN, timeout=20))
        error = caught.exception
        self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, error.details())
        reason, _, pause = details(error)
        self.assertEqual(reason, "CAPACITY")
        self.assertGreater(pause, 0)
        self.assertEqual(int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]), round(pause * 1000))
        return error.details()

    def clear(self, streams):
        for stream in streams:
            stream.cancel()
        self.wait_until(self.is_empty, "everything is given back")

    def pending(self):
        label = "{model_name=\"long_tiny\"}"
        return self.metric(f"vllm:num_requests_running{label}") + self.metric(f"vllm:num_requests_waiting{label}")

    def test_every_limit_is_printed_and_told_to_clients(self):
        printed = subprocess.run([BINARY, "--print-config", *map(str, self.FLAGS)], capture_output=True, text=True, check=True).stdout
        values = dict(re.findall(r"^(\S+) = (\d+)$", printed, re.M))
        limits = pb["server_pb2_grpc"].ServerServiceStub(self.channel).GetServerInfo(srv.GetServerInfoRequest(), metadata=self.ANN).limits
        self.assertGreaterEqual(len(limits), 15)
        for flag, value in zip(self.FLAGS[::2], self.FLAGS[1::2]):
            name = flag.removeprefix("--")
            self.assertEqual(int(values[name]), value, name)
            self.assertEqual(limits[name.replace("-", "_")], value, name)

    def test_what_asks_for_too_much_is_told_the_field(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        cases = [("sampling.stop", lambda: list(self.stream(5, metadata=self.ANN, sampling={"stop": ["a", "b", "c"]}))),
                 ("sampling.stop[1]", lambda: list(self.stream(5, metadata=self.ANN, sampling={"stop": ["a", "b" * 11]}))),
                 ("sampling.max_tokens", lambda: list(self.stream(60_001, metadata=self.ANN))),
                 ("token_ids", lambda: list(self.stream(5, metadata=self.ANN, token_ids=gen.TokenIds(ids=[5] * 40_001)))),
                 ("prompt", lambda: list(self.stream(5, metadata=self.ANN, prompt="a b " * 40_000))),
                 ("priority", lambda: list(self.stream(5, metadata=self.ANN, priority=9))),
                 ("continuations", lambda: self.generation.Score(gen.ScoreRequest(prompt="a", continuations=["b"] * 4),
                                                                 metadata=self.ANN))]
        for field, call in cases:
            with self.subTest(field=field):
                self.assertEqual(self.fails(invalid, call), ("INVALID_FIELD", [field], None))
        high = lambda metadata: lambda: list(self.stream(5, metadata=metadata, priority=gen.PRIORITY_HIGH))
        self.assertEqual(self.fails(grpc.StatusCode.PERMISSION_DENIED, high(self.BEN))[0], "PERMISSION")
        self.assertEqual(len(tokens_of(high(self.CLEO)())), 5)

    def test_a_full_queue_says_when_to_come_back_and_empties(self):
        streams = self.hold(8, self.ANN)
        self.wait_until(lambda: self.pending() == 8, "eight are pending")
        self.assertIn("8 requests", self.refused())
        self.clear(streams)
        self.assertEqual(len(tokens_of(list(self.stream(10, metadata=self.ANN)))), 10)

    def test_the_queue_is_bounded_in_tokens_too(self):
        streams = self.hold(2, self.ANN, max_tokens=60_000)
        self.wait_until(lambda: self.pending() == 2, "two are pending")
        self.assertIn("150000", self.refused(max_tokens=40_000))
        self.clear(streams)

    def test_a_caller_gets_its_share(self):
        streams = self.hold(1, self.BEN) + self.hold(4, self.ANN)
        self.wait_until(lambda: self.pending() == 5, "five are pending")
        self.assertIn("share", self.refused(self.ANN))
        streams += self.hold(3, self.BEN)
        self.wait_until(lambda: self.pending() == 8, "eight are pending")
        self.clear(streams)

    def test_a_deadline_shortens_the_optimization_or_refuses_at_once(self):
        references = pb["reference_pb2_grpc"].ReferenceServiceStub(self.channel)
        list(references.Add((ref.AddReferencesRequest(collection="set", sample=s) for s in samples(20)), metadata=self.BEN))
        ngd = lambda steps: opt.OptimizationOptions(
            method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, collection="set", k=4, steps=steps,
            reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(enabled=False))
        ask = lambda steps, timeout: list(self.stream(2, metadata=self.ANN, timeout=timeout, optimization=ngd(steps),
                                                      prompt="What is 50 modulo seven?"))
        full = [ask(1000, 60)[0].optimization for _ in range(3)][-1]
        self.assertEqual(len(full.losses), 1001)
        self.assertFalse(full.shortened)
        seconds = full.timings.optimization_seconds
        events = ask(1000, 0.6 * seconds + 0.1)
        self.assertTrue(events[0].optimization.shortened)
        self.assertLess(len(events[0].optimization.losses), 1000)
        self.assertGreater(len(events[0].optimization.losses), 1)
        self.assertEqual(len(tokens_of(events)), 2)
        # A prompt that takes seconds to read, and a deadline of one: the answer is there long before it passes.
        start = time.monotonic()
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stream(2, metadata=self.ANN, timeout=1, token_ids=gen.TokenIds(ids=[5] * 40_000)))
        self.assertLess(time.monotonic() - start, 0.8)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assertEqual(details(caught.exception)[0], "DEADLINE")
        self.assertIn("cannot be met", caught.exception.details())

    def test_calls_beyond_the_connections_streams_wait_for_it_alone(self):
        channel = self.own_channel()
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", request_serializer=lambda raw: raw,
                                     response_deserializer=lambda raw: raw)
        watches = [watch(b"") for _ in range(20)]
        for one in watches:
            next(one)
        info = lambda c: pb["server_pb2_grpc"].ServerServiceStub(c).GetServerInfo(srv.GetServerInfoRequest(), metadata=self.ANN, timeout=0.5)
        with self.assertRaises(grpc.RpcError) as caught:
            info(channel)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        info(self.own_channel())
        watches[0].cancel()
        info(channel)
        for one in watches:
            one.cancel()


class CancellationTest(ServingTest):
    FLAGS = ("--unread-messages-max", 64)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        references = pb["reference_pb2_grpc"].ReferenceServiceStub(cls.channel)
        list(references.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(40)))

    def releases(self):
        """How many calls were cancelled and gave everything back, and how many of them within half a second."""
        count = self.metric("c3po_cancel_to_release_seconds_count")
        return count, self.metric('c3po_cancel_to_release_seconds_bucket{le="0.5"}')

    def check_release(self, stream, reached):
        """Cancels `stream` once `reached` holds; everything must come back within a step."""
        before = self.releases()
        self.wait_until(reached, "the stage to be cancelled in")
        stream.cancel()
        self.wait_until(self.is_empty, "everything is given back", seconds=2)
        self.wait_until(lambda: self.releases()[0] == before[0] + 1, "the release is counted", seconds=2)
        self.assertEqual(self.releases()[1], before[1] + 1)

    def running(self):
        return self.metric("vllm:num_requests_running{model_name=\"long_tiny\"}") == 1

    def steps(self, work):
        return self.metric(f'c3po_engine_steps_total{{work="{work}"}}')

    def test_during_prefill(self):
        prompts = self.metric("vllm:prompt_tokens_total")
        before = self.steps("prefill")
        stream = self.stream(10, token_ids=gen.TokenIds(ids=[5] * 90_000))
        self.check_release(stream, lambda: self.steps("prefill") > before + 5)
        self.assertEqual(self.metric("vllm:prompt_tokens_total"), prompts)  # It was not read to its end.

    def test_during_the_optimization(self):
        before = self.steps("optimization")
        options = opt.OptimizationOptions(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, collection="set", k=32, steps=1000,
                                          reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(enabled=False))
        stream = self.stream(10, optimization=options, prompt="What is 50 modulo seven?")
        self.check_release(stream, lambda: self.steps("optimization") > before + 40)  # Its neighbors are prepared.
        self.assertLess(self.steps("optimization"), before + 1000)

    def test_during_decoding(self):
        stream = self.stream(90_000)
        next(stream)
        self.check_release(stream, self.running)

    def test_before_and_during_retrieval_many_at_once(self):
        options = opt.OptimizationOptions(method=opt.METHOD_KERNEL_REGRESSION, collection="set", k=8)
        for pause in (0, 0.001, 0.005, 0.02):
            streams = [self.stream(1000, optimization=options, prompt=f"What is {i} modulo seven?") for i in range(20)]
            time.sleep(pause)
            for stream in streams:
                stream.cancel()
        self.wait_until(self.is_empty, "everything is given back")
        self.assertEqual(len(tokens_of(list(self.stream(10)))), 10)

    def test_a_reader_that_stops_is_cut_off_and_slows_nobody(self):
        stuck = self.stream(90_000, pb["generation_pb2_grpc"].GenerationServiceStub(self.own_channel()),
                            sampling={"logprobs": 20})
        next(stuck)
        other = list(self.stream(500, timeout=30))
        self.assertEqual(len(tokens_of(other)), 500)
        self.wait_until(self.is_empty, "the reader is cut off")
        with self.assertRaises(grpc.RpcError) as caught:
            received = list(stuck)
            self.assertLess(len(received), 90_000)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(details(caught.exception)[0], "CAPACITY")
        self.assertIn("does not read", caught.exception.details())


class DrainTest(ServingTest):
    def server_for(self, *flags):
        server = self.start(*flags, store=self.id().rsplit(".", 1)[1])
        self.addCleanup(server.process.kill)
        return server, server.channel()

    def test_draining_says_so_turns_calls_away_and_ends_what_takes_too_long(self):
        server, channel = self.server_for("--drain-seconds-max", "2")
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        watch = self.own_channel(server).unary_stream("/grpc.health.v1.Health/Watch", request_serializer=lambda raw: raw,
                                                      response_deserializer=lambda raw: raw)(b"\x0a\x19c3po.v1.GenerationService")
        self.assertEqual(next(watch), b"\x08\x01")
        self.assertIn("ready", server.http("/readyz"))
        endless, short = self.stream(90_000, generation), self.stream(300, generation)
        next(endless), next(short)
        start = time.monotonic()
        server.process.terminate()
        self.assertEqual(next(watch), b"\x08\x02")
        self.assertLess(time.monotonic() - start, 1)
        with self.assertRaises(urllib.error.HTTPError) as unready:
            server.http("/readyz")
        self.assertEqual(unready.exception.code, 503)
        self.assertIn("alive", server.http("/healthz"))
        self.assertEqual(self.fails(grpc.StatusCode.UNAVAILABLE, lambda: list(self.stream(5, generation)))[0], "SHUTTING_DOWN")
        self.assertEqual(self.fails(grpc.StatusCode.UNAVAILABLE,
                                    lambda: generation.Tokenize(gen.TokenizeRequest(text="a")))[0], "SHUTTING_DOWN")
        self.assertEqual(len(tokens_of(list(short))), 299)  # One was read before.
        self.assertEqual(self.fails(grpc.StatusCode.UNAVAILABLE, lambda: list(endless))[0], "SHUTTING_DOWN")
        self.assertGreater(time.monotonic() - start, 1.5)
        self.assertEqual(server.stop(), 0)
        self.assertLess(time.monotonic() - start, 6)

    def test_old_connections_are_closed_in_peace(self):
        server, _ = self.server_for("--connection-age-seconds-max", "1")
        channel = self.own_channel(server)
        states, generation = [], pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        channel.subscribe(states.append, try_to_connect=True)
        long_stream = self.stream(90_000, generation)
        next(long_stream)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            self.assertEqual(len(tokens_of(list(self.stream(3, generation, timeout=5)))), 3)
            time.sleep(0.05)
        self.assertGreaterEqual(states.count(grpc.ChannelConnectivity.READY), 2, states)
        next(long_stream)  # Still runs, on its old connection.
        long_stream.cancel()
        self.wait_until(lambda: self.is_empty(server), "everything is given back")
        self.assertEqual(server.stop(), 0)


class ErrorsTest(unittest.TestCase):
    def test_every_reason_in_the_source_is_on_the_closed_list(self):
        self.assertEqual(len(DOCUMENTED), 12)
        used = set()
        for path in (server_process.SOURCE / "server").rglob("*.cc"):
            text = path.read_text()
            used.update(re.findall(r'WithReason\([^;]*?"([A-Z_]+)"\)', text, re.S))
            if path.name == "grpc_status.cc":
                used.update(re.findall(r'return "([A-Z_]+)"', text))
        self.assertEqual(used, set(DOCUMENTED))


if __name__ == "__main__":
    pathlib.Path(BINARY).resolve(strict=True)
    unittest.main(verbosity=2)
