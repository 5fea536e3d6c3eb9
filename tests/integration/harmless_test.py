"""What a server does unasked: requests that are not of a collection's kind get the model's own answer, a server without references
answers, and a request that names its choices is answered by one of them.
usage: harmless_test.py C3POD C3PO"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

import grpc

import server_process
from server_case import ServerCase
from service_calls import details, gen, opt, pb, ref, samples, tokens_of

CLI, BINARY = sys.argv.pop(), sys.argv.pop()

NGD, PRIOR = opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, opt.METHOD_COLLECTION_PRIOR
FAR = opt.GATE_DECISION_SKIPPED_NEIGHBORS_FAR
OFF_TOPIC = "}}}}{{{{ <<<<>>>> ####"
ON_TOPIC = "What is 3 modulo seven?"
CHAT_ML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


class HarmlessTest(ServerCase):
    binary = BINARY

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.add("set", samples(40))
        tune = ref.TunePriorRequest(collection="set", critical_layers=[0, 1], epochs=2, learning_rate=0.3)
        assert list(cls.references.TunePrior(tune, timeout=120))[-1].HasField("stored")

    def ask(self, prompt, choices=(), gate=None, **options):
        optimization = opt.OptimizationOptions(gate=gate, **options) if options or gate else None
        sampling = None if choices else gen.SamplingOptions(max_tokens=8, ignore_eos=True)
        request = gen.GenerateRequest(prompt=prompt, choices=choices, optimization=optimization, sampling=sampling)
        return list(self.generation.Generate(request, timeout=60))

    def report(self, prompt, **options):
        options.setdefault("collection", "set")
        options.setdefault("reference_selection", opt.REFERENCE_SELECTION_ALL)
        return self.ask(prompt, **options)[0].optimization

    def fails(self, field, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT, caught.exception.details())
        self.assertEqual(details(caught.exception)[1], [field])

    def counted(self, decision):
        name = f'c3po_gate_total{{decision="{decision}"}}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.server.http("/metrics").splitlines() if line.startswith(name))

    # --- The distance gate ---

    def test_a_request_unlike_the_references_gets_the_models_own_answer_and_the_report_says_why(self):
        for method in (NGD, PRIOR, opt.METHOD_KERNEL_REGRESSION, opt.METHOD_MODE_FINDING):
            with self.subTest(method=method):
                before = self.counted("skipped_neighbors_far")
                events = self.ask(OFF_TOPIC, collection="set", method=method)
                report = events[0].optimization
                self.assertEqual(report.gate, FAR)
                self.assertGreater(report.nearest_distance, report.max_neighbor_distance)
                self.assertIn(f"{report.nearest_distance:.4f}", report.gate_reason)
                self.assertIn(f"{report.max_neighbor_distance:.4f}", report.gate_reason)
                self.assertEqual(tokens_of(events), tokens_of(self.ask(OFF_TOPIC, method=opt.METHOD_NONE)))
                self.assertEqual(self.counted("skipped_neighbors_far"), before + 1)

    def test_a_request_like_the_references_is_optimized(self):
        for method in (NGD, PRIOR):
            report = self.report(ON_TOPIC, method=method)
            self.assertLessEqual(report.nearest_distance, report.max_neighbor_distance)
            self.assertNotIn(report.gate, (FAR, opt.GATE_DECISION_SKIPPED_NO_NEIGHBORS))
            self.assertEqual(report.gate_reason == "", report.gate == opt.GATE_DECISION_APPLIED)

    def test_the_limit_is_the_requests_where_it_names_one(self):
        self.assertEqual(self.report(OFF_TOPIC, gate=opt.GateOptions(max_neighbor_distance=2)).max_neighbor_distance, 2)
        self.assertNotEqual(self.report(OFF_TOPIC, gate=opt.GateOptions(max_neighbor_distance=2)).gate, FAR)
        self.assertEqual(self.report(ON_TOPIC, gate=opt.GateOptions(max_neighbor_distance=0), exclude_reference_ids=[
            self.report(ON_TOPIC).neighbors[0].reference_id]).gate, FAR)
        report = self.report(OFF_TOPIC, gate=opt.GateOptions(enabled=False))
        self.assertFalse(report.HasField("max_neighbor_distance"))
        self.assertNotEqual(report.gate, FAR)
        limits = [self.report(ON_TOPIC, gate=opt.GateOptions(neighbor_distance_quantile=quantile)).max_neighbor_distance
                  for quantile in (0.25, 0.5, 1)]
        self.assertEqual(limits, sorted(limits))
        self.assertLess(limits[0], limits[-1])
        for wrong in (0, 1.5, float("nan")):
            self.fails("optimization.gate.neighbor_distance_quantile",
                       lambda: self.report(ON_TOPIC, gate=opt.GateOptions(neighbor_distance_quantile=wrong)))

    def test_a_quantile_asked_for_replaces_a_profiles_limit(self):
        self.add("profiled", samples(12))
        profile = opt.OptimizationOptions(gate=opt.GateOptions(max_neighbor_distance=1.75))
        self.references.SetProfile(ref.SetProfileRequest(collection="profiled", profile=profile))
        self.assertEqual(self.report(OFF_TOPIC, collection="profiled").max_neighbor_distance, 1.75)
        own = self.report(OFF_TOPIC, collection="profiled", gate=opt.GateOptions(neighbor_distance_quantile=1))
        self.assertLess(own.max_neighbor_distance, 1.75)
        self.assertEqual(own.gate, FAR)

    def test_the_limit_follows_the_collection(self):
        self.add("one", [next(samples(1))])
        alone = self.report(ON_TOPIC, collection="one")
        self.assertEqual(alone.gate, FAR)
        self.assertIn("all alike", alone.gate_reason)
        self.add("one", samples(20))
        grown = self.report(ON_TOPIC, collection="one")
        self.assertGreater(grown.max_neighbor_distance, alone.max_neighbor_distance)
        self.assertNotEqual(grown.gate, FAR)

    # --- Defaults ---

    def test_defaults_hold_neighbors_out_and_few_references_are_shared_out(self):
        self.add("few", samples(10))
        for collection, fitted in (("set", 12), ("few", 5)):
            events = self.ask(ON_TOPIC, collection=collection, gate=opt.GateOptions(max_neighbor_distance=2))
            report = events[0].optimization
            self.assertEqual(len(report.neighbors), fitted)
            self.assertEqual(len(report.validation_losses), len(report.losses))
            start, taken = report.validation_losses[0], report.validation_losses[report.selected_step]
            self.assertEqual(taken, min(report.validation_losses))
            self.assertEqual(report.gate == opt.GATE_DECISION_APPLIED, start - taken > 0.05 * start)

    def test_defaults_do_not_stand_in_the_way_of_epsilon(self):
        report = self.report(ON_TOPIC, epsilon=2.0, steps=1, gate=opt.GateOptions(max_neighbor_distance=2))
        self.assertEqual((len(report.neighbors), len(report.validation_losses)), (40, 0))

    # --- Presets ---

    def test_the_papers_settings_are_one_word(self):
        report = self.report(OFF_TOPIC, preset=opt.PRESET_PAPER, k=2)
        self.assertEqual(report.application_rule, opt.APPLICATION_RULE_LAST_PROMPT_TOKEN)
        self.assertEqual((report.gate, len(report.neighbors), len(report.losses)), (opt.GATE_DECISION_APPLIED, 2, 11))
        self.fails("optimization.preset", lambda: self.report(ON_TOPIC, preset=7))
        profile = opt.OptimizationOptions(preset=opt.PRESET_PAPER)
        self.fails("profile.preset",
                   lambda: self.references.SetProfile(ref.SetProfileRequest(collection="set", profile=profile)))

    # --- No references at all ---

    def test_without_the_default_collection_the_answer_is_the_models_own(self):
        plain = tokens_of(self.ask(ON_TOPIC, method=opt.METHOD_NONE))
        for options in ({}, {"collection": "default"}, {"method": NGD, "k": 3}):
            with self.subTest(**options):
                events = self.ask(ON_TOPIC, **options)
                report = events[0].optimization
                self.assertEqual(report.gate, opt.GATE_DECISION_SKIPPED_NO_NEIGHBORS)
                self.assertIn('"default"', report.gate_reason)
                self.assertEqual(tokens_of(events), plain)
        score = self.generation.Score(gen.ScoreRequest(prompt=ON_TOPIC, continuations=[" 3"]))
        self.assertEqual(score.optimization.gate, opt.GATE_DECISION_SKIPPED_NO_NEIGHBORS)
        with self.assertRaises(grpc.RpcError) as caught:  # A name that the client made up is still an error.
            self.ask(ON_TOPIC, collection="nowhere")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_the_command_and_the_python_example_answer_without_references(self):
        server = f"127.0.0.1:{self.server.port}"
        run = lambda command, text=None: subprocess.run(command, env={**os.environ, "C3PO_SERVER": server}, input=text,
                                                        capture_output=True, text=True, timeout=60)
        asked = run([CLI, "ask", ON_TOPIC, "--max-tokens", "8", "--explain"])
        self.assertEqual(asked.returncode, 0, asked.stderr)
        self.assertIn("no neighbors", asked.stdout)
        self.assertIn('collection "default" has no reference', asked.stdout)
        example = server_process.example("ask.py", ON_TOPIC, "--max-tokens", "8", C3PO_SERVER=server)
        self.assertEqual(example.returncode, 0, example.stderr)

    def test_chat_answers_plainly_without_references(self):
        model = self.folder / "chatting"
        shutil.copytree(server_process.TINY_MODEL, model)
        config = json.loads((model / "tokenizer_config.json").read_text())
        config["chat_template"] = CHAT_ML
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        (self.folder / "chat-store").mkdir()
        server = server_process.ServerProcess(BINARY, self.folder / "chat-store", model=model)
        self.addCleanup(lambda: self.assertEqual(server.stop(), 0))
        run = lambda *flags: subprocess.run(
            [CLI, "chat", "--max-tokens", "8", *flags], env={**os.environ, "C3PO_SERVER": f"127.0.0.1:{server.port}"},
            input="What is 50 modulo seven?\nAnd 51?\n", capture_output=True, text=True, timeout=60)
        told, plain = run(), run("--method", "none")
        self.assertEqual((told.returncode, told.stderr), (0, ""))
        self.assertEqual((plain.returncode, plain.stderr), (0, ""))
        self.assertGreater(len(told.stdout), 2)
        self.assertEqual(told.stdout, plain.stdout)  # The model's own answers to both turns.
        explained = run("--explain")
        self.assertEqual(explained.stdout.count('collection "default" has no reference'), 2, explained.stdout)
        wrong = run("--collection", "nowhere")  # A name that was made up is an error of the first turn.
        self.assertNotEqual(wrong.returncode, 0)
        self.assertIn("nowhere", wrong.stderr)

    # --- Choices ---

    def test_choices_are_the_only_answers_and_score_as_score_does(self):
        choices = [" 3", " twelve", " a much longer answer than that"]
        for options in ({"method": opt.METHOD_NONE}, {"collection": "set", "method": NGD, "gate": opt.GateOptions(enabled=False)}):
            with self.subTest(**options):
                events = self.ask(ON_TOPIC, choices, **options)
                self.assertEqual([e.WhichOneof("event") for e in events], ["optimization", "delta", "summary"])
                delta, summary = events[1].delta, events[2].summary
                scores = self.generation.Score(gen.ScoreRequest(
                    prompt=ON_TOPIC, continuations=choices, optimization=opt.OptimizationOptions(**options))).scores
                self.assertEqual(list(summary.choice_scores), list(scores))
                per_token = [s.log_likelihood / s.token_count for s in scores]
                self.assertEqual(summary.chosen, per_token.index(max(per_token)))
                self.assertEqual(delta.text, choices[summary.chosen])
                self.assertEqual(len(delta.token_ids), scores[summary.chosen].token_count)
                self.assertEqual(self.generation.Detokenize(gen.DetokenizeRequest(ids=delta.token_ids)).text, delta.text)
                self.assertEqual(summary.finish_reason, gen.FINISH_REASON_STOP)
                self.assertEqual(summary.usage.completion_tokens, len(delta.token_ids))
                self.assertEqual([a.completion_tokens for a in summary.answers], [len(delta.token_ids)])

    def test_wrong_choices_name_their_field(self):
        none = {"method": opt.METHOD_NONE}
        self.fails("choices", lambda: self.ask(ON_TOPIC, [" 3"], **none))
        self.fails("choices[1]", lambda: self.ask(ON_TOPIC, [" 3", ""], **none))
        self.fails("choices[2]", lambda: self.ask(ON_TOPIC, [" 3", " 4", " 3"], **none))
        self.fails("choices", lambda: self.ask(ON_TOPIC, [f" {i}" for i in range(1000)], **none))
        request = gen.GenerateRequest(prompt=ON_TOPIC, choices=[" 3", " 4"], sampling=gen.SamplingOptions(temperature=1))
        self.fails("sampling.temperature", lambda: list(self.generation.Generate(request)))


if __name__ == "__main__":
    pathlib.Path(BINARY).resolve(strict=True)
    unittest.main(verbosity=2)
