"""What outlives a c3pod process, and how one starts and ends: restarts, kill -9, a drain, a full disk, wrong flags and files.
usage: restart_test.py C3POD"""

import pathlib
import socket
import subprocess
import sys
import unittest

import grpc

import server_process
from service_calls import details, gen, opt, pb, ref, samples

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
        return {c.collection: (c.references, c.usable) for c in stub.GetStats(ref.GetStatsRequest(), timeout=10).collections}

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

    def test_references_of_another_model_are_refused_with_advice(self):
        server = self.run_server()
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        list(stub.Add(ref.AddReferencesRequest(collection="set", sample=s) for s in samples(3)))
        server.stop()
        server = self.run_server(model=server_process.TINY_MODEL.parent / "olmoe_tiny")
        self.assertEqual(self.stats(server), {"set": (3, 0)})
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(server.channel())
        with self.assertRaises(grpc.RpcError) as caught:
            list(generation.Generate(gen.GenerateRequest(prompt="a", optimization=opt.OptimizationOptions(collection="set"),
                                                         sampling=gen.SamplingOptions(max_tokens=1))))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        self.assertEqual(details(caught.exception)[0], "PRECONDITION")
        server.stop()

    def test_the_sentence_encoder_finds_questions_of_the_same_kind(self):
        server = self.run_server("--embedder", str(server_process.cache_folder() / "models" / "all-minilm-l6-v2"))
        stub = pb["reference_pb2_grpc"].ReferenceServiceStub(server.channel())
        texts = ["Which gas do plants take in?", "How many strings has a violin?", "What do bees make?"]
        list(stub.Add(ref.AddReferencesRequest(collection="set", sample=ref.ReferenceSample(prompt=t, answer=" x")) for t in texts))
        for text, nearest in (("What does a leaf absorb from the air?", 0), ("Name a musical instrument.", 1), ("Where does honey come from?", 2)):
            hit = stub.Search(ref.SearchReferencesRequest(collection="set", text=text, k=1)).hits[0]
            self.assertEqual(hit.reference.sample.prompt, texts[nearest])
        self.assertEqual(server.stop(), 0)

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
        self.assertEqual(server.stop(), 0)

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
