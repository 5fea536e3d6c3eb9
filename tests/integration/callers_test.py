"""What tokens say beside a role, through a real channel: collections and rates; and what callers may hold at once.
usage: callers_test.py C3POD"""

import sys
import threading
import time
import unittest

import grpc

import server_process
from server_case import ServerCase
from service_calls import details, gen, opt, pb, ref, srv

BINARY = sys.argv.pop(1)

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING = b"\x08\x01"


def as_caller(name):
    return {"metadata": [("authorization", f"Bearer token-{name}")], "timeout": 120}


def refusal(made):
    """(code, message, reason, seconds to wait or None) of a call that must fail."""
    try:
        made()
    except grpc.RpcError as error:
        reason, _, pause = details(error)
        return error.code(), error.details(), reason, pause
    raise AssertionError("the call was let in")


class CallersTest(ServerCase):
    """What tokens say beside a role: collections and rates. Over loopback, without TLS."""

    @classmethod
    def started(cls):
        lines = [("root", "administer", ""), ("reader", "references", "read=open"), ("writer", "references", "read=open write=mine,new%20one"),
                 ("asker", "generate", "read=mine"), ("chief", "administer", "read=* write=mine"),
                 ("few", "generate", "calls/min=3"), ("short", "references", "tokens/min=200"),
                 ("importer", "references", "tokens/min=200 write=slow"), ("learner", "references", "tokens/min=200 write=slow"),
                 ("optimizer", "generate", "tokens/min=3000"), ("spared", "generate", "tokens/min=3000"),
                 ("brief", "generate", "tokens/min=600")]
        (cls.folder / "tokens").write_text("".join(server_process.token_line(name, role, f"token-{name}", fields) for name, role, fields in lines))
        return server_process.ServerProcess(BINARY, cls.folder, "--auth-tokens", str(cls.folder / "tokens"),
                                            "--caller-calls-max", "6", "--watches-max", "5", "--address-watches-max", "3")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.ids = {}
        for collection in ("open", "mine", "secret"):
            cls.ids[collection] = cls.add("root", collection, f"text of {collection}")

    @classmethod
    def add(cls, caller, collection, text, count=3):
        requests = [ref.AddReferencesRequest(collection=collection, sequence=i,
                                             sample=ref.ReferenceSample(prompt=f"{text} {i}", answer=" 1", choices=[" 1", " 2"]))
                    for i in range(count)]
        answers = list(cls.references.Add(iter(requests), **as_caller(caller)))
        return [verdict.id for answer in answers for verdict in answer.verdicts]

    def calls_with(self, name):
        """Every call that names a collection, by method: those that read, and those that change."""
        chosen = opt.OptimizationOptions(collection=name, k=1, steps=1)
        reads = {
            "Generate": lambda c: list(self.generation.Generate(gen.GenerateRequest(
                prompt="text of", sampling=gen.SamplingOptions(max_tokens=1), optimization=chosen), **as_caller(c))),
            "Generate choices": lambda c: list(self.generation.Generate(gen.GenerateRequest(
                prompt="text of", choices=[" 1", " 2"], optimization=chosen), **as_caller(c))),
            "Score": lambda c: self.generation.Score(gen.ScoreRequest(
                prompt="text of", continuations=[" 1"], optimization=chosen), **as_caller(c)),
            "Search": lambda c: self.references.Search(ref.SearchReferencesRequest(collection=name, text="text"), **as_caller(c)),
            "List": lambda c: self.references.List(ref.ListReferencesRequest(collection=name), **as_caller(c)),
            "GetCollection": lambda c: self.references.GetCollection(ref.GetCollectionRequest(collection=name), **as_caller(c)),
        }
        writes = {
            "Add": lambda c: self.add(c, name, "intruder"),
            "Delete": lambda c: self.references.Delete(ref.DeleteReferencesRequest(collection=name), **as_caller(c)),
            "SetProfile": lambda c: self.references.SetProfile(ref.SetProfileRequest(
                collection=name, profile=opt.OptimizationOptions(k=2)), **as_caller(c)),
            "TunePrior": lambda c: list(self.references.TunePrior(ref.TunePriorRequest(collection=name), **as_caller(c))),
            "AmortizeShifts": lambda c: list(self.references.AmortizeShifts(
                ref.AmortizeShiftsRequest(collection=name), **as_caller(c))),
            "TuneOffset": lambda c: list(self.references.TuneOffset(ref.TuneOffsetRequest(collection=name), **as_caller(c))),
        }
        return reads, writes

    def test_another_callers_collection_looks_as_one_that_does_not_exist(self):
        seen = {}
        for name in ("secret", "nowhere"):
            reads, writes = self.calls_with(name)
            for method, made in {**reads, **writes}.items():
                with self.subTest(method=method, collection=name):
                    code, message, reason, _ = refusal(lambda: made("reader"))
                    self.assertEqual((code, reason), (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION"))
                    self.assertIn(f'"{name}"', message)
                    self.assertEqual(seen.setdefault(method, message.replace(name, "?")), message.replace(name, "?"))
        self.assertEqual(len(seen), 12)
        found = [hit.reference.id for hit in self.references.Search(
            ref.SearchReferencesRequest(collection="secret", text="intruder", k=100), **as_caller("root")).hits]
        self.assertEqual(sorted(found), sorted(self.ids["secret"]))

    def test_who_may_read_reads_and_may_not_change(self):
        reads, writes = self.calls_with("open")
        for method, made in reads.items():
            with self.subTest(method=method):
                made("reader")
        for method, made in writes.items():
            with self.subTest(method=method):
                self.assertEqual(refusal(lambda: made("reader"))[0], grpc.StatusCode.PERMISSION_DENIED)
        report = next(iter(self.generation.Generate(gen.GenerateRequest(
            prompt="text of open 1", optimization=opt.OptimizationOptions(collection="open", k=2)), **as_caller("reader")))).optimization
        self.assertTrue(report.neighbors)
        self.assertTrue(all(n.prompt.startswith("text of open") for n in report.neighbors))

    def test_who_may_write_reads_and_changes_also_what_is_new(self):
        added = self.add("writer", "new one", "fresh")
        self.assertEqual(len(added), 3)
        self.assertEqual(len(self.references.List(ref.ListReferencesRequest(collection="new one"), **as_caller("writer")).references), 3)
        self.assertEqual(self.references.Delete(ref.DeleteReferencesRequest(collection="new one"), **as_caller("writer")).deleted, 3)

    def test_nobody_learns_names_or_ids_of_others(self):
        stats = lambda c: {s.collection for s in self.references.GetStats(ref.GetStatsRequest(), **as_caller(c)).collections}
        self.assertEqual(stats("reader"), {"open"})
        self.assertEqual(stats("asker"), {"mine"})
        self.assertTrue({"open", "mine", "secret"} <= stats("root"))
        self.assertEqual(stats("chief"), stats("root"))
        for unknown in (self.ids["secret"][0], "secret:1", "0" * 32):
            code, message, reason, _ = refusal(lambda: self.references.Get(ref.GetReferenceRequest(id=unknown), **as_caller("reader")))
            self.assertEqual((code, message, reason), (grpc.StatusCode.NOT_FOUND, f'reference "{unknown}" does not exist', "NOT_FOUND"))
        self.assertEqual(self.references.Get(ref.GetReferenceRequest(id=self.ids["open"][0]), **as_caller("reader")).reference.collection,
                         "open")
        both = [self.ids["secret"][0], "0" * 32]
        deleted = self.references.Delete(ref.DeleteReferencesRequest(ids=both), **as_caller("writer"))
        self.assertEqual((deleted.deleted, list(deleted.not_found)), (0, both))
        self.assertEqual(refusal(lambda: self.references.Delete(ref.DeleteReferencesRequest(ids=[self.ids["open"][0]]), **as_caller("writer")))[0],
                         grpc.StatusCode.PERMISSION_DENIED)

    def test_an_id_that_another_collections_reference_has_tells_nothing_of_it(self):
        same = {"prompt": "told to nobody", "answer": " 1"}
        add = lambda caller, collection, own: next(self.references.Add(iter([ref.AddReferencesRequest(
            collection=collection, sample=ref.ReferenceSample(id=own, **same))]), **as_caller(caller))).verdicts[0]
        self.assertEqual(add("root", "mine:b", "c").id, "mine:b:c")
        for own in ("b:c", "b:d"):  # Of "mine" the first would be that reference's id.
            verdict = add("writer", "mine", own)
            self.assertEqual((verdict.verdict, verdict.id), (ref.VERDICT_MALFORMED, ""))

    def test_a_list_of_all_holds_what_the_caller_may_read_page_by_page(self):
        listed, token = [], ""
        while True:
            page = self.references.List(ref.ListReferencesRequest(page_size=2, page_token=token), **as_caller("writer"))
            self.assertLessEqual(len(page.references), 2)
            listed += [r.id for r in page.references]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(sorted(listed), sorted(self.ids["open"] + self.ids["mine"]))

    def test_without_the_default_collection_the_model_answers_alone(self):
        self.add("root", "default", "text of default")
        request = gen.ScoreRequest(prompt="text of default 1", continuations=[" 1", " 2"])
        for caller, alone in (("asker", True), ("root", False)):
            report = self.generation.Score(request, **as_caller(caller)).optimization
            self.assertEqual(report.method == opt.METHOD_NONE, alone)
            self.assertEqual(any("the model answers alone" in w for w in report.warnings), alone)
            self.assertEqual(len(report.neighbors) == 0, alone)
        info = pb["server_pb2_grpc"].ServerServiceStub(self.channel)
        collection = lambda c: info.GetServerInfo(srv.GetServerInfoRequest(), **as_caller(c)).default_optimization.collection
        self.assertEqual((collection("asker"), collection("root")), ("", "default"))

    def test_a_backup_is_for_who_may_use_every_collection(self):
        backup = lambda c: list(self.references.BackupStore(ref.BackupStoreRequest(), **as_caller(c)))
        self.assertEqual(refusal(lambda: backup("chief"))[0], grpc.StatusCode.PERMISSION_DENIED)
        self.assertTrue(backup("root"))

    def test_calls_a_minute_are_bounded_and_say_when_to_come_back(self):
        tokenize = lambda: self.generation.Tokenize(gen.TokenizeRequest(text="a"), **as_caller("few"))
        for _ in range(3):
            tokenize()
        code, _, reason, pause = refusal(tokenize)
        self.assertEqual((code, reason), (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE"))
        self.assertTrue(0 < pause <= 20, pause)
        self.generation.Tokenize(gen.TokenizeRequest(text="a"), **as_caller("root"))
        self.assertRegex(self.server.http("/metrics"), r'c3po_calls_refused_total\{limit="calls_per_minute"\} [1-9]')
        line = self.audited("few", "RESOURCE_EXHAUSTED")
        self.assertEqual((line["action"], line["outcome"], line["method"]), ("call", "refused", "GenerationService/Tokenize"))

    def test_tokens_a_minute_are_charged(self):
        score = lambda words: self.generation.Score(gen.ScoreRequest(
            prompt="a " * words, continuations=[" 1"], optimization=opt.OptimizationOptions(method=opt.METHOD_NONE)), **as_caller("short"))
        used = score(20).usage
        each, let_in = used.prompt_tokens + used.completion_tokens, 1
        self.assertTrue(10 < each < 200, each)
        for _ in range(200):
            try:
                score(20)
                let_in += 1
            except grpc.RpcError as error:  # The next may be let in: tokens come back every moment.
                code, (reason, _, pause) = error.code(), details(error)
                break
        self.assertGreaterEqual(let_in, 200 // each)
        self.assertEqual((code, reason), (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE"))
        self.assertTrue(0 < pause <= each * 60 / 200, pause)
        self.assertRegex(self.server.http("/metrics"), r'c3po_calls_refused_total\{limit="tokens_per_minute"\} [1-9]')

    def optimized(self, caller, **gate):
        """A Score call of some dozen tokens with 200 steps over three neighbors: 600 rows up, and down for twice as long."""
        return self.generation.Score(gen.ScoreRequest(prompt="text of open 1", continuations=[" 1", " 2"], optimization=opt.OptimizationOptions(
            collection="open", k=3, steps=200, patience=0, backtrack=False, validation_neighbors=0, prompt_positions=1, critical_layers=[0, 1], gate=opt.GateOptions(**gate))), **as_caller(caller))

    def test_optimization_is_charged_as_admission_counts_it(self):
        plain = gen.ScoreRequest(prompt="text of open 1", continuations=[" 1", " 2"], optimization=opt.OptimizationOptions(method=opt.METHOD_NONE))
        for _ in range(20):  # Twenty of these cost less than one that optimizes.
            self.generation.Score(plain, **as_caller("optimizer"))
        report = self.optimized("optimizer", enabled=False).optimization
        self.assertEqual((len(report.neighbors), len(report.losses)), (3, 201))
        with self.assertRaises(grpc.RpcError) as caught:
            for _ in range(20):
                self.optimized("optimizer", enabled=False)
        reason, _, pause = details(caught.exception)
        self.assertEqual((caught.exception.code(), reason), (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE"))
        self.assertGreater(pause, 0)
        self.assertIn("tokens through the model a minute", caught.exception.details())

    def test_neighbors_are_charged_by_their_own_length(self):
        self.add("root", "long", "text of long " * 15)
        ask = lambda: self.generation.Score(gen.ScoreRequest(prompt="a", continuations=[" 1"], optimization=opt.OptimizationOptions(
            collection="long", k=3, steps=1, validation_neighbors=0, prompt_positions=1, reference_selection=opt.REFERENCE_SELECTION_ALL,
            gate=opt.GateOptions(enabled=False))), **as_caller("brief"))
        self.assertEqual(len(ask().optimization.neighbors), 3)
        # Neighbors as long as this prompt would let twenty such calls pass, in a fraction of the minute's worth.
        with self.assertRaises(grpc.RpcError) as caught:
            for _ in range(20):
                ask()
        self.assertEqual((caught.exception.code(), details(caught.exception)[0]), (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE"))
        self.assertIn("tokens through the model a minute", caught.exception.details())

    def test_what_the_gate_leaves_out_is_given_back(self):
        for _ in range(20):  # Each asks for more than half of the minute's worth.
            report = self.optimized("spared", max_base_confidence=1e-9).optimization
            self.assertEqual(len(report.losses), 0)
        # What fails before it is optimized costs no optimization.
        for _ in range(20):
            code = refusal(lambda: self.generation.Score(gen.ScoreRequest(prompt="text of", continuations=[" 1"], optimization=opt.OptimizationOptions(
                collection="nowhere", k=3, steps=200, validation_neighbors=0, prompt_positions=1)), **as_caller("spared")))[0]
            self.assertEqual(code, grpc.StatusCode.NOT_FOUND)

    def test_learning_is_charged_for_its_epochs(self):
        self.add("root", "slow", "text of slow", count=12)
        tuned = list(self.references.TunePrior(ref.TunePriorRequest(collection="slow", critical_layers=[0, 1], epochs=8, batch_size=8),
                                               metadata=as_caller("learner")["metadata"], timeout=120))
        self.assertTrue(tuned[-1].finished)
        # Taken when nothing else was used for a minute; 12 references of several tokens, in two epochs, are more than 200.
        code, _, reason, pause = refusal(lambda: self.generation.Tokenize(gen.TokenizeRequest(text="a"), **as_caller("learner")))
        self.assertEqual((code, reason), (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE"))
        self.assertGreater(pause, 0)

    def test_imports_are_charged_and_end_with_what_was_committed(self):
        requests = [ref.AddReferencesRequest(collection="slow", sequence=i, sample=ref.ReferenceSample(
            prompt=f"a long text that is number {i} of many", answer=" 1", choices=[" 1", " 2"])) for i in range(200)]
        verdicts = []
        with self.assertRaises(grpc.RpcError) as caught:
            for answer in self.references.Add(iter(requests), **as_caller("importer")):
                verdicts += answer.verdicts
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertIn("tokens through the model a minute are used up", caught.exception.details())
        self.assertTrue(0 < len(verdicts) < 200, len(verdicts))
        for verdict in verdicts:
            self.references.Get(ref.GetReferenceRequest(id=verdict.id), **as_caller("root"))

    def test_every_refusal_leaves_a_line_with_who_was_refused(self):
        refusal(lambda: self.references.List(ref.ListReferencesRequest(collection="secret"), **as_caller("reader")))
        line = self.audited("reader", "PERMISSION_DENIED", method="ReferenceService/List", collection="secret")
        self.assertEqual(line["outcome"], "refused")
        self.assertRegex(line["peer"], r"^ipv4:127\.0\.0\.1:\d+$")
        refusal(lambda: self.references.GetStats(ref.GetStatsRequest(), **as_caller("nobody")))
        self.assertNotIn("caller", self.audited(None, "UNAUTHENTICATED", method="ReferenceService/GetStats"))

    def audited(self, caller, status, **fields):
        return self.server.wait_for_log(event="audit", status=status, **({"caller": caller} if caller else {}), **fields)

    def test_tokens_over_plaintext_and_an_emptied_file_are_never_silent(self):
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        (folder / "tokens").write_text(server_process.token_line("root", "administer", "token-root"))
        server = server_process.ServerProcess(BINARY, folder, "--auth-tokens", str(folder / "tokens"), "--listen", "0.0.0.0:0", "--insecure")
        self.addCleanup(server.process.kill)
        self.assertTrue(any('"event":"tokens_in_plaintext"' in line and '"level":"warning"' in line for line in server.log))
        self.assertFalse(any("tokens_in_plaintext" in line for line in self.server.log), "over loopback there is nothing to say")
        with server.channel() as channel:
            info = pb["server_pb2_grpc"].ServerServiceStub(channel)
            warnings = lambda: list(info.GetServerInfo(srv.GetServerInfoRequest(), **as_caller("root")).warnings)
            self.assertEqual(len(warnings()), 1)
            self.assertIn("unencrypted", warnings()[0])
            self.assertIn("unencrypted", server.http("/readyz"))
            (folder / "tokens").write_text("")
            for _ in range(3000):
                if len(warnings()) == 2:
                    break
                time.sleep(0.02)
            self.assertIn("holds no token", " ".join(warnings()))
            self.assertIn("holds no token", server.http("/readyz"))
            self.assertEqual(refusal(lambda: info.GetServerInfo(srv.GetServerInfoRequest(), timeout=60))[0], grpc.StatusCode.UNAUTHENTICATED)
        self.assertEqual(server.stop(), 0)

    def test_calls_in_flight_are_bounded(self):
        never = threading.Event()
        self.addCleanup(never.set)

        def unending():
            never.wait(600)
            yield from ()

        held = [self.references.Add(unending(), **as_caller("writer")) for _ in range(6)]
        self.addCleanup(lambda: [call.cancel() for call in held])
        tokenize = lambda c: self.generation.Tokenize(gen.TokenizeRequest(text="a"), **as_caller(c))
        for _ in range(3000):  # Until all of them have arrived.
            try:
                tokenize("writer")
            except grpc.RpcError:
                break
            time.sleep(0.02)
        self.assertEqual(refusal(lambda: tokenize("writer"))[::2], (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE"))
        tokenize("root")
        never.set()
        for call in held:
            call.cancel()
        for _ in range(3000):
            try:
                return tokenize("writer")
            except grpc.RpcError:
                time.sleep(0.02)
        self.fail("the calls in flight have ended, and still count")

    def test_watches_are_bounded_by_address_and_told(self):
        watch = self.channel.unary_stream(WATCH, request_serializer=lambda raw: raw,
                                          response_deserializer=lambda raw: raw)
        held = [watch(b"", timeout=600) for _ in range(3)]
        self.assertEqual([next(stream) for stream in held], [SERVING] * 3)
        code, message, reason, _ = refusal(lambda: next(watch(b"", timeout=60)))
        self.assertEqual((code, reason), (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE"))
        self.assertIn("--address-watches-max", message)
        check = self.channel.unary_unary(CHECK, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)
        self.assertEqual(check(b"", timeout=60), SERVING)
        metrics = self.server.http("/metrics")
        self.assertIn("c3po_health_watches 3\n", metrics)
        self.assertRegex(metrics, r'c3po_health_watches_refused_total\{limit="address"\} [1-9]')
        for stream in held:
            stream.cancel()
        for _ in range(3000):
            if "c3po_health_watches 0\n" in self.server.http("/metrics"):
                break
            time.sleep(0.02)
        again = watch(b"", timeout=60)
        self.assertEqual(next(again), SERVING)
        again.cancel()

    def test_watches_are_bounded_in_all(self):
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        server = server_process.ServerProcess(BINARY, folder, "--watches-max", "2")
        self.addCleanup(server.process.kill)
        with server.channel() as channel:
            watch = channel.unary_stream(WATCH, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)
            held = [watch(b"", timeout=600), watch(b"\x0a\x07nowhere", timeout=600)]
            self.assertEqual([next(stream) for stream in held], [SERVING, b"\x08\x03"], "the second: SERVICE_UNKNOWN")
            self.assertIn("--watches-max", refusal(lambda: next(watch(b"", timeout=60)))[1])
            self.assertRegex(server.http("/metrics"), r'c3po_health_watches_refused_total\{limit="all"\} [1-9]')
            check = channel.unary_unary(CHECK, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)
            self.assertEqual(refusal(lambda: check(b"\x0a\x07nowhere", timeout=60))[::2], (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"))
            # The end of the server does not wait for who watches.
            start = time.monotonic()
            self.assertEqual(server.stop(), 0)
            with self.assertRaises(grpc.RpcError):
                while time.monotonic() < start + 60:
                    next(held[0])


if __name__ == "__main__":
    unittest.main(verbosity=2)
