"""The parts of c3po_client that need no server: options, the table of methods, the retry policy, addresses and tokens, samples,
pathways. What is written down twice is compared with its source."""

import contextlib
import inspect
import io
import json
import math
import pathlib
import random
import re
import subprocess
import tempfile
import unittest
import unittest.mock

import grpc
from client_case import ROOT

import c3po_client
from c3po.v1 import generation_pb2 as gen
from c3po.v1 import options_pb2 as opt
from c3po.v1 import reference_pb2 as ref
from c3po.v1 import server_pb2 as srv
from c3po_client import methods, options
from c3po_client.call_settings import CallSettings
from c3po_client.connection import call_metadata, is_this_machine, read_environment
from c3po_client.errors import ServerAdvice, call_error
from c3po_client.retry import Attempts, codes_retried_here, service_config
from fake_server import FakeServer, answer


class OptionsTest(unittest.TestCase):
    def test_the_fields_are_those_of_the_messages(self):
        for fields, message, left_out in ((c3po_client.OptimizationFields, opt.OptimizationOptions, set()),
                                          (c3po_client.GateFields, opt.GateOptions, set()),
                                          (c3po_client.FilterFields, opt.Filter, set()),
                                          (c3po_client.ConditionFields, opt.Filter.Condition, set()),
                                          (c3po_client.RangeFields, opt.Filter.Range, set()),
                                          (c3po_client.SamplingFields, gen.SamplingOptions, set()),
                                          (c3po_client.TunePriorFields, ref.TunePriorRequest, {"collection"}),
                                          (c3po_client.SampleFields, ref.ReferenceSample, set())):
            with self.subTest(message.DESCRIPTOR.name):
                self.assertEqual({*fields.__annotations__, *left_out}, {field.name for field in message.DESCRIPTOR.fields})

    def test_every_field_can_be_set_by_a_plain_value(self):
        for message in (opt.OptimizationOptions, gen.SamplingOptions, ref.TunePriorRequest):
            for field in message.DESCRIPTOR.fields:
                for value, expected in self.values(field):
                    with self.subTest(field=field.full_name, value=value):
                        filled = options.fill(message(), {field.name: value}, "options")
                        self.assertEqual([name.name for name, _ in filled.ListFields()], [field.name])
                        self.assertEqual(self.plain(getattr(filled, field.name)), expected)

    @staticmethod
    def values(field):
        """(a value, what the field holds then)."""
        if field.enum_type is not None:
            first = field.enum_type.values[1]
            word = first.name.removeprefix(field.enum_type.values[0].name.removesuffix("UNSPECIFIED")).lower()
            return [(word, 1), (word.upper(), 1), (1, 1), (first.name, 1)]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return [({7: 1.5}, {7: 1.5})]
        if field.name == "filter":
            plain = {"must": [{"key": "a", "in": ["b"]}], "should": [{"filter": {"must_not": ({"key": "c", "range": {"gte": 1}},)}}]}
            made = opt.Filter(must=[opt.Filter.Condition(key="a", **{"in": ["b"]})],
                              should=[opt.Filter.Condition(filter=opt.Filter(must_not=[opt.Filter.Condition(key="c", range=opt.Filter.Range(gte=1))]))])
            return [(plain, made), (made, made), ({"must": made.must, "should": made.should}, made), ({}, opt.Filter())]
        if field.message_type is not None:
            return [({"enabled": True}, opt.GateOptions(enabled=True)), (opt.GateOptions(enabled=True), opt.GateOptions(enabled=True))]
        if hasattr(getattr(opt.OptimizationOptions(), field.name, None), "extend") or field.name == "stop":
            items = ["a", "b"] if field.cpp_type == field.CPPTYPE_STRING else [3, 4]
            return [(items, items), (tuple(items), items)]
        return [({field.CPPTYPE_STRING: "a", field.CPPTYPE_BOOL: True, field.CPPTYPE_DOUBLE: 0.5}.get(field.cpp_type, 3),) * 2]

    @staticmethod
    def plain(value):
        return list(value) if hasattr(value, "extend") else dict(value) if hasattr(value, "update") else value

    def test_wrong_filters_are_named(self):
        for wrong, said in (({"must": [{"key": "a"}, {"wings": 1}]}, r"filter\.must\[1\]\.wings: there is no such field"),
                            ({"must": [5]}, r"filter\.must\[0\]: 5 is no mapping"), ({"must": "a"}, r"filter\.must: 'a' is not a list"),
                            ({"should": [{"key": "a", "in": "b"}]}, r"filter\.should\[0\]\.in: 'b' is not a list"),
                            ({"must": [{"key": "a", "range": {"gte": "b"}}]}, r"filter\.must\[0\]\.range\.gte")):
            with self.subTest(wrong=wrong), self.assertRaisesRegex(c3po_client.ArgumentError, said):
                options.filter_message(wrong)

    def test_what_is_none_is_not_set(self):
        self.assertEqual(options.optimization_options({"method": None, "gate": None, "critical_layers": None}), opt.OptimizationOptions())

    def test_short_words_are_those_of_the_commands_flags(self):
        terms = (ROOT / "index" / "types" / "optimization_terms.h").read_text()
        rows = re.findall(r'\{(\w+)::k\w+, (\d+), "(\w+)", "(\w*)"\}', terms)
        names = {"SurrogateLoss": "Objective"}
        enums = {field.enum_type.name: field.enum_type for field in opt.OptimizationOptions.DESCRIPTOR.fields if field.enum_type is not None}
        compared = 0
        for enum, number, name, word in rows:
            if word:
                words = options.enum_words(enums[names.get(enum, enum)])
                self.assertEqual((words[word], words[name]), (int(number), int(number)))
                compared += 1
        self.assertGreaterEqual(compared, 23)
        for enum, words in options.SHORT_WORDS.items():  # And no word that the command does not have.
            self.assertLessEqual(set(words), {word for row, _, _, word in rows if row == enum})

    def test_words_of_answers(self):
        self.assertEqual(options.word_of(opt.GateDecision.DESCRIPTOR, opt.GATE_DECISION_SKIPPED_NEIGHBORS_FAR), "skipped_neighbors_far")
        self.assertEqual(options.word_of(opt.GateDecision.DESCRIPTOR, 99), "99")


class MethodsTest(unittest.TestCase):
    def test_the_table_is_the_protocols(self):
        kinds = {(False, False): methods.UnaryMethod, (False, True): methods.StreamMethod, (True, True): methods.DuplexMethod}
        ours = {(method.service, method.name): method for method in methods.ALL_METHODS}
        described = 0
        for file in (gen, ref, srv):
            for service in file.DESCRIPTOR.services_by_name.values():
                proto = service.methods
                for method in proto:
                    entry = ours[service.full_name, method.name]
                    described += 1
                    self.assertEqual((entry.request.DESCRIPTOR, entry.response.DESCRIPTOR), (method.input_type, method.output_type))
        self.assertEqual(described, len(ours))
        self.assertEqual(len(ours), len(methods.ALL_METHODS))
        text = "".join((ROOT / "proto" / "c3po" / "v1" / f"{name}.proto").read_text() for name in ("generation", "reference", "server"))
        for name, takes, gives in re.findall(r"rpc (\w+)\((stream )?\w+\) returns \((stream )?\w+\)", text):
            (entry,) = (method for method in methods.ALL_METHODS if method.name == name)
            self.assertIs(type(entry), kinds[bool(takes), bool(gives)], name)

    def test_both_clients_have_the_same_calls_and_arguments(self):
        import c3po_client as c
        renamed = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__", "__next__": "__anext__", "__iter__": "__aiter__"}
        for sync, other in ((c.Client, c.AsyncClient), (c.References, c.AsyncReferences), (c.Collections, c.AsyncCollections),
                            (c.Generation, c.AsyncGeneration), (c.Import, c.AsyncImport), (c.Stream, c.AsyncStream)):
            own = {name: value for name, value in vars(sync).items() if not name.startswith("_") and inspect.isfunction(value)}
            self.assertTrue(own)
            for name, function in own.items():
                twin = getattr(other, renamed.get(name, name))
                with self.subTest(f"{sync.__name__}.{name}"):
                    self.assertEqual([(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()],
                                     [(p.name, p.kind, p.default) for p in inspect.signature(twin).parameters.values()])
            twins = {name for name, value in vars(other).items() if not name.startswith("_") and inspect.isfunction(value)}
            self.assertEqual(twins, {renamed.get(name, name) for name in own})

    def test_the_version_is_that_of_the_build(self):
        self.assertIn(f"project(c3po VERSION {c3po_client.__version__} ", (ROOT / "CMakeLists.txt").read_text())

    def test_all_that_is_exported_is_there(self):
        self.assertEqual(sorted(set(c3po_client.__all__)), sorted(c3po_client.__all__))
        for name in c3po_client.__all__:
            self.assertTrue(hasattr(c3po_client, name), name)
        for name, value in vars(c3po_client.errors).items():
            if inspect.isclass(value) and issubclass(value, c3po_client.C3poError):
                self.assertIn(name, c3po_client.__all__)


class RetryPolicyTest(unittest.TestCase):
    POLICY = c3po_client.RetryPolicy(attempts=5, initial_backoff=0.2, backoff_max=0.7, multiplier=2, jitter=0.5)

    def test_backoffs_grow_to_their_bound_and_are_spread(self):
        nominal = [0.2, 0.4, 0.7, 0.7]
        for attempts_made, value in enumerate(nominal, 1):
            for uniform in (0.0, 0.5, 0.75):
                self.assertAlmostEqual(self.POLICY.pause(attempts_made, ServerAdvice(), uniform), value * (0.5 + uniform))
        self.assertIsNone(self.POLICY.pause(5, ServerAdvice(), 0.5))

    def test_the_server_is_heard(self):
        self.assertEqual(self.POLICY.pause(1, ServerAdvice(retry_delay=3.0), 0.5), 3.0)
        self.assertAlmostEqual(self.POLICY.pause(1, ServerAdvice(retry_delay=0.01), 0.5), 0.2)
        self.assertEqual(self.POLICY.pause(1, ServerAdvice(pushback=0.0, retry_delay=3.0), 0.5), 0.0)
        for advice in (ServerAdvice(never=True), ServerAdvice(retry_delay=60.1), ServerAdvice(pushback=61)):
            self.assertIsNone(self.POLICY.pause(1, advice, 0.5))

    def test_values_out_of_range_are_named(self):
        for name, value in (("attempts", 0), ("attempts", 6), ("initial_backoff", 0), ("backoff_max", math.inf), ("backoff_max", math.nan),
                            ("multiplier", 0.5), ("jitter", 1.5), ("server_delay_max", -1)):
            with self.subTest(name), self.assertRaisesRegex(c3po_client.ArgumentError, name):
                c3po_client.RetryPolicy(**{name: value})

    def test_the_service_config_names_what_may_be_repeated(self):
        (config,) = json.loads(service_config(self.POLICY))["methodConfig"]
        self.assertEqual(config["retryPolicy"], {"maxAttempts": 5, "initialBackoff": "0.200s", "maxBackoff": "0.700s", "backoffMultiplier": 2,
                                                 "retryableStatusCodes": ["UNAVAILABLE"]})
        names = {each["method"] for each in config["name"]}
        self.assertEqual({method.name for method in methods.ALL_METHODS} - names, {"Add", "TunePrior", "AmortizeShifts", "TuneOffset"})
        self.assertEqual(json.loads(service_config(c3po_client.RetryPolicy(attempts=1))), {})

    def test_attempts_end_with_their_time(self):
        now, random_ = 100.0, random.Random(7)
        full = call_error("t", grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        codes = codes_retried_here(methods.Retried.BY_GRPC)
        attempts = Attempts(self.POLICY, codes, 1.0, clock=lambda: now, uniform=random_.random)
        self.assertEqual(attempts.begin(), 1.0)
        while True:
            try:
                pause = attempts.pause_after(full)
            except c3po_client.ResourceExhausted:
                break
            now += pause
            self.assertAlmostEqual(attempts.begin(), 101.0 - now)
        self.assertLess(now, 101.0)
        with self.assertRaises(c3po_client.Unavailable):  # gRPC has tried it again already.
            Attempts(self.POLICY, codes, 1.0).pause_after(call_error("t", grpc.StatusCode.UNAVAILABLE, "away"))
        self.assertIsNone(Attempts(self.POLICY, codes, math.inf).begin())


class ConnectionTest(unittest.TestCase):
    def test_a_token_is_not_sent_in_plaintext_to_another_machine(self):
        for target in ("192.0.2.1:1", "c3pod:50051", "127.0.0.1.example.org:1", "[::2]:1", "dns:///localhost:1"):
            with self.subTest(target), self.assertRaisesRegex(c3po_client.ArgumentError, "is another machine") as caught:
                c3po_client.Client(target, token="secret")
            self.assertNotIn("secret", str(caught.exception))
            c3po_client.Client(target, token="secret", insecure_token=True).close()
            c3po_client.Client(target, token="secret", tls=c3po_client.Tls()).close()
            c3po_client.Client(target).close()  # Without a token there is nothing to lose.
        for target in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/c3po"):
            self.assertTrue(is_this_machine(target))
            self.assertEqual(call_metadata(target, "secret", False, False, [("x-tenant", "a")]),
                             (("authorization", "Bearer secret"), ("x-tenant", "a")))
        for value, allowed in (("1", True), ("yes", True), ("0", False), ("False", False), ("off", False), ("", False)):
            environment = read_environment({"C3PO_TOKEN": "secret", "C3PO_INSECURE_TOKEN": value})
            self.assertEqual((environment.insecure_token, environment.token), (allowed, "secret"))
            self.assertNotIn("secret", repr(environment))
        self.assertNotIn("secret", repr(CallSettings("localhost:1", call_metadata("localhost:1", "secret", False, False, ()))))
        with self.assertRaisesRegex(c3po_client.ArgumentError, "token: holds"):
            c3po_client.Client("127.0.0.1:1", token="two\nlines")

    def test_an_address_needs_its_port(self):
        for target in ("c3pod", "127.0.0.1:", "[::1]", "c3pod:https"):
            with self.subTest(target), self.assertRaisesRegex(c3po_client.ArgumentError, "is not ADDRESS:PORT"):
                c3po_client.Client(target)

    def test_files_that_cannot_be_read_are_named(self):
        for tls, said in ((c3po_client.Tls(ca="/nowhere/ca.pem"), "tls.ca: /nowhere/ca.pem: No such file"),
                          (c3po_client.Tls(cert="/nowhere/cert.pem"), "cert and key belong together")):
            with self.assertRaisesRegex(c3po_client.ArgumentError, said):
                c3po_client.Client("localhost:1", tls=tls)

    def test_misspelled_variables_are_told_with_the_nearest_name_and_others_are_not(self):
        source = (ROOT / "server" / "config" / "setting_list.h").read_text()
        settings = ["C3PO_" + flag.upper().replace("-", "_") for flag in re.findall(r'(?:setting|limit)\("([a-z-]+)"', source)]
        self.assertGreater(len(settings), 50)
        settings = [name for name in settings if not name.startswith("C3PO_TLS_")]  # Names that the client reads, too.
        others = dict.fromkeys([*settings, "C3PO_TOKEN", "C3PO_CONFIG", "C3PO_PORT", "C3PO_DATA_DIR", "C3PO_STUDIES"], "1")
        with unittest.mock.patch.dict("os.environ", others, clear=True), self.assertNoLogs("c3po_client"):
            c3po_client.Client.from_environment("127.0.0.1:1").close()
        wrong = {"C3PO_TOKENS": "1", "C3PO_SEVER": "1", "C3PO_TLS_CAFILE": "1"}
        with unittest.mock.patch.dict("os.environ", wrong, clear=True), self.assertLogs("c3po_client", "WARNING") as told:
            c3po_client.Client.from_environment("127.0.0.1:1").close()
        self.assertEqual([record.getMessage() for record in told.records],
                         [f"C3PO_{is_set} is set, and nothing reads it here; did you mean C3PO_{meant}?"
                          for is_set, meant in (("SEVER", "SERVER"), ("TLS_CAFILE", "TLS_CA"), ("TOKENS", "TOKEN"))])


class SecureTest(unittest.TestCase):
    """Mutual TLS and tokens, everything from the environment."""

    def test_the_environment_brings_certificates_and_the_token(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            openssl = lambda *arguments: subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, check=True)
            openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem", "-out", "cert.pem",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
            cert, key = (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes()
            server = FakeServer(grpc.ssl_server_credentials([(key, cert)], cert, require_client_auth=True))
            self.addCleanup(server.stop)
            server.on["GetServerInfo"] = lambda request, context: srv.GetServerInfoResponse(version="7")
            files = {"C3PO_TLS_CA": str(folder / "cert.pem"), "C3PO_TLS_CERT": str(folder / "cert.pem"), "C3PO_TLS_KEY": str(folder / "key.pem")}
            environment = {**files, "C3PO_SERVER": server.target, "C3PO_TOKEN": "secret"}
            with unittest.mock.patch.dict("os.environ", environment, clear=True), c3po_client.Client.from_environment() as client:
                self.assertEqual(client.server_info().version, "7")
            self.assertEqual(server.metadata["GetServerInfo"]["authorization"], "Bearer secret")
            once = c3po_client.RetryPolicy(attempts=1)
            for tls in (c3po_client.Tls(ca=folder / "cert.pem"), c3po_client.Tls(), None):  # No certificate, no authority, no TLS.
                with self.subTest(tls=tls), c3po_client.Client(server.target, tls=tls, retry=once) as client:
                    with self.assertRaises(c3po_client.Unavailable):
                        client.server_info()


class SamplesTest(unittest.TestCase):
    def test_lines_are_read_as_the_command_reads_them(self):
        lines = {'{"prompt": "p", "answer": "a", "choices": null, "metadata": {"n": 1, "l": ["é"], "t": "x"}}':
                 ref.ReferenceSample(prompt="p", answer="a", metadata={"n": "1", "l": '["é"]', "t": "x"}),
                 '{"prompt": "", "answer": "", "id": "not ours", "reference_id": "q-1"}': ref.ReferenceSample(id="q-1")}
        for line, expected in lines.items():
            self.assertEqual(self.read(line), [expected])
        for line, said in (("[]", "not a JSON object"), ('{"prompt": 1, "answer": "a"}', '"prompt" is missing or not a text'),
                           ('{"prompt": "p", "answer": "a", "choices": "ab"}', '"choices" is not a list of texts'),
                           ('{"prompt": "p", "answer": "a", "choices": [1]}', '"choices" is not a list of texts'),
                           ('{"prompt": "p", "answer": "a", "metadata": []}', '"metadata" is not an object'),
                           ('{"prompt": "p", "answer": "a", "reference_id": 3}', '"reference_id" is missing or not'), ("{", "Expecting"),
                           ('{"prompt": "\\ud800", "answer": "a"}', "surrogates not allowed|utf-8"),
                           ("[" * 100_000, "nest|deep|recursion"), ('{"prompt": "' + "x" * (3 << 20) + '"}', "longer than")):
            with self.subTest(line[:40]), self.assertRaisesRegex(c3po_client.ArgumentError, f"samples.jsonl:2: .*({said})"):
                self.read("\n" + line)

    @staticmethod
    def read(text):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "samples.jsonl"
            path.write_text(text)
            return list(c3po_client.read_samples(path))


class AnswersTest(unittest.TestCase):
    def test_the_likeliest_is_by_token_or_by_the_offset(self):
        score = lambda **fields: gen.ContinuationScore(**fields)
        response = gen.ScoreResponse(scores=[score(log_likelihood=-3, token_count=1), score(log_likelihood=-4, token_count=4)])
        self.assertEqual(c3po_client.likeliest(response), 1)
        response.scores[0].offset_score, response.scores[1].offset_score = -0.5, -0.6
        self.assertEqual(c3po_client.likeliest(response), 0)

    def test_pathways_are_rows(self):
        layer = lambda index, weights: gen.PathwayLayer(layer=index, weights=weights)
        report = gen.OptimizationReport(pathway_before=[layer(3, [0.25, 0.75]), layer(4, [1, 0])], pathway_after=[layer(3, [0.5, 0.5])])
        self.assertEqual(list(c3po_client.pathway_rows(report)),
                         [(3, 0, 0.25, 0.5), (3, 1, 0.75, 0.5), (4, 0, 1.0, 1.0), (4, 1, 0.0, 0.0)])
        self.assertEqual(c3po_client.PathwayRow._fields, ("layer", "expert", "before", "after"))
        self.assertEqual(list(c3po_client.pathway_rows(gen.OptimizationReport())), [])


class DocumentationTest(unittest.TestCase):
    def test_what_the_readmes_show_runs(self):
        server = FakeServer()
        self.addCleanup(server.stop)

        def generate(request, context):
            if request.choices:
                scores = [gen.ContinuationScore(token_count=1) for _ in request.choices]
                return iter([gen.GenerateResponse(summary=gen.GenerationSummary(chosen=1, choice_scores=scores))])
            return answer("Carbon", " dioxide")

        server.on["Generate"] = generate
        shown = 0
        for name in ("README.md", "client/python/README.md"):
            for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
                shown += 1
                printed = io.StringIO()
                with self.subTest(f"{name}: {block[:60]}"), contextlib.redirect_stdout(printed):
                    exec(compile(block.replace("127.0.0.1:50051", server.target), name, "exec"), {})
                self.assertIn("dioxide", printed.getvalue())
                if "choose" in block:
                    self.assertIn(" positive\n", printed.getvalue())
        self.assertEqual(shown, 4)


if __name__ == "__main__":
    unittest.main()
