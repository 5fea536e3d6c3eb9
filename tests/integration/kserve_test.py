"""KServe's Open Inference Protocol v2 over gRPC, by stubs of its own descriptors: what it answers is what c3po.v1 answers.
usage: kserve_test.py C3POD"""

import struct
import sys
import unittest

import grpc

import foreign_stubs
import server_process
from server_case import ServerCase
from service_calls import details, gen, opt, ref, samples
from serving_case import ServingCase

BINARY = sys.argv.pop(1)
stubs = foreign_stubs.make_stubs("kserve", "grpc_service.proto", "model_config.proto")
kserve = stubs["grpc_service_pb2"]
SERVICE = "inference.GRPCInferenceService"
MODEL = "mixtral_tiny"
PROMPT = "Which gas do plants take in?"


def service(channel):
    return stubs["grpc_service_pb2_grpc"].GRPCInferenceServiceStub(channel)


def parameter(value):
    kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
    return kserve.InferParameter(**{kind: value})


def request(text=PROMPT, model=MODEL, raw=False, id="", **parameters):
    tensor = kserve.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])
    contents = {"raw_input_contents": [struct.pack("<I", len(text.encode())) + text.encode()]} if raw else {}
    if not raw:
        tensor.contents.bytes_contents.append(text.encode())
    return kserve.ModelInferRequest(model_name=model, id=id, inputs=[tensor], parameters={k: parameter(v) for k, v in parameters.items()}, **contents)


def text_of(response):
    [output] = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("text_output", "BYTES", [1])
    if response.raw_output_contents:
        [raw] = response.raw_output_contents
        assert struct.unpack("<I", raw[:4]) == (len(raw) - 4,)
        return raw[4:].decode()
    return output.contents.bytes_contents[0].decode()


class KserveTest(ServerCase):
    binary, FLAGS = BINARY, server_process.FEW_STEPS

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.kserve = service(cls.channel)
        cls.add("set", samples(40))

    def ours(self, optimization=None, prompt=PROMPT, **sampling):
        events = list(self.generation.Generate(gen.GenerateRequest(prompt=prompt, sampling=gen.SamplingOptions(**sampling),
                                                                   optimization=optimization), timeout=60))
        return "".join(event.delta.text for event in events), events[-1].summary, events[0].optimization

    def fails(self, code, field, made):
        with self.assertRaises(grpc.RpcError) as caught:
            made()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        if field is not None:
            self.assertEqual(details(caught.exception)[1], [field], caught.exception.details())
        return caught.exception

    def stream(self, *requests):
        return list(self.kserve.ModelStreamInfer(iter(requests), timeout=60))

    def test_the_answer_is_that_of_c3po(self):
        options = dict(max_tokens=9, ignore_eos=True, temperature=0.75, top_k=40, seed=5)
        text, summary, _ = self.ours(**options)
        for raw in (False, True):
            response = self.kserve.ModelInfer(request(raw=raw, id="x", **options), timeout=60)
            self.assertEqual(text_of(response), text)
            self.assertEqual(bool(response.raw_output_contents), raw)
            self.assertEqual((response.model_name, response.model_version, response.id), (MODEL, "1", "x"))
            told = response.parameters
            self.assertEqual((told["finish_reason"].string_param, told["prompt_tokens"].int64_param, told["completion_tokens"].int64_param),
                             ("length", summary.usage.prompt_tokens, 9))

    def test_a_stream_has_pieces_and_a_last_response(self):
        text, _, _ = self.ours(max_tokens=9, ignore_eos=True)
        responses = [answer.infer_response for answer in self.stream(request(max_tokens=9, ignore_eos=True, id="s"))]
        self.assertGreater(len(responses), 2)
        self.assertEqual("".join(map(text_of, responses)), text)
        self.assertEqual([answer.parameters["triton_final_response"].bool_param for answer in responses], [False] * (len(responses) - 1) + [True])
        self.assertEqual({answer.id for answer in responses}, {"s"})
        self.assertEqual(responses[-1].parameters["completion_tokens"].int64_param, 9)
        [whole] = self.stream(request(max_tokens=9, ignore_eos=True, stream=False))
        self.assertEqual(text_of(whole.infer_response), text)

    def test_a_stream_takes_requests_one_after_the_other_and_survives_wrong_ones(self):
        ask = dict(max_tokens=3, ignore_eos=True, stream=False)
        answers = self.stream(request(id="1", **ask), request(id="2", model="another", **ask), request(id="3", temperature=-1.0, **ask),
                              request(id="4", text="Who?", **ask))
        self.assertEqual([(answer.infer_response.id, bool(answer.error_message)) for answer in answers],
                         [("1", False), ("2", True), ("3", True), ("4", False)])
        self.assertTrue(answers[1].error_message.startswith("model_name: "))
        self.assertTrue(answers[2].error_message.startswith("parameters.temperature: "), answers[2].error_message)
        self.assertEqual(text_of(answers[3].infer_response), self.ours(prompt="Who?", max_tokens=3, ignore_eos=True)[0])
        self.assertEqual(self.stream(), [])

    def test_model_name_and_parameters_choose_the_optimization(self):
        options = opt.OptimizationOptions(collection="set", method=opt.METHOD_KERNEL_REGRESSION, k=2)
        text, _, report = self.ours(options, max_tokens=8, ignore_eos=True)
        gate = opt.GateDecision.Name(report.gate).removeprefix("GATE_DECISION_").lower()
        for model, chosen in ((f"{MODEL}@set", {}), (MODEL, {"c3po_collection": "set"})):
            response = self.kserve.ModelInfer(request(model=model, max_tokens=8, ignore_eos=True, c3po_method="kernel", c3po_k=2, **chosen), timeout=60)
            self.assertEqual(text_of(response), text)
            self.assertEqual((response.parameters["c3po_method"].string_param, response.parameters["c3po_gate"].string_param),
                             ("kernel_regression", gate))
            self.assertEqual(response.model_name, model)

    def test_what_is_wrong_is_named(self):
        infer = lambda **fields: self.kserve.ModelInfer(request(**fields), timeout=60)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "parameters.magic", lambda: infer(magic=1))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "parameters.top_p", lambda: infer(top_p=2.0))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "parameters.c3po_method", lambda: infer(c3po_method="magic"))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "inputs[0]", lambda: infer(text=""))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "parameters.c3po_k", lambda: infer(c3po_method="kernel", c3po_collection="set", c3po_k=0))
        self.fails(grpc.StatusCode.NOT_FOUND, None, lambda: infer(model="another"))
        raw = self.channel.unary_unary(f"/{SERVICE}/ModelInfer", request_serializer=lambda r: r, response_deserializer=lambda r: r)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "request", lambda: raw(b"\xff\xff"))

    def test_health_and_metadata(self):
        self.assertTrue(self.kserve.ServerLive(kserve.ServerLiveRequest()).live)
        self.assertTrue(self.kserve.ServerReady(kserve.ServerReadyRequest()).ready)
        ready = lambda name, version="": self.kserve.ModelReady(kserve.ModelReadyRequest(name=name, version=version)).ready
        self.assertEqual([ready(MODEL), ready(MODEL, "1"), ready(f"{MODEL}@set"), ready(MODEL, "2"), ready("another")],
                         [True, True, True, False, False])
        metadata = self.kserve.ModelMetadata(kserve.ModelMetadataRequest(name=MODEL))
        self.assertEqual([(t.name, t.datatype, list(t.shape)) for t in (*metadata.inputs, *metadata.outputs)],
                         [("text_input", "BYTES", [1]), ("text_output", "BYTES", [1])])
        self.fails(grpc.StatusCode.NOT_FOUND, None, lambda: self.kserve.ModelMetadata(kserve.ModelMetadataRequest(name="another")))
        self.assertEqual(self.kserve.ServerMetadata(kserve.ServerMetadataRequest()).name, "c3pod")
        with self.assertRaises(grpc.RpcError) as caught:
            self.kserve.RepositoryIndex(kserve.RepositoryIndexRequest())
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)


class AdversariesTest(ServingCase):
    binary = BINARY

    @staticmethod
    def long(**fields):
        return request(model="long_tiny", max_tokens=90_000, ignore_eos=True, **fields)

    def test_a_cancelled_call_gives_everything_back(self):
        for begin in (lambda: service(self.channel).ModelInfer.future(self.long()),
                      lambda: service(self.channel).ModelStreamInfer(iter([self.long()]))):
            call = begin()
            self.wait_until(lambda: self.metric("vllm:num_requests_running") == 1, "it runs")
            call.cancel()
            self.wait_until(self.is_empty, "everything is given back")

    def test_a_reader_that_stops_is_cut_off(self):
        server = self.start("--unread-messages-max", 64, store="unread")
        self.addCleanup(server.stop)
        stuck = service(self.own_channel(server, ("grpc.http2.bdp_probe", 0))).ModelStreamInfer(iter([self.long(id="x" * 1000)]))
        next(stuck)
        self.wait_until(lambda: self.metric("c3po_cancel_to_release_seconds_count", server) >= 1, "the reader is cut off")
        self.wait_until(lambda: self.is_empty(server), "everything is given back")
        self.assertEqual(self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: list(stuck))[0], "CAPACITY")

    def test_a_full_queue_ends_a_stream_and_says_when_to_come_back(self):
        server = self.start("--pending-requests-max", 1, store="full")
        self.addCleanup(server.stop)
        stub = service(self.own_channel(server))
        held = stub.ModelStreamInfer(iter([self.long()]))
        next(held)
        for made in (lambda: stub.ModelInfer(self.long()), lambda: list(stub.ModelStreamInfer(iter([self.long()])))):
            reason, _, pause = self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, made)
            self.assertEqual(reason, "CAPACITY")
            self.assertGreater(pause, 0)
        held.cancel()


class CallersTest(ServerCase):
    @classmethod
    def started(cls):
        (cls.folder / "tokens").write_text("".join(server_process.token_line(name, "generate", f"token-{name}", fields)
                                                   for name, fields in (("ann", "read=open"), ("few", "calls/min=2"))))
        return server_process.ServerProcess(BINARY, cls.folder, "--auth-tokens", str(cls.folder / "tokens"))

    def test_tokens_collections_and_rates(self):
        stub = service(self.channel)
        as_caller = lambda name: {"metadata": [("authorization", f"Bearer token-{name}")], "timeout": 60}
        ask = dict(max_tokens=2, stream=False)
        for made in (lambda **m: stub.ModelInfer(request(**ask), **m), lambda **m: list(stub.ModelStreamInfer(iter([request(**ask)]), **m)),
                     lambda **m: stub.ServerMetadata(kserve.ServerMetadataRequest(), **m),
                     lambda **m: stub.ModelMetadata(kserve.ModelMetadataRequest(name=MODEL), **m)):
            with self.assertRaises(grpc.RpcError) as caught:
                made()
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
            made(**as_caller("ann"))
        self.assertTrue(stub.ServerReady(kserve.ServerReadyRequest()).ready)
        with self.assertRaises(grpc.RpcError) as caught:
            stub.ModelInfer(request(model=f"{MODEL}@secret", **ask), **as_caller("ann"))
        self.assertEqual((caught.exception.code(), details(caught.exception)[0]), (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION"))
        # Each request of a stream is a call.
        stream = stub.ModelStreamInfer(iter([request(**ask)] * 3), **as_caller("few"))
        with self.assertRaises(grpc.RpcError) as caught:
            answers = []
            for answer in stream:
                answers.append(answer)
        self.assertEqual((caught.exception.code(), details(caught.exception)[0]), (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE"))
        self.assertLessEqual(len(answers), 2)


if __name__ == "__main__":
    unittest.main()
