"""Models out of GGUF files answer as llama.cpp does: the ids of prompts and the greedy tokens, of every architecture with weights of every
type (tests/golden/gguf/answers). usage: gguf_answers_test.py C3POD"""

import itertools
import json
import sys
import unittest

import server_process
from service_calls import gen, pb

BINARY = sys.argv.pop(1)
GOLDEN = server_process.SOURCE / "tests" / "golden" / "gguf" / "answers"
sys.path.insert(0, str(GOLDEN))
import assembled_gguf as assembled  # noqa: E402

ANSWERS = {name: model for name, model in json.loads((GOLDEN / "answers.json").read_text()).items() if name != "provenance"}
READOUTS = assembled.safetensors(GOLDEN / "readouts.safetensors")
ROWS = assembled.Rows()
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
# llama.cpp's own activations move a logit by `deviation`, and a fault that make_gguf_answers.py knows moves one by 0.1 at least.
ERROR_MAX = 0.002  # Of a log-probability in float32.
MARGIN = 4


class GgufAnswersTest(unittest.TestCase):
    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, self.folder)

    def answers(self, name, model, kind, *flags):
        """What c3pod gives: the ids of each prompt; tokens and log-probabilities of each answer; why they ended."""
        folder = self.folder / f"{name}-{kind}-{len(flags)}"
        folder.mkdir()
        assembled.write(folder / "model.gguf", model, assembled.tensors_of(model, kind, ROWS, READOUTS[name][2]))
        server = server_process.ServerProcess(BINARY, folder, *flags, model=folder / "model.gguf")
        self.addCleanup(server.process.kill)
        ids, chosen, reasons = [], [], []
        with server.channel() as channel:
            stub = pb["generation_pb2_grpc"].GenerationServiceStub(channel)
            for prompt, _ in model["prompts"]:
                ids.append(list(stub.Tokenize(gen.TokenizeRequest(text=prompt), timeout=60).ids))
                request = gen.GenerateRequest(prompt=prompt)
                request.sampling.max_tokens, request.sampling.logprobs = 32, 0
                events = list(stub.Generate(request, timeout=60))
                chosen.append([position.chosen for event in events if event.HasField("delta") for position in event.delta.logprobs])
                reasons += [event.summary.finish_reason for event in events if event.HasField("summary")]
        self.assertEqual(server.stop(), 0)
        server_process.remove_folder(folder)
        return ids, chosen, reasons

    def check(self, name, kind, *flags):
        """Returns the largest error of a log-probability."""
        model = ANSWERS[name]
        expected = model["answers"][kind]
        self.assertGreaterEqual(expected["margin"], MARGIN * expected["deviation"])
        ids, chosen, reasons = self.answers(name, model, kind, *flags)
        self.assertEqual(ids, [ids for _, ids in model["prompts"]])
        # Of c3pod's answers the end token is no part.
        self.assertEqual([[one.token_id for one in answer] for answer in chosen], [tokens[:-1] for tokens in expected["tokens"]])
        self.assertEqual(reasons, [gen.FINISH_REASON_STOP] * len(ids))
        return max(abs(one.logprob - wanted) for answer, right in zip(chosen, expected["log_probabilities"])
                   for one, wanted in zip(answer, right))

    def test_every_architecture_and_type_is_there(self):
        self.assertEqual(sorted(ANSWERS), ["deepseek", "deepseek2", "granitemoe", "llama", "olmoe", "qwen2moe", "qwen3moe"])
        for model in ANSWERS.values():
            self.assertLessEqual(set(TYPES), set(model["answers"]))
            self.assertTrue(all(len(tokens) > 4 for answer in model["answers"].values() for tokens in answer["tokens"]))
        self.assertGreater(len(set(ANSWERS["olmoe"]["mixtures"]["Q4_K_M"].values())), 2)

    def test_answers_in_float32_are_those_of_llama_cpp(self):
        for name, model in ANSWERS.items():
            for kind in model["answers"]:
                with self.subTest(architecture=name, type=kind):
                    self.assertLess(self.check(name, kind, "--dtype", "float32", "--arithmetic", "float32"), ERROR_MAX)

    def test_so_are_tokens_of_the_defaults(self):
        for name, kind in [*itertools.product(ANSWERS, ("Q4_K",)), ("olmoe", "F16"), ("olmoe", "Q8_0"), ("olmoe", "Q4_K_M")]:
            with self.subTest(architecture=name, type=kind):
                self.check(name, kind)

    def test_a_model_that_is_read_wrong_answers_otherwise(self):
        for name in ("llama", "deepseek2"):
            model = ANSWERS[name]
            key = f"{name}.rope.freq_base"
            other = {**model["metadata"], key: [model["metadata"][key][0], model["metadata"][key][1] / 10]}
            with self.subTest(architecture=name):
                _, chosen, _ = self.answers(name, {**model, "metadata": other}, "F32")
                self.assertNotEqual([[one.token_id for one in answer] for answer in chosen],
                                    [tokens[:-1] for tokens in model["answers"]["F32"]["tokens"]])


if __name__ == "__main__":
    unittest.main()
