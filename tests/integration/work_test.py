"""What optimizations and learning may take of a server: working memory and places. usage: work_test.py C3POD"""

import sys
import threading
import time
import unittest

import grpc

from server_case import ServerCase
from service_calls import details, gen, opt, pb, ref, samples

BINARY = sys.argv.pop(1)
NO_NEIGHBORS = opt.GATE_DECISION_SKIPPED_NO_NEIGHBORS


class WorkTest(ServerCase):
    binary = BINARY
    # A MiB for requests, a MiB for the one learning call.
    FLAGS = ("--work-memory-mb", "2", "--learning-calls-max", "1", "--running-sequences-max", "2")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        verdicts = cls.add("short", samples(40))
        verdicts += cls.add("long", (ref.ReferenceSample(prompt=f"Count from {i}.", answer=" " + " ".join(map(str, range(i, i + 60)))) for i in range(12)))
        assert not any(v.verdict == ref.VERDICT_MALFORMED for v in verdicts), verdicts

    def events(self, prompt, **options):
        options.setdefault("reference_selection", opt.REFERENCE_SELECTION_ALL)
        options.setdefault("method", opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT)
        optimization = opt.OptimizationOptions(gate=opt.GateOptions(enabled=False), **options)
        sampling = gen.SamplingOptions(max_tokens=6, ignore_eos=True)
        return list(self.generation.Generate(gen.GenerateRequest(prompt=prompt, optimization=optimization, sampling=sampling), timeout=60))

    def refused(self, code, field, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        fields = details(caught.exception)[1]
        if field:
            self.assertEqual(fields, [field])
        return caught.exception.details()

    def test_neighbors_that_do_not_fit_are_left_out_the_farthest_first(self):
        prompt = "What is 5 modulo seven?"
        few = self.events(prompt, collection="short", k=2, validation_neighbors=0)[0].optimization
        self.assertFalse([w for w in few.warnings if "left out" in w])
        self.assertGreater(few.losses[0], 0)
        many = self.events(prompt, collection="short", k=40, validation_neighbors=0)[0].optimization
        self.assertTrue([w for w in many.warnings if "neighbors were left out" in w and "--work-memory-mb" in w], many.warnings)
        self.assertGreater(many.losses[0], 0)

    def test_where_not_even_the_nearest_fits_the_answer_is_the_models_own(self):
        prompt = "Count from 3."
        events = self.events(prompt, collection="long", k=2)
        self.assertEqual(events[0].optimization.gate, NO_NEIGHBORS, events[0])
        self.assertIn("--work-memory-mb", events[0].optimization.gate_reason)
        plain = self.events(prompt, method=opt.METHOD_NONE)
        text = [[e.delta.text for e in all_events if e.HasField("delta")] for all_events in (events, plain)]
        self.assertEqual(*text)

    def test_a_request_for_too_many_positions_is_refused_by_its_field(self):
        said = self.refused(grpc.StatusCode.INVALID_ARGUMENT, "optimization.prompt_positions",
                            lambda: self.events("Count from 3.", collection="long", k=4, prompt_positions=8))
        self.assertIn("--work-memory-mb", said)

    def test_a_minibatch_that_does_not_fit_is_refused_by_its_field(self):
        tune = ref.TunePriorRequest(collection="long", critical_layers=[0, 1], epochs=1, batch_size=8)
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "batch_size", lambda: self.tuned(tune))

    def test_minibatches_that_nobody_chose_are_as_large_as_fits(self):
        chosen = ref.TunePriorRequest(collection="short", critical_layers=[0, 1], epochs=1, batch_size=16)
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "batch_size", lambda: self.tuned(chosen))
        chosen.ClearField("batch_size")
        epochs = self.tuned(chosen)
        self.assertTrue(epochs[-1].finished)
        self.assertGreater(epochs[1].training_loss, 0)

    def tuned(self, request):
        """The epochs of a TunePrior call, once there is a place for it: one that another test cancelled leaves its own a moment later."""
        give_up = time.monotonic() + 60
        while True:
            try:
                return list(self.references.TunePrior(request, timeout=120))
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def test_learning_has_its_own_places(self):
        self.add("many", samples(400))  # A thousand epochs of these take minutes.
        tune = ref.TunePriorRequest(collection="many", critical_layers=[2, 3], epochs=1000, batch_size=1, patience=1000)
        learning = self.references.TunePrior(tune, timeout=600)
        next(learning)
        self.refused(grpc.StatusCode.RESOURCE_EXHAUSTED, None, lambda: list(self.references.TunePrior(tune, timeout=120)))
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(self.events("What is 1 modulo seven?", collection="short", k=2)))
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(answers), 4)
        self.assertTrue(learning.is_active())
        learning.cancel()
        give_up = time.monotonic() + 60
        while not self.learns_again(tune):
            self.assertLess(time.monotonic(), give_up, "the cancelled call keeps its place")
            time.sleep(0.05)

    def learns_again(self, tune):
        again = self.references.TunePrior(tune, timeout=120)
        try:
            next(again)
        except grpc.RpcError as error:
            self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
            return False
        again.cancel()
        return True


if __name__ == "__main__":
    unittest.main()
