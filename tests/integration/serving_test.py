"""Cancellation, readers that stop, drain and the closed list of errors, through a real channel. usage: serving_test.py C3POD C3PO"""

import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest
import urllib.error

import grpc

import server_process
from service_calls import DOCUMENTED, details, gen, opt, pb, ref, samples, tokens_of
from serving_case import SLOWDOWN, ServingCase


class CancellationTest(ServingCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        references = pb["reference_pb2_grpc"].ReferenceServiceStub(cls.channel)
        list(references.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(40)))

    def releases(self):
        """How many calls were cancelled and gave everything back, and how many of them within half a second."""
        count = self.metric("c3po_cancel_to_release_seconds_count")
        return count, self.metric(f'c3po_cancel_to_release_seconds_bucket{{le="{0.5 * SLOWDOWN:g}"}}')

    def ended(self):
        lines = self.server.http("/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("c3po_rpc_total") and 'method="Generate",service="GenerationService"' in line)

    def check_release(self, begin, reached):
        """Cancels the stream that `begin` makes once `reached` holds; everything must come back within a step. A machine that stands still
        for a moment may need longer, or may see the stage when it is over: one of five times counts."""
        for _ in range(5):
            before, ended = self.releases(), self.ended()
            stream = begin()
            self.wait_until(reached, "the stage to be cancelled in")
            stream.cancel()
            self.wait_until(lambda: self.is_empty() and self.ended() == ended + 1, "everything is given back")
            count, soon = self.releases()
            self.assertLessEqual(count, before[0] + 1)
            if soon == before[1] + 1:
                return
        self.fail(f"of five that were cancelled none was released within {0.5 * SLOWDOWN} s")

    def running(self):
        return self.metric("vllm:num_requests_running{model_name=\"long_tiny\"}") == 1

    def steps(self, work):
        return self.metric(f'c3po_engine_steps_total{{work="{work}"}}')

    def test_during_prefill(self):
        prompts = self.metric("vllm:prompt_tokens_total")

        def begin():
            self.before = self.steps("prefill")
            return self.stream(10, token_ids=gen.TokenIds(ids=[5] * 90_000))

        self.check_release(begin, lambda: self.steps("prefill") > self.before + 5)
        self.assertEqual(self.metric("vllm:prompt_tokens_total"), prompts)  # It was not read to its end.

    def test_during_the_optimization(self):
        options = opt.OptimizationOptions(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, collection="set", k=32, steps=1000,
                                          reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(enabled=False))

        def begin():
            self.before = self.steps("optimization")
            return self.stream(10, optimization=options, prompt="What is 50 modulo seven?")

        self.check_release(begin, lambda: self.steps("optimization") > self.before + 40)  # Its neighbors are prepared.
        self.assertLess(self.steps("optimization"), self.before + 1000)

    def test_during_decoding(self):
        def begin():
            stream = self.stream(90_000)
            next(stream)
            return stream

        self.check_release(begin, self.running)

    def test_a_deadline_ends_the_work(self):
        for _ in range(5):  # A machine that stands still for a second begins nothing in it.
            ended, tokens = self.ended(), self.metric("vllm:generation_tokens_total")
            with self.assertRaises(grpc.RpcError) as caught:
                list(self.stream(90_000, timeout=1))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
            self.wait_until(self.is_empty, "everything is given back")
            if self.metric("vllm:generation_tokens_total") > tokens:
                break
        self.assertGreater(self.metric("vllm:generation_tokens_total"), tokens)
        self.wait_until(lambda: self.ended() > ended, "the call has ended")

    def test_before_and_during_retrieval_many_at_once(self):
        options = opt.OptimizationOptions(method=opt.METHOD_KERNEL_REGRESSION, collection="set", k=8)
        for pause in (0, 0.001, 0.005, 0.02):
            streams = [self.stream(1000, optimization=options, prompt=f"What is {i} modulo seven?") for i in range(20)]
            time.sleep(pause)
            for stream in streams:
                stream.cancel()
        self.wait_until(self.is_empty, "everything is given back")
        self.assertEqual(len(tokens_of(list(self.stream(10)))), 10)

    def test_calls_of_a_client_that_died_before_they_were_read_are_cancelled(self):
        ended = 'c3po_rpc_total{code="CANCELLED",method="Generate",service="GenerationService"'
        before, wrong = self.metric(ended), self.metric(ended.replace("CANCELLED", "INVALID_ARGUMENT"))
        for _ in range(5):  # What is on its way may be the end of calls that the server has read before.
            self.kill_a_client_while_the_server_stands_still()
            self.wait_until(self.is_empty, "everything is given back")
            if self.metric(ended) > before:
                break
        self.wait_until(lambda: self.metric(ended) > before, "its calls end")
        self.wait_until(self.is_empty, "everything is given back")
        self.assertEqual(self.metric(ended.replace("CANCELLED", "INVALID_ARGUMENT")), wrong)

    def kill_a_client_while_the_server_stands_still(self):
        client = subprocess.Popen([self.cli, "bench", "--server", f"127.0.0.1:{self.server.port}", "--rate", "100", "--method", "none",
                                   "--duration", "3600", "--warmup", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(client.kill)
        answered = 'c3po_rpc_total{code="OK",method="Generate",service="GenerationService"'
        asked = self.metric(answered)
        self.wait_until(lambda: self.metric(answered) > asked + 5, "the client asks")
        self.server.process.send_signal(signal.SIGSTOP)
        self.wait_until(lambda: self.bytes_on_their_way() > 1000, "calls are on their way")
        client.kill()
        client.wait()
        self.server.process.send_signal(signal.SIGCONT)

    def bytes_on_their_way(self):
        """What the server has not read of its connections: local address, remote address, state, and queues in hexadecimal digits."""
        lines = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(int(line[4].split(":")[1], 16) for line in lines if line[1] == f"0100007F:{self.server.port:04X}" and line[3] == "01")

    def test_a_reader_that_stops_is_cut_off_and_slows_nobody(self):
        server = self.start("--unread-messages-max", 1024, store="unread")  # More than a reader that only is slow can leave: 500 in all.
        self.addCleanup(server.stop)
        # With a window that does not grow, the client's transport takes in 64 KiB; what it takes in counts as read.
        channel = self.own_channel(server, ("grpc.http2.bdp_probe", 0))
        stuck = self.stream(90_000, pb["generation_pb2_grpc"].GenerationServiceStub(channel), sampling={"logprobs": 20})
        next(stuck)
        other = list(self.stream(500, pb["generation_pb2_grpc"].GenerationServiceStub(self.own_channel(server)), timeout=120))
        self.assertEqual(len(tokens_of(other)), 500)
        self.wait_until(lambda: self.is_empty(server), "the reader is cut off")
        with self.assertRaises(grpc.RpcError) as caught:
            received = list(stuck)
            self.assertLess(len(received), 90_000)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(details(caught.exception)[0], "CAPACITY")
        self.assertIn("does not read", caught.exception.details())


class DrainTest(ServingCase):
    def server_for(self, *flags):
        server = self.start(*flags, store=self.id().rsplit(".", 1)[1])
        self.addCleanup(server.process.kill)
        return server, server.channel()

    def test_draining_says_so_turns_calls_away_and_ends_what_it_took(self):
        server, channel = self.server_for("--drain-seconds-max", 600)
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        watch = self.own_channel(server).unary_stream("/grpc.health.v1.Health/Watch", request_serializer=lambda raw: raw,
                                                      response_deserializer=lambda raw: raw)(b"\x0a\x19c3po.v1.GenerationService")
        self.assertEqual(next(watch), b"\x08\x01")
        self.assertIn("ready", server.http("/readyz"))
        endless, short = self.stream(90_000, generation), self.stream(300, generation)
        next(endless), next(short)
        server.process.terminate()
        self.assertEqual(next(watch), b"\x08\x02")
        with self.assertRaises(urllib.error.HTTPError) as unready:
            server.http("/readyz")
        self.assertEqual(unready.exception.code, 503)
        self.assertIn("alive", server.http("/healthz"))
        self.assertEqual(self.fails(grpc.StatusCode.UNAVAILABLE, lambda: list(self.stream(5, generation)))[0], "SHUTTING_DOWN")
        self.assertEqual(self.fails(grpc.StatusCode.UNAVAILABLE,
                                    lambda: generation.Tokenize(gen.TokenizeRequest(text="a")))[0], "SHUTTING_DOWN")
        self.assertEqual(len(tokens_of(list(short))), 300)
        self.assertIsNone(server.process.poll())
        endless.cancel()
        self.assertEqual(server.wait(), 0)

    def test_draining_ends_what_takes_too_long(self):
        server, channel = self.server_for("--drain-seconds-max", 2)
        endless = self.stream(90_000, pb["generation_pb2_grpc"].GenerationServiceStub(channel))
        next(endless)
        start = time.monotonic()
        server.process.terminate()
        self.assertEqual(self.fails(grpc.StatusCode.UNAVAILABLE, lambda: list(endless))[0], "SHUTTING_DOWN")
        self.assertGreater(time.monotonic() - start, 1.5)
        self.assertEqual(server.wait(), 0)

    def test_old_connections_are_closed_in_peace(self):
        server, _ = self.server_for("--connection-age-seconds-max", "1")
        channel = self.own_channel(server)
        states, generation = [], pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        channel.subscribe(states.append, try_to_connect=True)
        long_stream = self.stream(90_000, generation)
        next(long_stream)

        def answered_and_connected_again():
            self.assertEqual(len(tokens_of(list(self.stream(3, generation, timeout=60)))), 3)
            return states.count(grpc.ChannelConnectivity.READY) >= 3

        self.wait_until(answered_and_connected_again, "two connections more")
        next(long_stream)  # Still runs, on its old connection.
        long_stream.cancel()
        self.wait_until(lambda: self.is_empty(server), "everything is given back")
        self.assertEqual(server.stop(), 0)


class ErrorsTest(unittest.TestCase):
    def test_every_reason_in_the_source_is_on_the_closed_list(self):
        self.assertEqual(len(DOCUMENTED), 16)
        header = (server_process.SOURCE / "server/types/status_details.h").read_text()
        constants = dict(re.findall(r'(k\w+Reason) = "([A-Z_]+)"', header))
        used = set()
        for path in (server_process.SOURCE / "server").rglob("*.cc"):
            text = path.read_text()
            for name in re.findall(r"WithReason\([^;]*?,\s+(k\w+Reason)\)", text, re.S):
                used.add(constants[name])
            used.update(re.findall(r'WithReason\([^;]*?"([A-Z_]+)"\)', text, re.S))
            if path.name == "grpc_status.cc":
                used.update(re.findall(r'return "([A-Z_]+)"', text))
                used.update(constants[name] for name in re.findall(r"std::string\((k\w+Reason)\)", text))
        self.assertEqual(used, set(DOCUMENTED))


if __name__ == "__main__":
    ServingCase.cli = sys.argv.pop(2)
    ServingCase.binary = sys.argv.pop(1)
    pathlib.Path(ServingCase.binary).resolve(strict=True)
    unittest.main(verbosity=2)
