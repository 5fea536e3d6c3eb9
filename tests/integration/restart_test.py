"""What outlives a c3pod process, and how one starts and ends: restarts, kill -9, a drain, a full disk, wrong flags and files.
usage: restart_test.py C3POD"""

import hashlib
import json
import pathlib
import socket
import subprocess
import sys
import time
import unittest

import grpc

import server_process
from service_calls import details, gen, opt, pb, ref, samples, srv

BINARY = sys.argv.pop(1)


class RestartTest(unittest.TestCase):
    def setUp(self):
        self.folder = server_process.fresh_folder()

    def tearDown(self):
        server_process.remove_folder(self.folder)

    def run_server(self, *flags, **options):
        server = server_process.ServerProcess(BINARY, self.folder, *flags, **options)
        # A test that fails must not leave its server behind: it would hold the pipes of whoever runs the tests.
        self.addCleanup(server.process.kill)
        return server

    def stats(self, server):
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        return {c.collection: (c.references, c.usable) for c in stub.GetStats(ref.GetStatsRequest(), timeout=60).collections}

    def test_references_survive_a_restart_and_a_graph_is_reloaded(self):
        server = self.run_server("--exact-references-max", "10")
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        list(stub.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(30)))
        search = ref.SearchReferencesRequest(collection="set", text="What is 3 modulo seven?", k=5)
        before = [(h.reference.id, round(h.distance, 5)) for h in stub.Search(search).hits]
        self.assertEqual(server.stop(), 0)
        self.assertTrue(list((self.folder / "store.db.graphs").iterdir()))
        server = self.run_server("--exact-references-max", "10")
        self.assertEqual(self.stats(server), {"set": (30, 30)})
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        self.assertEqual([(h.reference.id, round(h.distance, 5)) for h in stub.Search(search).hits], before)
        self.assertEqual(server.stop(), 0)

    def test_states_of_references_survive_a_restart(self):
        options = opt.OptimizationOptions(collection="set", k=5, neighbor_source=opt.NEIGHBOR_SOURCE_CRITICAL_LAYER, critical_layers=[2, 3],
                                          method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, steps=1,
                                          reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(max_neighbor_distance=2))
        request = gen.ScoreRequest(prompt="What is 3 modulo seven?", continuations=[" 3", " 4"], optimization=options)
        found, made = [], []
        for _ in range(2):
            server = self.run_server()
            if not found:
                stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
                list(stub.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(30)))
            report = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel()).Score(request, timeout=60).optimization
            found.append([(n.reference_id, n.distance) for n in report.neighbors])
            self.assertEqual(server.stop(), 0)
            made += [line["made"] for line in server.logged(event="reference_states")]
        self.assertEqual(found[0], found[1])
        self.assertEqual(made, [30, 0])

    def test_killed_during_an_import_keeps_what_was_acknowledged_once(self):
        server = self.run_server()
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        acknowledged = set()
        try:
            for response in stub.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(2000)):
                acknowledged |= {v.id for v in response.verdicts}
                if len(acknowledged) >= 60:
                    server.process.kill()
        except grpc.RpcError:
            pass
        server.stop()
        server = self.run_server()
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        stored, token = [], ""
        while True:
            page = stub.List(ref.ListReferencesRequest(page_size=1000, page_token=token))
            stored += [r.id for r in page.references]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(len(stored), len(set(stored)))
        self.assertLessEqual(acknowledged, set(stored))
        self.assertEqual(server.stop(), 0)

    def test_what_another_model_made_is_ignored_told_and_kept(self):
        other = server_process.TINY_MODEL.parent / "olmoe_tiny"
        collection = ref.GetCollectionRequest(collection="set")
        server = self.run_server()
        refs = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        list(refs.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(20)))
        tune = ref.TunePriorRequest(collection="set", epochs=1, batch_size=8, learning_rate=0.3, validation_fraction=0.2)
        list(refs.TunePrior(tune))
        last = pb["server_pb2_grpc"].ServerServiceStub(server.channel()).GetServerInfo(srv.GetServerInfoRequest()).model.moe_layers - 1
        profile = opt.OptimizationOptions(method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, critical_layers=[last], k=5)
        refs.SetProfile(ref.SetProfileRequest(collection="set", profile=profile))
        self.assertEqual(refs.GetCollection(collection).profile_ignored, "")
        self.assertIn('c3po_references_usable 20\n', server.http("/metrics"))
        self.assertEqual(server.stop(), 0)

        def ask(server):
            generation = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel())
            return list(generation.Generate(gen.GenerateRequest(
                prompt="a", optimization=opt.OptimizationOptions(collection="set"), sampling=gen.SamplingOptions(max_tokens=1))))

        server = self.run_server(model=other)
        self.assertEqual(self.stats(server), {"set": (20, 0)})
        report = ask(server)[0].optimization
        self.assertEqual(report.gate, opt.GATE_DECISION_SKIPPED_NO_NEIGHBORS)
        self.assertTrue(any("profile" in warning for warning in report.warnings), report.warnings)
        self.assertTrue(any("import" in warning for warning in report.warnings), report.warnings)
        self.assertIn('c3po_references_usable 0\n', server.http("/metrics"))
        self.assertIn('c3po_learned_ignored{kind="profile"} 1\n', server.http("/metrics"))
        # Imported again: the references are the new model's, the profile is not.
        refs = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        list(refs.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(20)))
        self.assertEqual(self.stats(server), {"set": (20, 20)})
        report = ask(server)[0].optimization
        self.assertEqual([w for w in report.warnings if "profile" not in w], [])
        self.assertEqual(len(report.warnings), 1)
        self.assertIn("made for the model", refs.GetCollection(collection).profile_ignored)
        self.assertIn("profile_ignored", "".join(server.log))
        self.assertEqual(server.stop(), 0)

        server = self.run_server()  # Its own model again: the profile is as it was.
        refs = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        held = refs.GetCollection(collection)
        self.assertEqual((held.profile_ignored, list(held.effective_optimization.critical_layers)), ("", [last]))
        self.assertEqual(server.stop(), 0)

    def test_the_file_and_a_backup_of_a_running_server_hold_everything(self):
        server = self.run_server()
        refs = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        list(refs.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(40)))
        refs.SetProfile(ref.SetProfileRequest(collection="set", profile=opt.OptimizationOptions(k=5)))
        copies = self.folder / "copies"
        copies.mkdir()
        (copies / "copied.db").write_bytes((self.folder / "store.db").read_bytes())
        chunks = list(refs.BackupStore(ref.BackupStoreRequest(), timeout=60))
        content = b"".join(chunk.chunk for chunk in chunks)
        self.assertEqual(len(content), chunks[0].total_bytes)
        self.assertEqual(hashlib.sha256(content).hexdigest(), chunks[-1].sha256)
        (copies / "backup.db").write_bytes(content)
        self.assertEqual(list(self.folder.glob("*.backup*")), [])
        self.assertEqual(server.stop(), 0)
        self.assertFalse((self.folder / "store.db-wal").exists())
        for name in ("copied.db", "backup.db"):
            copy = self.run_server("--store", str(copies / name))
            self.assertEqual(self.stats(copy), {"set": (40, 40)})
            held = pb["reference_pb2_grpc"].ReferenceServiceStub(copy.channel()).GetCollection(ref.GetCollectionRequest(collection="set"))
            self.assertEqual((held.profile.k, held.profile_ignored), (5, ""))
            self.assertEqual(copy.stop(), 0)

    def test_memory_is_told_by_part_in_the_log_and_in_the_metrics(self):
        server = self.run_server("--neighbor-cache-mb", "7", "--work-memory-mb", "9", "--kv-cache-tokens", "1000")
        line = next(json.loads(line) for line in server.log if '"event":"memory' in line)
        metrics = server.http("/metrics")
        for part in ("weights", "kv_cache", "neighbor_cache", "encoder", "index", "other"):
            self.assertIn(f'c3po_memory_planned_bytes{{part="{part}"}} ', metrics)
        # The tiny model: 2 * layers * kv_heads * head_dim floats a position (tests/golden/model/mixtral_tiny/config.json).
        config = json.loads((server_process.TINY_MODEL / "config.json").read_text())
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        position = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head * 4
        self.assertEqual(line["kv_cache_bytes_max"], 992 * position)  # Whole blocks of 32.
        self.assertEqual(line["neighbor_cache_bytes_max"], 7 << 20)
        self.assertEqual(line["work_bytes_max"], 9 << 20)
        self.assertEqual(line["bytes_at_most"], line["resident_bytes"] + line["kv_cache_bytes_max"] + (7 << 20) + (9 << 20))
        self.assertGreater(line["weights_bytes"], 0)
        self.assertGreater(line["limit_bytes"], 0)
        self.assertEqual(server.stop(), 0)

    def test_a_backup_that_its_client_leaves_ends_and_another_can_begin(self):
        server = self.run_server()
        refs = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        list(refs.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(200)))

        def once_there_is_a_place(made):
            for _ in range(3000):
                try:
                    return made()
                except grpc.RpcError as error:  # What the one before held is given back a moment after its client has left.
                    if details(error)[0] != "CAPACITY":
                        raise
                    time.sleep(0.02)
            self.fail("the backups that were left hold their places")

        def leave_one():
            call = refs.BackupStore(ref.BackupStoreRequest())
            next(call)
            call.cancel()

        for _ in range(5):
            once_there_is_a_place(leave_one)
        self.assertGreater(len(once_there_is_a_place(lambda: list(refs.BackupStore(ref.BackupStoreRequest(), timeout=60)))), 0)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(list(self.folder.glob("*.backup*")), [])

    def test_a_backup_minds_no_file_of_others_and_names_one_in_its_place(self):
        own_copy = self.folder / "store.db.backup"
        own_copy.write_bytes(b"an operator's own")
        server = self.run_server()
        refs = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        self.assertGreater(len(list(refs.BackupStore(ref.BackupStoreRequest(), timeout=60))), 0)
        foreign = self.folder / "store.db.backup.partial"
        foreign.write_bytes(b"foreign")
        with self.assertRaises(grpc.RpcError) as caught:
            list(refs.BackupStore(ref.BackupStoreRequest(), timeout=60))
        self.assertEqual((caught.exception.code(), details(caught.exception)[0]), (grpc.StatusCode.FAILED_PRECONDITION, "PRECONDITION"))
        self.assertIn(str(foreign), caught.exception.details())
        self.assertEqual((own_copy.read_bytes(), foreign.read_bytes()), (b"an operator's own", b"foreign"))
        foreign.unlink()
        self.assertGreater(len(list(refs.BackupStore(ref.BackupStoreRequest(), timeout=60))), 0)
        self.assertEqual(server.stop(), 0)

    def test_the_sentence_encoder_finds_questions_of_the_same_kind(self):
        server = self.run_server("--embedder", str(server_process.cache_folder() / "models" / "all-minilm-l6-v2"))
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        texts = ["Which gas do plants take in?", "How many strings has a violin?", "What do bees make?"]
        list(stub.Add(ref.AddReferencesRequest(collection="set", sample=ref.ReferenceSample(prompt=t, answer=" x")) for t in texts))
        for text, nearest in (("What does a leaf absorb from the air?", 0), ("Name a musical instrument.", 1), ("Where does honey come from?", 2)):
            hit = stub.Search(ref.SearchReferencesRequest(collection="set", text=text, k=1)).hits[0]
            self.assertEqual(hit.reference.sample.prompt, texts[nearest])
        self.assertEqual(server.stop(), 0)

    def test_keys_and_values_in_bfloat16_take_half_of_the_memory_and_every_chunk_reads_the_same(self):
        optimized = opt.OptimizationOptions(collection="set", k=5, method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, steps=3,
                                            reference_selection=opt.REFERENCE_SELECTION_ALL, gate=opt.GateOptions(max_neighbor_distance=2))
        plain = opt.OptimizationOptions(method=opt.METHOD_NONE)
        planned, told, answers = {}, {}, {}
        for name, flags in (("float32", ()), ("bfloat16", ()), ("in chunks", ("--prefill-tokens-per-step", "3"))):
            kept = name if name == "float32" else "bfloat16"
            server = self.run_server("--kv-cache-dtype", kept, "--dtype", "float32", *flags)
            told[name] = pb["server_pb2_grpc"].ServerServiceStub(server.channel()).GetServerInfo(srv.GetServerInfoRequest()).model.kv_cache_dtype
            self.assertEqual(told[name], kept)
            if not answers:
                list(pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel()).Add(
                    ref.AddReferencesRequest(collection="set", sample=s) for s in samples(30)))
            generation = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel())
            scores = [generation.Score(gen.ScoreRequest(prompt="What is 50 modulo seven?", continuations=[" 1", " 2", " many"],
                                                        optimization=options), timeout=60) for options in (plain, optimized)]
            self.assertGreater(len(scores[1].optimization.losses), 1)
            answers[name] = [score.log_likelihood for response in scores for score in response.scores]
            self.assertEqual(server.stop(), 0)
            planned[name] = next(line for line in map(json.loads, server.log) if line["event"].startswith("memory"))["kv_cache_bytes_max"]
        self.assertGreater(planned["float32"], 0)
        self.assertEqual(planned["float32"], 2 * planned["bfloat16"])
        self.assertEqual(answers["bfloat16"], answers["in chunks"])
        self.assertNotEqual(answers["float32"], answers["bfloat16"])

    def test_running_streams_finish_when_the_server_drains(self):
        server = self.run_server()
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel())
        stream = generation.Generate(gen.GenerateRequest(
            prompt="a", sampling=gen.SamplingOptions(max_tokens=150, ignore_eos=True),
            optimization=opt.OptimizationOptions(method=opt.METHOD_NONE)))
        next(stream)
        server.process.terminate()
        events = list(stream)
        self.assertEqual(events[-1].summary.usage.completion_tokens, 150)
        self.assertEqual(server.wait(), 0)

    def test_starting_wrongly_names_what_is_wrong(self):
        def start_error(*flags, model=server_process.TINY_MODEL):
            command = [BINARY, "--model", str(model), "--store", str(self.folder / "x.db"), "--listen", "127.0.0.1:0",
                       "--metrics-port", "-1", "--embedder", "model", *flags]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            self.assertNotEqual(done.returncode, 0)
            return done.stderr.splitlines()[-1]

        def damaged(name, edit):
            folder = self.folder / name
            folder.mkdir()
            for path in server_process.TINY_MODEL.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            edit(folder)
            return folder

        self.assertIn("--model", start_error("--model", ""))
        self.assertIn("--steps", start_error("--steps", "-1"))
        self.assertIn("tokenizer.json", start_error(model=damaged("a", lambda f: (f / "tokenizer.json").unlink())))
        weights = lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000])
        self.assertIn("model.safetensors", start_error(model=damaged("b", weights)))
        self.assertIn("dtype", start_error("--dtype", "int4"))
        self.assertIn("--kv-cache-dtype", start_error("--kv-cache-dtype", "float16"))
        self.assertIn("nowhere", start_error(model=self.folder / "nowhere"))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.assertIn(str(port), start_error("--listen", f"127.0.0.1:{port}"))
        server = self.run_server()
        self.assertIn("locked", start_error("--store", str(self.folder / "store.db")))
        server.stop()

    def test_oracle_raises_the_answer_and_learned_things_survive_a_restart(self):
        server = self.run_server("--allow-oracle")
        refs = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        list(refs.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(40)))
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel())

        def score(method, answer=None, **options):
            return generation.Score(gen.ScoreRequest(
                prompt="What is 50 modulo seven?", continuations=[" 1", " 2"], oracle_answer=answer,
                optimization=opt.OptimizationOptions(collection="set", method=method, steps=10, **options)))

        # A router shift of zero is the plain model, so that descent starts where the comparison does.
        plain, oracle = score(opt.METHOD_NONE), score(opt.METHOD_ORACLE, " 2", objective=opt.OBJECTIVE_CHOICES,
                                                      application_rule=opt.APPLICATION_RULE_ROUTER_SHIFT)
        margin = lambda r: r.scores[1].log_likelihood - r.scores[0].log_likelihood
        self.assertGreater(margin(oracle), margin(plain))
        # It has one neighbor, and so no pair: the loss is that of choices, and nobody is warned of what cannot be otherwise.
        paired = score(opt.METHOD_ORACLE, " 2", objective=opt.OBJECTIVE_PAIRS, application_rule=opt.APPLICATION_RULE_ROUTER_SHIFT)
        self.assertEqual(list(paired.optimization.losses), list(oracle.optimization.losses))
        self.assertFalse([w for w in paired.optimization.warnings if "PAIRS" in w])
        for answer in (None, " 3"):
            with self.assertRaises(grpc.RpcError) as caught:
                score(opt.METHOD_ORACLE, answer)
            self.assertEqual(details(caught.exception)[:2], ("INVALID_FIELD", ["oracle_answer"]))
        tune = ref.TunePriorRequest(collection="set", critical_layers=[0, 1], epochs=3, batch_size=8, learning_rate=0.3)
        self.assertTrue(list(refs.TunePrior(tune))[-1].HasField("stored"))
        refs.SetProfile(ref.SetProfileRequest(collection="set", profile=opt.OptimizationOptions(
            method=opt.METHOD_COLLECTION_PRIOR, gate=opt.GateOptions(max_neighbor_distance=2))))
        before = score(opt.METHOD_UNSPECIFIED)
        self.assertEqual(before.optimization.method, opt.METHOD_COLLECTION_PRIOR)
        server.process.kill()
        server.stop()
        server = self.run_server()
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel())
        after = score(opt.METHOD_UNSPECIFIED)
        self.assertEqual(after.optimization.method, opt.METHOD_COLLECTION_PRIOR)
        self.assertEqual([s.log_likelihood for s in after.scores], [s.log_likelihood for s in before.scores])
        self.assertEqual(server.stop(), 0)

    def test_a_full_disk_ends_the_import_and_loses_nothing(self):
        # A file-size limit stands for the full disk: SQLite sees the write fail.
        server = self.run_server(launcher=["/bin/sh", "-c", 'ulimit -f 300; exec "$0" "$@"'])
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        acknowledged = set()
        with self.assertRaises(grpc.RpcError) as caught:
            for response in stub.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(3000)):
                acknowledged |= {v.id for v in response.verdicts}
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, caught.exception.details())
        stats = stub.GetStats(ref.GetStatsRequest()).collections[0]
        self.assertEqual(stats.references, len(acknowledged))
        self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    pathlib.Path(BINARY).resolve(strict=True)
    unittest.main(verbosity=2)
