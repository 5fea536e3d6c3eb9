"""Filters over references' metadata, as users set them: in Search, in the optimization of every protocol, and in a profile. Of one data set a
running server has to find what qdrant-client's local mode finds. usage: filters_test.py C3POD C3PO"""

import json
import random
import subprocess
import sys
import unittest

import grpc
from qdrant_client import QdrantClient, models

import server_process
from http_calls import HTTP, Client
from server_case import ServerCase
from service_calls import details, gen, opt, ref

CLI, BINARY = sys.argv.pop(), sys.argv.pop()

from c3po_client import Client as C3poClient  # service_calls made it importable.
from c3po_client.options import filter_message

REFERENCES, FILTERS = 240, 200
TEXTS = ("What is 5 modulo seven?", "Paris", "a b c d")
VALUES = ("en", "de", "", "1", "1.0", "01", "2.5", "-3", "3", "7", "1e1", "10", "abc", "1 ", "nan", "0x2")
NUMBERS = {"1": 1, "1.0": 1, "01": 1, "2.5": 2.5, "-3": -3, "3": 3, "7": 7, "1e1": 10, "10": 10}  # All others are none.
KEYS = ("language", "year", "source", "rare")
CHOICES = [f" {c}" for c in range(7)]


def metadata_of(number):
    drawn = random.Random(number)
    metadata = {key: drawn.choice(VALUES) for key in KEYS[:3] if drawn.random() < 0.75}
    if drawn.random() < 0.1:
        metadata["rare"] = str(drawn.randrange(50))
    return metadata


def number_in(value):
    return NUMBERS.get(value, float(value) if value.isdigit() else None)


def random_condition(drawn, depth):
    kind = drawn.randrange(5 if depth > 1 else 4)
    if kind == 4:
        return {"filter": random_filter(drawn, depth - 1)}
    key = drawn.choice((*KEYS, "absent"))
    if kind == 0:
        return {"key": key, "equals": drawn.choice(VALUES)}
    if kind == 1:
        return {"key": key, "in": drawn.choices(VALUES, k=drawn.randint(1, 4))}
    if kind == 3:
        return {"key": key, "exists": drawn.random() < 0.5}
    low = drawn.randint(-4, 4)
    ends = {drawn.choice(("gt", "gte")): low, drawn.choice(("lt", "lte")): low + drawn.randint(-1, 7)}
    return {"key": key, "range": dict(drawn.sample(sorted(ends.items()), drawn.randint(1, 2)))}


def random_filter(drawn, depth=3):
    """In the form of c3po's JSON. A list without conditions is left out: Qdrant's local mode takes an empty `should` for one that nothing
    fulfills."""
    lists = {name: [random_condition(drawn, depth) for _ in range(drawn.randrange(3))] for name in ("must", "should", "must_not")}
    return {name: conditions for name, conditions in lists.items() if conditions}


def of_qdrant(given):
    return models.Filter(**{name: [condition_of_qdrant(each) for each in conditions] for name, conditions in given.items()})


def condition_of_qdrant(given):
    """Qdrant has typed values. A point has each value as a text, and beside it, under KEY_number, the number that it is."""
    if "filter" in given:
        return of_qdrant(given["filter"])
    key = given["key"]
    if "equals" in given:
        return models.FieldCondition(key=key, match=models.MatchValue(value=given["equals"]))
    if "in" in given:
        return models.FieldCondition(key=key, match=models.MatchAny(any=given["in"]))
    if "range" in given:
        return models.FieldCondition(key=f"{key}_number", range=models.Range(**given["range"]))
    missing = models.IsEmptyCondition(is_empty=models.PayloadField(key=key))
    return models.Filter(must_not=[missing]) if given["exists"] else missing


def field_bytes(number, content):
    """A field of a message as protobuf writes it, of up to 16 KiB: also where its own library would refuse to."""
    return bytes([number << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content


class FiltersTest(ServerCase):
    binary = BINARY
    FLAGS = (*HTTP, "--method", "none", "--references", "all")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = C3poClient(f"127.0.0.1:{cls.server.port}")
        all_samples = [ref.ReferenceSample(prompt=f"What is {i * 37 % 1000} modulo seven?", answer=CHOICES[i * 37 % 1000 % 7], choices=CHOICES,
                                           metadata=metadata_of(i)) for i in range(REFERENCES)]
        verdicts = cls.add("set", all_samples)
        cls.ids = {verdict.id: all_samples[verdict.sequence] for verdict in verdicts}
        assert len(cls.ids) == REFERENCES, len(cls.ids)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        super().tearDownClass()

    def search(self, text, given, k=1000, successful_only=False):
        hits = self.client.references.search(text, collection="set", k=k, successful_only=successful_only, filter=given)
        return [(hit.reference.id, hit.distance) for hit in hits]

    def qdrant(self, distances):
        """The same references, in the same order by distance: their vectors are their ranks, and the query is 0."""
        client = QdrantClient(":memory:")
        client.create_collection("set", vectors_config=models.VectorParams(size=1, distance=models.Distance.EUCLID))
        points = []
        for rank, reference_id in enumerate(distances):
            metadata = dict(self.ids[reference_id].metadata)
            numbers = {f"{key}_number": number for key, value in metadata.items() if (number := number_in(value)) is not None}
            points.append(models.PointStruct(id=rank, vector=[float(rank)], payload={**metadata, **numbers, "successful": self.successful[reference_id]}))
        client.upsert("set", points)
        return client

    def compare(self, text, seed, filters):
        everything = dict(self.search(text, None))
        self.assertEqual(set(everything), set(self.ids))
        self.successful = dict.fromkeys(everything, False) | dict.fromkeys(dict(self.search(text, None, successful_only=True)), True)
        client, ranked, drawn = self.qdrant(everything), list(everything), random.Random(seed)
        sizes = []
        for _ in range(filters):
            given, k, successful_only = random_filter(drawn), drawn.choice((1, 5, 20, 1000)), drawn.random() < 0.3
            query = of_qdrant(given)
            if successful_only:
                query = models.Filter(must=[query, models.FieldCondition(key="successful", match=models.MatchValue(value=True))])
            points = client.query_points("set", query=[0.0], query_filter=query, limit=k).points
            with self.subTest(filter=given, k=k, successful_only=successful_only):
                found = self.search(text, given, k, successful_only)
                self.assertEqual([reference_id for reference_id, _ in found], [ranked[point.id] for point in points])
                self.assertEqual(found, [(reference_id, everything[reference_id]) for reference_id, _ in found])
            sizes.append(len(points))
        self.assertGreater(sum(0 < size < REFERENCES for size in sizes), filters / 4)
        self.assertGreater(sum(size == 0 for size in sizes), 5)

    def test_searches_find_what_qdrant_finds(self):
        for seed, text in enumerate(TEXTS):
            self.compare(text, seed, FILTERS)

    def test_the_optimizations_neighbors_are_those_of_the_search(self):
        drawn, compared = random.Random(9), 0
        for method in (opt.METHOD_KERNEL_REGRESSION, opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, opt.METHOD_MODE_FINDING):
            for _ in range(20):
                given = random_filter(drawn)
                options = opt.OptimizationOptions(method=method, collection="set", k=5, validation_neighbors=0, steps=1, filter=filter_message(given),
                                                  gate=opt.GateOptions(enabled=False))
                report = self.report(options)
                with self.subTest(filter=given, method=method):
                    self.assertEqual([info.reference_id for info in report.neighbors], [hit for hit, _ in self.search(TEXTS[0], given, 5)])
                    if not report.neighbors:
                        self.assertEqual(report.gate, opt.GATE_DECISION_SKIPPED_NO_NEIGHBORS)
                        self.assertIn('filter: no reference of collection "set" that may be a neighbor matches', report.warnings)
                compared += len(report.neighbors) > 0
        self.assertGreater(compared, 9)

    def report(self, options):
        request = gen.GenerateRequest(prompt=TEXTS[0], sampling=gen.SamplingOptions(max_tokens=1), optimization=options)
        [report] = [event.optimization for event in self.generation.Generate(request, timeout=120) if event.HasField("optimization")]
        return report

    def test_a_profile_has_a_filter_and_a_request_replaces_it(self):
        self.client.collections.set_profile("set", {"method": "kernel", "k": 4, "gate": {"enabled": False},
                                                    "filter": {"must": [{"key": "language", "equals": "en"}]}})
        try:
            def languages(**fields):
                return {self.ids[info.reference_id].metadata.get("language") for info in
                        self.report(opt.OptimizationOptions(collection="set", **fields)).neighbors}

            self.assertEqual(languages(), {"en"})
            self.assertEqual(languages(filter=filter_message({"must": [{"key": "language", "equals": "de"}]})), {"de"})
            everything = [info for info, _ in self.search(TEXTS[0], None, 4)]
            plain = self.report(opt.OptimizationOptions(collection="set", filter=opt.Filter()))
            self.assertEqual([info.reference_id for info in plain.neighbors], everything)
            profile = self.client.collections.get("set").effective_optimization
            self.assertEqual(profile.filter.must[0].equals, "en")
        finally:
            self.client.collections.clear_profile("set")

    def test_the_command_takes_a_filter_as_json(self):
        given = {"must": [{"key": "year", "range": {"gte": 1, "lt": 8}}], "must_not": [{"key": "language", "in": ["de", "1"]}]}
        expected = [hit for hit, _ in self.search(TEXTS[0], given, 6)]
        self.assertEqual(len(expected), 6)
        found = json.loads(self.run_cli("refs", "search", TEXTS[0], "--collection", "set", "--k", "6", "--filter", json.dumps(given), "--json"))
        self.assertEqual([hit["reference"]["id"] for hit in found["hits"]], expected)
        answer = self.run_cli("score", TEXTS[0], "--collection", "set", "--method", "kernel", "--k", "6", "--no-gate", "--filter", json.dumps(given),
                             "--json", "--continuation", CHOICES[0], "--continuation", CHOICES[1])
        self.assertEqual([info["reference_id"] for info in json.loads(answer)["optimization"]["neighbors"]], expected)

    def run_cli(self, *arguments):
        return subprocess.run([CLI, "--server", f"127.0.0.1:{self.server.port}", *arguments], capture_output=True, text=True, check=True, timeout=120).stdout

    def test_http_takes_it_among_the_options_of_c3po(self):
        given = {"should": [{"key": "source", "equals": "abc"}, {"key": "rare", "exists": True}]}
        client = Client(self.server)
        self.addCleanup(client.connection.close)
        ask = {"model": client.ask("GET", "/v1/models").json["data"][0]["id"], "prompt": TEXTS[0], "max_tokens": 1, "temperature": 0}
        options = {"method": "kernel", "collection": "set", "k": 5, "gate": {"enabled": False}}
        answer = client.ask("POST", "/v1/completions", {**ask, "c3po": {**options, "filter": given}})
        self.assertEqual(answer.status, 200, answer.body)
        found = [info["reference_id"] for info in answer.json["c3po"]["neighbors"]]
        self.assertEqual(found, [hit for hit, _ in self.search(TEXTS[0], given, 5)])
        wrong = client.ask("POST", "/v1/completions", {**ask, "c3po": {**options, "filter": {"must": [{"key": "a", "range": {}}]}}})
        self.assertEqual((wrong.status, wrong.error["param"]), (400, "c3po.filter.must[0].range"))

    def test_what_is_wrong_is_told_by_its_path(self):
        wrong = filter_message({"must": [{"key": "a", "exists": True}, {"key": "b", "range": {}}]})
        for field, call in (("filter.must[1].range", lambda: self.references.Search(ref.SearchReferencesRequest(collection="set", text="a", filter=wrong))),
                            ("optimization.filter.must[1].range", lambda: self.report(opt.OptimizationOptions(collection="set", filter=wrong)))):
            with self.assertRaises(grpc.RpcError) as caught:
                call()
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertEqual(details(caught.exception)[1], [field])
        # Deeper than any message may be: the parser's own refusal, and the server goes on.
        filter_bytes = b""
        for _ in range(200):
            filter_bytes = field_bytes(1, field_bytes(6, filter_bytes))
        with self.assertRaises(grpc.RpcError) as caught:
            self.channel.unary_unary("/c3po.v1.ReferenceService/Search")(field_bytes(2, b"a") + field_bytes(7, filter_bytes))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(len(self.search("a", None, 3)), 3)


class FiltersOverAGraphTest(FiltersTest):
    """The same data set, whose views are searched through a graph: few matching references are compared one by one."""
    FLAGS = (*FiltersTest.FLAGS, "--exact-references-max", "50")


if __name__ == "__main__":
    unittest.main(verbosity=2)
