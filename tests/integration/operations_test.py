"""What an operator relies on: stages and outcomes that add up, a log that tells who did what, answers that fit a default channel,
references that can be replaced, named, exported and imported. usage: operations_test.py C3POD C3PO"""

import concurrent.futures
import json
import pathlib
import subprocess
import sys
import time
import unittest

import grpc

import server_process
from service_calls import gen, opt, pb, ref, samples, srv

CLI = sys.argv.pop(2)
BINARY = sys.argv.pop(1)
NGD = opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT
NONE = opt.METHOD_NONE
BEFORE_DECODE = ("queue", "tokenize", "embed", "retrieval", "prefill", "optimization", "optimization_wait")
ANSWER_BYTES_MAX = 3 << 20


def sample(prompt, answer, own_id="", **fields):
    return ref.ReferenceSample(prompt=prompt, answer=answer, id=own_id, **fields)


class OperationsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        cls.server = server_process.ServerProcess(BINARY, cls.folder)
        cls.channel = cls.server.channel()  # As clients make it: answers of 4 MiB at most.
        cls.generation = pb["generation_pb2_grpc"].GenerationServiceStub(cls.channel)
        cls.references = pb["reference_pb2_grpc"].ReferenceServiceStub(cls.channel)
        cls.add("set", samples(40))

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        code = cls.server.stop()
        server_process.remove_folder(cls.folder)
        if code != 0:
            raise AssertionError(f"c3pod exited with {code}: {cls.server.log[-20:]}")

    @classmethod
    def add(cls, collection, all_samples, **first):
        requests = [ref.AddReferencesRequest(collection=collection, sequence=i, sample=s) for i, s in enumerate(all_samples)]
        requests[0].MergeFrom(ref.AddReferencesRequest(**first))
        return [verdict for response in cls.references.Add(iter(requests), timeout=300) for verdict in response.verdicts]

    def request(self, method=NGD, prompt="What is 50 modulo seven?", max_tokens=6, collection="set", **fields):
        options = opt.OptimizationOptions(method=method, collection=collection, k=4, steps=6, gate=opt.GateOptions(enabled=False),
                                          reference_selection=opt.REFERENCE_SELECTION_ALL)
        return gen.GenerateRequest(prompt=prompt, optimization=options,
                                   sampling=gen.SamplingOptions(max_tokens=max_tokens, ignore_eos=True), **fields)

    def ask(self, **fields):
        return list(self.generation.Generate(self.request(**fields), timeout=60))

    def metrics(self):
        lines = (line for line in self.server.http("/metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def cli(self, *arguments, text=""):
        return subprocess.run([CLI, "--server", f"127.0.0.1:{self.server.port}", *map(str, arguments)], input=text,
                              capture_output=True, text=True, timeout=120)

    # --- Stages and outcomes ---

    def test_stages_of_callers_side_by_side_add_up(self):
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda i: self.ask(prompt=f"What is {50 + i} modulo seven?"), range(12)))
        waits = []
        for events in answers:
            timings = events[-1].summary.timings
            before = sum(getattr(timings, f"{stage}_seconds") for stage in BEFORE_DECODE)
            self.assertAlmostEqual(before + timings.first_token_seconds, timings.time_to_first_token_seconds, places=6)
            self.assertGreaterEqual(timings.decode_seconds, timings.first_token_seconds)
            self.assertGreater(timings.retrieval_seconds, 0)
            self.assertGreater(timings.optimization_seconds, 0)
            waits.append(timings.optimization_wait_seconds)
            self.assertGreaterEqual(timings.optimization_wait_seconds, 0)
            self.assertGreaterEqual(events[0].optimization.timings.optimization_wait_seconds, 0)
        self.assertGreater(max(waits), 0)

    def test_stages_in_the_metrics_are_those_of_the_answers(self):
        before = self.metrics()
        timings = [self.ask()[-1].summary.timings for _ in range(3)]
        score = gen.ScoreRequest(prompt="What is 3?", continuations=[" 1", " 2"], optimization=opt.OptimizationOptions(method=NONE))
        timings.append(self.generation.Score(score, timeout=60).timings)
        after = self.metrics()
        for stage in (*BEFORE_DECODE, "decode"):
            name = f'c3po_call_stage_seconds_total{{stage="{stage}"}}'
            told = sum(getattr(t, f"{stage}_seconds") for t in timings)
            self.assertAlmostEqual(after[name] - before[name], told, places=6, msg=stage)
        name = 'vllm:request_queue_time_seconds_count{model_name="mixtral_tiny"}'
        self.assertEqual(after[name] - before[name], 4)
        self.assertEqual(after["c3po_optimization_wait_seconds_count"] - before["c3po_optimization_wait_seconds_count"], 3)

    def test_every_call_that_was_let_in_ends_in_one_outcome(self):
        ended = lambda values: {reason: values[f'vllm:request_success_total{{finished_reason="{reason}",model_name="mixtral_tiny"}}']
                                for reason in ("stop", "length", "abort", "error")}
        before = self.metrics()
        self.ask(method=NONE)
        for fields in (dict(prompt="x" * 400), dict(max_tokens=0)):  # Found too long by a worker; turned away at the door.
            with self.assertRaises(grpc.RpcError):
                self.ask(**fields)
        with self.assertRaises(grpc.RpcError):
            list(self.generation.Generate(gen.GenerateRequest(token_ids=gen.TokenIds(ids=[1, 10**6])), timeout=60))
        stream = self.generation.Generate(self.request(method=NONE, max_tokens=200))
        next(stream)
        stream.cancel()
        with self.assertRaises(grpc.RpcError):
            list(self.generation.Generate(self.request(method=NONE, max_tokens=200), timeout=0.02))
        score = gen.ScoreRequest(prompt="What is 3?", continuations=[" 1", " 2"], optimization=opt.OptimizationOptions(method=NONE))
        self.generation.Score(score, timeout=60)
        self.add("outcomes", samples(3))  # Sequences of the engine, and no calls of these kinds.
        for _ in range(3000):
            after = self.metrics()
            begun = after["c3po_requests_started_total"] - before["c3po_requests_started_total"]
            outcomes = {reason: count - ended(before)[reason] for reason, count in ended(after).items()}
            if sum(outcomes.values()) == begun:
                break
            time.sleep(0.02)
        self.assertEqual(sum(outcomes.values()), begun, outcomes)
        self.assertEqual(outcomes["error"], 2)
        # On a fast machine a call ends before its cancel or its deadline is seen.
        self.assertGreaterEqual(outcomes["stop"] + outcomes["length"], 2)
        self.assertEqual(outcomes["abort"], begun - 2 - outcomes["stop"] - outcomes["length"])
        self.assertLessEqual(outcomes["abort"], 2)  # A call of 20 ms may not have come in at all.

    # --- The log ---

    def test_a_line_per_call_says_who_what_and_how_it_ended(self):
        time.sleep(1.1)  # A second of its own: in a crowd lines are passed over.
        self.ask(request_id="told")
        line = self.server.wait_for_log(event="call", request_id="told")
        self.assertEqual(line["level"], "info")
        self.assertEqual(line["method"], "GenerationService/Generate")
        self.assertRegex(line["peer"], r"^ipv4:127\.0\.0\.1:\d+$")
        self.assertEqual(line["caller"], "ipv4:127.0.0.1")
        self.assertEqual(line["collection"], "set")
        self.assertEqual(line["completion_tokens"], 6)
        self.assertGreater(line["prompt_tokens"], 6)
        self.assertEqual(line["gate"], "applied")
        self.assertEqual(line["status"], "OK")
        self.assertGreater(line["milliseconds"], 0)
        self.assertNotIn("message", line)
        with self.assertRaises(grpc.RpcError):
            self.ask(prompt="x" * 400, request_id="failed")
        line = self.server.wait_for_log(event="call", request_id="failed")
        self.assertEqual((line["status"], line["collection"]), ("INVALID_ARGUMENT", "set"))
        self.assertIn("context window", line["message"])

    def test_a_crowd_of_calls_is_sampled_and_the_rest_is_counted(self):
        def tokenize_in_a_new_second():
            """Its line tells what was passed over before; the log's length once it is there."""
            time.sleep(1.1)
            before = len(self.server.logged(event="call", method="GenerationService/Tokenize"))
            self.generation.Tokenize(gen.TokenizeRequest(text="seven"))
            for _ in range(3000):
                if len(self.server.logged(event="call", method="GenerationService/Tokenize")) > before:
                    break
                time.sleep(0.02)
            return len(self.server.log)

        first = tokenize_in_a_new_second()
        count = 400
        for _ in range(count):
            self.generation.Tokenize(gen.TokenizeRequest(text="seven"))
        tokenize_in_a_new_second()
        for _ in range(3000):
            lines = [json.loads(line) for line in self.server.log[first:] if '"event":"call"' in line]
            if len(lines) + sum(line.get("calls_passed_over", 0) for line in lines) >= count + 1:
                break
            time.sleep(0.02)
        seconds = {line["time"][:19] for line in lines}
        self.assertLessEqual(len(lines), 50 * (len(seconds) + 1))
        self.assertEqual(len(lines) + sum(line.get("calls_passed_over", 0) for line in lines), count + 1)

    def test_every_change_leaves_a_line_with_who_made_it(self):
        name = "audited"
        self.add(name, samples(20))
        self.references.SetProfile(ref.SetProfileRequest(collection=name, profile=opt.OptimizationOptions(k=2)))
        self.assertTrue(self.references.SetProfile(ref.SetProfileRequest(collection=name)).removed)
        tuned = list(self.references.TunePrior(ref.TunePriorRequest(collection=name, critical_layers=[0, 1], epochs=3, batch_size=8,
                                                                    learning_rate=0.3), timeout=120))
        list(self.references.AmortizeShifts(ref.AmortizeShiftsRequest(
            collection=name, optimization=opt.OptimizationOptions(steps=1, critical_layers=[0, 1])), timeout=120))
        list(self.references.TuneOffset(ref.TuneOffsetRequest(collection=name), timeout=120))
        self.references.Delete(ref.DeleteReferencesRequest(collection=name))
        expected = {"add": dict(added=20, replaced=0), "set_profile": dict(), "remove_profile": dict(),
                    "amortize_shifts": dict(references=20), "tune_offset": dict(references=10, after="none"),
                    "delete": dict(whole_collection=True, deleted=20)}
        if tuned[-1].HasField("stored"):
            expected["tune_prior"] = dict(references=16)
        for action, fields in expected.items():
            with self.subTest(action=action):
                line = self.server.wait_for_log(event="audit", action=action, collection=name, **fields)
                self.assertEqual(line["caller"], "ipv4:127.0.0.1")
                self.assertRegex(line["peer"], r"^ipv4:127\.0\.0\.1:\d+$")
                self.assertIn("ReferenceService/", line["method"])
        self.assertIn("k: 2", self.server.logged(event="audit", action="set_profile", collection=name)[-1]["profile"])
        # The lines tell the order of the changes, and that of a change to references is what answers report from then on.
        told = {action: self.server.logged(event="audit", action=action, collection=name)[-1]["generation"] for action in expected}
        self.assertLess(told["add"], told["delete"])
        self.assertLessEqual(told["delete"], self.references.GetStats(ref.GetStatsRequest()).index_generation)

    # --- Answers that fit ---

    def test_pages_end_before_they_are_larger_than_channels_take(self):
        large = [sample(f"What is {i} modulo seven?", " 1", metadata={"text": "x" * 15_000}) for i in range(300)]
        self.add("large", large)
        seen, sizes, token = [], [], ""
        while True:
            page = self.references.List(ref.ListReferencesRequest(collection="large", page_size=1000, page_token=token))
            seen += [r.id for r in page.references]
            sizes.append(page.ByteSize())
            token = page.next_page_token
            if not token:
                break
        self.assertEqual((len(seen), len(set(seen))), (300, 300))
        self.assertGreater(len(sizes), 1)
        self.assertLessEqual(max(sizes), ANSWER_BYTES_MAX + 1000)

        hits, request = [], ref.SearchReferencesRequest(collection="large", text="What is 3 modulo seven?", k=300)
        pages = 0
        while True:
            page = self.references.Search(request)
            self.assertLessEqual(page.ByteSize(), ANSWER_BYTES_MAX + 1000)
            hits += page.hits
            pages += 1
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        self.assertGreater(pages, 1)
        self.assertEqual({hit.reference.id for hit in hits}, set(seen))
        self.assertEqual([hit.distance for hit in hits], sorted(hit.distance for hit in hits))
        request.page_token = "x"
        with self.assertRaises(grpc.RpcError) as caught:
            self.references.Search(request)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        whole = self.cli("refs", "search", "What is 3 modulo seven?", "--collection", "large", "--k", "300", "--json")
        self.assertEqual(len(json.loads(whole.stdout)["hits"]), 300)
        self.references.Delete(ref.DeleteReferencesRequest(collection="large"))

    def test_a_long_text_is_tokenized_without_its_pieces(self):
        few, many = "seven", "seven " * 200_000
        self.assertTrue(self.generation.Tokenize(gen.TokenizeRequest(text=few)).pieces)
        response = self.generation.Tokenize(gen.TokenizeRequest(text=many))
        self.assertFalse(response.pieces)
        self.assertGreater(len(response.ids), 100_000)

    # --- References that change ---

    def stored(self, collection):
        return sorted((r.sample.prompt, r.sample.answer, r.id)
                      for r in self.references.List(ref.ListReferencesRequest(collection=collection)).references)

    def test_a_relabelled_sample_is_told_and_replaced_where_asked(self):
        old = self.add("labels", [sample("Is it?", " no"), sample("Is that?", " no")])
        again = self.add("labels", [sample("Is it?", " yes")])
        self.assertEqual(list(again[0].contradicted_ids), [old[0].id])
        self.assertFalse(again[0].replaced_ids)
        self.assertEqual(len(self.stored("labels")), 3)
        self.assertFalse(self.add("labels", [sample("Is it?", " yes")])[0].contradicted_ids)  # There already.
        # Of two with one prompt in one stream the last stays; what is there already clears its prompt too.
        final = self.add("labels", [sample("Is it?", " maybe"), sample("Is it?", " perhaps"), sample("Is that?", " no")], replace=True)
        self.assertEqual(set(final[0].replaced_ids), {old[0].id, again[0].id})
        self.assertEqual(list(final[1].replaced_ids), [final[0].id])
        self.assertEqual(final[2].verdict, ref.VERDICT_DUPLICATE)
        self.assertEqual([(p, a) for p, a, _ in self.stored("labels")], [("Is it?", " perhaps"), ("Is that?", " no")])
        hits = self.references.Search(ref.SearchReferencesRequest(collection="labels", text="Is it?", k=5)).hits
        self.assertEqual([h.reference.sample.answer for h in hits], [" perhaps", " no"])

    def test_samples_may_bring_ids_of_their_own(self):
        named = [sample("Is it?", " no", "q.1"), sample("Is that?", " no", "q.2", choices=[" no", " yes"], metadata={"a": "b"})]
        first = self.add("named", named)
        self.assertEqual([v.id for v in first], ["named:q.1", "named:q.2"])
        self.assertEqual([v.verdict for v in self.add("named", named)], [ref.VERDICT_DUPLICATE] * 2)
        relabelled = self.add("named", [sample("Is it really?", " yes", "q.1")])
        self.assertEqual(list(relabelled[0].replaced_ids), ["named:q.1"])
        self.assertEqual(self.stored("named")[0], ("Is it really?", " yes", "named:q.1"))
        self.assertEqual(len(self.stored("named")), 2)
        hits = self.references.Search(ref.SearchReferencesRequest(collection="named", text="Is it really?", k=5)).hits
        self.assertEqual((hits[0].reference.sample.answer, hits[0].reference.sample.id), (" yes", "q.1"))
        self.assertLess(hits[0].distance, 1e-3)
        self.assertEqual([v.id for v in self.add("other", named)], ["other:q.1", "other:q.2"])
        for wrong in ("a b", "x" * 65, "a/b", "größe"):
            bad = self.add("named", [sample("Is it?", " no", wrong)])[0]
            self.assertEqual(bad.verdict, ref.VERDICT_MALFORMED)
            self.assertIn("id: ", bad.message)
        deleted = self.references.Delete(ref.DeleteReferencesRequest(ids=["named:q.1", "named:q.9"]))
        self.assertEqual((deleted.deleted, list(deleted.not_found)), (1, ["named:q.9"]))

    def test_an_export_imports_again_with_nothing_lost(self):
        self.add("whole", [sample("Is it?\n\"Yes\"", " no", "q-1", metadata={"a": "größe"}), *samples(30)])
        path = self.folder / "export.jsonl"
        self.assertEqual(self.cli("refs", "export", path, "--collection", "whole").returncode, 0)
        imported = self.cli("refs", "import", path, "--collection", "copy", "--strict")
        self.assertEqual(imported.returncode, 0, imported.stderr)
        self.assertIn("collection copy: 31 added; the model already answers ", imported.stdout)
        self.assertIn("c3po calibrate --collection copy", imported.stdout)
        content = lambda name: sorted(r.sample.SerializeToString(deterministic=True)
                                      for r in self.references.List(ref.ListReferencesRequest(collection=name)).references)
        self.assertEqual(content("copy"), content("whole"))
        again = self.cli("refs", "import", path, "--collection", "copy")
        self.assertEqual(again.returncode, 0)
        self.assertIn("0 added; 31 there already; 0 malformed", again.stdout)

    def test_choices_in_another_form_than_the_collections_are_told(self):
        spaced = [sample(f"Review {i}. Sentiment:", " good", choices=[" good", " bad"]) for i in range(6)]
        bare = sample("Review 7. Sentiment:", "good", choices=["good", "bad"])
        self.assertEqual([v.warning for v in self.add("forms", spaced)], [""] * 6)
        warning = self.add("forms", [bare, *spaced[:1]])
        self.assertIn("choices begin without white space", warning[0].warning)
        self.assertEqual(warning[1].warning, "")
        line = json.dumps({"prompt": "Review 8. Sentiment:", "answer": "bad", "choices": ["good", "bad"]})
        told = self.cli("refs", "import", "-", "--collection", "forms", text=line)
        self.assertIn("-:1: warning: choices begin without white space", told.stderr)
        self.add("spaced", spaced)
        scored = lambda choices: self.generation.Score(gen.ScoreRequest(
            prompt="Review 9. Sentiment:", continuations=choices, optimization=self.request(collection="spaced").optimization))
        self.assertEqual(list(scored([" good", " bad"]).optimization.warnings), [])
        (warning,) = scored(["good", "bad"]).optimization.warnings
        self.assertIn("continuations begin without white space", warning)
        path = self.folder / "bare.jsonl"
        path.write_text(line + "\n")
        told = self.cli("score", "--file", path, "--collection", "spaced", "--references", "all")
        self.assertIn("bare.jsonl:1: warning: continuations begin without white space", told.stderr)

    def test_deleting_what_is_not_there_fails_at_the_command_line(self):
        self.assertEqual(self.cli("refs", "delete", "--collection", "nobody", "--yes").returncode, 5)
        self.assertEqual(self.cli("refs", "profile", "clear", "--collection", "nobody").returncode, 5)
        # A profile may be there when no reference is any more.
        path = self.folder / "early.jsonl"
        path.write_text(json.dumps({"prompt": "What is early?", "answer": " this"}) + "\n")
        self.assertEqual(self.cli("refs", "import", path, "--collection", "early").returncode, 0)
        self.assertEqual(self.cli("refs", "profile", "set", "--collection", "early", "--set", "k=3").returncode, 0)
        (one,) = self.references.List(ref.ListReferencesRequest(collection="early")).references
        self.assertEqual(self.cli("refs", "delete", one.id).returncode, 0)
        self.assertEqual(self.cli("refs", "profile", "clear", "--collection", "early").returncode, 0)
        self.assertEqual(self.cli("refs", "profile", "clear", "--collection", "early").returncode, 5)
        self.assertEqual(self.cli("refs", "delete", "nobody").returncode, 5)
        self.assertEqual(self.cli("refs", "delete", "nobody", "--missing-ok").returncode, 0)

    # --- Addresses ---

    def test_a_socket_is_logged_by_its_path(self):
        path = self.folder / "socket"
        command = [BINARY, "--model", str(server_process.TINY_MODEL), "--store", str(self.folder / "socket.db"), "--metrics-port", "-1",
                   "--embedder", "model", "--listen", f"unix:{path}"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            events = (json.loads(line) for line in process.stderr if line.startswith("{"))
            serving = next(event for event in events if event["event"] == "serving")
            self.assertEqual(serving["address"], f"unix:{path}")
            with grpc.insecure_channel(serving["address"]) as channel:
                pb["server_pb2_grpc"].ServerServiceStub(channel).GetServerInfo(srv.GetServerInfoRequest(), timeout=60)
            line = next(event for event in events if event["event"] == "call")
            self.assertTrue(line["peer"].startswith("unix:"), line)
        finally:
            process.terminate()
            process.wait(timeout=60)
            process.stderr.close()
        command[-1] = "127.0.0.1"
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--listen: \"127.0.0.1\" is not ADDRESS:PORT", done.stderr)


if __name__ == "__main__":
    pathlib.Path(BINARY).resolve(strict=True)
    unittest.main(verbosity=2)
