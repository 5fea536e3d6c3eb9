"""Limits, backpressure, fair share and deadlines through a real channel. usage: limits_test.py C3POD C3PO"""

import hashlib
import pathlib
import re
import subprocess
import sys
import unittest

import grpc

from service_calls import details, gen, opt, pb, ref, samples, srv, tokens_of
from serving_case import ServingCase


class LimitsTest(ServingCase):
    FLAGS = ("--pending-requests-max", 8, "--running-sequences-max", 2, "--pending-tokens-max", 1_000_000,
             "--prompt-tokens-max", 40_000, "--output-tokens-max", 60_000, "--stop-strings-max", 2, "--stop-string-bytes-max", 10,
             "--logit-bias-max", 3, "--continuations-max", 3, "--connection-streams-max", 20)

    @classmethod
    def start(cls, *flags, store="a"):
        digest = lambda token: hashlib.sha256(token.encode()).hexdigest()
        tokens = cls.folder / "tokens"
        if not tokens.exists():  # A server that runs looks at it, and must not find it half written.
            tokens.write_text(f"ann generate {digest('a')}\nben references {digest('b')}\ncleo administer {digest('c')}\n")
        return super().start(*flags, "--auth-tokens", tokens, store=store)

    ANN, BEN, CLEO = ([("authorization", f"Bearer {token}")] for token in "abc")

    def hold(self, count, metadata, generation=None):
        """`count` requests that stay until they are cancelled: their answers take minutes."""
        streams = [self.stream(60_000, generation, metadata=metadata) for _ in range(count)]
        for stream in streams:
            self.addCleanup(stream.cancel)
        return streams

    def held(self, *holds):
        """The streams of `hold(COUNT, METADATA)` for each of `holds`, all of them pending. They are begun again where one found no place:
        those before give theirs back a moment after the gauges are zero."""
        for _ in range(10):
            streams = [stream for hold in holds for stream in self.hold(*hold)]
            self.wait_until(lambda: self.pending() == len(streams) or any(stream.done() for stream in streams), f"{holds} are pending")
            if not any(stream.done() for stream in streams):
                return streams
            self.clear(streams)
        self.fail(f"{holds} were never pending at once")

    def refused(self, metadata=None, max_tokens=10, generation=None):
        """What a request gets that finds no place."""
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stream(max_tokens, generation, metadata=metadata or self.ANN, timeout=120))
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

    def pending(self, server=None):
        label = "{model_name=\"long_tiny\"}"
        return self.metric(f"vllm:num_requests_running{label}", server) + self.metric(f"vllm:num_requests_waiting{label}", server)

    def test_every_limit_is_printed_and_told_to_clients(self):
        printed = subprocess.run([self.binary, "--print-config", *map(str, self.FLAGS)], capture_output=True, text=True, check=True).stdout
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
                 ("sampling.logit_bias", lambda: list(self.stream(5, metadata=self.ANN, sampling={"logit_bias": {i: 1 for i in range(4)}}))),
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
        streams = self.held((7, self.ANN))
        self.assertIn("7 of its requests", self.refused())
        self.clear(streams)
        streams = self.held((7, self.ANN), (1, self.BEN))  # The last place is for a caller that has none.
        self.assertIn("8 requests", self.refused(self.BEN))
        self.clear(streams)
        self.assertEqual(len(tokens_of(list(self.stream(10, metadata=self.ANN)))), 10)

    def test_compressed_messages_are_not_taken(self):
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with self.assertRaises(grpc.RpcError) as caught:
                self.generation.Tokenize(gen.TokenizeRequest(text="a"), metadata=self.ANN, compression=compression)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
            self.assertIn(compression.name.lower(), caught.exception.details())

    def test_the_queue_is_bounded_in_tokens_too(self):
        server = self.start(*self.FLAGS, "--pending-tokens-max", 150_000, store="tokens")
        self.addCleanup(server.stop)
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(self.own_channel(server))
        streams = self.hold(2, self.ANN, generation)
        self.wait_until(lambda: self.pending(server) == 2, "both are pending")
        self.assertIn("150000", self.refused(max_tokens=40_000, generation=generation))
        for stream in streams:
            stream.cancel()
        self.wait_until(lambda: self.is_empty(server), "everything is given back")

    def test_long_texts_are_tokenized_by_workers_and_find_no_place_beyond_their_queue(self):
        # On gRPC's own threads they would all be served, and health checks and every other call wait meanwhile.
        server = self.start("--workers", 1, "--pending-requests-max", 1, store="workers")
        self.addCleanup(server.stop)
        tokenize = pb["generation_pb2_grpc"].GenerationServiceStub(self.own_channel(server)).Tokenize
        calls = [tokenize.future(gen.TokenizeRequest(text="Hello, how are you? " * 100_000), metadata=self.ANN) for _ in range(6)]
        errors = [error for error in (call.exception() for call in calls) if error is not None]
        self.assertGreater(len(errors), 0)
        self.assertLess(len(errors), 6, errors)
        for error in errors:
            self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, error.details())
            self.assertRegex(error.details(), "worker|requests")  # Of the workers' queue, or of all requests.

    def test_a_caller_gets_its_share(self):
        streams = self.held((1, self.BEN), (3, self.ANN))
        self.assertIn("share", self.refused(self.ANN))
        self.clear(streams)
        self.clear(self.held((1, self.BEN), (3, self.ANN), (2, self.BEN)))

    def test_a_deadline_shortens_the_optimization_or_refuses_at_once(self):
        references = pb["reference_pb2_grpc"].ReferenceServiceStub(self.channel)
        list(references.Add((ref.AddReferencesRequest(collection="set", sample=s) for s in samples(20)), metadata=self.BEN))
        ngd = lambda steps: opt.OptimizationOptions(
            method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, collection="set", k=4, steps=steps,
            reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(enabled=False))
        ask = lambda steps, timeout: list(self.stream(2, metadata=self.ANN, timeout=timeout, optimization=ngd(steps),
                                                      prompt="What is 50 modulo seven?"))
        full = [ask(1000, 600)[0].optimization for _ in range(3)]
        for report in full:
            self.assertEqual(len(report.losses), 1001)
            self.assertFalse(report.shortened)
        # Estimates are of the past, and deadlines have room for a call's other parts: the one that fits is found.
        events, seconds = None, 0.6 * min(report.timings.optimization_seconds for report in full) + 0.1
        for _ in range(50):
            try:
                events = ask(1000, seconds)
                if events[0].optimization.shortened:
                    break
                seconds *= 0.8
            except grpc.RpcError as error:
                self.assertEqual(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
                seconds *= 1.1
        self.assertIsNotNone(events, "no deadline of fifty was kept")
        self.assertTrue(events[0].optimization.shortened)
        self.assertLess(len(events[0].optimization.losses), 1000)
        self.assertGreater(len(events[0].optimization.losses), 1)
        self.assertEqual(len(tokens_of(events)), 2)
        # A prompt that takes far longer to read than there is time: the server says so before the deadline passes.
        # Where the machine stood still, the client gave up first, and has no reason: that is no fault of the server's.
        summaries = [list(self.stream(2, metadata=self.ANN, prompt="What is 50 modulo seven?"))[-1].summary for _ in range(5)]
        seconds = 40_000 * min(summary.timings.prefill_seconds / summary.usage.prompt_tokens for summary in summaries)
        for share in 10 * (0.1, 0.2, 0.4):
            with self.assertRaises(grpc.RpcError) as caught:
                list(self.stream(2, metadata=self.ANN, timeout=min(5, share * seconds), token_ids=gen.TokenIds(ids=[5] * 40_000)))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
            said = caught.exception.details()
            if "cannot be met" in said:
                break
        self.assertIn("cannot be met", said)
        self.assertEqual(details(caught.exception)[0], "DEADLINE")

    def test_calls_beyond_the_connections_streams_wait_for_it_alone(self):
        channel = self.own_channel()
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", request_serializer=lambda raw: raw,
                                     response_deserializer=lambda raw: raw)
        watches = [watch(b"") for _ in range(20)]
        for one in watches:
            next(one)
        info = lambda c, timeout=60: pb["server_pb2_grpc"].ServerServiceStub(c).GetServerInfo(
            srv.GetServerInfoRequest(), metadata=self.ANN, timeout=timeout)
        with self.assertRaises(grpc.RpcError) as caught:
            info(channel, 0.5)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        info(self.own_channel())
        watches[0].cancel()
        info(channel)
        for one in watches:
            one.cancel()


if __name__ == "__main__":
    sys.argv.pop(2)
    ServingCase.binary = sys.argv.pop(1)
    pathlib.Path(ServingCase.binary).resolve(strict=True)
    unittest.main(verbosity=2)
