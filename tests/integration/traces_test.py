"""Traces of a real c3pod at a collector, under the spans of clients that OpenTelemetry instruments. The interpreter is the one with
opentelemetry-sdk of deploy/install_deps.sh.
usage: traces_test.py C3POD"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import unittest

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import foreign_stubs
import server_process
from server_case import ServerCase
from service_calls import gen, opt, pb, ref, samples, srv
from trace_collector import Collector, attributes

BINARY = sys.argv.pop(1)
CLIENT_SPANS = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(CLIENT_SPANS))
trace.set_tracer_provider(PROVIDER)
GrpcInstrumentorClient().instrument()
GrpcAioInstrumentorClient().instrument()

from c3po_client import AsyncClient, Client  # After the channels' makers are replaced; they are looked up when a client is made.

NGD = opt.OptimizationOptions(collection="set", method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, k=3, steps=4, validation_neighbors=2,
                              reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(enabled=False))
PLAIN = opt.OptimizationOptions(method=opt.METHOD_NONE)
PARENT = "4bf92f3577b34da6a3ce929d0e0e47{:02x}"


def traceparent(number, flags="01"):
    return f"00-{PARENT.format(number)}-00f067aa0ba902b7-{flags}"


def client_spans():
    """Those that have ended since the last call, by name."""
    spans = {span.name: span for span in CLIENT_SPANS.get_finished_spans()}
    CLIENT_SPANS.clear()
    return spans


def id_of(span):
    return f"{span.get_span_context().trace_id:032x}"


def call_lines(server, method, count=1):
    """The log's lines of calls of a method, once there are so many. A thread writes them."""
    for _ in range(3000):
        lines = [json.loads(line) for line in list(server.log) if '"event":"call"' in line]
        lines = [line for line in lines if line["method"] == method]
        if len(lines) >= count:
            return lines
        time.sleep(0.02)
    raise AssertionError(f"{len(lines)} lines of {method}")


def events(server, event):
    return [line for line in map(json.loads, list(server.log)) if line["event"] == event]


class TracesTest(ServerCase):
    binary, FLAGS = BINARY, server_process.FEW_STEPS

    @classmethod
    def started(cls):
        cls.collector = Collector()
        cls.addClassCleanup(cls.collector.stop)
        return server_process.ServerProcess(cls.binary, cls.folder, "--otlp-traces-endpoint", f"http://127.0.0.1:{cls.collector.port}",
                                            *cls.FLAGS)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.add("set", samples(40))
        cls.target = f"127.0.0.1:{cls.server.port}"
        bare = cls.bare = grpc.insecure_channel.__wrapped__(cls.target)  # Not instrumented.
        cls.addClassCleanup(bare.close)
        cls.bare_generation = pb["generation_pb2_grpc"].GenerationServiceStub(bare)

    def setUp(self):
        client_spans()

    def whole(self, client):
        """The server's span and those under it, of a client's span."""
        spans = self.collector.whole(id_of(client))
        [server] = [span for span in spans if span.kind == span.SPAN_KIND_SERVER]
        self.assertEqual(server.parent_span_id.hex(), f"{client.get_span_context().span_id:016x}")
        return server, [span for span in spans if span is not server]

    def ask(self, number, flags="01", state=None, request=None, **options):
        """A call with these headers; its events."""
        metadata = [("traceparent", traceparent(number, flags))] + ([("tracestate", state)] if state else [])
        request = request or gen.GenerateRequest(prompt="a", sampling=gen.SamplingOptions(max_tokens=2, ignore_eos=True), optimization=PLAIN)
        return list(self.bare_generation.Generate(request, metadata=metadata, timeout=60, **options))

    def test_an_answers_trace_arrives_whole(self):
        request = gen.GenerateRequest(prompt="What is 3 modulo seven?", request_id="traced", optimization=NGD,
                                      sampling=gen.SamplingOptions(max_tokens=6, ignore_eos=True, temperature=0.5, seed=1))
        answer = list(self.generation.Generate(request, timeout=60))
        client = client_spans()["/c3po.v1.GenerationService/Generate"]
        server, stages = self.whole(client)
        self.assertEqual(server.name, "c3po.v1.GenerationService/Generate")
        self.assertLessEqual(client.start_time, server.start_time_unix_nano)
        self.assertLessEqual(server.end_time_unix_nano, client.end_time)
        names = [span.name for span in stages]
        for name in ("queue", "tokenize", "prefill", "retrieve", "optimize", "decode"):
            self.assertIn(name, names)
        self.assertTrue(all(span.parent_span_id == server.span_id for span in stages))
        end = server.start_time_unix_nano
        for span in sorted(stages, key=lambda span: span.start_time_unix_nano):  # One after the other, rounding of doubles aside.
            self.assertGreaterEqual(span.start_time_unix_nano, end - 1000, names)
            self.assertGreaterEqual(span.end_time_unix_nano, span.start_time_unix_nano)
            end = span.end_time_unix_nano
        self.assertLessEqual(end, server.end_time_unix_nano)
        covered = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in stages)
        self.assertGreater(covered, 0.8 * (server.end_time_unix_nano - server.start_time_unix_nano))
        report, summary = answer[0].optimization, answer[-1].summary
        told = attributes(server)
        self.assertEqual({key: told[key] for key in ("rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code", "gen_ai.operation.name",
                                                     "gen_ai.request.model", "gen_ai.request.max_tokens", "gen_ai.response.id", "c3po.collection")},
                         {"rpc.system": "grpc", "rpc.service": "c3po.v1.GenerationService", "rpc.method": "Generate", "rpc.grpc.status_code": 0,
                          "gen_ai.operation.name": "text_completion", "gen_ai.request.model": "mixtral_tiny", "gen_ai.request.max_tokens": 6,
                          "gen_ai.response.id": "traced", "c3po.collection": "set"})
        self.assertEqual((told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]),
                         (summary.usage.prompt_tokens, summary.usage.completion_tokens))
        self.assertEqual(told["gen_ai.response.finish_reasons"], ["length"])
        self.assertEqual(told["network.peer.address"], "127.0.0.1")
        [optimize] = [attributes(span) for span in stages if span.name == "optimize"]
        self.assertEqual((optimize["c3po.optimization.steps"], optimize["c3po.neighbors"]), (4, 3))
        self.assertEqual(optimize["c3po.optimization.loss_before"], report.losses[0])
        self.assertEqual(optimize["c3po.optimization.loss_after"], report.losses[report.selected_step])
        self.assertEqual(optimize["c3po.gate"], opt.GateDecision.Name(report.gate).removeprefix("GATE_DECISION_").lower())
        [decode] = [span for span in stages if span.name == "decode"]
        [first] = decode.events
        self.assertTrue(decode.start_time_unix_nano <= first.time_unix_nano <= decode.end_time_unix_nano)
        [line] = [line for line in call_lines(self.server, "GenerationService/Generate") if line.get("request_id") == "traced"]
        self.assertEqual((line["trace_id"], line["span_id"]), (id_of(client), server.span_id.hex()))
        resource = self.collector.resources[0]
        self.assertEqual(resource["service.name"], "c3pod")
        self.assertTrue(resource["service.version"] and len(resource["service.instance.id"]) == 36)

    def test_every_kind_of_call_has_a_span(self):
        self.generation.Score(gen.ScoreRequest(prompt="a", continuations=[" b", " c"], optimization=PLAIN), timeout=60)
        self.add("other", samples(3))
        self.references.GetStats(ref.GetStatsRequest(), timeout=60)
        pb["server_pb2_grpc"].ServerServiceStub(self.channel).GetServerInfo(srv.GetServerInfoRequest(), timeout=60)
        spans = client_spans()
        for name in ("GenerationService/Score", "ReferenceService/Add", "ReferenceService/GetStats", "ServerService/GetServerInfo"):
            server, stages = self.whole(spans[f"/c3po.v1.{name}"])
            self.assertEqual(server.name, f"c3po.v1.{name}")
            self.assertEqual([span.name for span in stages], ["queue", "tokenize", "queue", "prefill", "decode"] if "Score" in name else [])

    def test_requests_of_a_kserve_stream_have_spans_of_their_own(self):
        stubs = foreign_stubs.make_stubs("kserve", "grpc_service.proto", "model_config.proto")
        kserve = stubs["grpc_service_pb2"]

        def request(model):
            tensor = kserve.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(b"a")
            parameters = {"max_tokens": kserve.InferParameter(int64_param=2), "c3po_method": kserve.InferParameter(string_param="none")}
            return kserve.ModelInferRequest(model_name=model, inputs=[tensor], parameters=parameters)

        stub = stubs["grpc_service_pb2_grpc"].GRPCInferenceServiceStub(self.bare)
        answers = list(stub.ModelStreamInfer(iter([request("mixtral_tiny"), request("another"), request("mixtral_tiny")]),
                                             metadata=[("traceparent", traceparent(1))], timeout=60))
        self.assertEqual(sum(bool(answer.error_message) for answer in answers), 1)
        spans = self.collector.whole(PARENT.format(1))
        [server] = [span for span in spans if span.kind == span.SPAN_KIND_SERVER]
        self.assertEqual(server.name, "inference.GRPCInferenceService/ModelStreamInfer")
        requests = [span for span in spans if span.name == "request"]
        self.assertEqual([span.parent_span_id for span in requests], [server.span_id] * 3)
        self.assertEqual([attributes(span)["rpc.grpc.status_code"] for span in requests], [0, 5, 0])
        for span in (requests[0], requests[2]):
            self.assertEqual([each.name for each in spans if each.parent_span_id == span.span_id],
                             ["queue", "tokenize", "queue", "prefill", "decode"])

    def test_what_the_caller_decided_is_kept_and_its_state_passed_on(self):
        self.ask(2, flags="00")
        self.ask(3, flags="01", state="congo=t61rcWkgMzE, rojo=1")
        spans = self.collector.whole(PARENT.format(3))
        self.assertEqual({span.trace_state for span in spans}, {"congo=t61rcWkgMzE,rojo=1"})
        [server] = [span for span in spans if span.kind == span.SPAN_KIND_SERVER]
        self.assertEqual(server.parent_span_id.hex(), "00f067aa0ba902b7")
        self.assertEqual(self.collector.of(PARENT.format(2)), [])  # It was the first of the two.
        lines = {line.get("trace_id"): line for line in call_lines(self.server, "GenerationService/Generate", 2)}
        self.assertNotIn("span_id", lines[PARENT.format(2)])
        self.assertIn("span_id", lines[PARENT.format(3)])

    def test_a_call_without_a_trace_or_with_a_broken_one_begins_its_own(self):
        for number, metadata in enumerate(([], [("traceparent", "00-zz")], [("tracestate", "a=1")])):
            request = gen.GenerateRequest(prompt="a", request_id=f"root-{number}", optimization=PLAIN,
                                          sampling=gen.SamplingOptions(max_tokens=1, ignore_eos=True))
            list(self.bare_generation.Generate(request, metadata=metadata, timeout=60))
            lines = []
            while not lines:
                lines = [line for line in call_lines(self.server, "GenerationService/Generate") if line.get("request_id") == f"root-{number}"]
            spans = self.collector.whole(lines[0]["trace_id"])
            self.assertEqual([span.parent_span_id for span in spans if span.kind == span.SPAN_KIND_SERVER], [b""])

    def test_a_callers_fault_is_no_error_of_the_servers(self):
        with self.assertRaises(grpc.RpcError):
            self.ask(6, request=gen.GenerateRequest(prompt="a", sampling=gen.SamplingOptions(temperature=-1)))
        [server] = self.collector.whole(PARENT.format(6))
        self.assertEqual(attributes(server)["error.type"], "INVALID_ARGUMENT")
        self.assertEqual(server.status.code, server.status.STATUS_CODE_UNSET)

    def test_clients_of_c3po_client_are_instrumented_like_any(self):
        with Client(self.target) as client:
            self.assertTrue(client.generate("a", sampling={"max_tokens": 2, "ignore_eos": True}, optimization={"method": "none"}).token_ids_so_far() == [])
            client.choose("a", [" b", " c"], optimization={"method": "none"})
            with client.generate("a", sampling={"max_tokens": 50, "ignore_eos": True}, optimization={"method": "none"}) as generation:
                next(generation)
            outcome = client.references.add([{"prompt": "x", "answer": " y"}], collection="client")
            self.assertEqual(outcome.progress.received, 1)
            client.score("a", [" b"], optimization={"method": "none"})
        spans = client_spans()
        for name in ("GenerationService/Generate", "GenerationService/Score", "ReferenceService/Add"):
            self.whole(spans[f"/c3po.v1.{name}"])

    def test_the_asyncio_client_is_instrumented_like_any(self):
        async def calls():
            async with AsyncClient(self.target) as client:
                await client.generate("a", sampling={"max_tokens": 2, "ignore_eos": True}, optimization={"method": "none"}).text()
                await client.choose("a", [" b", " c"], optimization={"method": "none"})
                await client.score("a", [" b"], optimization={"method": "none"})
        asyncio.run(calls())
        spans = client_spans()
        for name in ("GenerationService/Generate", "GenerationService/Score"):
            self.whole(spans[f"/c3po.v1.{name}"])

    def test_a_client_may_bring_a_trace_by_metadata(self):
        GrpcInstrumentorClient().uninstrument()
        GrpcAioInstrumentorClient().uninstrument()
        self.addCleanup(GrpcInstrumentorClient().instrument)
        self.addCleanup(GrpcAioInstrumentorClient().instrument)
        with Client(self.target) as client:
            traced = client.with_metadata([("traceparent", traceparent(7))])
            traced.score("a", [" b"], optimization={"method": "none"})
            client.generate("a", sampling={"max_tokens": 1}, optimization={"method": "none"}, metadata=[("traceparent", traceparent(8))]).text()

        async def calls():
            async with AsyncClient(self.target) as client:
                await client.with_metadata([("traceparent", traceparent(9))]).references.stats()
                await client.score("a", [" b"], optimization={"method": "none"}, metadata=[("traceparent", traceparent(10))])
        asyncio.run(calls())
        for number in (7, 8, 9, 10):
            self.collector.whole(PARENT.format(number))


class CollectorAwayTest(unittest.TestCase):
    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, self.folder)

    def start(self, *flags, environment=None, **keywords):
        launcher = ("env", *(f"{name}={value}" for name, value in (environment or {}).items()))
        server = server_process.ServerProcess(BINARY, self.folder, *flags, launcher=launcher, **keywords)
        self.addCleanup(server.stop)
        channel = grpc.insecure_channel.__wrapped__(f"127.0.0.1:{server.port}")
        self.addCleanup(channel.close)
        self.generation = pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        return server

    def ask(self, number=None, calls=1):
        metadata = [] if number is None else [("traceparent", traceparent(number))]
        for _ in range(calls):
            self.generation.Tokenize(gen.TokenizeRequest(text="a"), metadata=metadata, timeout=60)

    def spans(self, server, result):
        [line] = [line for line in server.http("/metrics").splitlines() if line.startswith(f'c3po_trace_spans_total{{result="{result}"}}')]
        return float(line.rsplit(" ", 1)[1])

    def test_a_collector_that_is_away_costs_nothing_but_a_line_and_gets_what_waited(self):
        first = Collector()
        server = self.start("--otlp-traces-endpoint", f"http://127.0.0.1:{first.port}")
        self.ask(20)
        first.whole(PARENT.format(20))
        first.stop()
        for _ in range(100):
            self.ask(21)
        for _ in range(3000):
            if events(server, "traces_not_sent"):
                break
            time.sleep(0.02)
        self.ask(22, calls=50)
        second = Collector(first.port)
        self.addCleanup(second.stop)
        self.assertEqual(len(second.whole(PARENT.format(21))), 100)
        second.whole(PARENT.format(22))
        self.ask(23)
        second.whole(PARENT.format(23))
        self.assertEqual(len(events(server, "traces_not_sent")), 1)
        self.assertEqual(len(events(server, "traces_sent")), 1)
        self.assertLess(len(server.log), 300)  # 152 calls, and the start.
        self.assertEqual((self.spans(server, "exported"), self.spans(server, "dropped")), (152, 0))

    def test_a_collector_that_never_was_drops_what_finds_no_room(self):
        gone = Collector()
        gone.stop()
        server = self.start("--otlp-traces-endpoint", f"http://127.0.0.1:{gone.port}")
        self.ask(calls=8300)  # A span each; 8192 have room.
        self.assertGreaterEqual(self.spans(server, "dropped"), 108)
        self.assertEqual(self.spans(server, "exported"), 0)
        begin = time.monotonic()
        self.assertEqual(server.stop(), 0)
        self.assertLess(time.monotonic() - begin, 30)
        self.assertEqual(len(events(server, "traces_not_sent")), 1)

    def test_what_waits_is_sent_before_the_server_ends(self):
        collector = Collector()
        self.addCleanup(collector.stop)
        server = self.start("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.port}")
        self.ask(24, calls=20)
        self.assertEqual(server.stop(signal.SIGTERM), 0)
        self.assertEqual(len(collector.of(PARENT.format(24))), 20)

    def test_a_collector_that_hangs_keeps_nobody(self):
        collector = Collector()
        self.addCleanup(collector.stop)
        collector.hangs.set()
        server = self.start("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.port}")
        begin = time.monotonic()
        self.ask(25, calls=600)  # More than a batch.
        self.assertEqual(server.stop(), 0)
        self.assertLess(time.monotonic() - begin, 60)
        collector.hangs.clear()

    def test_calls_without_a_trace_are_sampled_by_the_ratio(self):
        collector = Collector()
        self.addCleanup(collector.stop)
        server = self.start("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.port}", "--otlp-traces-sample-ratio", "0")
        self.ask(calls=5)
        self.ask(26)
        server.stop()
        self.assertEqual([span.trace_id.hex() for span in collector.spans], [PARENT.format(26)])

    def test_without_the_setting_nothing_is_traced(self):
        server = self.start(environment={"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"})
        self.ask(27)
        [line] = call_lines(server, "GenerationService/Tokenize")
        self.assertNotIn("trace_id", line)
        self.assertEqual(events(server, "traces"), [])

    def test_tls_headers_and_names_of_the_environment(self):
        key, certificate = self.folder / "key.pem", self.folder / "certificate.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        collector = Collector(credentials=credentials)
        self.addCleanup(collector.stop)
        server = self.start("--otlp-traces-endpoint", f"https://127.0.0.1:{collector.port}", "--otlp-traces-ca", str(certificate),
                            environment={"OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=se%2Fcret", "OTEL_SERVICE_NAME": "mine"})
        self.ask(28)
        collector.whole(PARENT.format(28))
        self.assertEqual(collector.metadata[0]["x-api-key"], "se/cret")
        self.assertEqual(collector.resources[0]["service.name"], "mine")
        self.assertNotIn("cret", "".join(server.log))

    def test_a_wrong_header_ends_the_start_without_its_value(self):
        done = subprocess.run([BINARY, "--model", str(server_process.TINY_MODEL), "--embedder", "model", "--listen", "127.0.0.1:0",
                               "--metrics-port", "-1", "--store", str(self.folder / "s.db"), "--otlp-traces-endpoint", "http://127.0.0.1:1"],
                              capture_output=True, text=True, timeout=60,
                              env={**os.environ, "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-key secret"})
        self.assertEqual(done.returncode, 1)
        self.assertIn("OTEL_EXPORTER_OTLP_TRACES_HEADERS: entry 1 is not name=value", done.stderr)
        self.assertNotIn("secret", done.stderr)


if __name__ == "__main__":
    unittest.main()
