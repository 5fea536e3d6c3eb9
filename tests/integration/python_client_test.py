"""c3po-client as a user has it, its wheel in an environment of its own, and a real c3pod: every call, and the programs of
client/python/examples.
usage: python_client_test.py C3POD"""

import asyncio
import csv
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

sys.dont_write_bytecode = True
TESTS = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = TESTS.parent / "client" / "python" / "examples"
INSTALLED = "--installed"  # This file runs again, with the environment's own interpreter.

if INSTALLED in sys.argv:
    import c3po_client
    from c3po.v1 import generation_pb2 as gen
    from c3po.v1 import options_pb2 as opt
    from c3po_client import AsyncClient, Client

    import server_process

CHAT_ML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
SAMPLES = [{"prompt": f"What is {i} modulo seven?", "answer": f" {i % 7}", "choices": [f" {c}" for c in range(7)]} for i in range(40)]
NGD = {"method": "ngd", "collection": "set", "k": 3, "validation_neighbors": 0, "steps": 4, "reference_selection": "all",
       "gate": {"enabled": False}, "return_pathways": True}


class PythonClientTest(unittest.TestCase):
    binary = None

    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        cls.addClassCleanup(server_process.remove_folder, cls.folder)
        cls.server = server_process.ServerProcess(cls.binary, cls.folder)
        cls.target = f"127.0.0.1:{cls.server.port}"
        cls.client = Client(cls.target)
        cls.client.wait_until_serving(60)
        seen = []
        outcome = cls.client.references.add(SAMPLES, collection="set", on_progress=lambda progress: seen.append(progress.received))
        assert outcome.progress.received == 40 and not outcome.problems and seen[-1] == 40, (outcome, seen)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        code = cls.server.stop()
        if code != 0:
            raise AssertionError(f"c3pod exited with {code}: {cls.server.log[-20:]}")

    def test_it_is_the_installed_package(self):
        self.assertTrue(c3po_client.__file__.startswith(sys.prefix), c3po_client.__file__)
        self.assertTrue(gen.__file__.startswith(sys.prefix), gen.__file__)

    def test_an_optimized_answer_has_its_report_its_pathways_and_its_text(self):
        with self.client.generate(SAMPLES[3]["prompt"], optimization=NGD, sampling={"max_tokens": 6, "ignore_eos": True},
                                  request_id="mine-1") as generation:
            kinds = [type(event) for event in generation]
        self.assertEqual((kinds[0], kinds[-1], set(kinds[1:-1])), (gen.OptimizationReport, gen.GenerationSummary, {gen.TextDelta}))
        self.assertEqual((len(generation.report.neighbors), len(generation.report.losses)), (3, 5))
        self.assertEqual((generation.summary.request_id, generation.summary.usage.completion_tokens), ("mine-1", 6))
        self.assertEqual(self.client.detokenize(generation.token_ids_so_far(), skip_special_tokens=False), generation.text_so_far())
        rows = list(c3po_client.pathway_rows(generation.report))
        experts = self.client.server_info().model.experts
        self.assertEqual(len(rows), experts * len(generation.report.critical_layers))
        self.assertTrue(any(row.before != row.after for row in rows))
        for layer in generation.report.critical_layers:
            self.assertAlmostEqual(sum(row.after for row in rows if row.layer == layer), 1, places=4)

    def test_both_clients_and_plain_prompts_and_ids_give_the_same(self):
        prompt = SAMPLES[5]["prompt"]
        options = {"optimization": {"method": "none"}, "sampling": {"max_tokens": 8}}
        text = self.client.generate(prompt, **options).text()
        ids = self.client.tokenize(prompt).ids
        self.assertEqual(self.client.generate(list(ids), **options).text(), text)

        async def ask():
            async with AsyncClient(self.target) as client:
                answers = await asyncio.gather(*(client.generate(prompt, **options).text() for _ in range(8)))
                score = await client.score(prompt, SAMPLES[5]["choices"], optimization=NGD)
                return answers, score, [reference.id async for reference in client.references.list("set", page_size=7)]

        answers, score, ids = asyncio.run(ask())
        self.assertEqual(answers, [text] * 8)
        self.assertEqual(list(score.scores), list(self.client.score(prompt, SAMPLES[5]["choices"], optimization=NGD).scores))
        self.assertEqual(len(set(ids)), 40)

    def test_a_choice_is_the_likeliest_of_score(self):
        prompt, choices = SAMPLES[2]["prompt"], SAMPLES[2]["choices"]
        choice = self.client.choose(prompt, choices, optimization=NGD)
        response = self.client.score(prompt, choices, optimization=NGD)
        self.assertEqual((choice.index, choice.text), (c3po_client.likeliest(response), choices[choice.index]))
        self.assertEqual([score.log_likelihood for score in choice.scores], [score.log_likelihood for score in response.scores])

    def test_several_answers(self):
        texts = self.client.generate("What", sampling={"n": 3, "temperature": 1.0, "max_tokens": 6, "seed": 7},
                                     optimization={"method": "none"}).texts()
        self.assertEqual((len(texts), len(set(texts))), (3, 3))

    def test_a_chat_is_rendered_by_the_models_template(self):
        model = self.folder / "chatting"
        shutil.copytree(server_process.TINY_MODEL, model)
        config = json.loads((model / "tokenizer_config.json").read_text())
        config["chat_template"] = CHAT_ML
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        (self.folder / "chat-store").mkdir()
        server = server_process.ServerProcess(self.binary, self.folder / "chat-store", model=model)
        self.addCleanup(lambda: self.assertEqual(server.stop(), 0))
        with Client(f"127.0.0.1:{server.port}") as client:
            text = client.chat([("user", "What is 9?"), ("assistant", "2"), ("user", "And 10?")], sampling={"max_tokens": 8}).text()
            rendered = ("<|im_start|>user\nWhat is 9?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nAnd 10?<|im_end|>\n"
                        "<|im_start|>assistant\n")
            self.assertEqual(client.generate(rendered, sampling={"max_tokens": 8}).text(), text)
            self.assertGreater(len(text), 0)
            answers = [" a", " bc", "d"]
            scored = client.score(messages=[("user", "What is 9?"), ("assistant", "2"), ("user", "And 10?")], continuations=answers)
            self.assertEqual(list(scored.scores), list(client.score(rendered, answers).scores))
            with self.assertRaises(c3po_client.ArgumentError):
                client.score("a", [" b"], messages=[("user", "hi")])

    def test_references_come_and_go(self):
        references = self.client.references
        outcome = references.add([{**SAMPLES[0], "id": "mine"}, {"prompt": "", "answer": " a"}], collection="other")
        self.assertEqual((outcome.progress.malformed, [problem.sequence for problem in outcome.problems]), (1, [1]))
        self.assertEqual(references.get("other:mine", include_pathway=True).sample.prompt, SAMPLES[0]["prompt"])
        self.assertEqual(len(list(references.list(page_size=3))), 41)
        hits = references.search(SAMPLES[7]["prompt"], collection="set", k=5)
        self.assertEqual((len(hits), hits[0].reference.sample.prompt), (5, SAMPLES[7]["prompt"]))
        self.assertLess(hits[0].distance, 1e-3)
        self.assertEqual({stats.collection: stats.references for stats in references.stats().collections}, {"set": 40, "other": 1})
        self.assertEqual(list(references.delete(["other:mine", "other:none"]).not_found), ["other:none"])
        references.add(SAMPLES[:3], collection="other")
        self.assertEqual(references.delete_collection("other"), 3)
        self.assertEqual(references.add([], collection="other").progress.received, 0)

    def test_what_a_collection_learns(self):
        self.client.references.add(SAMPLES, collection="learned")
        self.addCleanup(self.client.references.delete_collection, "learned")
        collections = self.client.collections
        with collections.tune_prior("learned", {"epochs": 1, "critical_layers": [2, 3], "batch_size": 8}) as stream:
            self.assertTrue(stream.last().finished)
        last = collections.amortize_shifts("learned", {"steps": 1, "critical_layers": [3]}).last()
        self.assertEqual((last.done, last.total), (40, 40))
        self.assertEqual(collections.get("learned").amortized_shifts, 40)
        collections.set_profile("learned", {"method": "none"}, notes='{"by": "hand"}')
        profile = collections.get("learned")
        self.assertEqual((profile.profile.method, profile.profile_notes), (opt.METHOD_NONE, '{"by": "hand"}'))
        self.assertTrue(collections.clear_profile("learned"))
        self.assertFalse(collections.clear_profile("learned"))

    def test_a_label_offset_is_fitted_kept_and_applied(self):
        labels = [" even", " odd"]
        samples = [{"prompt": f"Is {i} even or odd?", "answer": labels[i % 2], "choices": labels} for i in range(24)]
        self.client.references.add(samples, collection="labels")
        self.addCleanup(self.client.references.delete_collection, "labels")
        fitted = self.client.collections.tune_offset("labels").last().stored
        self.assertEqual((list(fitted.labels), fitted.references), (labels, 24))
        options = {"method": "none", "collection": "labels", "use_offset": True}
        response = self.client.score("Is 31 even or odd?", labels, optimization=options)
        self.assertTrue(response.optimization.offset_applied)
        for score, label in zip(response.scores, labels):
            expected = fitted.scale * score.log_likelihood / score.token_count + fitted.offsets[labels.index(label)]
            self.assertAlmostEqual(score.offset_score, expected, places=5)

        async def again():
            async with AsyncClient(self.target) as client:
                kept = await client.collections.tune_offset("labels", keep=True).last()
                anew = await client.collections.tune_offset("labels", max_references=12, seed=3).last()
                return kept, anew

        kept, anew = asyncio.run(again())
        self.assertEqual(kept.stored, fitted)
        self.assertEqual(anew.stored.references, 12)

    # --- Routed experts ---

    def test_routed_experts_are_those_of_prompt_and_answer(self):
        prompt, sampling = SAMPLES[6]["prompt"], {"max_tokens": 5, "ignore_eos": True}
        model = self.client.server_info().model
        tables = []
        for _ in range(2):  # Once more with the prompt in the cache.
            generation = self.client.generate(prompt, sampling=sampling, optimization={"method": "none"}, return_routed_experts=True)
            generation.text()
            tables.append(list(c3po_client.routed_rows(generation.routed_experts_so_far())))
        tokens = generation.summary.usage.prompt_tokens + 4  # No pass reads the last one.
        self.assertEqual(tables[0], tables[1])
        self.assertEqual([(row.position, row.layer, row.rank) for row in tables[0]],
                         [(p, l, r) for p in range(tokens) for l in range(model.moe_layers) for r in range(model.experts_per_token)])
        # The same tokens as a prompt have the same experts, and Score tells them, too.
        ids = list(self.client.tokenize(prompt).ids) + generation.token_ids_so_far()
        scored = self.client.score(ids[:-2], [self.client.detokenize(ids[-2:])], optimization={"method": "none"}, return_routed_experts=True)
        of_score = [row[:4] for row in c3po_client.routed_rows(scored.routed_experts)]
        self.assertEqual(of_score, [row[:4] for row in tables[0]][:len(of_score)])
        self.assertEqual(len(of_score), (len(ids) - 2) * model.moe_layers * model.experts_per_token)

    def test_routed_experts_under_a_pathway_are_its_largest(self):
        options = {**NGD, "application_rule": "every"}
        generation = self.client.generate(SAMPLES[3]["prompt"], sampling={"max_tokens": 4, "ignore_eos": True}, optimization=options,
                                          return_routed_experts=True)
        kinds = [type(event) for event in generation]
        self.assertEqual(kinds[:2], [gen.OptimizationReport, gen.RoutedExperts])
        last = generation.summary.usage.prompt_tokens - 1
        after = {layer.layer: layer.weights for layer in generation.report.pathway_after}
        given = {}
        for row in c3po_client.routed_rows(generation.routed_experts_so_far()):
            if row.position >= last and row.layer in after:
                given.setdefault((row.position, row.layer), []).append((row.expert, row.weight))
        self.assertEqual(len(given), 4 * len(after))
        for (_, layer), experts in given.items():
            ranked = sorted(range(len(after[layer])), key=lambda expert: -after[layer][expert])[:len(experts)]
            self.assertEqual([expert for expert, _ in experts], ranked)
            kept = sum(after[layer][expert] for expert in ranked)  # The model normalizes the weights of those that it chooses.
            for expert, weight in experts:
                self.assertAlmostEqual(weight, after[layer][expert] / kept, places=6)

    def test_experts_per_token_of_one_request(self):
        prompt, most = SAMPLES[6]["prompt"], self.client.server_info().limits["experts_per_token_max"]
        own = self.client.server_info().model.experts_per_token
        plain = self.client.score(prompt, SAMPLES[6]["choices"], optimization={"method": "none"})
        scores = {}
        for count in (1, own, most):
            response = self.client.score(prompt, SAMPLES[6]["choices"], optimization={"method": "none"}, experts_per_token=count,
                                         return_routed_experts=True)
            self.assertEqual({piece.experts for piece in response.routed_experts}, {count})
            scores[count] = [score.log_likelihood for score in response.scores]
        self.assertEqual(scores[own], [score.log_likelihood for score in plain.scores])
        self.assertEqual(len({tuple(each) for each in scores.values()}), 3)
        for wrong in (0, most + 1):
            with self.assertRaises(c3po_client.InvalidArgument) as caught:
                self.client.generate(prompt, experts_per_token=wrong, optimization={"method": "none"}).text()
            self.assertEqual([each.field for each in caught.exception.field_violations], ["experts_per_token"])
        with self.assertRaises(c3po_client.InvalidArgument) as caught:
            self.client.score(prompt, SAMPLES[6]["choices"], optimization=NGD, experts_per_token=1)
        self.assertEqual([each.field for each in caught.exception.field_violations], ["experts_per_token"])
        self.client.score(prompt, SAMPLES[6]["choices"], optimization=NGD, experts_per_token=own)  # The model's own number.

    def test_a_copy_of_the_store(self):
        size = self.client.backup(self.folder / "copy.db")
        self.assertEqual((self.folder / "copy.db").stat().st_size, size)
        self.assertEqual((self.folder / "copy.db").read_bytes()[:15], b"SQLite format 3")

    def test_errors_are_the_services(self):
        with self.assertRaises(c3po_client.InvalidArgument) as caught:
            self.client.score("a", [" b"], optimization={"learning_rate": 99})
        self.assertEqual((caught.exception.reason, [each.field for each in caught.exception.field_violations]),
                         ("INVALID_FIELD", ["optimization.learning_rate"]))
        with self.assertRaises(c3po_client.NotFound) as caught:
            self.client.generate("a", optimization={"collection": "nowhere"}).text()
        self.assertEqual((caught.exception.reason, caught.exception.exit_code), ("NOT_FOUND", 5))
        with self.assertRaises(c3po_client.FailedPrecondition):
            self.client.chat([("user", "hi")]).text()  # The tiny model has no chat template.
        with self.assertRaises(c3po_client.PermissionDenied):
            self.client.score("a", [" b"], optimization={"method": "oracle", "collection": "set"}, oracle_answer=" b")

    def test_a_generation_that_is_left_frees_its_place(self):
        with self.client.generate("a", sampling={"max_tokens": 200, "ignore_eos": True}, optimization={"method": "none"}) as generation:
            next(generation)
        for _ in range(200):
            lines = self.server.http("/metrics").splitlines()
            running = [line for line in lines if line.startswith("vllm:num_requests_running")]
            if running and float(running[0].rsplit(" ", 1)[1]) == 0:
                return
        self.fail(str(running))

    # --- The examples ---

    def example(self, name, *arguments, **options):
        done = subprocess.run([sys.executable, "-I", str(EXAMPLES / name), *map(str, arguments)], capture_output=True, text=True, timeout=120,
                              env={**os.environ, "C3PO_SERVER": self.target}, check=False, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_ask(self):
        text = self.client.generate("What", sampling={"max_tokens": 5}, optimization={"method": "none"}).text()
        self.assertEqual(self.example("ask.py", "What", "--max-tokens", "5", "--method", "none"), text + "\n")
        lines = self.example("ask.py", SAMPLES[1]["prompt"], "--method", "ngd", "--collection", "set", "--json", "--max-tokens", "2").splitlines()
        events = [json.loads(line) for line in lines]
        self.assertEqual((list(events[0]), list(events[-1])), (["optimization"], ["summary"]))
        self.assertIn("offset_applied", events[0]["optimization"])  # Fields that are not set are there.

    def test_classify(self):
        output = self.example("classify.py", "--collection", "set", SAMPLES[4]["prompt"], *SAMPLES[4]["choices"])
        response = self.client.score(SAMPLES[4]["prompt"], SAMPLES[4]["choices"], optimization={"collection": "set"})
        best = c3po_client.likeliest(response)
        self.assertEqual(output, f"{SAMPLES[4]['choices'][best]}\t{c3po_client.score_per_token(response.scores[best]):g}\n")

    def test_score_file(self):
        path = self.folder / "questions.jsonl"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in SAMPLES[:9]))
        rows = list(csv.DictReader(io.StringIO(self.example("score_file.py", path, "--collection", "set", "--method", "none"))))
        self.assertEqual([row["question"] for row in rows], [str(i) for i in range(1, 10)])
        for row, sample in zip(rows, SAMPLES):
            response = self.client.score(sample["prompt"], sample["choices"], optimization={"collection": "set", "method": "none"})
            chosen = sample["choices"][c3po_client.likeliest(response)]
            self.assertEqual((row["chosen"], row["answer"], row["correct"]), (chosen, sample["answer"], str(int(chosen == sample["answer"]))))
            self.assertEqual((row["gate"], len(row["scores"].split())), ("not_requested", 7))

    def test_expert_map(self):
        path = self.folder / "prompts.txt"
        path.write_text("".join(sample["prompt"] + "\n" for sample in SAMPLES[:3]))
        self.client.collections.set_profile("set", {key: value for key, value in NGD.items() if key != "collection"})
        self.addCleanup(self.client.collections.clear_profile, "set")
        self.example("expert_map.py", path, "--collection", "set", "--csv", self.folder / "map.csv", "--svg", self.folder / "map.svg")
        with open(self.folder / "map.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        model = self.client.server_info().model
        self.assertEqual(len(rows), 3 * 2 * model.moe_layers * model.experts_per_token)
        by_when = {when: [row for row in rows if row["when"] == when] for when in ("before", "after")}
        self.assertEqual(*(len(part) for part in by_when.values()))
        self.assertNotEqual(*([(row["expert"], row["weight"]) for row in part] for part in by_when.values()))
        drawn = xml.etree.ElementTree.parse(self.folder / "map.svg")
        cells = drawn.findall("{http://www.w3.org/2000/svg}rect")
        self.assertEqual(len(cells), 3 * model.moe_layers * model.experts)
        self.assertGreater(len({cell.get("fill") for cell in cells}), 10)

    def test_concurrent_generation(self):
        prompts = [sample["prompt"] for sample in SAMPLES[:12]]
        lines = self.example("concurrent_generation.py", "-", "--collection", "set", "--max-tokens", "4", "--concurrency", "5",
                             input="".join(prompt + "\n" for prompt in prompts)).splitlines()
        answers = {answer["line"]: answer for answer in map(json.loads, lines)}
        self.assertEqual([answers[i + 1]["prompt"] for i in range(12)], prompts)
        text = self.client.generate(prompts[0], sampling={"max_tokens": 4}, optimization={"collection": "set"}).text()
        self.assertEqual(answers[1]["text"], text)


def main():
    if INSTALLED in sys.argv:
        sys.argv.remove(INSTALLED)
        PythonClientTest.binary = sys.argv.pop(1)
        unittest.main()
    sys.path.insert(0, str(TESTS / "client" / "python"))
    import installed_client

    with tempfile.TemporaryDirectory(prefix="c3po_client_") as folder:
        python = installed_client.fresh_environment(pathlib.Path(folder))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run([python, __file__, *sys.argv[1:], INSTALLED], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
