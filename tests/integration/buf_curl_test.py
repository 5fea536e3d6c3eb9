"""buf curl as a client that knows no .proto of ours: it lists and calls by reflection. usage: buf_curl_test.py C3POD BUF"""

import base64
import json
import subprocess
import sys
import unittest

import server_process
from server_case import ServerCase
from service_calls import gen, tokens_of

BUF = sys.argv.pop(2)
BINARY = sys.argv.pop(1)
SERVICES = {
    "c3po.v1.GenerationService", "c3po.v1.ReferenceService", "c3po.v1.ServerService", "grpc.health.v1.Health",
    "inference.GRPCInferenceService", "vllm.grpc.engine.VllmEngine",
}


def messages(text):
    """The JSON messages of a stream, written one after the other."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text.rstrip()):
        message, at = decoder.raw_decode(text, at)
        found.append(message)
        while at < len(text) and text[at].isspace():
            at += 1
    return found


class BufCurlTest(ServerCase):
    binary, FLAGS = BINARY, server_process.FEW_STEPS

    def curl(self, path, *flags, data=None):
        address = f"http://127.0.0.1:{self.server.port}{path}"
        given = [] if data is None else ["--data", json.dumps(data)]
        return subprocess.run([BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *flags, *given, address],
                              capture_output=True, text=True, timeout=60, check=False)

    def answered(self, path, data=None):
        run = self.curl(path, data=data)
        self.assertEqual(run.returncode, 0, run.stderr)
        return messages(run.stdout)

    def test_services_and_methods_are_listed(self):
        run = self.curl("", "--list-services")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertLessEqual(SERVICES, set(run.stdout.split()))
        run = self.curl("", "--list-methods")
        self.assertEqual(run.returncode, 0, run.stderr)
        listed = set(run.stdout.split())
        for method in ("c3po.v1.GenerationService/Generate", "c3po.v1.ReferenceService/Add", "inference.GRPCInferenceService/ModelInfer",
                       "vllm.grpc.engine.VllmEngine/Generate"):
            self.assertIn(method, listed)

    def test_a_stream_is_what_a_client_with_stubs_gets(self):
        sampling = {"maxTokens": 8, "ignoreEos": True}
        events = self.answered("/c3po.v1.GenerationService/Generate", {"prompt": "The answer", "sampling": sampling})
        stubs = tokens_of(list(self.generation.Generate(
            gen.GenerateRequest(prompt="The answer", sampling=gen.SamplingOptions(max_tokens=8, ignore_eos=True)), timeout=60)))
        self.assertEqual([token for event in events for token in event.get("delta", {}).get("tokenIds", [])], stubs)
        self.assertEqual(events[-1]["summary"]["usage"]["completionTokens"], 8)

    def test_the_other_doors_answer_too(self):
        self.assertEqual(self.answered("/inference.GRPCInferenceService/ServerReady", {}), [{"ready": True}])
        [end] = self.answered("/vllm.grpc.engine.VllmEngine/Generate",
                              {"tokenized": {"inputIds": [3, 4, 5]}, "samplingParams": {"maxTokens": 4, "ignoreEos": True}})
        self.assertEqual(len(end["complete"]["outputIds"]), 4)

    def test_an_error_names_the_field(self):
        run = self.curl("/c3po.v1.GenerationService/Generate", data={"prompt": "a", "sampling": {"temperature": -1}})
        self.assertNotEqual(run.returncode, 0)
        error = json.loads(run.stderr)
        self.assertEqual(error["code"], "invalid_argument")
        self.assertIn("sampling.temperature", error["message"])
        self.assertIn("google.rpc.BadRequest", [detail["type"] for detail in error["details"]])
        raw = [detail["value"] for detail in error["details"] if detail["type"] == "google.rpc.BadRequest"]
        self.assertIn(b"sampling.temperature", base64.b64decode(raw[0] + "=="))


if __name__ == "__main__":
    unittest.main()
