"""The whole service through a real channel: a c3pod process, and Python's grpcio as a client that shares no code with it.
usage: service_test.py C3POD"""

import concurrent.futures
import pathlib
import sys
import unittest
import urllib.error

import grpc

import server_process
from server_case import ServerCase
from service_calls import details, gen, opt, pb, ref, samples, srv, tokens_of

BINARY = sys.argv.pop(1)

ALL_METHODS = (opt.METHOD_NONE, opt.METHOD_MODE_FINDING, opt.METHOD_KERNEL_REGRESSION, opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT)


class ServiceTest(ServerCase):
    binary, FLAGS = BINARY, server_process.FEW_STEPS

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.info = pb["server_pb2_grpc"].ServerServiceStub(cls.channel)
        cls.verdicts = cls.add("set", samples(40))

    @staticmethod
    def optimization(options):
        """However far the neighbors are: what the gate makes of distances is harmless_test.py's."""
        gate = opt.GateOptions(max_neighbor_distance=2)
        gate.MergeFrom(options.pop("gate", opt.GateOptions()))
        return {"collection": "set", "reference_selection": opt.REFERENCE_SELECTION_ALL, "gate": gate, **options}

    def ask(self, prompt="What is 50 modulo seven?", max_tokens=12, sampling=None, **options):
        options = self.optimization(options)
        request = gen.GenerateRequest(prompt=prompt, optimization=opt.OptimizationOptions(**options),
                                      sampling=gen.SamplingOptions(max_tokens=max_tokens, ignore_eos=True, **(sampling or {})))
        return list(self.generation.Generate(request, timeout=60))

    def fails(self, code, field, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        error = caught.exception
        self.assertEqual(error.code(), code, error.details())
        fields = details(error)[1]
        if field is not None:
            self.assertEqual(fields, [field], error.details())
        return error

    # --- The stream ---

    def test_stream_is_one_report_then_text_then_one_summary(self):
        events = self.ask(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, k=4, steps=6, return_pathways=True)
        kinds = [event.WhichOneof("event") for event in events]
        self.assertEqual(kinds[0], "optimization")
        self.assertEqual(kinds[-1], "summary")
        self.assertEqual(set(kinds[1:-1]), {"delta"})
        report, summary = events[0].optimization, events[-1].summary
        self.assertEqual(len(report.neighbors), 4)
        self.assertEqual(sorted(n.distance for n in report.neighbors), [n.distance for n in report.neighbors])
        self.assertAlmostEqual(sum(n.kernel_weight for n in report.neighbors), 1, places=5)
        self.assertEqual(len(report.losses), 7)
        self.assertLess(min(report.losses), report.losses[0])
        self.assertEqual(report.gate, opt.GATE_DECISION_APPLIED)
        self.assertTrue(report.largest_changes)
        for layer in [*report.pathway_before, *report.pathway_after]:
            self.assertAlmostEqual(sum(layer.weights), 1, places=4)
        self.assertEqual(len(tokens_of(events)), 12)
        self.assertEqual(summary.usage.completion_tokens, 12)
        self.assertEqual(summary.finish_reason, gen.FINISH_REASON_LENGTH)
        info = self.info.GetServerInfo(srv.GetServerInfoRequest())
        self.assertEqual(summary.provenance.model_digest, info.model.digest)
        self.assertEqual(info.batch_invariance, srv.BATCH_INVARIANCE_BITWISE)
        self.assertGreater(summary.provenance.index_generation, 0)

    def test_the_loss_may_be_over_pairs_of_neighbors_and_hold_to_the_model_alone(self):
        """Of the neighbors of this prompt, some have the same choices and different answers; of those that answer alike, none."""
        descent = {"method": opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, "k": 12, "steps": 6, "objective": opt.OBJECTIVE_PAIRS,
                   "gate": opt.GateOptions(enabled=False), "application_rule": opt.APPLICATION_RULE_ROUTER_SHIFT,
                   "step_rule": opt.STEP_RULE_ADAM}
        free = self.ask(**descent)[0].optimization
        self.assertFalse([w for w in free.warnings if "PAIRS" in w], free.warnings)
        self.assertLess(min(free.losses), free.losses[0])
        # Both begin at the model alone, where the trust region is nothing and has no gradient: they part after the first step.
        held = self.ask(trust=100, **descent)[0].optimization
        self.assertAlmostEqual(held.losses[0], free.losses[0], places=9)
        self.assertGreater(held.losses[1], free.losses[1])
        self.assertGreater(min(held.losses), min(free.losses))
        alone = self.ask(**{**descent, "k": 1})[0].optimization
        self.assertEqual([w for w in alone.warnings if "PAIRS" in w],
                         ["the objective PAIRS was CHOICES for the 1 neighbor: no two of them have the same choices and different answers"])
        # Learning has pairs within a minibatch; of one reference there are none.
        self.add("paired", samples(40))
        losses = {}
        for objective in (opt.OBJECTIVE_PAIRS, opt.OBJECTIVE_CHOICES):
            tune = ref.TunePriorRequest(collection="paired", critical_layers=[0, 1], epochs=2, objective=objective)
            progress = list(self.references.TunePrior(tune, timeout=120))
            self.assertTrue(progress[-1].finished)
            losses[objective] = progress[0].validation_loss
        self.assertNotEqual(losses[opt.OBJECTIVE_PAIRS], losses[opt.OBJECTIVE_CHOICES])
        options = opt.OptimizationOptions(steps=2, critical_layers=[0, 1], objective=opt.OBJECTIVE_PAIRS, trust=0.5)
        amortize = ref.AmortizeShiftsRequest(collection="paired", optimization=options)
        self.assertEqual([p.done for p in self.references.AmortizeShifts(amortize, timeout=120)][-1], 40)
        self.assertEqual([p.skipped for p in self.references.AmortizeShifts(amortize)], [40])
        amortize.optimization.trust = 1  # Other shifts.
        self.assertEqual([p.done for p in self.references.AmortizeShifts(amortize, timeout=120)][-1], 40)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "optimization.trust", lambda: self.ask(trust=-1, **descent))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "optimization.trust", lambda: self.ask(trust=1001, **descent))

    def test_every_method_answers_and_none_shows_no_neighbors(self):
        for method in ALL_METHODS:
            with self.subTest(method=method):
                report = self.ask(method=method)[0].optimization
                self.assertEqual(report.method, method)
                if method == opt.METHOD_NONE:
                    self.assertEqual(report.gate, opt.GATE_DECISION_NOT_REQUESTED)
                    self.assertFalse(report.neighbors or report.losses)
                else:
                    self.assertEqual(len(report.neighbors), 3)
                    self.assertGreaterEqual(len(report.losses), 2)

    def test_interleaved_clients_never_mix_their_pathways(self):
        cases = [dict(method=method, application_rule=rule, k=k, prompt=f"What is {60 + k} modulo seven?")
                 for method in ALL_METHODS for rule in (1, 2, 3) for k in (2, 5)]
        alone = [tokens_of(self.ask(**case)) for case in cases]
        self.assertGreater(len({tuple(t) for t in alone}), 2)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for _ in range(2):
                together = list(pool.map(lambda case: tokens_of(self.ask(**case)), cases))
                self.assertEqual(together, alone)

    def test_scores_are_bitwise_the_same_alone_and_interleaved(self):
        cases = [dict(method=method, application_rule=rule, k=4, prompt=f"What is {70 + i} modulo seven?")
                 for i, (method, rule) in enumerate((m, r) for m in ALL_METHODS for r in (1, 2, 3))]
        values = lambda case: [logprob for s in self.score(**case).scores for logprob in s.token_logprobs]
        alone = [values(case) for case in cases]
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            for _ in range(3):
                self.assertEqual(list(pool.map(values, cases)), alone)

    def test_sampling_is_reproducible_by_its_reported_seed(self):
        first = self.ask(method=opt.METHOD_NONE, sampling=dict(temperature=1.0))
        seed = first[-1].summary.provenance.effective_seed
        again = self.ask(method=opt.METHOD_NONE, sampling=dict(temperature=1.0, seed=seed))
        self.assertEqual(tokens_of(first), tokens_of(again))

    def test_logit_bias_forces_a_token_and_forbids_one(self):
        none = opt.METHOD_NONE
        self.assertEqual(set(tokens_of(self.ask(sampling=dict(logit_bias={7: 100}), method=none))), {7})
        plain = tokens_of(self.ask(method=none))
        self.assertNotIn(plain[0], tokens_of(self.ask(sampling=dict(logit_bias={plain[0]: -100}), method=none)))

    def test_several_answers_share_a_prompt_and_are_each_the_one_asked_for_alone(self):
        for options in (dict(method=opt.METHOD_NONE), dict(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, k=4, steps=3),
                        dict(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT,
                             gate=opt.GateOptions(enabled=True, min_optimized_confidence=0.999999))):
            with self.subTest(**options):
                def answers(n):
                    events = self.ask(sampling=dict(temperature=1.5, seed=5, n=n), prompt="What is 50 modulo seven? " * 4, **options)
                    tokens = [[] for _ in range(n)]
                    for event in events[1:-1]:
                        tokens[event.delta.answer].extend(event.delta.token_ids)
                    self.assertEqual([e.WhichOneof("event") for e in events].count("optimization"), 1)
                    self.assertEqual([len(t) for t in tokens], [a.completion_tokens for a in events[-1].summary.answers])
                    self.assertEqual(events[-1].summary.usage.completion_tokens, sum(map(len, tokens)))
                    return tokens
                found = self.prefix_hits()
                four = answers(4)
                self.assertGreaterEqual(self.prefix_hits() - found, 3 * 64)
                self.assertEqual(len({tuple(t) for t in four}), 4)
                for n in (1, 2):
                    self.assertEqual(answers(n), four[:n])

    def prefix_hits(self):
        """Prompt tokens found in the KV cache so far."""
        line = next(l for l in self.server.http("/metrics").splitlines() if l.startswith("vllm:prefix_cache_hits_total{"))
        return float(line.rsplit(" ", 1)[1])

    def test_several_answers_are_stopped_each_by_its_own_stop_string(self):
        request = dict(sampling=dict(temperature=1.5, seed=9, n=3), method=opt.METHOD_NONE)
        texts = [""] * 3
        for event in self.ask(**request)[1:-1]:
            texts[event.delta.answer] += event.delta.text
        stop = texts[1][2:5]
        request["sampling"]["stop"] = [stop]
        stopped = [""] * 3
        events = self.ask(**request)
        for event in events[1:-1]:
            stopped[event.delta.answer] += event.delta.text
        self.assertEqual(stopped, [text.split(stop)[0] for text in texts])
        reasons = [gen.FINISH_REASON_STOP if stop in text else gen.FINISH_REASON_LENGTH for text in texts]
        self.assertEqual([a.finish_reason for a in events[-1].summary.answers], reasons)

    def test_max_tokens_not_given_is_what_the_context_window_leaves(self):
        request = gen.GenerateRequest(prompt="x" * 240, sampling=gen.SamplingOptions(ignore_eos=True),
                                      optimization=opt.OptimizationOptions(method=opt.METHOD_NONE))
        self.assertEqual(len(tokens_of(self.generation.Generate(request))), 16)

    def test_logprobs_and_stop_strings(self):
        plain = self.ask(method=opt.METHOD_NONE, sampling=dict(logprobs=3))
        first = next(event.delta for event in plain if event.HasField("delta"))
        self.assertEqual(first.logprobs[0].chosen.token_id, first.token_ids[0])
        self.assertEqual(len(first.logprobs[0].top), 3)
        self.assertAlmostEqual(first.logprobs[0].top[0].logprob, first.logprobs[0].chosen.logprob, places=5)
        ascii_request = gen.TokenIds(ids=[ord(c) for c in "What is"])
        request = gen.GenerateRequest(token_ids=ascii_request, sampling=gen.SamplingOptions(max_tokens=40, temperature=2, seed=1),
                                      optimization=opt.OptimizationOptions(method=opt.METHOD_NONE))
        text = "".join(e.delta.text for e in self.generation.Generate(request))
        stop = next((c for c in text[1:] if ord(c) < 128), None)
        self.assertIsNotNone(stop)
        request.sampling.stop.append(stop)
        cut = list(self.generation.Generate(request))
        self.assertEqual("".join(e.delta.text for e in cut), text[: text.index(stop)])
        self.assertEqual(cut[-1].summary.finish_reason, gen.FINISH_REASON_STOP)

    def test_score_equals_teacher_forced_generation(self):
        events = self.ask(method=opt.METHOD_NONE, max_tokens=5, sampling=dict(logprobs=0))
        ids = tokens_of(events)
        logprobs = [p.chosen.logprob for e in events if e.HasField("delta") for p in e.delta.logprobs]
        text = self.generation.Detokenize(gen.DetokenizeRequest(ids=ids)).text
        if list(self.generation.Tokenize(gen.TokenizeRequest(text=text)).ids) != ids:
            text = None
        prompt = "What is 50 modulo seven?"
        continuations = [" 1", " 23", "abc"] + ([text] if text else [])
        response = self.generation.Score(gen.ScoreRequest(prompt=prompt, continuations=continuations,
                                                          optimization=opt.OptimizationOptions(method=opt.METHOD_NONE)))
        self.assertEqual([s.token_count for s in response.scores][:3], [2, 3, 3])
        for score in response.scores:
            self.assertAlmostEqual(score.log_likelihood, sum(score.token_logprobs), places=4)
        if text:
            self.assertTrue(response.scores[-1].is_greedy)
            for ours, expected in zip(response.scores[-1].token_logprobs, logprobs):
                self.assertAlmostEqual(ours, expected, places=3)
        longer = self.generation.Score(gen.ScoreRequest(prompt=prompt + " ", continuations=["2", "23"],
                                                        optimization=opt.OptimizationOptions(method=opt.METHOD_NONE)))
        self.assertAlmostEqual(longer.scores[1].token_logprobs[0], longer.scores[0].log_likelihood, places=4)

    def test_score_under_ngd_moves_towards_the_neighbors(self):
        sample = next(iter(samples(1)))
        scores = {}
        for method in (opt.METHOD_NONE, opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT):
            response = self.generation.Score(gen.ScoreRequest(
                prompt=sample.prompt, continuations=[sample.answer],
                optimization=opt.OptimizationOptions(method=method, collection="set", k=1, steps=20,
                                                     reference_selection=opt.REFERENCE_SELECTION_ALL)))
            scores[method] = response.scores[0].log_likelihood
        self.assertGreater(scores[opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT], scores[opt.METHOD_NONE])

    # --- Learned over a collection ---

    def score(self, prompt="What is 50 modulo seven?", oracle_answer=None, **options):
        options = self.optimization(options)
        request = gen.ScoreRequest(prompt=prompt, continuations=[f" {i}" for i in range(7)],
                                   optimization=opt.OptimizationOptions(**options), oracle_answer=oracle_answer)
        return self.generation.Score(request, timeout=60)

    def test_prior_is_tuned_stored_used_and_where_descent_begins(self):
        self.add("tuned", samples(40))
        self.fails(grpc.StatusCode.NOT_FOUND, None,
                   lambda: self.score(collection="tuned", method=opt.METHOD_COLLECTION_PRIOR))
        request = ref.TunePriorRequest(collection="tuned", critical_layers=[0, 1], epochs=3, batch_size=8, learning_rate=0.3)
        epochs = list(self.references.TunePrior(request, timeout=120))
        self.assertEqual([e.epoch for e in epochs], [0, 1, 2, 3, 3])
        self.assertTrue(epochs[-1].finished)
        prior = epochs[-1].stored
        self.assertLess(prior.validation_loss_after, prior.validation_loss_before)
        self.assertEqual((prior.references, prior.validation_references), (32, 8))
        self.assertEqual(len(set(prior.validation_reference_ids)), 8)
        self.assertAlmostEqual(prior.validation_loss_before, epochs[0].validation_loss)
        got = self.references.GetCollection(ref.GetCollectionRequest(collection="tuned"))
        self.assertEqual(got.prior, prior)

        plain = self.score(collection="tuned", method=opt.METHOD_NONE)
        shifted = self.score(collection="tuned", method=opt.METHOD_COLLECTION_PRIOR)
        self.assertEqual(list(shifted.optimization.critical_layers), [0, 1])
        self.assertEqual(shifted.optimization.gate, opt.GATE_DECISION_APPLIED)
        self.assertFalse(shifted.optimization.neighbors)
        self.assertNotEqual([s.log_likelihood for s in plain.scores], [s.log_likelihood for s in shifted.scores])
        # Descent of no steps from the prior is the prior.
        begun = self.score(collection="tuned", method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, use_prior=True, steps=0,
                           application_rule=opt.APPLICATION_RULE_ROUTER_SHIFT)
        for ours, expected in zip(begun.scores, shifted.scores):
            self.assertAlmostEqual(ours.log_likelihood, expected.log_likelihood, places=5)
        # A prior of all prompt tokens brings its positions along, whatever a request names.
        request.prompt_positions = 100
        self.assertEqual(list(self.references.TunePrior(request, timeout=120))[-1].stored.prompt_positions, 100)
        everywhere = self.score(collection="tuned", method=opt.METHOD_COLLECTION_PRIOR)
        self.assertNotEqual([s.log_likelihood for s in everywhere.scores], [s.log_likelihood for s in shifted.scores])
        begun = self.score(collection="tuned", method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, use_prior=True, steps=0,
                           prompt_positions=1, application_rule=opt.APPLICATION_RULE_ROUTER_SHIFT)
        for ours, expected in zip(begun.scores, everywhere.scores):
            self.assertAlmostEqual(ours.log_likelihood, expected.log_likelihood, places=5)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "optimization.prompt_positions",
                   lambda: self.score(collection="tuned", use_prior=True, k=64,
                                      application_rule=opt.APPLICATION_RULE_ROUTER_SHIFT))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "optimization.use_prior",
                   lambda: self.score(collection="tuned", use_prior=True, application_rule=opt.APPLICATION_RULE_EVERY_NEW_TOKEN))
        self.references.Delete(ref.DeleteReferencesRequest(collection="tuned"))
        self.fails(grpc.StatusCode.NOT_FOUND, None,
                   lambda: self.references.GetCollection(ref.GetCollectionRequest(collection="tuned")))

    def test_a_pathway_governs_as_many_positions_of_the_prompts_as_are_asked_for(self):
        losses, scores = {}, {}
        for positions in (1, 4, 64):
            response = self.score(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, k=6, steps=8, core_experts=0,
                                  application_rule=opt.APPLICATION_RULE_ROUTER_SHIFT, prompt_positions=positions)
            report = response.optimization
            self.assertEqual(report.gate, opt.GATE_DECISION_APPLIED)
            self.assertLess(min(report.losses), report.losses[0])
            losses[positions] = list(report.losses)
            scores[positions] = [score.log_likelihood for score in response.scores]
        for few, many in ((1, 4), (4, 64)):
            self.assertAlmostEqual(losses[few][0], losses[many][0], places=4)  # No shift yet, so none governs anything.
            self.assertNotEqual(losses[few][1:], losses[many][1:])
            self.assertNotEqual(scores[few], scores[many])
        for positions in (0, 4096):
            self.fails(grpc.StatusCode.INVALID_ARGUMENT, "optimization.prompt_positions",
                       lambda: self.score(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, prompt_positions=positions))

    def test_tuning_refuses_what_it_cannot_do_and_names_the_field(self):
        tune = lambda **fields: lambda: list(self.references.TunePrior(ref.TunePriorRequest(collection="set", **fields)))
        bad = {"epochs": dict(epochs=0), "batch_size": dict(batch_size=65), "learning_rate": dict(learning_rate=-1.0),
               "validation_fraction": dict(validation_fraction=0.9), "critical_layers[0]": dict(critical_layers=[99]),
               "patience": dict(patience=0), "max_references": dict(max_references=3), "objective": dict(objective=9),
               "prompt_positions": dict(prompt_positions=4097)}
        for field, fields in bad.items():
            with self.subTest(field=field):
                self.fails(grpc.StatusCode.INVALID_ARGUMENT, field, tune(**fields))
        self.fails(grpc.StatusCode.NOT_FOUND, None, lambda: list(self.references.TunePrior(ref.TunePriorRequest(collection="no"))))

    def test_amortized_shifts_are_found_once_and_averaged(self):
        self.add("amortized", samples(40))
        layers = dict(critical_layers=[0, 1])
        none = self.score(collection="amortized", method=opt.METHOD_AMORTIZED_SHIFT, **layers)
        self.assertEqual(none.optimization.gate, opt.GATE_DECISION_SKIPPED_NO_NEIGHBORS)
        request = ref.AmortizeShiftsRequest(collection="amortized", optimization=opt.OptimizationOptions(steps=4, **layers))
        progress = list(self.references.AmortizeShifts(request, timeout=120))
        self.assertEqual([(p.done, p.skipped, p.total) for p in progress], [(0, 0, 40), (32, 0, 40), (40, 0, 40)])
        self.assertEqual([(p.done, p.skipped) for p in self.references.AmortizeShifts(request)], [(0, 40)])
        self.assertEqual(self.references.GetCollection(ref.GetCollectionRequest(collection="amortized")).amortized_shifts, 40)
        # One neighbor at distance 0: its own shift, which is what descent on it alone finds.
        sample = next(iter(samples(1)))
        mine = self.score(prompt=sample.prompt, collection="amortized", method=opt.METHOD_AMORTIZED_SHIFT, k=1, **layers)
        self.assertEqual(mine.optimization.gate, opt.GATE_DECISION_APPLIED)
        descent = self.score(prompt=sample.prompt, collection="amortized", method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT,
                             k=1, steps=4, application_rule=opt.APPLICATION_RULE_ROUTER_SHIFT, **layers)
        for ours, expected in zip(mine.scores, descent.scores):
            self.assertAlmostEqual(ours.log_likelihood, expected.log_likelihood, places=3)

    def test_profile_is_what_requests_get_that_set_nothing(self):
        self.add("profiled", samples(20))
        profile = opt.OptimizationOptions(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, k=2, steps=3, step_scale=0.5,
                                          gate=opt.GateOptions(max_neighbor_distance=1.9))
        self.references.SetProfile(ref.SetProfileRequest(collection="profiled", profile=profile, notes='{"lift": 1}'))
        got = self.references.GetCollection(ref.GetCollectionRequest(collection="profiled"))
        self.assertEqual((got.profile, got.profile_notes), (profile, '{"lift": 1}'))
        self.assertEqual((got.effective_optimization.k, got.effective_optimization.steps), (2, 3))
        report = self.score(collection="profiled").optimization
        self.assertEqual((len(report.neighbors), len(report.losses)), (2, 4))
        self.assertEqual(len(self.score(collection="profiled", k=4).optimization.neighbors), 4)
        self.assertEqual(len(self.score(collection="profiled", use_profile=False).optimization.neighbors), 3)
        for field, wrong in {"profile.k": opt.OptimizationOptions(k=0), "profile.collection": opt.OptimizationOptions(collection="x"),
                             "profile.method": opt.OptimizationOptions(method=opt.METHOD_ORACLE)}.items():
            self.fails(grpc.StatusCode.INVALID_ARGUMENT, field, lambda: self.references.SetProfile(
                ref.SetProfileRequest(collection="profiled", profile=wrong)))
        self.references.SetProfile(ref.SetProfileRequest(collection="profiled"))
        self.assertFalse(self.references.GetCollection(ref.GetCollectionRequest(collection="profiled")).HasField("profile"))

    def test_excluded_references_are_no_neighbors_and_held_out_ones_choose_the_step(self):
        sample = next(iter(samples(1)))
        ngd = opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT
        first = self.score(prompt=sample.prompt, method=ngd, k=2).optimization
        self.assertLess(first.neighbors[0].distance, 1e-3)
        own = first.neighbors[0].reference_id
        for method in ALL_METHODS[1:]:
            left = self.score(prompt=sample.prompt, method=method, k=2, exclude_reference_ids=[own]).optimization
            self.assertNotIn(own, [n.reference_id for n in left.neighbors])
            self.assertEqual(len(left.neighbors), 2)
        held = self.score(method=ngd, k=3, validation_neighbors=4, steps=8, step_rule=opt.STEP_RULE_ADAM).optimization
        self.assertEqual((len(held.neighbors), len(held.losses), len(held.validation_losses)), (3, 9, 9))
        self.assertEqual(held.validation_losses[held.selected_step], min(held.validation_losses))
        if held.selected_step == 0:
            self.assertNotEqual(held.gate, opt.GATE_DECISION_APPLIED)
        long, patient = (list(self.score(method=ngd, k=3, steps=20, learning_rate=5.0, patience=patience, backtrack=False).optimization.losses)
                         for patience in (0, 1))
        self.assertEqual(len(long), 21)
        self.assertLess(len(patient), len(long))
        self.assertEqual(patient, long[:len(patient)])

    # --- Which neighbors, and in how many parts ---

    def add_judgements(self, collection, count=30):
        """One of five is true; the choices come in either order."""
        self.add(collection, (ref.ReferenceSample(prompt=f"Is {i} divisible by five? Answer:", answer=" yes" if i % 5 == 0 else " no",
                                                  choices=[" no", " yes"] if i % 2 else [" yes", " no"]) for i in range(count)))

    def test_balanced_neighbors_have_each_answer_alike(self):
        self.add_judgements("balanced")
        ngd = dict(collection="balanced", prompt="Is 63 divisible by five? Answer:", method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT)
        for k in (1, 4, 6):
            with self.subTest(k=k):
                nearest = self.score(**ngd, k=k).optimization
                report = self.score(**ngd, k=k, balance=True, validation_neighbors=4, steps=2).optimization
                answers = [n.answer for n in report.neighbors]
                self.assertLessEqual(abs(answers.count(" yes") - answers.count(" no")), k % 2)
                self.assertEqual(len(answers), k)
                self.assertEqual(report.neighbors[0].reference_id, nearest.neighbors[0].reference_id)
                self.assertEqual(sorted(n.distance for n in report.neighbors), [n.distance for n in report.neighbors])
                self.assertEqual(len(report.validation_losses), 3)
                self.assertFalse(report.warnings)
        few = self.score(**ngd, k=20, balance=True, validation_neighbors=20, steps=1).optimization
        self.assertTrue(any("30 references have the choices of the nearest one" in w for w in few.warnings), few.warnings)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "optimization.balance", lambda: self.score(**ngd, epsilon=0.5, balance=True))

    def test_a_vote_applies_the_mean_of_what_each_part_finds(self):
        self.add_judgements("parts")
        ngd = dict(collection="parts", prompt="Is 64 divisible by five? Answer:", method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT,
                   application_rule=opt.APPLICATION_RULE_EVERY_NEW_TOKEN, steps=4, step_rule=opt.STEP_RULE_ADAM, learning_rate=0.3,
                   return_pathways=True, gate=opt.GateOptions(enabled=False))
        vote = self.score(**ngd, k=4, neighborhoods=2).optimization
        self.assertEqual((len(vote.losses), vote.selected_step), (2, 1))
        self.assertLess(vote.losses[1], vote.losses[0])
        # The same parts as requests of their own: all but their neighbors excluded.
        ids = [r.id for r in self.references.List(ref.ListReferencesRequest(collection="parts", page_size=100)).references]
        neighbors = [n.reference_id for n in vote.neighbors]
        parts = [neighbors[0::2], neighbors[1::2]]
        bandwidth = vote.neighbors[-1].distance
        alone = [self.score(**ngd, k=2, bandwidth=bandwidth, exclude_reference_ids=[i for i in ids if i not in part]).optimization for part in parts]
        for l, layer in enumerate(vote.pathway_after):
            for e, weight in enumerate(layer.weights):
                self.assertAlmostEqual(weight, sum(one.pathway_after[l].weights[e] for one in alone) / 2, places=5)
        held = self.score(**ngd, k=6, neighborhoods=3, balance=True, validation_neighbors=4).optimization
        self.assertEqual(len(held.validation_losses), 2)
        few = self.score(**ngd, k=3, neighborhoods=3, exclude_reference_ids=ids[2:]).optimization
        self.assertTrue(any("neighborhoods: 2 of 3" in w for w in few.warnings), few.warnings)
        for options in (dict(ngd, k=2, neighborhoods=3), dict(ngd, method=opt.METHOD_KERNEL_REGRESSION, k=4, neighborhoods=2)):
            self.fails(grpc.StatusCode.INVALID_ARGUMENT, "optimization.neighborhoods", lambda: self.score(**options))

    def test_neighbors_by_the_models_own_states(self):
        self.add_judgements("states", 20)
        sample = "Is 13 divisible by five? Answer:"
        # The state entering the first layer is the last token's embedding, the same for all of these prompts.
        ngd = dict(collection="states", prompt=sample, method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, steps=2, critical_layers=[2, 3])
        for source in (opt.NEIGHBOR_SOURCE_CRITICAL_LAYER, opt.NEIGHBOR_SOURCE_LAST_LAYER):
            with self.subTest(source=source):
                first = self.score(**ngd, k=5, neighbor_source=source).optimization
                self.assertEqual(first.neighbors[0].prompt, sample)
                self.assertLess(first.neighbors[0].distance, 1e-3)
                self.assertEqual(len(first.neighbors), 5)
                others = self.score(**ngd, k=5).optimization
                self.assertNotEqual([n.distance for n in first.neighbors], [n.distance for n in others.neighbors])
                balanced = self.score(**ngd, k=4, neighbor_source=source, balance=True).optimization
                self.assertEqual([n.answer for n in balanced.neighbors].count(" yes"), 2)
        # Distances of one source are not judged by another's: the references' own at most, whatever the encoder says.
        gated = dict(ngd, k=3, neighbor_source=opt.NEIGHBOR_SOURCE_LAST_LAYER)
        options = opt.OptimizationOptions(reference_selection=opt.REFERENCE_SELECTION_ALL, **{f: v for f, v in gated.items() if f != "prompt"})
        options.gate.neighbor_distance_quantile = 1
        near, far = (self.generation.Score(gen.ScoreRequest(prompt=prompt, continuations=[" yes", " no"], optimization=options)).optimization
                     for prompt in (sample, "Recite a poem about the autumn wind, please!"))
        self.assertNotIn(near.gate, (opt.GATE_DECISION_SKIPPED_NEIGHBORS_FAR, opt.GATE_DECISION_SKIPPED_NO_NEIGHBORS))
        self.assertEqual(far.gate, opt.GATE_DECISION_SKIPPED_NEIGHBORS_FAR)
        # What comes is found, what goes is not, and several requests wait for the same states.
        self.add("states", [ref.ReferenceSample(prompt="Is 99 divisible by five? Answer:", answer=" no", choices=[" no", " yes"])])
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: self.score(**dict(ngd, prompt="Is 99 divisible by five? Answer:"), k=1,
                                                       neighbor_source=opt.NEIGHBOR_SOURCE_LAST_LAYER).optimization, range(6)))
        self.assertEqual({one.neighbors[0].prompt for one in found}, {"Is 99 divisible by five? Answer:"})
        self.references.Delete(ref.DeleteReferencesRequest(ids=[found[0].neighbors[0].reference_id]))
        left = self.score(**dict(ngd, prompt="Is 99 divisible by five? Answer:"), k=1, neighbor_source=opt.NEIGHBOR_SOURCE_LAST_LAYER).optimization
        self.assertNotEqual(left.neighbors[0].prompt, "Is 99 divisible by five? Answer:")

    def test_base_confidence_is_among_the_choices(self):
        gate = lambda limit: self.score(gate=opt.GateOptions(max_base_confidence=limit)).optimization.gate
        # Seven continuations begin with one space: one candidate, so the whole vocabulary counts, and a tiny random model
        # is sure of nothing.
        self.assertEqual(gate(0.5), opt.GATE_DECISION_APPLIED)
        request = gen.ScoreRequest(prompt="What is 50 modulo seven?", continuations=["a", "b"],
                                   optimization=opt.OptimizationOptions(collection="set", gate=opt.GateOptions(max_base_confidence=0.5, max_neighbor_distance=2)))
        request.optimization.reference_selection = opt.REFERENCE_SELECTION_ALL
        self.assertEqual(self.generation.Score(request).optimization.gate, opt.GATE_DECISION_SKIPPED_BASE_CONFIDENT)

    def test_an_unsure_optimized_answer_is_set_aside_for_the_models_own(self):
        for method in ALL_METHODS[1:]:
            plain, free, held = (self.score(method=m, gate=opt.GateOptions(enabled=True, min_optimized_confidence=limit))
                                 for m, limit in ((opt.METHOD_NONE, 1), (method, 1e-9), (method, 1)))
            if free.optimization.gate != opt.GATE_DECISION_APPLIED:
                continue
            self.assertTrue(0 < free.optimization.optimized_confidence < 1)
            self.assertEqual(held.optimization.gate, opt.GATE_DECISION_REVERTED_NOT_CONFIDENT)
            self.assertEqual(held.optimization.optimized_confidence, free.optimization.optimized_confidence)
            self.assertEqual([s.log_likelihood for s in held.scores], [s.log_likelihood for s in plain.scores])
            self.assertNotEqual([s.log_likelihood for s in held.scores], [s.log_likelihood for s in free.scores])
        self.assertEqual(free.optimization.gate, opt.GATE_DECISION_APPLIED)

    def test_oracle_needs_the_operator_and_an_answer(self):
        error = self.fails(grpc.StatusCode.PERMISSION_DENIED, None, lambda: self.score(method=opt.METHOD_ORACLE, oracle_answer=" 1"))
        self.assertEqual(details(error)[0], "PERMISSION")
        self.fails(grpc.StatusCode.PERMISSION_DENIED, None, lambda: self.score(method=opt.METHOD_NONE, oracle_answer=" 1"))

    # --- References ---

    def test_verdicts_and_stats(self):
        self.assertEqual(sorted(v.sequence for v in self.verdicts), list(range(40)))
        self.assertEqual({v.verdict for v in self.verdicts} - {ref.VERDICT_SUCCESSFUL, ref.VERDICT_FAILED}, set())
        stats = {c.collection: c for c in self.references.GetStats(ref.GetStatsRequest()).collections}["set"]
        self.assertEqual((stats.references, stats.usable), (40, 40))
        self.assertEqual(stats.successful, sum(v.verdict == ref.VERDICT_SUCCESSFUL for v in self.verdicts))

    def test_adding_again_stores_nothing_twice_and_malformed_samples_are_named(self):
        bad = [ref.ReferenceSample(prompt="", answer="x"), ref.ReferenceSample(prompt="p", answer="x", choices=["y", "z"])]
        verdicts = self.add("set", [*samples(3), *bad])
        self.assertEqual([v.verdict for v in verdicts[:3]], [ref.VERDICT_DUPLICATE] * 3)
        self.assertEqual([v.verdict for v in verdicts[3:]], [ref.VERDICT_MALFORMED] * 2)
        self.assertIn("prompt", verdicts[3].message)
        self.assertIn("answer", verdicts[4].message)

    def test_search_get_list_and_delete(self):
        self.add("other", samples(5))
        hits = self.references.Search(ref.SearchReferencesRequest(collection="other", text="What is 3 modulo seven?", k=2)).hits
        self.assertEqual(hits[0].reference.sample.prompt, "What is 3 modulo seven?")
        self.assertLess(hits[0].distance, 1e-3)
        record = self.references.Get(ref.GetReferenceRequest(id=hits[0].reference.id, include_pathway=True)).reference
        self.assertEqual(len(record.pathway), record.moe_layers * record.experts)
        self.assertEqual(record.sample.metadata["i"], "3")
        seen, token = [], ""
        while True:
            page = self.references.List(ref.ListReferencesRequest(collection="other", page_size=2, page_token=token))
            seen += [r.id for r in page.references]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(len(set(seen)), 5)
        self.assertEqual(self.references.Delete(ref.DeleteReferencesRequest(ids=seen[:2])).deleted, 2)
        self.assertEqual(self.references.Delete(ref.DeleteReferencesRequest(collection="other")).deleted, 3)
        self.fails(grpc.StatusCode.NOT_FOUND, None, lambda: self.references.Get(ref.GetReferenceRequest(id=seen[0])))

    # --- Bad input ---

    def test_bad_requests_name_their_field(self):
        none = opt.METHOD_NONE
        bad = {
            "prompt": lambda: self.ask(prompt="", method=none),
            "optimization.k": lambda: self.ask(k=0),
            "optimization.steps": lambda: self.ask(steps=1001),
            "optimization.patience": lambda: self.ask(patience=1001),
            "optimization.epsilon": lambda: self.ask(epsilon=float("nan")),
            "optimization.bandwidth": lambda: self.ask(bandwidth=0.0),
            "optimization.learning_rate": lambda: self.ask(learning_rate=-1.0),
            "optimization.critical_layers[1]": lambda: self.ask(critical_layers=[1, 99]),
            "optimization.core_experts": lambda: self.ask(core_experts=1000),
            "optimization.alpha": lambda: self.ask(alpha=2.0),
            "optimization.method": lambda: self.ask(method=77),
            "optimization.gate.min_loss_reduction": lambda: self.ask(gate=opt.GateOptions(min_loss_reduction=2)),
            "sampling.temperature": lambda: self.ask(sampling=dict(temperature=float("nan")), method=none),
            "sampling.n": lambda: self.ask(sampling=dict(n=2), method=none),
            "sampling.logit_bias[5]": lambda: self.ask(sampling=dict(logit_bias={5: 101}), method=none),
            "sampling.logit_bias[1000000]": lambda: self.ask(sampling=dict(logit_bias={10**6: 1, 5: 1}), method=none),
            "sampling.top_p": lambda: self.ask(sampling=dict(top_p=1.5), method=none),
            "sampling.max_tokens": lambda: self.ask(max_tokens=0, method=none),
            "continuations": lambda: self.generation.Score(gen.ScoreRequest(prompt="a")),
            "continuations[1]": lambda: self.generation.Score(gen.ScoreRequest(prompt="a", continuations=["b", ""])),
            "ids[0]": lambda: self.generation.Detokenize(gen.DetokenizeRequest(ids=[10**6])),
            "page_size": lambda: self.references.List(ref.ListReferencesRequest(page_size=5000)),
            "id": lambda: self.references.Get(ref.GetReferenceRequest()),
            "text": lambda: self.references.Search(ref.SearchReferencesRequest(collection="set", k=1)),
            "token_ids.ids[1]": lambda: list(self.generation.Generate(gen.GenerateRequest(token_ids=gen.TokenIds(ids=[1, 10**6])))),
        }
        for field, call in bad.items():
            with self.subTest(field=field):
                self.fails(grpc.StatusCode.INVALID_ARGUMENT, field, call)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "sampling.n",
                   lambda: self.ask(sampling=dict(n=17, temperature=1), method=none))
        too_long = "x" * 400
        error = self.fails(grpc.StatusCode.INVALID_ARGUMENT, "prompt", lambda: self.ask(prompt=too_long, method=none))
        self.assertIn("context window", error.details())
        self.fails(grpc.StatusCode.NOT_FOUND, None, lambda: self.ask(collection="nowhere"))
        chat = gen.GenerateRequest(chat=gen.Chat(messages=[gen.ChatMessage(role="user", content="hi")]))
        self.fails(grpc.StatusCode.FAILED_PRECONDITION, None, lambda: list(self.generation.Generate(chat)))

    def test_invalid_utf8_is_refused_with_its_field(self):
        # Bytes that no protobuf library would send: ff fe as text, written by hand (tag, length, bytes).
        bad = b"\x02\xff\xfe"
        generation, reference = "/c3po.v1.GenerationService/", "/c3po.v1.ReferenceService/"
        cases = {
            (generation + "Generate", b"\x0a" + bad): "prompt",
            (generation + "Generate", b"\x1a\x06\x0a\x04\x12" + bad): "chat.messages[0].content",
            (generation + "Generate", b"\x0a\x01a\x22\x04\x42" + bad): "sampling.stop[0]",
            (generation + "Score", b"\x0a\x01a\x1a\x01b\x1a" + bad): "continuations[1]",
            (generation + "Tokenize", b"\x0a" + bad): "text",
            (reference + "Search", b"\x12" + bad): "text",
            (reference + "Add", b"\x1a\x04\x0a" + bad): "sample.prompt",
        }
        for (method, raw), field in cases.items():
            with self.subTest(method=method, field=field):
                call = self.channel.stream_stream(method, request_serializer=lambda r: r, response_deserializer=lambda r: r)
                self.fails(grpc.StatusCode.INVALID_ARGUMENT, field, lambda: list(call(iter([raw]), timeout=30)))
        call = self.channel.stream_stream(generation + "Generate", request_serializer=lambda r: r,
                                          response_deserializer=lambda r: r)
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, "request", lambda: list(call(iter([b"\xff"]), timeout=30)))
        self.assertEqual([line for line in self.server.log if "libprotobuf" in line], [])

    # --- Operations ---

    def test_metrics_and_probes(self):
        self.ask(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT)
        text = self.server.http("/metrics")
        values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}
        model = '{model_name="mixtral_tiny"}'
        for name in (f"vllm:prompt_tokens_total{model}", f"vllm:generation_tokens_total{model}",
                     f"vllm:time_to_first_token_seconds_count{model}", f"vllm:e2e_request_latency_seconds_count{model}",
                     "c3po_retrieval_seconds_count", 'c3po_gate_total{decision="applied"}', "c3po_references"):
            self.assertGreater(values.get(name, 0), 0, name)
        self.assertIn("alive", self.server.http("/healthz"))
        self.assertIn("ready", self.server.http("/readyz"))

    def test_health_and_reflection(self):
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=lambda raw: raw,
                                         response_deserializer=lambda raw: raw)
        self.assertEqual(check(b""), b"\x08\x01")  # status: SERVING
        watch = self.channel.unary_stream("/grpc.health.v1.Health/Watch", request_serializer=lambda raw: raw,
                                          response_deserializer=lambda raw: raw)(b"\x0a\x19c3po.v1.GenerationService")
        self.assertEqual(next(watch), b"\x08\x01")
        watch.cancel()
        reflect = self.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                                             request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)
        answer = next(reflect(iter([b"\x3a\x00"])))  # list_services
        for service in (b"c3po.v1.GenerationService", b"c3po.v1.ReferenceService", b"c3po.v1.ServerService"):
            self.assertIn(service, answer)


if __name__ == "__main__":
    pathlib.Path(BINARY).resolve(strict=True)
    unittest.main(verbosity=2)
