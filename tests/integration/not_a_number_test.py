"""A model that gives NaN for prompts with one token: such a call fails, and nothing that is not a number counts as right.
usage: not_a_number_test.py C3POD C3PO"""

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import unittest

import grpc

import server_process
from server_case import ServerCase
from service_calls import details, gen, opt, pb, ref

BINARY, CLI = sys.argv.pop(1), sys.argv.pop(1)

BAD = "Z"  # Its embedding is NaN.
NONE = opt.OptimizationOptions(method=opt.METHOD_NONE)
DESCENT = opt.OptimizationOptions(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, collection="set", k=2, steps=3,
                                  reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(enabled=False))


def model_with_a_bad_token(folder):
    """The tiny model with NaN in the embedding of BAD. The LM head, which was tied to the embeddings, stays whole."""
    copy = folder / "bad_tiny"
    shutil.copytree(server_process.TINY_MODEL, copy)
    config = json.loads((copy / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (copy / "config.json").write_text(json.dumps(config))
    data = (copy / "model.safetensors").read_bytes()
    header_bytes = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:8 + header_bytes]), bytearray(data[8 + header_bytes:])
    embeddings = header["model.embed_tokens.weight"]
    begin, end = embeddings["data_offsets"]
    assert embeddings["dtype"] == "F32"
    header["lm_head.weight"] = {**embeddings, "data_offsets": [len(body), len(body) + end - begin]}
    body += body[begin:end]
    width = embeddings["shape"][1]
    row = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"][BAD]
    body[begin + row * width * 4:begin + (row + 1) * width * 4] = struct.pack("<f", math.nan) * width
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))
    return copy


def question(prompt):
    return {"prompt": prompt, "answer": " no", "choices": [" no", " yes"]}


class NotANumberTest(ServerCase):
    @classmethod
    def started(cls):
        return server_process.ServerProcess(BINARY, cls.folder, model=model_with_a_bad_token(cls.folder))

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.verdicts = cls.add("set", [question(prompt) for prompt in ("one?", f"bad {BAD}?", "two?", "three?")])

    @classmethod
    def add(cls, collection, questions):
        requests = (ref.AddReferencesRequest(collection=collection, sequence=i, sample=ref.ReferenceSample(**each))
                    for i, each in enumerate(questions))
        return {v.sequence: v for response in cls.references.Add(requests, timeout=60) for v in response.verdicts}

    def score(self, prompt, continuations, optimization=NONE):
        return self.generation.Score(
            gen.ScoreRequest(prompt=prompt, continuations=continuations, optimization=optimization), timeout=60)

    def fails_internally(self, call, said):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INTERNAL, caught.exception.details())
        self.assertEqual(details(caught.exception)[0], "INTERNAL")
        self.assertIn(said, caught.exception.details())

    def c3po(self, *arguments):
        environment = {**os.environ, "C3PO_SERVER": f"127.0.0.1:{self.server.port}", "C3PO_CACHE_DIR": str(self.folder)}
        return subprocess.run([CLI, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=100)

    def write(self, name, questions):
        path = self.folder / name
        path.write_text("".join(json.dumps(each) + "\n" for each in questions))
        return path

    def test_a_prompt_that_gives_nan_fails_alone(self):
        before = [list(score.token_logprobs) for score in self.score("one?", [" no", " yes"]).scores]
        for optimization in (NONE, DESCENT):
            for continuations in ([" no", " yes"], ["n"], ["n", "y"]):  # " no" and " yes" are several tokens, "n" is one.
                self.fails_internally(lambda: self.score(f"bad {BAD}?", continuations, optimization), "is not finite")
            request = gen.GenerateRequest(prompt=f"bad {BAD}?", optimization=optimization,
                                          sampling=gen.SamplingOptions(max_tokens=3))
            self.fails_internally(lambda: list(self.generation.Generate(request, timeout=60)), "is not finite")
        # Good ones beside and after bad ones, in blocks that bad ones had, are as before.
        pending = [self.generation.Score.future(gen.ScoreRequest(prompt=prompt, continuations=[" no", " yes"], optimization=NONE),
                                                timeout=60) for prompt in ("one?", f"bad {BAD}?", "one?", f"{BAD}", "one?")]
        self.assertEqual([call.code() for call in pending],
                         [grpc.StatusCode.OK, grpc.StatusCode.INTERNAL] * 2 + [grpc.StatusCode.OK])
        for call in pending[::2]:
            self.assertEqual([list(score.token_logprobs) for score in call.result().scores], before)

    def test_a_continuation_that_gives_nan_fails_the_call_and_names_it(self):
        self.fails_internally(lambda: self.score("one?", [" no", f"a{BAD}b"]), "continuations[1]")
        # The bad token itself is predicted like any other; nothing comes after it.
        self.assertTrue(math.isfinite(self.score("one?", [f"a{BAD}"]).scores[0].log_likelihood))

    def test_a_bad_sample_is_malformed_and_the_import_goes_on(self):
        self.assertEqual(sorted(self.verdicts), [0, 1, 2, 3])
        self.assertEqual(self.verdicts[1].verdict, ref.VERDICT_MALFORMED)
        self.assertIn("is not finite", self.verdicts[1].message)
        for good in (0, 2, 3):
            self.assertIn(self.verdicts[good].verdict, (ref.VERDICT_SUCCESSFUL, ref.VERDICT_FAILED))
        # Whose continuation is bad, too, and with nothing but bad ones.
        verdicts = self.add("other", [{"prompt": "one?", "answer": f" {BAD}x"}, {"prompt": BAD, "answer": " no"}])
        self.assertEqual({v.verdict for v in verdicts.values()}, {ref.VERDICT_MALFORMED})

    def test_score_of_a_file_counts_no_nan(self):
        path = self.write("score.jsonl", [question(prompt) for prompt in ("four?", f"bad {BAD}?", "five?")])
        result = self.c3po("score", "--file", path, "--method", "none", "--json")
        self.assertEqual(result.returncode, 1, result.stderr)
        summary = json.loads(result.stdout.splitlines()[-1])["summary"]
        self.assertEqual((summary["items"], summary["failed"]), (2, 1))
        self.assertIn("score.jsonl:2: ", result.stderr)

    def test_an_evaluation_has_a_failed_item_and_reads_its_own_file(self):
        path = self.write("eval.jsonl", [{"id": f"q{i}", **question(p)} for i, p in enumerate(("six?", f"bad {BAD}?", "seven?"))])
        out = self.folder / "run"
        for attempt in range(2):  # The second goes on with what the first wrote.
            result = self.c3po("eval", "--task", path, "--collection", "set", "--methods", "none,ngd,knn", "--k", 2, "--steps", 2,
                               "--out", out)
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("question q1, method none: INTERNAL: ", result.stderr)
            lines = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
            self.assertEqual(sorted((line["id"], line["method"]) for line in lines),
                             [(q, method) for q in ("q0", "q2") for method in ("knn", "ngd", "none")])
            self.assertNotIn("null", (out / "items.jsonl").read_text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
