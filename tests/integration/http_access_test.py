"""Who may call over HTTP: TLS, mutual TLS, tokens, roles, collections, rates. access_test.py through this port. usage: http_access_test.py C3POD"""

import ssl
import subprocess
import sys
import time
import unittest

import server_process
from http_calls import HTTP, Client, raw, read_to_end, request_bytes
from server_case import ServerCase
from service_calls import ref

BINARY = sys.argv.pop(1)


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_authority(folder, name):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj", f"/CN={name}",
            "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")


def make_certificate(folder, name, authority):
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key",
            "-out", folder / f"{name}.csr")
    (folder / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", folder / f"{name}.csr", "-CA", folder / f"{authority}.pem", "-CAkey", folder / f"{authority}.key",
            "-CAcreateserial", "-days", "30", "-extfile", folder / "extensions", "-out", folder / f"{name}.pem")


class CallersTest(ServerCase):
    binary = BINARY

    @classmethod
    def started(cls):
        cls.tokens = cls.folder / "tokens"
        cls.lines = {"ann": ("generate", "read=open"), "cleo": ("references", ""), "dora": ("generate", "calls/min=2"), "eve": ("generate", "")}
        cls.write_tokens(*cls.lines)
        return server_process.ServerProcess(cls.binary, cls.folder, *HTTP, "--auth-tokens", str(cls.tokens), "--method", "none")

    @classmethod
    def write_tokens(cls, *names):
        cls.tokens.write_text("".join(server_process.token_line(name, cls.lines[name][0], f"token-{name}", cls.lines[name][1]) for name in names))

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        metadata = [("authorization", "Bearer token-cleo")]
        for collection in ("open", "secret"):
            requests = (ref.AddReferencesRequest(collection=collection, sample=ref.ReferenceSample(prompt=f"{i}?", answer=" a")) for i in range(2))
            list(cls.references.Add(requests, metadata=metadata, timeout=60))

    def test_every_path_but_health_needs_a_token(self):
        for token in (None, "wrong"):
            client = Client(self.server, token)
            for ask in (client.complete, client.chat, lambda: client.get("/v1/models"), lambda: client.post("/v1/embeddings", input="a")):
                answer = ask()
                self.assertEqual((answer.status, answer.headers["www-authenticate"], answer.error["type"]), (401, "Bearer", "AuthenticationError"))
                self.assertEqual(answer.headers["connection"], "keep-alive")
            self.assertEqual(client.get("/health").status, 200)
        self.assertEqual(Client(self.server, "token-ann").complete().status, 200)

    def test_a_large_body_is_not_read_of_who_is_unknown(self):
        head = request_bytes(headers=()).replace(b"content-length: 0", b"content-length: 15000000")
        answer = read_to_end(raw(self.server, head))
        self.assertTrue(answer.startswith(b"HTTP/1.1 401 "), answer)
        self.assertIn(b"connection: close", answer)

    def test_a_collection_that_is_not_the_callers_is_refused_whether_it_exists(self):
        ask = lambda name, collection: Client(self.server, f"token-{name}").complete(c3po={"method": "ngd", "collection": collection})
        for collection in ("secret", "nobody's"):
            answer = ask("ann", collection)
            self.assertEqual((answer.status, answer.error["type"], answer.error["param"]), (403, "PermissionDeniedError", "c3po.collection"))
        self.assertEqual(ask("ann", "open").status, 200)
        models = [model["id"] for model in Client(self.server, "token-ann").get("/v1/models").json["data"]]
        self.assertEqual([name.partition("@")[2] for name in models], ["", "open"])

    def test_a_callers_rate_is_used_up_whatever_the_port(self):
        client = Client(self.server, "token-dora")
        statuses = [client.complete(max_tokens=1) for _ in range(3)]
        self.assertEqual([answer.status for answer in statuses], [200, 200, 429])
        self.assertGreater(int(statuses[2].headers["retry-after"]), 0)
        self.assertEqual((statuses[2].error["type"], statuses[2].error["reason"]), ("RateLimitError", "RATE"))

    def test_a_revoked_token_ends_its_streams(self):
        self.addCleanup(self.write_tokens, *self.lines)
        client = Client(self.server, "token-eve")
        client.begin("POST", "/v1/completions", {"prompt": "a", "max_tokens": 240, "stream": True, "n": 16, "temperature": 1, "ignore_eos": True})
        response = client.connection.getresponse()
        self.assertEqual(response.status, 200)
        response.readline()
        self.write_tokens(*(name for name in self.lines if name != "eve"))
        text = response.read().decode()
        if '"finish_reason":"length"' not in text:  # It may have been done before.
            self.assertIn('"type":"AuthenticationError"', text)
        deadline = time.monotonic() + 60
        while Client(self.server, "token-eve").complete().status != 401:
            self.assertLess(time.monotonic(), deadline)

    def test_refusals_are_audited(self):
        Client(self.server, "nobody").complete()
        Client(self.server).get("/health")
        self.server.wait_for_log(event="audit", outcome="refused", method="OpenAI/Completions")


class TlsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        for name in ("authority", "stranger"):
            make_authority(cls.folder, name)
        for name, authority in (("server", "authority"), ("renewed", "authority"), ("client", "authority"), ("other", "stranger")):
            make_certificate(cls.folder, name, authority)
        cls.put("server")

    @classmethod
    def tearDownClass(cls):
        server_process.remove_folder(cls.folder)

    @classmethod
    def put(cls, name):
        (cls.folder / "cert.pem").write_bytes((cls.folder / f"{name}.pem").read_bytes())
        (cls.folder / "key.pem").write_bytes((cls.folder / f"{name}.key").read_bytes())

    def start(self, *flags):
        store = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, store)
        server = server_process.ServerProcess(BINARY, store, *HTTP, "--method", "none", "--tls-cert", str(self.folder / "cert.pem"), "--tls-key",
                                              str(self.folder / "key.pem"), *map(str, flags))
        self.addCleanup(lambda: self.assertEqual(server.stop(), 0))
        return server

    def context(self, client=None, authority="authority"):
        context = ssl.create_default_context(cafile=self.folder / f"{authority}.pem")
        if client:
            context.load_cert_chain(self.folder / f"{client}.pem", self.folder / f"{client}.key")
        return context

    def test_requests_are_encrypted_and_streams_as_well(self):
        server = self.start()
        client = Client(server, context=self.context(), host="localhost")
        self.assertEqual(client.complete().status, 200)
        self.assertEqual(len(client.complete(stream=True).events), 6)
        self.assertEqual(client.complete("x" * 100_000).status, 400)  # A body of many records.
        with self.assertRaises(ssl.SSLError):
            Client(server, context=self.context(authority="stranger"), host="localhost").complete()
        self.assertNotIn(b"HTTP/1.1 200", read_to_end(raw(server, request_bytes(prompt="a"))))
        old = self.context()
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises((ssl.SSLError, OSError)):
            Client(server, context=old, host="localhost").complete()

    def test_renewed_certificates_count_for_new_connections(self):
        server = self.start()
        self.addCleanup(self.put, "server")
        served = lambda: ssl.get_server_certificate(("127.0.0.1", server.http_port))
        kept = Client(server, context=self.context(), host="localhost")
        self.assertEqual(kept.complete().status, 200)
        before = served()
        self.put("renewed")
        deadline = time.monotonic() + 60
        while served() == before:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        self.assertEqual(kept.complete().status, 200)

    def test_mutual_tls_wants_a_certificate_and_calls_by_its_name(self):
        server = self.start("--tls-client-ca", self.folder / "authority.pem", "--log-level", "debug")
        for client in (None, "other"):
            with self.assertRaises((ssl.SSLError, OSError)):
                Client(server, context=self.context(client), host="localhost").complete()
        client = Client(server, context=self.context("client"), host="localhost")
        self.assertEqual([client.complete().status, client.get("/health").status], [200, 200])
        server.wait_for_log(event="call", method="OpenAI/Completions", status="OK", caller="client")
        self.assertEqual({line["caller"] for line in server.logged(method="OpenAI/Completions")}, {"client"})

    def test_plain_http_beyond_this_machine_needs_a_word(self):
        done = subprocess.run([BINARY, "--http-listen", "0.0.0.0:0"], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--http-listen", done.stderr)
        self.assertEqual(subprocess.run([BINARY, "--http-listen", "nonsense"], capture_output=True, timeout=60, check=False).returncode, 2)


if __name__ == "__main__":
    unittest.main()
