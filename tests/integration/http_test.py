"""OpenAI's HTTP protocol, through http.client: what is answered, whole and in streams, against c3po.v1's own answers.
usage: http_test.py C3POD"""

import base64
import json
import struct
import sys
import time
import unittest

import server_process
from http_calls import HTTP, Client
from server_case import ServerCase
from service_calls import gen, opt, pb, ref

BINARY = sys.argv.pop(1)
TEMPLATE = """{%- for m in messages %}{{ m.role[0] | upper }}: {{ m.content }}
{% endfor %}{%- for t in tools or [] %}t {{ t | tojson }}
{% endfor %}{%- if add_generation_prompt %}A:{% endif %}"""
NONE = opt.OptimizationOptions(method=opt.METHOD_NONE)


class HttpTest(ServerCase):
    binary = BINARY

    @classmethod
    def started(cls):
        (cls.folder / "template.jinja").write_text(TEMPLATE)
        return server_process.ServerProcess(cls.binary, cls.folder, *HTTP, "--method", "none", "--log-level", "debug", "--chat-template", str(cls.folder / "template.jinja"))

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = Client(cls.server)
        cls.name = pb["server_pb2_grpc"].ServerServiceStub(cls.channel).GetServerInfo(pb["server_pb2"].GetServerInfoRequest(), timeout=60).model.name
        cls.add("set", [ref.ReferenceSample(prompt=f"{i} modulo 7?", answer=f" {i % 7}") for i in range(20)])

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        super().tearDownClass()

    def generated(self, max_tokens=5, sampling=None, **request):
        """(text, summary) of c3po.v1's Generate."""
        request.setdefault("optimization", NONE)
        options = gen.SamplingOptions(max_tokens=max_tokens, **(sampling or {}))
        events = list(self.generation.Generate(gen.GenerateRequest(sampling=options, **request), timeout=60))
        return "".join(event.delta.text for event in events), events[-1].summary

    def test_a_text_is_completed_as_by_generate(self):
        answer = self.client.complete()
        self.assertEqual(answer.status, 200, answer.body)
        text, summary = self.generated(prompt="abc")
        [choice] = answer.json["choices"]
        self.assertEqual(choice["text"], text)
        self.assertEqual((choice["index"], choice["finish_reason"], choice["logprobs"]), (0, "length", None))
        self.assertEqual(answer.json["object"], "text_completion")
        self.assertEqual(answer.json["model"], self.name)
        self.assertEqual(answer.json["usage"]["prompt_tokens"], summary.usage.prompt_tokens)
        self.assertEqual(answer.json["usage"]["completion_tokens"], 5)
        self.assertNotIn("c3po", answer.json)

    def test_a_stream_has_the_same_text(self):
        for kind in ("complete", "chat"):
            with self.subTest(kind):
                ask = getattr(self.client, kind)
                whole = ask(max_tokens=20).json
                answer = ask(max_tokens=20, stream=True, stream_options={"include_usage": True})
                self.assertEqual(answer.headers["content-type"], "text/event-stream; charset=utf-8")
                self.assertEqual(answer.headers["transfer-encoding"], "chunked")
                events = answer.events
                usage = events.pop()
                self.assertEqual(usage["choices"], [])
                self.assertEqual(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"])
                self.assertEqual(len({event["id"] for event in events}), 1)
                choices = [event["choices"][0] for event in events]
                piece = lambda choice: choice["delta"].get("content", "") if kind == "chat" else choice["text"]
                text = whole["choices"][0]["message"]["content"] if kind == "chat" else whole["choices"][0]["text"]
                self.assertEqual("".join(map(piece, choices)), text)
                self.assertEqual([choice["finish_reason"] for choice in choices[:-1]], [None] * (len(choices) - 1))
                self.assertEqual(choices[-1]["finish_reason"], whole["choices"][0]["finish_reason"])
                if kind == "chat":
                    self.assertEqual(choices[0]["delta"], {"role": "assistant", "content": ""})

    def test_continuous_usage_counts_up(self):
        events = self.client.complete(stream=True, stream_options={"continuous_usage_stats": True}).events
        self.assertEqual([event["usage"]["completion_tokens"] for event in events], [1, 2, 3, 4, 5, 5])

    def test_a_conversation_is_what_the_template_makes_of_it(self):
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}]
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}]
        answer = self.client.post("/v1/chat/completions", messages=messages, tools=tools, temperature=0, max_tokens=5)
        self.assertEqual(answer.status, 200, answer.body)
        prompt = 'S: s\nU: x\ny\nt {"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}\nA:'
        self.assertEqual(answer.json["choices"][0]["message"], {"role": "assistant", "content": self.generated(prompt=prompt)[0], "refusal": None, "tool_calls": []})

    def test_many_prompts_are_many_choices_in_their_order(self):
        prompts = [chr(97 + i) * 3 for i in range(12)]
        texts, summaries = zip(*(self.generated(prompt=prompt) for prompt in prompts))
        answer = self.client.complete(prompts).json
        self.assertEqual([choice["text"] for choice in answer["choices"]], list(texts))
        self.assertEqual([choice["index"] for choice in answer["choices"]], list(range(12)))
        self.assertEqual(answer["usage"]["completion_tokens"], sum(summary.usage.completion_tokens for summary in summaries))
        streamed = [""] * 12
        for event in self.client.complete(prompts, stream=True).events:
            streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
        self.assertEqual(streamed, list(texts))
        ids = [list(prompt.encode()) for prompt in prompts]
        self.assertEqual([choice["text"] for choice in self.client.complete(ids).json["choices"]],
                         [self.generated(token_ids=gen.TokenIds(ids=one))[0] for one in ids])

    def test_several_answers_and_a_seed(self):
        ask = lambda: [choice["text"] for choice in self.client.complete(["abc", "xyz"], n=3, temperature=1, seed=7).json["choices"]]
        texts = ask()
        self.assertEqual(len(texts), 6)
        self.assertEqual(texts, ask())
        self.assertGreater(len(set(texts)), 1)

    def test_stop_strings_and_bias(self):
        text = self.client.complete(max_tokens=20).json["choices"][0]["text"]
        stop = text[3:5]
        choice = self.client.complete(max_tokens=20, stop=[stop]).json["choices"][0]
        self.assertEqual((choice["text"], choice["finish_reason"], choice["stop_reason"]), (text[:text.index(stop)], "stop", stop))
        self.assertEqual(self.client.complete(logit_bias={"97": 100}, max_tokens=3).json["choices"][0]["text"], "aaa")

    def test_logprobs_are_those_of_generate(self):
        events = list(self.generation.Generate(gen.GenerateRequest(
            prompt="abc", optimization=NONE, sampling=gen.SamplingOptions(max_tokens=4, logprobs=2)), timeout=60))
        positions = [position for event in events for position in event.delta.logprobs]
        told = self.client.complete(max_tokens=4, logprobs=2).json["choices"][0]["logprobs"]
        self.assertEqual(told["tokens"], [position.chosen.text for position in positions])
        for logprob, top, position in zip(told["token_logprobs"], told["top_logprobs"], positions, strict=True):
            self.assertAlmostEqual(logprob, position.chosen.logprob, places=5)
            self.assertEqual(set(top), {position.chosen.text, *(one.text for one in position.top)})
        content = self.client.chat(max_tokens=4, logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"]
        self.assertEqual([len(token["top_logprobs"]) for token in content], [2] * 4)
        self.assertTrue(all(bytes(token["bytes"]).decode() == token["token"] for token in content))

    def test_echo_tells_the_prompts_own_logprobs(self):
        """As lm_eval's local-completions asks: token ids, a token more, the likeliest beside each."""
        ids = list(b"What is 5 modulo seven?")
        answer = self.client.complete(ids, echo=True, logprobs=1, max_tokens=1, seed=1234)
        self.assertEqual(answer.status, 200, answer.body)
        choice = answer.json["choices"][0]
        logprobs = choice["logprobs"]
        self.assertEqual({len(of_all) for of_all in logprobs.values()}, {len(ids) + 1})
        self.assertEqual(logprobs["tokens"][:-1], [chr(one) for one in ids])
        self.assertEqual(logprobs["text_offset"], list(range(len(ids) + 1)))
        self.assertIsNone(logprobs["token_logprobs"][0])
        self.assertIsNone(logprobs["top_logprobs"][0])
        self.assertEqual(choice["text"], "".join(logprobs["tokens"]))
        context, rest = ids[:10], bytes(ids[10:]).decode()
        score = self.generation.Score(gen.ScoreRequest(token_ids=gen.TokenIds(ids=context), continuations=[rest], optimization=NONE), timeout=60).scores[0]
        for told, own in zip(logprobs["token_logprobs"][10:-1], score.token_logprobs, strict=True):
            self.assertAlmostEqual(told, own, places=4)
        greedy = all(own == max(top.values()) for own, top in zip(logprobs["token_logprobs"][10:-1], logprobs["top_logprobs"][10:-1]))
        self.assertEqual(greedy, score.is_greedy)
        [event, *_, end] = self.client.complete(ids, echo=True, logprobs=1, max_tokens=1, stream=True).events
        self.assertEqual(event["choices"][0]["logprobs"]["token_logprobs"][:-1], logprobs["token_logprobs"][:-1])
        self.assertEqual(end["choices"][0]["finish_reason"], "length")

    def test_echo_of_no_answer(self):
        for logprobs in (None, 0, 2):
            answer = self.client.complete("abcdef", echo=True, max_tokens=0, logprobs=logprobs).json
            [choice] = answer["choices"]
            self.assertEqual((choice["text"], answer["usage"]["completion_tokens"]), ("abcdef", 0))
            if logprobs is not None:
                tokens = choice["logprobs"]["tokens"]
                self.assertEqual("".join(tokens[-6:]), "abcdef")
                self.assertEqual(len(choice["logprobs"]["top_logprobs"]), len(tokens))
        self.assertEqual("".join(event["choices"][0]["text"] for event in self.client.complete("abcdef", echo=True, max_tokens=0, stream=True).events), "abcdef")
        self.assertEqual(self.client.complete(max_tokens=0).error["param"], "max_tokens")

    def test_the_optimization_is_chosen_and_reported(self):
        asked = {"method": "ngd", "collection": "set", "k": 3, "steps": 2, "gate": {"enabled": False}, "application_rule": "APPLICATION_RULE_EVERY_NEW_TOKEN"}
        options = opt.OptimizationOptions(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, collection="set", k=3, steps=2, gate=opt.GateOptions(enabled=False),
                                          application_rule=opt.APPLICATION_RULE_EVERY_NEW_TOKEN)
        text, _ = self.generated(prompt="5 modulo 7?", optimization=options)
        answer = self.client.complete("5 modulo 7?", c3po=asked)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.json["choices"][0]["text"], text)
        report = answer.json["c3po"]
        self.assertEqual((report["method"], report["collection"], len(report["neighbors"]), len(report["losses"])),
                         ("METHOD_NEIGHBORHOOD_GRADIENT_DESCENT", "set", 3, 3))
        first, *others = self.client.complete("5 modulo 7?", c3po=asked, stream=True).events
        self.assertEqual(first["c3po"]["losses"], report["losses"])
        self.assertFalse(any("c3po" in event for event in others))
        self.assertEqual(len(self.client.complete(["5 modulo 7?", "6 modulo 7?"], c3po=asked).json["c3po"]), 2)
        self.assertEqual(self.client.complete("5 modulo 7?", c3po={"method": "none"}).json["c3po"]["method"], "METHOD_NONE")
        named = self.client.complete("5 modulo 7?", model=f"{self.name}@set").json
        self.assertEqual((named["model"], named["c3po"]["method"]), (f"{self.name}@set", "METHOD_NONE"))  # The server's --method.
        self.assertEqual(self.client.complete(c3po={"method": "ngd", "collection": "nobody's"}).status, 404)

    def test_models_are_the_model_and_its_collections(self):
        ids = [model["id"] for model in self.client.get("/v1/models").json["data"]]
        self.assertEqual(ids, [self.name, f"{self.name}@set"])
        self.assertEqual(self.client.get(f"/v1/models/{self.name}@set").json["parent"], self.name)
        self.assertEqual(self.client.get(f"/v1/models/{self.name}%40set").json["root"], self.name)
        self.assertEqual(self.client.get("/v1/models/other").status, 404)

    def test_embeddings_are_unit_vectors_in_numbers_or_base64(self):
        answer = self.client.post("/v1/embeddings", input=["abc", "xyz", "abc"], model=self.name)
        self.assertEqual(answer.status, 200, answer.body)
        first, second, third = (one["embedding"] for one in answer.json["data"])
        self.assertEqual(first, third)
        self.assertNotEqual(first, second)
        self.assertAlmostEqual(sum(x * x for x in first), 1, places=4)
        packed = self.client.post("/v1/embeddings", input="abc", model=self.name, encoding_format="base64").json["data"][0]["embedding"]
        raw = base64.b64decode(packed)
        for ours, theirs in zip(struct.unpack(f"<{len(raw) // 4}f", raw), first, strict=True):
            self.assertAlmostEqual(ours, theirs, places=6)
        self.assertEqual(self.client.post("/v1/embeddings", input=list(b"abc"), model=self.name).json["usage"]["total_tokens"], 3)
        self.assertEqual(self.client.post("/v1/embeddings", input="", model=self.name).error["param"], "input")
        self.assertEqual(self.client.post("/v1/embeddings", input=["a", ""], model=self.name).error["param"], "input[1]")

    def test_answers_have_the_form_that_was_asked_for(self):
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"], "additionalProperties": False}
        answer = self.client.chat(response_format={"type": "json_schema", "json_schema": {"name": "number", "schema": schema}},
                                  temperature=1, seed=3, max_tokens=100)
        self.assertEqual(answer.status, 200, answer.body)
        choice = answer.json["choices"][0]
        self.assertEqual(choice["finish_reason"], "stop")
        self.assertIn(json.loads(choice["message"]["content"])["n"], range(100))
        for seed in range(4):
            text = self.client.complete(structured_outputs={"regex": "[ab]{3}"}, temperature=1, seed=seed).json["choices"][0]["text"]
            self.assertRegex(text, "^[ab]{3}$")

    def test_what_is_wrong_is_named(self):
        for body, param in (({"max_tokens": "a"}, "max_tokens"), ({"temperature": -1}, "temperature"), ({"n": 2}, "n"), ({"prompt": []}, "prompt"),
                            ({"logit_bias": {"99999": 1}}, "logit_bias[99999]"), ({"prompt": "a" * 300}, "prompt"), ({"stop": ["x"] * 17}, "stop"),
                            ({"prompt": [99999]}, "prompt[0]"), ({"response_format": {"type": "xml"}}, "response_format.type"),
                            ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format.json_schema.schema"),
                            ({"guided_regex": "("}, "guided_regex"),
                            ({"c3po": {"k": 0, "method": "ngd"}}, "c3po.k"), ({"frequency_penalty": 1}, "frequency_penalty")):
            with self.subTest(param):
                answer = self.client.complete(**body)
                self.assertEqual((answer.status, answer.error["code"], answer.error["type"]), (400, 400, "BadRequestError"), answer.body)
                self.assertEqual(answer.error["param"], param, answer.error)
        self.assertEqual(self.client.chat(messages=[{"role": "king", "content": "a"}]).error["param"], "messages[0].role")
        self.assertEqual(self.client.chat(tool_choice="required").error["param"], "tool_choice")
        wrong = self.client.complete(model="other")
        self.assertEqual((wrong.status, wrong.error["param"], wrong.error["type"]), (404, "model", "NotFoundError"))

    def test_an_error_before_the_first_event_is_no_stream(self):
        answer = self.client.complete("a" * 300, stream=True)
        self.assertEqual((answer.status, answer.error["param"]), (400, "prompt"))

    def test_unknown_fields_are_ignored_and_logged(self):
        deadline = time.monotonic() + 30
        lines = []
        while not lines and time.monotonic() < deadline:  # One line a second tells all, and the log comes by a pipe.
            self.assertEqual(self.client.complete(wings=2).status, 200)
            time.sleep(0.2)
            lines = self.server.logged(event="fields_ignored")
        self.assertEqual(lines[0]["fields"], "wings")

    def test_paths_and_methods(self):
        self.assertEqual(self.client.get("/health").status, 200)
        self.assertEqual(self.client.get("/v2").status, 404)
        self.assertEqual(self.client.get("/v1/modelsx").status, 404)
        wrong = self.client.get("/v1/completions")
        self.assertEqual((wrong.status, wrong.headers["allow"]), (405, "POST"))
        self.assertEqual(self.client.ask("POST", "/v1/completions", b"prompt=a", content_type="application/x-www-form-urlencoded").status, 415)
        self.assertEqual(self.client.ask("POST", "/v1/completions?x=1", {"prompt": "a", "max_tokens": 1}).status, 200)
        self.assertEqual(self.client.ask("POST", "/v1/completions", b"{").error["param"], None)

    def test_calls_are_counted_and_logged(self):
        self.client.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, x_request_id="my-own-id")
        self.server.wait_for_log(event="call", method="OpenAI/Completions", status="OK", request_id="my-own-id")
        name = 'c3po_rpc_total{code="OK",method="Completions",service="OpenAI"} '
        [count] = [float(line.removeprefix(name)) for line in self.server.http("/metrics").splitlines() if line.startswith(name)]
        self.assertGreater(count, 0)


if __name__ == "__main__":
    unittest.main()
