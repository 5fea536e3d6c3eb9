"""The store's file in other hands: taken away, replaced or cut under a running server, damaged between two runs. usage: store_test.py C3POD"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import unittest
import urllib.error
import urllib.request

import grpc

import server_process
from service_calls import details, gen, opt, pb, ref, samples, srv
from serving_case import ServingCase

BINARY = sys.argv.pop(1)
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # Of grpc.health.v1's answer, field 1.


class StoreTest(unittest.TestCase):
    wait_until = ServingCase.wait_until

    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, self.folder)
        self.store = self.folder / "store.db"

    def start(self, *flags):
        server = server_process.ServerProcess(BINARY, self.folder, *flags)
        self.addCleanup(server.process.kill)
        self.channel = server.channel()
        self.addCleanup(self.channel.close)
        self.references = pb["reference_pb2_grpc"].ReferenceServiceStub(self.channel)
        return server

    def add(self, count):
        return list(self.references.Add((ref.AddReferencesRequest(collection="set", sample=s) for s in samples(count)), timeout=60))

    def listed(self):
        return {r.id for r in self.references.List(ref.ListReferencesRequest(collection="set", page_size=100), timeout=60).references}

    def health(self):
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes)
        return check(b"", timeout=60)

    @staticmethod
    def probe(server, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    @staticmethod
    def events(server):
        return [json.loads(line)["event"] for line in server.log if line.startswith("{")]

    def answers_without_the_store(self):
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(self.channel)
        request = gen.GenerateRequest(prompt="What is", sampling=gen.SamplingOptions(max_tokens=3),
                                      optimization=opt.OptimizationOptions(method=opt.METHOD_NONE, collection="set"))
        self.assertEqual(list(generation.Generate(request, timeout=60))[-1].WhichOneof("event"), "summary")

    def expect_lost(self, server, what):
        self.wait_until(lambda: self.probe(server, "/readyz")[0] == 503, "not ready", seconds=60)
        self.wait_until(lambda: self.health() == NOT_SERVING, "not serving", seconds=60)
        self.assertIn(what, self.probe(server, "/readyz")[1])
        self.assertEqual(self.probe(server, "/healthz")[0], 200)
        self.wait_until(lambda: "c3po_store_lost 1\n" in server.http("/metrics"), "the metric tells", seconds=60)
        self.wait_until(lambda: "store_lost" in self.events(server), "the log tells", seconds=60)
        with self.assertRaises(grpc.RpcError) as caught:
            self.references.Delete(ref.DeleteReferencesRequest(collection="set"), timeout=60)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DATA_LOSS)
        self.assertEqual(details(caught.exception)[0], "DATA_LOSS")
        with self.assertRaises(grpc.RpcError) as caught:
            self.add(25)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DATA_LOSS)
        self.answers_without_the_store()

    def test_a_store_that_is_taken_away_is_told_and_goes_on_when_it_is_back(self):
        server = self.start()
        self.add(20)
        self.store.rename(self.folder / "away")
        self.expect_lost(server, "was deleted or moved")
        (self.folder / "away").rename(self.store)
        self.wait_until(lambda: self.probe(server, "/readyz")[0] == 200, "ready again", seconds=60)
        self.wait_until(lambda: self.health() == SERVING, "serving again", seconds=60)
        self.add(25)
        self.assertEqual(len(self.listed()), 25)
        self.wait_until(lambda: "store_back" in self.events(server), "the log tells")
        self.assertEqual(server.stop(), 0)
        server = self.start()
        self.assertEqual(len(self.listed()), 25)
        self.assertEqual(server.stop(), 0)

    def test_a_store_that_is_replaced_is_told(self):
        self.assertEqual(self.start().stop(), 0)
        other = self.folder / "other"
        other.write_bytes(self.store.read_bytes())
        server = self.start()
        self.add(20)
        other.replace(self.store)
        self.expect_lost(server, "was replaced by another file")
        self.assertEqual(server.stop(), 0)

    def test_a_store_that_is_cut_is_told(self):
        server = self.start()
        self.add(20)
        os.truncate(self.store, 4096)
        self.expect_lost(server, "was cut or written over")
        self.assertEqual(server.stop(), 0)

    def test_a_table_that_another_program_drops_is_told(self):
        server = self.start()
        self.add(20)
        with contextlib.closing(sqlite3.connect(self.store)) as other:
            other.execute("DROP TABLE reference")
            other.commit()
        self.expect_lost(server, "no such table: reference")
        with self.assertRaises(grpc.RpcError) as caught:
            self.listed()
        self.assertEqual((caught.exception.code(), details(caught.exception)[0]), (grpc.StatusCode.DATA_LOSS, "DATA_LOSS"))
        self.assertIn('"status":"DATA_LOSS"', "".join(server.log))
        self.assertEqual(server.stop(), 0)

    def test_a_store_that_is_cut_to_nothing_is_told_from_a_new_one(self):
        server = self.start()
        self.add(20)
        self.assertNotIn("store_empty", self.events(server))
        self.assertEqual(server.stop(), 0)
        os.truncate(self.store, 0)
        server = self.start()
        self.assertTrue(any('"event":"store_empty"' in line and str(self.store) in line for line in server.log))
        self.assertEqual(server.stop(), 0)
        os.truncate(self.store, 0)
        graphs = self.folder / "store.db.graphs"
        graphs.mkdir(exist_ok=True)
        (graphs / "left.hnsw").write_bytes(b"graph")
        refused = subprocess.run(server.command, capture_output=True, text=True, timeout=60)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn(f"store {self.store}: has 0 bytes, but {graphs} is left of a store", refused.stdout + refused.stderr)

    def test_a_damaged_row_is_told_and_never_served_until_it_is_imported_again(self):
        server = self.start()
        self.add(20)
        before = self.listed()
        self.assertEqual(server.stop(), 0)
        prompt = b"What is 3 modulo seven?"
        contents = self.store.read_bytes()
        self.assertEqual(contents.count(prompt), 1)
        self.store.write_bytes(contents.replace(prompt, b"What is 3 modulo sevEn?"))

        server = self.start()
        self.assertIn("row_damaged", self.events(server))
        self.assertIn('c3po_store_damaged_rows{kind="reference"} 1\n', server.http("/metrics"))
        status, said = self.probe(server, "/readyz")
        self.assertEqual(status, 200)
        self.assertIn("1 references and 0 artifacts are damaged and left out", said)
        info = pb["server_pb2_grpc"].ServerServiceStub(self.channel).GetServerInfo(srv.GetServerInfoRequest(), timeout=60)
        self.assertIn("damaged", "".join(info.warnings))
        missing = before - self.listed()
        self.assertEqual(len(missing), 1)
        with self.assertRaises(grpc.RpcError) as caught:
            self.references.Get(ref.GetReferenceRequest(id=missing.pop()), timeout=60)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DATA_LOSS)
        self.assertEqual(details(caught.exception)[0], "DATA_LOSS")
        (stats,) = self.references.GetStats(ref.GetStatsRequest(), timeout=60).collections
        self.assertEqual(stats.references, 19)

        self.add(20)
        self.assertEqual(self.listed(), before)
        self.wait_until(lambda: 'c3po_store_damaged_rows{kind="reference"} 0\n' in server.http("/metrics"), "it is whole again", seconds=60)
        self.assertNotIn("damaged", self.probe(server, "/readyz")[1])
        self.assertEqual(server.stop(), 0)

    def test_a_damaged_row_is_told_to_who_may_read_it_and_deleted_by_its_id(self):
        tokens = self.folder / "tokens"
        tokens.write_text(server_process.token_line("root", "administer", "token-root")
                          + server_process.token_line("other", "references", "token-other", "write=open"))
        as_caller = lambda name: {"metadata": [("authorization", f"Bearer token-{name}")], "timeout": 60}
        server = self.start("--auth-tokens", str(tokens))
        sample = ref.ReferenceSample(id="bid", prompt="A prompt of its own.", answer=" 1")
        (answer,) = self.references.Add(iter([ref.AddReferencesRequest(collection="secret plan", sample=sample)]), **as_caller("root"))
        self.assertEqual(answer.verdicts[0].id, "secret plan:bid")
        self.assertEqual(server.stop(), 0)
        contents = self.store.read_bytes()
        self.assertEqual(contents.count(b"A prompt of its own."), 1)
        self.store.write_bytes(contents.replace(b"A prompt of its own.", b"A prompt of its oWn."))

        server = self.start("--auth-tokens", str(tokens))
        info = pb["server_pb2_grpc"].ServerServiceStub(self.channel)
        for said in (*info.GetServerInfo(srv.GetServerInfoRequest(), **as_caller("other")).warnings, self.probe(server, "/readyz")[1]):
            self.assertIn("1 references and 0 artifacts are damaged", said)
            self.assertNotIn("secret", said)
            self.assertNotIn("bid", said)
        for caller, code in (("other", grpc.StatusCode.NOT_FOUND), ("root", grpc.StatusCode.DATA_LOSS)):
            with self.assertRaises(grpc.RpcError) as caught:
                self.references.Get(ref.GetReferenceRequest(id="secret plan:bid"), **as_caller(caller))
            self.assertEqual(caught.exception.code(), code)
        erase = lambda caller: self.references.Delete(ref.DeleteReferencesRequest(ids=["secret plan:bid"]), **as_caller(caller))
        answer = erase("other")
        self.assertEqual((answer.deleted, list(answer.not_found)), (0, ["secret plan:bid"]))
        answer = erase("root")
        self.assertEqual((answer.deleted, list(answer.not_found)), (1, []))
        self.wait_until(lambda: self.probe(server, "/readyz")[1] == "ready\n", "nothing is damaged any more", seconds=60)
        self.assertEqual(server.stop(), 0)

    def test_what_is_no_graph_neither_hangs_nor_ends_the_start(self):
        flags = ("--exact-references-max", "5")
        server = self.start(*flags)
        self.add(30)
        self.assertEqual(server.stop(), 0)
        graph = next((self.folder / "store.db.graphs").iterdir())
        for make, told in ((lambda: os.mkfifo(graph), "is a FIFO"), (lambda: self.sparse(graph), "has 42949672960 bytes")):
            with self.subTest(told):
                graph.unlink()
                make()
                server = self.start(*flags)
                self.assertIn(told, " ".join(line for line in server.log if '"graph_refused"' in line))
                self.assertEqual(len(self.listed()), 30)
                self.assertEqual(server.stop(), 0)
                self.assertTrue(graph.is_file(), "the next graph takes its place")
                self.assertLess(graph.stat().st_size, 1 << 20)

    @staticmethod
    def sparse(path):
        with open(path, "wb") as file:
            file.truncate(40 << 30)

    def test_a_hard_link_opens_no_second_server(self):
        server = self.start()
        linked = self.folder / "linked"
        linked.mkdir()
        os.link(self.store, linked / "store.db")
        ended = subprocess.run([BINARY, "--model", server_process.TINY_MODEL, "--store", linked / "store.db", "--listen", "127.0.0.1:0",
                                "--metrics-port", "0", "--embedder", "model"], capture_output=True, text=True, timeout=60)
        self.assertEqual(ended.returncode, 1)
        self.assertIn("is locked by another process", ended.stderr)
        self.assertEqual(self.probe(server, "/readyz")[0], 200)
        self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
