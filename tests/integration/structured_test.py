"""Answers of a form: schemas of pydantic's, whose own parser is asked about them, expressions, grammars and lists; of several answers
at once, beside optimization, from the command and the Python client. usage: structured_test.py C3POD C3PO PYTHON_WITH_PYDANTIC"""

import concurrent.futures
import json
import re
import subprocess
import sys
import time
import unittest

import grpc

import server_process
from service_calls import details, gen, opt, samples
from serving_case import NONE, ServingCase

from c3po_client import ArgumentError, Client

PYDANTIC = sys.argv.pop(3)
CLI = sys.argv.pop(2)
BINARY = sys.argv.pop(1)

# What a user writes, in the interpreter that has pydantic: first its schema, then for each line of stdin, an answer, whether it parses.
MODELS = '''
import json, sys
from typing import Annotated, Literal, Optional, Union
from pydantic import BaseModel, Field, ValidationError
class Address(BaseModel):
    street: str = Field(max_length=8)
    number: int = Field(ge=1, le=999)
class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)
class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = Field(max_length=6)
class Person(BaseModel):
    name: str = Field(min_length=1, max_length=10)
    age: int = Field(ge=0, le=150)
    mood: Literal["good", "bad", "mixed"]
    happy: bool
    address: Optional[Address]
    pets: list[Union[Cat, Dog]] = Field(max_length=2)
    code: str = Field(pattern="^[A-Z]{2}-[0-9]{3}$")
print(json.dumps(Person.model_json_schema()), flush=True)
for line in sys.stdin:
    try:
        Person.model_validate_json(json.loads(line), strict=True)
        print("ok", flush=True)
    except ValidationError as error:
        print(json.dumps(str(error)), flush=True)
'''


class StructuredTest(ServingCase):
    binary, FLAGS = BINARY, (*server_process.FEW_STEPS, "--output-tokens-max", "4000")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.add("set", samples(40))
        cls.pydantic = subprocess.Popen([PYDANTIC, "-c", MODELS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        cls.schema = cls.pydantic.stdout.readline()

    @classmethod
    def tearDownClass(cls):
        cls.pydantic.stdin.close()
        cls.pydantic.wait(timeout=60)
        cls.pydantic.stdout.close()
        super().tearDownClass()

    def parses(self, text):
        self.pydantic.stdin.write(json.dumps(text) + "\n")
        self.pydantic.stdin.flush()
        return self.pydantic.stdout.readline().strip()

    def answers(self, form, seed=1, n=1, max_tokens=4000, optimization=NONE, temperature=1, **sampling):
        """(text, finish reason) of each answer."""
        events = list(self.generation.Generate(gen.GenerateRequest(
            prompt="A person:", optimization=optimization, structured_output=gen.StructuredOutput(**form),
            sampling=gen.SamplingOptions(temperature=temperature, seed=seed, n=n if n > 1 else None, max_tokens=max_tokens, **sampling)), timeout=300))
        texts = ["" for _ in range(n)]
        for event in events:
            texts[event.delta.answer] += event.delta.text
        return [(text, end.finish_reason) for text, end in zip(texts, events[-1].summary.answers, strict=True)]

    def refused(self, form, field, code=grpc.StatusCode.INVALID_ARGUMENT, **request):
        call = self.generation.Generate(gen.GenerateRequest(prompt="a", structured_output=gen.StructuredOutput(**form), **request), timeout=60)
        with self.assertRaises(grpc.RpcError) as caught:
            list(call)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        self.assertEqual(details(caught.exception)[1], [field], caught.exception.details())
        return caught.exception.details()

    # --- What answers are ---

    def test_pydantic_parses_each_of_two_hundred_answers(self):
        ngd = opt.OptimizationOptions(collection="set", method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, steps=2,
                                      gate=opt.GateOptions(enabled=False))
        kernel = opt.OptimizationOptions(collection="set", method=opt.METHOD_KERNEL_REGRESSION, gate=opt.GateOptions(enabled=False))
        asked = [dict(seed=seed, optimization=(NONE, ngd, kernel)[seed % 3]) for seed in range(100)]
        asked += [dict(seed=seed, n=4, optimization=(NONE, ngd)[seed % 2]) for seed in range(1000, 1025)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda ask: self.answers({"json_schema": self.schema}, **ask), asked))
        everyone = [answer for answers in found for answer in answers]
        self.assertEqual(len(everyone), 200)
        wrong = [(text, verdict) for text, reason in everyone
                 if (verdict := self.parses(text)) != "ok" or reason != gen.FINISH_REASON_STOP]
        self.assertEqual(wrong, [])
        self.assertGreater(len({text for text, _ in everyone}), 190)
        # Neither who else was asked nor what ran beside matters.
        self.assertEqual(self.answers({"json_schema": self.schema}, **asked[1]), found[1])
        self.assertEqual(self.answers({"json_schema": self.schema}, **asked[-1]), found[-1])
        # Answer 0 of several is that of one alone.
        self.assertEqual(self.answers({"json_schema": self.schema}, seed=1000), found[100][:1])

    def test_each_form(self):
        for seed in range(5):
            for text, reason in self.answers({"regex": "[a-f]{3}-[0-9]{2,4}"}, seed=seed, n=2):
                self.assertRegex(text, "^[a-f]{3}-[0-9]{2,4}$")
                self.assertEqual(reason, gen.FINISH_REASON_STOP)
            [(text, _)] = self.answers({"grammar": 'root ::= item ("," item){2}\nitem ::= [a-z]{1,4} | "\\"" [0-9] "\\""'}, seed=seed)
            self.assertRegex(text, '^([a-z]{1,4}|"[0-9]")(,([a-z]{1,4}|"[0-9]")){2}$')
            [(text, _)] = self.answers({"one_of": gen.OneOfTexts(texts=["red wine", "red", "white"])}, seed=seed)
            self.assertIn(text, ("red wine", "red", "white"))
        [(greedy, _)] = self.answers({"regex": "[a-z]{12}"}, temperature=0)
        self.assertEqual(self.answers({"regex": "[a-z]{12}"}, temperature=0), [(greedy, gen.FINISH_REASON_STOP)])
        self.assertRegex(greedy, "^[a-z]{12}$")
        found = [text for text, reason in (self.answers({"json_object": True}, seed=seed, max_tokens=2000)[0] for seed in range(8))
                 if reason == gen.FINISH_REASON_STOP]
        for text in found:
            self.assertIsInstance(json.loads(text), dict)
        self.assertGreater(len(found), 0)

    def test_max_tokens_cuts(self):
        [(text, reason)] = self.answers({"regex": "[a-z]{50}"}, max_tokens=5)
        self.assertEqual(reason, gen.FINISH_REASON_LENGTH)
        self.assertTrue(re.fullmatch("[a-z]{5,49}", text), text)

    def test_end_tokens_may_be_ignored(self):
        [(text, reason)] = self.answers({"regex": "[ab]{2,30}"}, ignore_eos=True)
        self.assertEqual((len(text), reason), (30, gen.FINISH_REASON_STOP))

    def test_logprobs_are_of_what_is_allowed(self):
        events = list(self.generation.Generate(gen.GenerateRequest(
            prompt="a", optimization=NONE, structured_output=gen.StructuredOutput(one_of=gen.OneOfTexts(texts=["a", "b"])),
            sampling=gen.SamplingOptions(logprobs=5, max_tokens=5)), timeout=60))
        [position] = [p for e in events if e.HasField("delta") for p in e.delta.logprobs]
        self.assertEqual(sorted(top.text for top in position.top), ["a", "b"])
        self.assertAlmostEqual(sum(2.718281828459045 ** top.logprob for top in position.top), 1, places=5)

    # --- What is refused ---

    def test_what_is_wrong_is_named(self):
        self.assertIn("is not JSON", self.refused({"json_schema": "{"}, "structured_output.json_schema"))
        self.assertIn("#/items/not", self.refused({"json_schema": '{"type": "array", "items": {"not": {}}}'}, "structured_output.json_schema"))
        self.assertIn("multipleOf", self.refused({"json_schema": '{"type": "number", "multipleOf": 3}'}, "structured_output.json_schema"))
        self.refused({"regex": "(a"}, "structured_output.regex")
        self.refused({"grammar": "a ::= b"}, "structured_output.grammar")
        self.refused({"one_of": gen.OneOfTexts(texts=["a", ""])}, "structured_output.one_of.texts[1]")
        self.refused({"one_of": gen.OneOfTexts()}, "structured_output.one_of.texts")
        self.refused({"json_object": False}, "structured_output.json_object")
        self.refused({}, "structured_output")
        self.refused({"regex": "a"}, "structured_output", choices=["a", "b"])
        self.refused({"regex": "a" * 70000}, "structured_output.regex")

    def test_a_hostile_form_holds_nobody_up(self):
        hostile = {"grammar": "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1} a{i + 1} | a{i + 1} \"b\" a{i + 1}\n" for i in range(60)) + 'a60 ::= "a" | ""\n'}
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(lambda: self.generation.Generate(gen.GenerateRequest(
                prompt="a", optimization=NONE, structured_output=gen.StructuredOutput(**hostile),
                sampling=gen.SamplingOptions(max_tokens=20)), timeout=120))
            self.assertEqual(len(self.answers({"regex": "[a-z]{3}"})), 1)
            try:
                list(waiting.result())
            except grpc.RpcError as error:
                self.assertIn(error.code(), (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED), error.details())
        self.assertLess(time.monotonic() - start, 60)
        self.assertEqual(len(self.answers({"regex": "[a-z]{4}"})), 1)

    def test_a_client_that_leaves_frees_its_place(self):
        call = self.generation.Generate(gen.GenerateRequest(
            prompt="a", optimization=NONE, structured_output=gen.StructuredOutput(regex="[a-z]{100000}"),
            sampling=gen.SamplingOptions(max_tokens=4000, temperature=1)), timeout=60)
        next(iter(call))
        call.cancel()
        self.wait_until(lambda: self.metric("vllm:num_requests_running") == 0, "the sequence is gone")

    # --- Clients ---

    def test_the_command(self):
        schema = self.folder / "schema.json"
        schema.write_text('{"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}')
        grammar = self.folder / "list.gbnf"
        grammar.write_text('root ::= "x" "y"{2}\n')

        def ask(*flags):
            done = subprocess.run([CLI, "--server", f"127.0.0.1:{self.server.port}", "ask", "--method", "none", "--max-tokens", "400", *flags, "A thing:"],
                                  capture_output=True, text=True, timeout=120, check=False)
            return done.stdout.strip() if done.returncode == 0 else done.stderr
        self.assertIsInstance(json.loads(ask("--json-schema", str(schema)))["on"], bool)
        self.assertEqual(ask("--grammar", str(grammar)), "xyy")
        self.assertRegex(ask("--regex", "[0-9]{4}"), "^[0-9]{4}$")
        self.assertIn(ask("--one-of", "up", "--one-of", "down"), ("up", "down"))
        self.assertIn("--regex", ask("--regex", "a", "--json-object"))
        self.assertIn("structured_output.regex", ask("--regex", "(a"))
        self.assertIn("nothing.json", ask("--json-schema", str(self.folder / "nothing.json")))

    def test_the_python_client(self):
        with Client(f"127.0.0.1:{self.server.port}") as client:
            def text(form):
                return client.generate("A thing:", structured_output=form, sampling={"temperature": 1, "seed": 3, "max_tokens": 400},
                                       optimization={"method": "none"}).text()
            schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
            self.assertIn(json.loads(text({"json_schema": schema}))["n"], (1, 2))
            self.assertIn(text({"one_of": ["up", "down"]}), ("up", "down"))
            self.assertRegex(text({"regex": "[0-9]{4}"}), "^[0-9]{4}$")
            with self.assertRaises(ArgumentError):
                text({"regex": "a", "grammar": "b"})
            with self.assertRaises(ArgumentError):
                text({"regexp": "a"})


if __name__ == "__main__":
    unittest.main()
