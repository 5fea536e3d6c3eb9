"""The label offset as a method of a running server: fitted leave-one-out, stored, applied, told, and asked by c3po eval.
usage: offset_test.py C3POD C3PO"""

import json
import math
import subprocess
import sys
import unittest

import grpc

import server_process
from server_case import ServerCase
from service_calls import details, gen, opt, pb, ref

CLI, BINARY = sys.argv.pop(), sys.argv.pop()

NONE, NGD = opt.METHOD_NONE, opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT
LABELS = [" no", " yes"]
RIDGE = 0.01  # kLabelOffsetRidge
# The gate skips some and reverts others: what an offset is fitted to is what requests get.
DESCENT = dict(method=NGD, k=4, steps=4, reference_selection=opt.REFERENCE_SELECTION_ALL, objective=opt.OBJECTIVE_CHOICES,
               gate=opt.GateOptions(max_base_confidence=0.55))


def question(i):
    return f"Is {i * 7919 % 1000} larger than {i * 104729 % 1000}?"


def is_yes(i):
    return i * 7919 % 1000 > i * 104729 % 1000 or i % 5 == 0


def labelled(count, first=0, choices=LABELS):
    for i in range(first, first + count):
        yield ref.ReferenceSample(prompt=question(i), answer=LABELS[is_yes(i)], choices=choices)


def per_token(score):
    return score.log_likelihood / score.token_count


def slopes(rows, gold, scale, offsets):
    """The gradient of what FitLabelOffset minimizes (index/base/label_offset.h), by the scale and each offset."""
    centered = [[s - sum(row) / len(row) for s in row] for row in rows]
    spread = math.sqrt(sum(s * s for row in centered for s in row) / sum(map(len, rows)))
    by_scale, by_offset = RIDGE * scale * spread ** 2, [RIDGE * b for b in offsets]
    for row, right in zip(rows, gold):
        weights = [math.exp(scale * s + b) for s, b in zip(row, offsets)]
        for c, weight in enumerate(weights):
            excess = weight / sum(weights) - (c == right)
            by_scale += excess * row[c]
            by_offset[c] += excess
    return by_scale / spread, by_offset


class OffsetTest(ServerCase):
    binary = BINARY

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.ids = [verdict.id for verdict in cls.add("mood", labelled(48))]

    def tune(self, collection="mood", **fields):
        return list(self.references.TuneOffset(ref.TuneOffsetRequest(collection=collection, **fields), timeout=300))

    def score(self, prompt, choices=LABELS, collection="mood", **options):
        options.setdefault("method", NONE)
        return self.generation.Score(gen.ScoreRequest(
            prompt=prompt, continuations=choices, optimization=opt.OptimizationOptions(collection=collection, **options)), timeout=60)

    def offsets(self, collection="mood"):
        return list(self.references.GetCollection(ref.GetCollectionRequest(collection=collection)).offsets)

    def fails(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        details(caught.exception)
        return caught.exception.details()

    def check_fit(self, stored, rows):
        """That `stored` is the fit to these scores of the references, in LABELS' order."""
        gold = [is_yes(i) for i in range(len(rows))]
        self.assertEqual(stored.references, len(rows))
        self.assertEqual(sorted(stored.labels), sorted(LABELS))
        offsets = [stored.offsets[list(stored.labels).index(label)] for label in LABELS]
        self.assertAlmostEqual(sum(offsets), 0, places=9)
        by_scale, by_offset = slopes(rows, gold, stored.scale, offsets)
        for slope in by_offset:
            self.assertAlmostEqual(slope, 0, places=5)
        if stored.scale > 0:
            self.assertAlmostEqual(by_scale, 0, places=5)
        else:
            self.assertGreaterEqual(by_scale, 0)
        right = sum((no < yes) == bool(g) for (no, yes), g in zip(rows, gold))
        self.assertAlmostEqual(stored.accuracy_before, right / len(rows))

    def test_the_model_alones_is_fitted_stored_applied_and_told(self):
        events = self.tune()
        self.assertEqual((events[0].done, events[0].total), (0, 48))
        self.assertEqual((events[-1].done, events[-1].total), (48, 48))
        stored = events[-1].stored
        rows = [[per_token(s) for s in self.score(question(i)).scores] for i in range(48)]
        self.check_fit(stored, rows)
        self.assertGreaterEqual(stored.accuracy_after, 0.4)
        self.assertTrue(stored.usable)
        self.assertEqual((stored.method, stored.settings), (NONE, "method=none"))
        self.assertIn(stored, self.offsets())
        for i in range(100, 110):
            for choices in (LABELS, LABELS[::-1]):
                plain = self.score(question(i), choices)
                self.assertFalse(plain.optimization.offset_applied)
                self.assertFalse(plain.scores[0].HasField("offset_score"))
                moved = self.score(question(i), choices, use_offset=True)
                self.assertTrue(moved.optimization.offset_applied)
                self.assertFalse(moved.optimization.warnings)
                wanted = []
                for choice, before, after in zip(choices, plain.scores, moved.scores):
                    self.assertEqual(after.log_likelihood, before.log_likelihood)
                    wanted.append(stored.scale * per_token(before) + stored.offsets[list(stored.labels).index(choice)])
                    self.assertAlmostEqual(after.offset_score, wanted[-1], places=9)
                answer = list(self.generation.Generate(gen.GenerateRequest(
                    prompt=question(i), choices=choices,
                    optimization=opt.OptimizationOptions(method=NONE, collection="mood", use_offset=True)), timeout=60))
                self.assertTrue(answer[0].optimization.offset_applied)
                self.assertEqual(answer[-1].summary.chosen, wanted.index(max(wanted)))
                self.assertEqual([s.offset_score for s in answer[-1].summary.choice_scores], [s.offset_score for s in moved.scores])
                self.assertEqual("".join(e.delta.text for e in answer if e.HasField("delta")), choices[wanted.index(max(wanted))])

    def test_one_after_descent_sees_each_reference_as_a_new_question(self):
        self.tune()
        stored = self.tune(optimization=opt.OptimizationOptions(**DESCENT))[-1].stored
        self.assertEqual(stored.method, NGD)
        rows, seeing, gates = [], [], set()
        for i, own in enumerate(self.ids):
            left_out = self.score(question(i), **DESCENT, exclude_reference_ids=[own])
            self.assertNotIn(own, [n.reference_id for n in left_out.optimization.neighbors])
            gates.add(left_out.optimization.gate)
            rows.append([per_token(s) for s in left_out.scores])
            seeing.append([per_token(s) for s in self.score(question(i), **DESCENT).scores])
        self.check_fit(stored, rows)
        self.assertNotEqual(rows, seeing)
        with self.assertRaises(AssertionError):
            self.check_fit(stored, seeing)  # The check can tell the two apart.
        self.assertIn(opt.GATE_DECISION_APPLIED, gates)
        self.assertGreater(len(gates), 1)
        # Each settings' own is applied; to others that of the model alone, with a warning.
        alone = next(o for o in self.offsets() if o.method == NONE)
        for settings, offset, warned in ((DESCENT, stored, False), ({**DESCENT, "steps": 5}, alone, True)):
            moved = self.score(question(200), **settings, use_offset=True)
            self.assertTrue(moved.optimization.offset_applied)
            self.assertEqual(any("that of the model alone" in w for w in moved.optimization.warnings), warned)
            for label, score in zip(LABELS, moved.scores):
                expected = offset.scale * per_token(score) + offset.offsets[list(offset.labels).index(label)]
                self.assertAlmostEqual(score.offset_score, expected, places=9)

    def test_a_reference_with_the_same_prompt_is_no_neighbor_either(self):
        twice = [sample for i in range(16) for sample in (
            ref.ReferenceSample(prompt=question(i), answer=" yes", choices=LABELS, id=f"first{i}"),
            ref.ReferenceSample(prompt=question(i) + " ", answer=" yes", choices=LABELS, id=f"second{i}"))]
        ids = [verdict.id for verdict in self.add("twice", twice)]
        settings = {**DESCENT, "collection": "twice", "gate": opt.GateOptions(enabled=False)}
        stored = self.tune("twice", optimization=opt.OptimizationOptions(**settings))[-1].stored
        right = 0
        for i, sample in enumerate(twice):
            pair = ids[i // 2 * 2:i // 2 * 2 + 2]
            scores = self.score(sample.prompt, **settings, exclude_reference_ids=pair).scores
            right += per_token(scores[1]) > per_token(scores[0])
        self.assertAlmostEqual(stored.accuracy_before, right / len(twice))

    def test_other_choices_are_left_alone(self):
        self.tune()
        for choices in ([" no", "yes"], [" yes"], [" no", " yes", " maybe"]):
            scored = self.score(question(1), choices, use_offset=True)
            self.assertFalse(scored.optimization.offset_applied)
            self.assertFalse(any(s.HasField("offset_score") for s in scored.scores))
            self.assertIn("the choices are not its labels", scored.optimization.warnings[0])

    def test_without_one_who_asks_is_told_and_a_profile_warns(self):
        self.add("bare", labelled(12, first=500))
        message = self.fails(grpc.StatusCode.NOT_FOUND, lambda: self.score(question(1), collection="bare", use_offset=True))
        self.assertIn("refs tune --offset", message)
        self.references.SetProfile(ref.SetProfileRequest(collection="bare", profile=opt.OptimizationOptions(method=NONE, use_offset=True)))
        asked = dict(prompt=question(1), continuations=LABELS, optimization=opt.OptimizationOptions(collection="bare"))
        plain = self.generation.Score(gen.ScoreRequest(**asked), timeout=60)
        self.assertFalse(plain.optimization.offset_applied)
        self.assertIn("without a label offset", plain.optimization.warnings[0])
        self.tune("bare")
        moved = self.generation.Score(gen.ScoreRequest(**asked), timeout=60)
        self.assertTrue(moved.optimization.offset_applied)
        self.assertFalse(moved.optimization.warnings)
        self.references.Delete(ref.DeleteReferencesRequest(collection="bare"))
        self.add("bare", labelled(12, first=500))
        self.assertFalse(self.offsets("bare"))

    def test_it_refuses_what_it_cannot_do_and_names_the_field(self):
        self.fails(grpc.StatusCode.NOT_FOUND, lambda: self.tune("nowhere"))
        self.add("free", (ref.ReferenceSample(prompt=question(i), answer=" no") for i in range(12)))
        self.fails(grpc.StatusCode.FAILED_PRECONDITION, lambda: self.tune("free"))
        self.add("few", labelled(9))
        self.fails(grpc.StatusCode.FAILED_PRECONDITION, lambda: self.tune("few"))
        for fields in (dict(max_references=3), dict(optimization=opt.OptimizationOptions(method=opt.METHOD_ORACLE)),
                       dict(optimization=opt.OptimizationOptions(method=NGD, k=0)), dict(collection="two\nlines")):
            with self.subTest(fields=fields):
                self.fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: self.tune(**fields))
        self.fails(grpc.StatusCode.NOT_FOUND, lambda: self.tune(optimization=opt.OptimizationOptions(method=opt.METHOD_COLLECTION_PRIOR)))

    def test_a_cancelled_call_leaves_what_was_there(self):
        self.add("slow", labelled(60, first=300))
        before = self.tune("slow")[-1].stored
        self.add("slow", labelled(60, first=400))
        call = self.references.TuneOffset(ref.TuneOffsetRequest(collection="slow"))
        next(call)
        call.cancel()
        with self.assertRaises(grpc.RpcError):
            list(call)
        self.assertEqual(self.offsets("slow"), [before])
        self.assertEqual(self.tune("slow")[-1].stored.references, 120)  # Its place is free again.
        self.assertEqual(self.tune("slow", keep=True)[0].stored.references, 120)
        self.assertEqual(len(self.tune("slow", keep=True)), 1)

    def run_cli(self, *arguments):
        done = subprocess.run([CLI, "--server", f"127.0.0.1:{self.server.port}", *map(str, arguments)], capture_output=True, text=True,
                              timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_the_command_line_tunes_applies_and_explains_it(self):
        file = self.folder / "samples.jsonl"
        file.write_text("".join(json.dumps(dict(prompt=s.prompt, answer=s.answer, choices=list(s.choices))) + "\n"
                                for s in labelled(20, first=600)))
        self.assertIn("label offset of the model alone: scale", self.run_cli("refs", "import", file, "--collection", "typed", "--offset"))
        tuned = self.run_cli("refs", "tune", "--offset", "--collection", "typed", "--method", "kernel", "--references", "all", "--k", "3")
        self.assertIn("label offset after kernel regression: scale", tuned)
        self.assertEqual(len(self.offsets("typed")), 2)
        shown = self.run_cli("refs", "profile", "show", "--collection", "typed")
        self.assertIn("of the model alone: scale", shown)
        self.assertIn("after kernel regression", shown)
        asked = ("--collection", "typed", "--method", "none", "--offset", "--explain", "--choices", *LABELS)
        for command in ("score", "ask"):
            output = self.run_cli(command, question(1), *asked)
            self.assertIn("label offset applied", output)
            self.assertIn("with offset", output)
        wrong = subprocess.run([CLI, "refs", "tune", "--collection", "typed", "--k", "3"], capture_output=True, text=True)
        self.assertIn("--offset", wrong.stderr)
        self.assertNotEqual(wrong.returncode, 0)

    def test_eval_tunes_what_is_missing_and_agrees_with_its_own_fit(self):
        self.add("judged", labelled(60, first=700))
        file = self.folder / "task.jsonl"
        file.write_text("".join(json.dumps(dict(prompt=question(i), answer=LABELS[is_yes(i)], choices=LABELS)) + "\n"
                                for i in range(900, 940)))
        out = self.folder / "run"
        # So many references that the two fits see the same ones; and the metric that the server chooses by.
        text = self.run_cli("eval", "--task", file, "--collection", "judged", "--metric", "per_token", "--methods",
                            "none,offset,kernel+offset,kernel", "--set", "kernel+offset.k=3", "--offset-references", 1000, "--out", out)
        for row in ("offset ", "kernel+offset ", "label-offset "):
            self.assertIn(row, text)
        self.assertEqual(sorted(o.method for o in self.offsets("judged")), [NONE, opt.METHOD_KERNEL_REGRESSION])
        items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
        oracle = [json.loads(line) for line in (out / "baselines.jsonl").read_text().splitlines()]
        predicted = {item["id"]: item["predicted"] for item in items if item["method"] == "offset"}
        self.assertEqual(len(predicted), 40)
        self.assertEqual(predicted, {item["id"]: item["predicted"] for item in oracle if item["method"] == "label-offset"})
        alone = {item["id"]: item["predicted"] for item in items if item["method"] == "none"}
        self.assertNotEqual(predicted, alone)  # Else the agreement would say nothing.
        self.assertTrue(all("offset_scores" in i for i in items if i["method"].endswith("offset")))
        self.assertTrue(all("offset_scores" not in i for i in items if not i["method"].endswith("offset")))


class StoredTest(unittest.TestCase):
    def test_offsets_outlive_the_process_and_go_with_a_backup(self):
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        copy = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, copy)

        def with_server(where, work):
            server = server_process.ServerProcess(BINARY, where)
            try:
                with server.channel() as channel:
                    return work(pb["reference_pb2_grpc"].ReferenceServiceStub(channel))
            finally:
                self.assertEqual(server.stop(), 0)

        def first(references):
            requests = (ref.AddReferencesRequest(collection="mood", sequence=i, sample=s) for i, s in enumerate(labelled(20)))
            list(references.Add(requests, timeout=120))
            stored = list(references.TuneOffset(ref.TuneOffsetRequest(collection="mood"), timeout=120))[-1].stored
            with open(copy / "store.db", "wb") as file:
                for response in references.BackupStore(ref.BackupStoreRequest()):
                    file.write(response.chunk)
            return stored

        stored = with_server(folder, first)
        held = lambda references: list(references.GetCollection(ref.GetCollectionRequest(collection="mood")).offsets)
        self.assertEqual(with_server(folder, held), [stored])
        self.assertEqual(with_server(copy, held), [stored])


if __name__ == "__main__":
    unittest.main()
