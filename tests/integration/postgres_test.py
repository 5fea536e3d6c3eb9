"""A server whose store is a PostgreSQL database: what is served, what outlives a restart, and what the flag refuses.
usage: postgres_test.py C3POD"""

import subprocess
import sys
import unittest

import grpc

import postgres_server
import server_process
from server_process import FEW_STEPS
from service_calls import details, gen, opt, pb, ref, samples

BINARY = sys.argv.pop(1)


class PostgresTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = postgres_server.PostgresServer()

    @classmethod
    def tearDownClass(cls):
        cls.postgres.close()

    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, self.folder)
        self.database = self.postgres.new_database()

    def start(self, *flags, url=None):
        server = server_process.ServerProcess(BINARY, self.folder, "--store", url or self.postgres.url(self.database), *FEW_STEPS, *flags)
        self.addCleanup(server.process.kill)
        self.channel = server.channel()
        self.addCleanup(self.channel.close)
        self.references = pb["reference_pb2_grpc"].ReferenceServiceStub(self.channel)
        self.generation = pb["generation_pb2_grpc"].GenerationServiceStub(self.channel)
        return server

    def add(self, collection, count):
        requests = (ref.AddReferencesRequest(collection=collection, sample=sample) for sample in samples(count))
        return [verdict for answer in self.references.Add(requests, timeout=120) for verdict in answer.verdicts]

    def listed(self, collection):
        request = ref.ListReferencesRequest(collection=collection, page_size=1000)
        return [r.SerializeToString(deterministic=True) for r in self.references.List(request, timeout=60).references]

    def stats(self):
        return {c.collection: (c.references, c.usable, c.profile) for c in self.references.GetStats(ref.GetStatsRequest(), timeout=60).collections}

    def searched(self):
        request = ref.SearchReferencesRequest(collection="set", text="What is 3 modulo seven?", k=5)
        return [(hit.reference.id, round(hit.distance, 5)) for hit in self.references.Search(request, timeout=60).hits]

    def scored(self, **options):
        request = gen.ScoreRequest(prompt="What is 3 modulo seven?", continuations=[" 3", " 4"],
                                   optimization=opt.OptimizationOptions(collection="set", gate=opt.GateOptions(max_neighbor_distance=2), **options))
        return [round(score.log_likelihood, 5) for score in self.generation.Score(request, timeout=60).scores]

    def test_everything_that_is_stored_is_served_again_after_a_restart(self):
        server = self.start("--exact-references-max", "10")
        self.assertEqual(len(self.add("set", 30)), 30)
        self.assertEqual(len(self.add("other", 5)), 5)
        ids = [r.id for r in self.references.List(ref.ListReferencesRequest(collection="set", page_size=100), timeout=60).references]
        self.assertEqual(self.references.Delete(ref.DeleteReferencesRequest(ids=ids[:3]), timeout=60).deleted, 3)
        self.assertEqual(self.references.Delete(ref.DeleteReferencesRequest(collection="other"), timeout=60).deleted, 5)
        self.references.SetProfile(ref.SetProfileRequest(collection="set", profile=opt.OptimizationOptions(k=2)), timeout=60)
        tuned = list(self.references.TunePrior(ref.TunePriorRequest(collection="set", critical_layers=[0, 1], epochs=2, learning_rate=0.3), timeout=120))
        self.assertTrue(tuned[-1].HasField("stored"))
        shifted = list(self.references.AmortizeShifts(ref.AmortizeShiftsRequest(collection="set", optimization=opt.OptimizationOptions(critical_layers=[0, 1], steps=1)), timeout=120))
        self.assertEqual(shifted[-1].done, 27)
        prior = {"method": opt.METHOD_COLLECTION_PRIOR, "critical_layers": [0, 1]}
        before = (self.stats(), self.listed("set"), self.searched(), self.scored(**prior))
        self.assertEqual(before[0], {"set": (27, 27, True)})
        self.assertEqual(server.stop(), 0)
        self.assertEqual(list(self.folder.iterdir()), [], "no file is left beside a database")
        self.assertEqual(self.postgres.sql(self.database, "SELECT count(*) FROM c3po.reference"), "27")

        server = self.start("--exact-references-max", "10")
        self.assertEqual((self.stats(), self.listed("set"), self.searched(), self.scored(**prior)), before)
        self.assertEqual(self.references.GetCollection(ref.GetCollectionRequest(collection="set"), timeout=60).profile.k, 2)
        self.assertNotEqual(self.scored(**prior), self.scored(method=opt.METHOD_NONE))
        self.assertEqual(len(self.add("set", 30)), 30)
        self.assertEqual(self.stats()["set"][0], 30)
        self.assertEqual(server.stop(), 0)

    def test_the_database_away_is_told_and_answers_go_on(self):
        server = self.start()
        self.add("set", 20)
        found = self.searched()
        self.postgres.kill()
        try:
            with self.assertRaises(grpc.RpcError) as caught:
                self.references.Delete(ref.DeleteReferencesRequest(collection="set"), timeout=60)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
            self.assertIn(self.database, caught.exception.details())
            self.assertEqual(self.searched(), found)
            server.wait_for_log(event="store_away")
        finally:
            self.postgres.start()
        server.wait_for_log(event="store_back")
        server.wait_for_log(event="store_followed")  # Until then calls do not ask the database.
        self.assertEqual(self.stats()["set"][0], 20)
        self.assertEqual(self.references.Delete(ref.DeleteReferencesRequest(collection="set"), timeout=60).deleted, 20)
        self.assertEqual(server.stop(), 0)

    def test_the_owner_prepares_what_a_user_of_least_rights_serves(self):
        """With the statements of deploy/README.md."""
        text = (server_process.SOURCE / "deploy" / "README.md").read_text(encoding="utf-8")
        roles = text.split("```sql\n", 1)[1].split("```", 1)[0]
        prepared = subprocess.run([BINARY, "prepare-store", self.postgres.url(self.database)], capture_output=True, text=True, timeout=60, check=True)
        self.assertIn(f"/{self.database}: ready, at generation 0", prepared.stdout)
        self.postgres.sql(self.database, f"CREATE ROLE c3pod LOGIN; {roles}")
        server = self.start(url=self.postgres.url(self.database, "c3pod"))
        self.add("set", 10)
        self.assertEqual(self.stats()["set"][0], 10)
        self.assertEqual(server.stop(), 0)

    def test_a_backup_is_refused_with_what_makes_one(self):
        server = self.start()
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.references.BackupStore(ref.BackupStoreRequest(), timeout=60))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        self.assertEqual(details(caught.exception)[0], "PRECONDITION")
        self.assertIn("pg_dump", caught.exception.details())
        self.assertEqual(server.stop(), 0)

    def test_a_store_that_cannot_be_opened_ends_the_start_and_the_password_is_nowhere(self):
        away = "postgresql://ann:s3cret-w0rd@%2Fno%2Fsuch%2Ffolder/refs"
        command = [BINARY, "--model", str(server_process.TINY_MODEL), "--embedder", "model", "--listen", "127.0.0.1:0", "--metrics-port", "0"]
        for url, told in ((away, "%2Fno%2Fsuch%2Ffolder:5432/refs: cannot connect"), ("mysql://ann:s3cret-w0rd@h/d", "URL of another kind"),
                          ("postgresql://ann:s3cret-w0rd@h/d?no=1", "not a URL that libpq takes")):
            with self.subTest(url):
                ended = subprocess.run([*command, "--store", url], capture_output=True, text=True, timeout=120, check=False)
                self.assertNotEqual(ended.returncode, 0)
                self.assertIn(told, ended.stderr)
                self.assertNotIn("s3cret-w0rd", ended.stdout + ended.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
