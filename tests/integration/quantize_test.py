"""`c3po model quantize` writes a folder, and c3pod answers from it what it answers from the original quantized at load, bit for bit.
usage: quantize_test.py C3POD C3PO"""

import array
import json
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import unittest

import server_process
from service_calls import gen, opt, pb, srv, tokens_of

BINARY, CLIENT = sys.argv.pop(1), sys.argv.pop(1)
NEURONS = 48  # Of an expert: a group of 32 columns and one of 16.


def make_model(folder: pathlib.Path, tied: bool = True) -> None:
    """The tiny model with wider experts of random weights. The LM head is the embedding, or has weights of its own beside an embedding
    that 4 bits hold exactly."""
    for path in server_process.TINY_MODEL.iterdir():
        if path.name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(path, folder)
    config = json.loads((server_process.TINY_MODEL / "config.json").read_text())
    neurons, config["intermediate_size"] = config["intermediate_size"], NEURONS
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    text = (server_process.TINY_MODEL / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", text[:8])[0]
    header = json.loads(text[8:8 + length])
    header.pop("__metadata__", None)
    if not tied:
        header["lm_head.weight"] = dict(header["model.embed_tokens.weight"])
    draw, data = random.Random(26), b""
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        content = text[8 + length + begin:8 + length + end]
        if neurons in tensor["shape"] or name == "lm_head.weight":
            tensor["shape"] = [NEURONS if size == neurons else size for size in tensor["shape"]]
            count = 1
            for size in tensor["shape"]:
                count *= size
            content = array.array("f", (draw.gauss(0, 0.2) for _ in range(count))).tobytes()
        elif name == "model.embed_tokens.weight" and not tied:
            levels = (-8 if i % 32 == 0 else draw.randint(-8, 7) for i in range((end - begin) // 4))
            content = array.array("f", (level / 16 for level in levels)).tobytes()
        tensor["data_offsets"] = [len(data), len(data) + len(content)]
        data += content
    fields = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(fields)) + fields + data)


class QuantizeTest(unittest.TestCase):
    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, self.folder)
        self.source = self.folder / "in"
        self.source.mkdir()
        make_model(self.source)

    def quantize(self, *words):
        return subprocess.run([CLIENT, "model", "quantize", "--c3pod", BINARY, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)

    def inspect(self, model):
        done = subprocess.run([BINARY, "inspect", str(model), "--json"], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, json.loads(done.stdout)

    def answers(self, model, *flags):
        """Log-likelihoods, greedy tokens, and what the server says of the model."""
        store = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, store)
        server = server_process.ServerProcess(BINARY, store, *flags, model=model)
        self.addCleanup(server.process.kill)
        none = opt.OptimizationOptions(method=opt.METHOD_NONE)
        with server.channel() as channel:
            stub = pb["generation_pb2_grpc"].GenerationServiceStub(channel)
            scores = stub.Score(gen.ScoreRequest(prompt="Question: how many", continuations=[" legs", " b c", " three"], optimization=none), timeout=60)
            request = gen.GenerateRequest(prompt="Question:", optimization=none)
            request.sampling.max_tokens = 16
            tokens = tokens_of(stub.Generate(request, timeout=60))
            info = pb["server_pb2_grpc"].ServerServiceStub(channel).GetServerInfo(srv.GetServerInfoRequest(), timeout=60)
        self.assertEqual(server.stop(), 0)
        loaded = next(json.loads(line) for line in server.log if '"model_loaded"' in line)
        return [score.log_likelihood for score in scores.scores], tokens, info.model, loaded

    def test_answers_as_the_original_quantized_at_load(self):
        for weights in ("int4", "int8"):
            with self.subTest(weights):
                out = self.folder / weights
                done = self.quantize(self.source, out, "--weights", weights)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn(str(out), done.stdout)
                scores, tokens, model, loaded = self.answers(self.source, "--weights", weights)
                got_scores, got_tokens, got_model, got_loaded = self.answers(out)
                self.assertEqual(got_scores, scores)
                self.assertEqual(got_tokens, tokens)
                self.assertEqual((got_model.weights, got_model.dtype, got_model.arithmetic), (weights, model.dtype, model.arithmetic))
                self.assertEqual(got_loaded["weight_bytes"], loaded["weight_bytes"])
                code, card = self.inspect(out)
                self.assertEqual((code, card["loads"]), (0, True))
                self.assertGreater(sum(card["packed_weights"].values()), 0.8 * card["parameters"]["total"])
                self.assertLess(abs(card["memory_bytes"]["as_stored"]["weights"] / loaded["weight_bytes"] - 1), 0.05)

    def test_widens_on_request_and_refuses_another_width(self):
        make_model(self.source, tied=False)  # An embedding of other numbers is quantized at load, and not where all is widened.
        out = self.folder / "out"
        self.assertEqual(self.quantize(self.source, out).returncode, 0)  # int4
        wide = self.answers(out, "--weights", "float32")
        self.assertEqual((wide[2].weights, wide[2].dtype), ("float32", "float32"))
        # The same numbers times the same activations.
        exact = self.answers(out, "--arithmetic", "float32", "--kv-cache-dtype", "float32")
        for got, wanted in zip(wide[0], exact[0]):
            self.assertAlmostEqual(got, wanted, delta=0.001)
        done = subprocess.run([BINARY, "--model", out, "--embedder", "model", "--store", self.folder / "store.db", "--listen", "127.0.0.1:0",
                               "--metrics-port", "-1", "--weights", "int8"], capture_output=True, text=True, timeout=60, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("weights int8: the folder's are int4 already", done.stderr)

    def test_measures_what_it_costs(self):
        text = self.folder / "text.txt"
        draw = random.Random(27)
        text.write_text(" ".join("".join(draw.choices("etaoinshr", k=draw.randint(1, 7))) for _ in range(400)))
        cost = {}
        for weights, calibrated in (("int8", False), ("int4", False), ("int4", True)):
            words = ["--weights", weights, "--check", text, "--check-window", 128] + (["--calibration", text] if calibrated else [])
            done = self.quantize(self.source, *words, "--json")  # Writes nothing.
            self.assertEqual(done.returncode, 0, done.stderr)
            measured = json.loads(done.stdout)
            out = self.folder / f"out-{weights}-{calibrated}"
            done = self.quantize(self.source, out, *words, "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            written = json.loads(done.stdout)
            self.assertEqual(written["check"], measured["check"])  # The folder is what was measured before.
            self.assertEqual(written["folder"], str(out))
            check = cost[weights, calibrated] = written["check"]
            self.assertEqual((check["stored_weights"], check["quantized_weights"], check["window"]), ("float32", weights, 128))
            self.assertEqual(check["tokens"], check["windows"] * 63)
            self.assertGreater(check["windows"], 5)
            self.assertGreater(check["stored_perplexity"], 1)
            if calibrated:
                self.assertGreater(written["calibration"]["tokens"], 800)
        self.assertGreater(cost["int8", False]["mean_kl"], 0)
        self.assertGreater(cost["int4", False]["mean_kl"], cost["int8", False]["mean_kl"])
        self.assertNotEqual(cost["int4", True]["mean_kl"], cost["int4", False]["mean_kl"])
        self.assertLessEqual(cost["int4", False]["same_greedy"], 1)
        done = self.quantize(self.source, "--check", text, "--check-window", 128)
        self.assertEqual(done.returncode, 0, done.stderr)
        for words in ("perplexity", "mean KL", "same greedy token"):
            self.assertIn(words, done.stdout)

    def test_names_a_text_that_cannot_be_measured(self):
        text = self.folder / "text.txt"
        text.write_text("too short")
        for words, code, what in ((("--check", text, "--check-window", "128"), 1, "fewer than one window"),
                                  (("--check", text), 1, "a window of 512 tokens exceeds the model's context of 256"), (("--check", self.folder / "none"), 1, "none"),
                                  (("--check", text, "--check-window", "3"), 2, "--check-window"), (("--calibration", self.folder / "none", self.folder / "out"), 1, "none")):
            done = self.quantize(self.source, *words)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(what, done.stderr)
        self.assertFalse((self.folder / "out").exists())

    def test_refuses_and_leaves_nothing(self):
        out = self.folder / "out"
        for words, code, what in (((self.folder / "none", out), 1, "none"), ((self.source, self.source), 1, "exists already"),
                                  ((self.source, self.folder / "a" / "b"), 1, "a/b"), ((self.source,), 2, "IN and OUT are needed, or IN and --check TEXT")):
            done = self.quantize(*words)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(what, done.stderr)
            self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["in"])


if __name__ == "__main__":
    unittest.main()
