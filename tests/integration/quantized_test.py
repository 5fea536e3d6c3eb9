"""A server whose weights are quantized at load: it says so, answers the same alone and beside others, scores, and optimizes.
usage: quantized_test.py C3POD C3PO"""

import concurrent.futures
import json
import subprocess
import sys
import unittest

import server_process
from service_calls import gen, opt, pb, ref, samples, srv, tokens_of

BINARY, CLIENT = sys.argv.pop(1), sys.argv.pop(1)
NGD = opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT
PROMPTS = ("Q", "Answer:", "Question: how many legs has a cat", "What is 3 modulo seven?", "x y z")


class QuantizedTest(unittest.TestCase):
    def serve(self, *flags):
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        server = server_process.ServerProcess(BINARY, folder, *flags)
        self.addCleanup(server.process.kill)
        return server

    @staticmethod
    def generate(stub, prompt):
        request = gen.GenerateRequest(prompt=prompt, optimization=opt.OptimizationOptions(method=opt.METHOD_NONE))
        request.sampling.max_tokens = 24
        return tokens_of(stub.Generate(request, timeout=60))

    def check_answers(self, stub):
        alone = [self.generate(stub, prompt) for prompt in PROMPTS]
        self.assertTrue(all(alone))
        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            self.assertEqual(list(pool.map(lambda prompt: self.generate(stub, prompt), PROMPTS)), alone)
        none = opt.OptimizationOptions(method=opt.METHOD_NONE)
        scores = stub.Score(gen.ScoreRequest(prompt="Q", continuations=[" a", " b c"], optimization=none), timeout=60)
        self.assertTrue(all(score.log_likelihood < 0 for score in scores.scores))

    def check_descent(self, channel, stub):
        references = pb["reference_pb2_grpc"].ReferenceServiceStub(channel)
        list(references.Add(ref.AddReferencesRequest(collection="set", sample=sample) for sample in samples(24)))
        options = opt.OptimizationOptions(collection="set", method=NGD, k=4, steps=4, reference_selection=opt.REFERENCE_SELECTION_ALL,
                                          gate=opt.GateOptions(enabled=False))
        request = gen.GenerateRequest(prompt="What is 50 modulo seven?", optimization=options)
        request.sampling.max_tokens = 4
        reports = [event.optimization for event in stub.Generate(request, timeout=60) if event.HasField("optimization")]
        losses = list(reports[0].losses)
        self.assertGreater(len(losses), 1)
        self.assertLess(min(losses), losses[0])

    def test_says_so_and_serves(self):
        stored = self.serve("--dtype", "float32")
        loaded = {"float32": next(json.loads(line) for line in stored.log if '"model_loaded"' in line)}
        self.assertEqual(stored.stop(), 0)
        for weights, arithmetic in (("int8", "int16"), ("int4", "int8")):
            with self.subTest(weights):
                server = self.serve("--dtype", "float32", "--weights", weights)
                with server.channel() as channel:
                    stub = pb["generation_pb2_grpc"].GenerationServiceStub(channel)
                    self.check_answers(stub)
                    self.check_descent(channel, stub)
                    info = pb["server_pb2_grpc"].ServerServiceStub(channel).GetServerInfo(srv.GetServerInfoRequest(), timeout=60)
                self.assertEqual((info.model.weights, info.model.dtype, info.model.arithmetic), (weights, "float32", arithmetic))
                shown = subprocess.run([CLIENT, "--server", f"127.0.0.1:{server.port}", "info"], capture_output=True, text=True, timeout=60,
                                       check=True).stdout
                self.assertRegex(shown, rf"(?m)^ *weights +{weights} *$")
                loaded[weights] = next(json.loads(line) for line in server.log if '"model_loaded"' in line)
                self.assertEqual(loaded[weights]["weights"], weights)
                self.assertEqual(server.stop(), 0)
        self.assertEqual(loaded["float32"]["weights"], "float32")
        self.assertEqual(len({line["digest"] for line in loaded.values()}), 3)  # What one made is not applied to another.
        self.assertLess(loaded["int4"]["weight_bytes"], loaded["int8"]["weight_bytes"])
        self.assertLess(loaded["int8"]["weight_bytes"], loaded["float32"]["weight_bytes"])

    def test_refuses_what_cannot_be(self):
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        for flags, words in ((("--weights", "int3"), "--weights"), (("--weights", "int8", "--arithmetic", "bfloat16"), "arithmetic bfloat16"),
                             (("--weights", "float32", "--dtype", "bfloat16"), "contradicts")):
            done = subprocess.run([BINARY, "--model", server_process.TINY_MODEL, "--embedder", "model", "--store", folder / "store.db", "--listen",
                                   "127.0.0.1:0", "--metrics-port", "-1", *flags], capture_output=True, text=True, timeout=60, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(words, done.stderr)

    def test_inspect_tells_the_memory(self):
        done = subprocess.run([BINARY, "inspect", server_process.TINY_MODEL, "--json"], capture_output=True, text=True, timeout=60, check=True)
        memory = json.loads(done.stdout)["memory_bytes"]
        self.assertLess(memory["int4"]["weights"], memory["int8"]["weights"])
        self.assertLess(memory["int8"]["weights"], memory["bfloat16"]["weights"])


if __name__ == "__main__":
    unittest.main()
