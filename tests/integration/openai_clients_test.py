"""Clients of OpenAI's HTTP API that others wrote, against a c3pod's --http-listen: PyPI's openai and litellm, and the lm-evaluation-harness'
local-completions, whose figures are those of client/python's model. usage: openai_clients_test.py C3POD"""

import contextlib
import os
import pathlib
import sys
import unittest

import server_process
from http_calls import HTTP

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_TELEMETRY="False", NO_PROXY="127.0.0.1")

import litellm
import openai
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

BINARY = sys.argv.pop(1)
TASKS = pathlib.Path(__file__).resolve().parent / "lm_eval_tasks"
TEMPLATE = "{% for m in messages %}{{ m.role[0] | upper }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
QUESTION = [{"role": "user", "content": "What is 5 modulo seven?"}]
NGD = {"method": "ngd", "collection": "set", "k": 3, "steps": 2, "gate": {"enabled": False}}


class OpenAiClientsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        (cls.folder / "template.jinja").write_text(TEMPLATE)
        (cls.folder / "tokens").write_text(server_process.token_line("ann", "references", "token-ann"))
        cls.server = server_process.ServerProcess(BINARY, cls.folder, *HTTP, "--method", "none", "--chat-template", str(cls.folder / "template.jinja"),
                                                  "--auth-tokens", str(cls.folder / "tokens"))
        cls.url = f"http://127.0.0.1:{cls.server.http_port}/v1"
        cls.client = openai.OpenAI(base_url=cls.url, api_key="token-ann", max_retries=0, timeout=120)
        [cls.model] = [model.id for model in cls.client.models.list()]
        pb = server_process.make_stubs()
        ref = pb["reference_pb2"]
        requests = (ref.AddReferencesRequest(collection="set", sample=ref.ReferenceSample(prompt=f"What is {i} modulo seven?", answer=f" {i % 7}"))
                    for i in range(30))
        with cls.server.channel() as channel:
            list(pb["reference_pb2_grpc"].ReferenceServiceStub(channel).Add(requests, metadata=[("authorization", "Bearer token-ann")], timeout=120))

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        code = cls.server.stop()
        server_process.remove_folder(cls.folder)
        if code != 0:
            raise AssertionError(f"c3pod exited with {code}: {cls.server.log[-20:]}")

    def test_chat_whole_and_streamed(self):
        ask = dict(model=self.model, messages=QUESTION, max_tokens=10, temperature=0)
        whole = self.client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
        self.assertEqual(whole.choices[0].finish_reason, "length")
        self.assertEqual(len(whole.choices[0].logprobs.content), 10)
        self.assertEqual(len(whole.choices[0].logprobs.content[0].top_logprobs), 3)
        self.assertEqual(whole.usage.total_tokens, whole.usage.prompt_tokens + 10)
        chunks = list(self.client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices), whole.choices[0].message.content)
        self.assertEqual(chunks[-1].usage.completion_tokens, 10)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")

    def test_the_optimization_by_extra_body_and_by_the_models_name(self):
        ask = dict(messages=QUESTION, max_tokens=3, temperature=0)
        answer = self.client.chat.completions.create(model=self.model, **ask, extra_body={"c3po": NGD})
        self.assertEqual((answer.c3po["method"], len(answer.c3po["neighbors"])), ("METHOD_NEIGHBORHOOD_GRADIENT_DESCENT", 3))
        chunks = list(self.client.chat.completions.create(model=self.model, **ask, stream=True, extra_body={"c3po": NGD}))
        self.assertEqual(chunks[0].c3po["losses"], answer.c3po["losses"])
        self.assertIn(f"{self.model}@set", [model.id for model in self.client.models.list()])
        named = self.client.chat.completions.create(model=f"{self.model}@set", **ask)
        self.assertEqual(named.model, f"{self.model}@set")

    def test_completions_and_embeddings(self):
        answer = self.client.completions.create(model=self.model, prompt=["abc", "xyz"], max_tokens=5, temperature=0, echo=True, logprobs=2, seed=1)
        self.assertEqual([choice.text[:3] for choice in answer.choices], ["abc", "xyz"])
        self.assertIsNone(answer.choices[0].logprobs.token_logprobs[0])
        text = "".join(chunk.choices[0].text for chunk in self.client.completions.create(model=self.model, prompt="abc", max_tokens=5, temperature=0, stream=True))
        self.assertEqual("abc" + text, answer.choices[0].text)
        vectors = [self.client.embeddings.create(model=self.model, input=["abc"], **encoding).data[0].embedding
                   for encoding in ({"encoding_format": "float"}, {})]  # Left out, the client asks for base64 and decodes it.
        for ours, theirs in zip(*vectors, strict=True):
            self.assertAlmostEqual(ours, theirs, places=6)

    def test_errors_are_its_own(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=self.model, prompt="a", frequency_penalty=1)
        self.assertEqual((caught.exception.param, str(caught.exception.code)), ("frequency_penalty", "400"))
        with self.assertRaises(openai.NotFoundError):
            self.client.completions.create(model="other", prompt="a")
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.url, api_key="wrong", max_retries=0).models.list()

    def test_litellm(self):
        ask = dict(model=f"openai/{self.model}", api_base=self.url, api_key="token-ann", messages=QUESTION, max_tokens=8, temperature=0, num_retries=0)
        whole = litellm.completion(**ask)
        self.assertEqual(whole.usage.completion_tokens, 8)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ask, stream=True))
        self.assertEqual(streamed, whole.choices[0].message.content)
        optimized = litellm.completion(**ask, extra_body={"c3po": NGD})
        self.assertEqual(optimized.c3po["method"], "METHOD_NEIGHBORHOOD_GRADIENT_DESCENT")
        embedded = litellm.embedding(model=f"openai/{self.model}", api_base=self.url, api_key="token-ann", input=["abc"])
        self.assertAlmostEqual(sum(x * x for x in embedded.data[0]["embedding"]), 1, places=3)

    def evaluate(self, model, model_args):
        with contextlib.chdir(TASKS):
            results = simple_evaluate(model=model, model_args=model_args, tasks=["modulo_choices", "modulo_answers"],
                                      task_manager=TaskManager(include_path=".", include_defaults=False))
        return results["results"], {task: sorted(samples, key=lambda sample: sample["doc_id"]) for task, samples in results["samples"].items()}

    def test_the_harness_gives_the_figures_of_our_model(self):
        os.environ.update(OPENAI_API_KEY="token-ann", C3PO_TOKEN="token-ann")
        local, of_local = self.evaluate("local-completions", {"model": self.model, "base_url": f"{self.url}/completions", "tokenizer_backend": "huggingface",
                                                               "tokenizer": str(server_process.TINY_MODEL), "num_concurrent": 4, "max_retries": 1, "max_length": 256})
        ours, of_ours = self.evaluate("c3po", f"target=127.0.0.1:{self.server.port},method=none")
        for task in ("modulo_choices", "modulo_answers"):
            figures = lambda results: {name: value for name, value in results[task].items() if isinstance(value, (int, float))}
            self.assertEqual(figures(local).keys(), figures(ours).keys())
            for name, value in figures(local).items():
                self.assertAlmostEqual(value, figures(ours)[name], places=4, msg=f"{task}, {name}")
        for theirs, sample in zip(of_local["modulo_choices"], of_ours["modulo_choices"], strict=True):
            for (total, greedy), (own_total, own_greedy) in zip(theirs["filtered_resps"], sample["filtered_resps"], strict=True):
                self.assertAlmostEqual(float(total), float(own_total), places=3)
                self.assertEqual(str(greedy), str(own_greedy))
        for theirs, sample in zip(of_local["modulo_answers"], of_ours["modulo_answers"], strict=True):
            self.assertEqual(theirs["resps"], sample["resps"])


if __name__ == "__main__":
    server_process.make_stubs()
    import c3po_lm_eval

    c3po_lm_eval.register()
    unittest.main(verbosity=2)
