"""Who may call, through a real channel: TLS, mutual TLS, tokens and roles. usage: access_test.py C3POD C3PO"""

import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import time
import unittest

import grpc
from google.rpc import error_details_pb2, status_pb2

import server_process

CLI = sys.argv.pop(2)
BINARY = sys.argv.pop(1)
pb = server_process.make_stubs()
gen, ref, opt, srv = pb["generation_pb2"], pb["reference_pb2"], pb["options_pb2"], pb["server_pb2"]

NEEDS_ADMINISTER = {"BackupStore"}
NEEDS_REFERENCES = {"Add", "List", "Delete", "SetProfile", "TunePrior", "AmortizeShifts", "TuneOffset"} | NEEDS_ADMINISTER
HEALTH = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_authority(folder, name):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
            "-subj", f"/CN={name}", "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"))


def make_certificate(folder, name, authority):
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.csr"))
    (folder / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", str(folder / f"{name}.csr"), "-CA", str(folder / f"{authority}.pem"), "-CAkey",
            str(folder / f"{authority}.key"), "-CAcreateserial", "-days", "30", "-extfile", str(folder / "extensions"),
            "-out", str(folder / f"{name}.pem"))


def methods():
    """(service, method, is streaming in, is streaming out) of everything that c3po.v1 offers."""
    for module in ("generation_pb2", "reference_pb2", "server_pb2"):
        for service in pb[module].DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield service.full_name, method.name, method.client_streaming, method.server_streaming


def call(channel, service, method, streams_in, streams_out, token=None):
    """The status of a call with an empty request: (code, reason); (OK, None) for one that was let in and succeeded."""
    kind = f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}"
    stub = getattr(channel, kind)(f"/{service}/{method}", request_serializer=lambda raw: raw,
                                  response_deserializer=lambda raw: raw)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        answer = stub(iter([b""]) if streams_in else b"", metadata=metadata, timeout=60)
        if streams_out:
            list(answer)
        return grpc.StatusCode.OK, None
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return error.code(), info.reason
        return error.code(), None


class AccessTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        make_authority(cls.folder, "authority")
        make_authority(cls.folder, "stranger")
        for name, authority in (("server", "authority"), ("renewed", "authority"), ("client", "authority"), ("other", "stranger")):
            make_certificate(cls.folder, name, authority)
        (cls.folder / "tokens").write_text("# callers of the tests\n" + server_process.token_line("ann", "generate", "token-ann")
                                           + server_process.token_line("ben", "references", "token-ben") + server_process.token_line("cleo", "administer", "token-cleo"))
        cls.live = cls.folder / "live"
        cls.install("server")
        cls.server = cls.start("--tls-cert", cls.live / "cert.pem", "--tls-key", cls.live / "key.pem",
                               "--auth-tokens", cls.folder / "tokens")

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        server_process.remove_folder(cls.folder)
        if code != 0:
            raise AssertionError(f"c3pod exited with {code}: {cls.server.log}")

    @classmethod
    def install(cls, name):
        """Puts certificate and key in place together, as an operator does: by renaming a link."""
        folder = cls.folder / f"installed-{name}"
        folder.mkdir()
        (folder / "cert.pem").write_bytes((cls.folder / f"{name}.pem").read_bytes())
        (folder / "key.pem").write_bytes((cls.folder / f"{name}.key").read_bytes())
        link = cls.folder / "link"
        link.symlink_to(folder)
        os.rename(link, cls.live)

    @classmethod
    def start(cls, *flags, store="a"):
        folder = cls.folder / f"store-{store}"
        folder.mkdir(exist_ok=True)
        return server_process.ServerProcess(BINARY, folder, *map(str, flags))

    def channel(self, server=None, client=None, authority="authority"):
        read = lambda name: (self.folder / name).read_bytes()
        credentials = grpc.ssl_channel_credentials(read(f"{authority}.pem"), read(f"{client}.key") if client else None,
                                                   read(f"{client}.pem") if client else None)
        channel = grpc.secure_channel(f"localhost:{(server or self.server).port}", credentials)
        self.addCleanup(channel.close)
        return channel

    def health(self, channel):
        check = channel.unary_unary(HEALTH, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)
        return check(b"", timeout=60)

    def test_every_method_wants_a_token_and_health_wants_none(self):
        channel = self.channel()
        count = 0
        for method in methods():
            for token in (None, "token-nobody"):
                with self.subTest(method=method[:2], token=token):
                    self.assertEqual(call(channel, *method, token=token), (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"))
                    count += 1
        self.assertGreaterEqual(count, 30)
        self.assertEqual(self.health(channel), SERVING)
        self.server.wait_for_log(status="UNAUTHENTICATED")
        lines = self.server.logged(status="UNAUTHENTICATED")
        for line in lines:
            self.assertIn(line["event"], ("call", "audit"))
            self.assertRegex(line["peer"], r"^ipv[46]:.+:\d+$")
            self.assertNotIn("caller", line)

    def test_roles_reach_as_far_as_they_say(self):
        channel = self.channel()
        denied = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION")
        for method in methods():
            with self.subTest(method=method[:2]):
                for token, refused in (("token-ann", method[1] in NEEDS_REFERENCES), ("token-ben", method[1] in NEEDS_ADMINISTER),
                                       ("token-cleo", False)):
                    self.assertEqual(call(channel, *method, token=token) == denied, refused, token)

    def test_the_method_that_sees_the_answer_is_for_administrators(self):
        generation = pb["generation_pb2_grpc"].GenerationServiceStub(self.channel())
        request = gen.ScoreRequest(prompt="What is 3?", continuations=[" 1", " 2"], oracle_answer=" 2",
                                   optimization=opt.OptimizationOptions(method=opt.METHOD_ORACLE, steps=1))
        for token in ("token-ann", "token-ben"):
            with self.assertRaises(grpc.RpcError) as caught:
                generation.Score(request, metadata=[("authorization", f"Bearer {token}")], timeout=60)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.PERMISSION_DENIED)
        response = generation.Score(request, metadata=[("authorization", "Bearer token-cleo")], timeout=60)
        self.assertEqual(response.optimization.method, opt.METHOD_ORACLE)

    def test_strangers_do_not_get_through_the_handshake(self):
        plain = grpc.insecure_channel(f"localhost:{self.server.port}")
        self.addCleanup(plain.close)
        for channel in (plain, self.channel(authority="stranger")):
            with self.assertRaises(grpc.RpcError) as caught:
                self.health(channel)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)

    def test_mutual_tls_wants_a_certificate_that_the_authority_signed(self):
        server = self.start("--tls-cert", self.folder / "server.pem", "--tls-key", self.folder / "server.key",
                            "--tls-client-ca", self.folder / "authority.pem", store="mutual")
        self.addCleanup(server.process.kill)
        for client in (None, "other"):
            with self.assertRaises(grpc.RpcError) as caught:
                self.health(self.channel(server, client))
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        channel = self.channel(server, "client")
        self.assertEqual(self.health(channel), SERVING)
        pb["server_pb2_grpc"].ServerServiceStub(channel).GetServerInfo(srv.GetServerInfoRequest(), timeout=60)
        command = [CLI, "--server", f"localhost:{server.port}", "--tls-ca", str(self.folder / "authority.pem"), "--tls-cert",
                   str(self.folder / "client.pem"), "--tls-key", str(self.folder / "client.key"), "info"]
        self.assertEqual(subprocess.run(command, capture_output=True, timeout=120, check=False).returncode, 0)
        self.assertEqual(server.stop(), 0)

    def test_the_command_line_speaks_tls_and_brings_its_token(self):
        (self.folder / "token").write_text("token-ann\n")
        command = [CLI, "--server", f"localhost:{self.server.port}", "--tls-ca", str(self.folder / "authority.pem")]
        run = lambda *more, **env: subprocess.run([*command, *more], capture_output=True, text=True, timeout=120, check=False,
                                                  env={**os.environ, **env})
        self.assertEqual(run("info").returncode, 10)
        self.assertEqual(run("--token-file", str(self.folder / "token"), "info").returncode, 0)
        self.assertEqual(run("info", C3PO_TOKEN="token-cleo").returncode, 0)
        denied = run("refs", "list", C3PO_TOKEN="token-ann")
        self.assertEqual(denied.returncode, 10)
        self.assertIn("needs the role references", denied.stderr)
        self.assertEqual(run("--token-file", str(self.folder / "nowhere"), "info").returncode, 2)
        ask = ["--server", f"localhost:{self.server.port}", "--tls-ca", self.folder / "authority.pem", "--max-tokens", "3", "--method", "none",
               "a"]
        self.assertEqual(server_process.example("ask.py", *ask).returncode, 10)
        self.assertEqual(server_process.example("ask.py", *ask, "--token-file", self.folder / "token").returncode, 0)

    def test_renewed_certificates_and_changed_tokens_count_without_a_restart(self):
        served = lambda: ssl.get_server_certificate(("127.0.0.1", self.server.port))
        before = served()
        self.install("renewed")
        (self.folder / "tokens").write_text((self.folder / "tokens").read_text() + server_process.token_line("dan", "generate", "token-dan"))
        self.wait_until(lambda: served() != before)
        channel = self.channel()
        self.assertEqual(self.health(channel), SERVING)
        # Certificates and tokens may be looked at in two turns.
        self.wait_until(lambda: call(channel, "c3po.v1.ServerService", "GetServerInfo", False, False, token="token-dan")[0] == grpc.StatusCode.OK)

    def test_a_backup_is_for_administrators_and_serves_again(self):
        target = self.folder / "backup.db"
        command = [CLI, "--server", f"localhost:{self.server.port}", "--tls-ca", str(self.folder / "authority.pem"),
                   "store", "backup", str(target)]
        run = lambda token: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False,
                                           env={**os.environ, "C3PO_TOKEN": token})
        denied = run("token-ben")
        self.assertEqual(denied.returncode, 10)
        self.assertIn("needs the role administer", denied.stderr)
        self.assertFalse(target.exists())
        done = run("token-cleo")
        self.assertEqual(done.returncode, 0, done.stderr)
        server = self.start("--store", target, store="restored")
        self.addCleanup(server.process.kill)
        self.assertEqual(self.health(server.channel()), SERVING)
        self.assertEqual(server.stop(), 0)

    def test_half_replaced_and_wrong_certificates_leave_the_old_pair_in_force(self):
        def write(name, text):
            (live / f"{name}.new").write_text(text)
            os.rename(live / f"{name}.new", live / name)

        read = lambda name: (self.folder / name).read_text()
        live = self.folder / "half"
        live.mkdir()
        write("cert.pem", read("server.pem"))
        write("key.pem", read("server.key"))
        server = self.start("--tls-cert", live / "cert.pem", "--tls-key", live / "key.pem", store="half")
        self.addCleanup(server.process.kill)
        served = lambda: ssl.get_server_certificate(("127.0.0.1", server.port))
        before = served()
        self.assertEqual(server.http("/readyz"), "ready\n")
        for certificate in (read("renewed.pem"), "garbage", ""):  # Of another key than the one beside it; and none.
            write("cert.pem", certificate)
            self.wait_until(lambda: "warning: --tls-" in server.http("/readyz"))
            self.assertIn('c3po_reload_failed{files="tls"} 1', server.http("/metrics"))
            self.assertEqual(served(), before)
            self.assertEqual(self.health(self.channel(server)), SERVING)
            info = pb["server_pb2_grpc"].ServerServiceStub(self.channel(server)).GetServerInfo(srv.GetServerInfoRequest(), timeout=60)
            self.assertIn("--tls-", info.warnings[0])
            write("cert.pem", read("server.pem"))
            self.wait_until(lambda: server.http("/readyz") == "ready\n")
        write("cert.pem", read("renewed.pem"))
        self.wait_until(lambda: "warning" in server.http("/readyz"))
        write("key.pem", read("renewed.key"))
        self.wait_until(lambda: served() != before)
        self.assertEqual(self.health(self.channel(server)), SERVING)
        self.wait_until(lambda: server.http("/healthz") == "alive\n")
        self.assertEqual(server.stop(), 0)
        events = [line for line in server.log if "tls_refused" in line or "tls_loaded" in line]
        self.assertGreaterEqual(len(events), 5)

    def wait_until(self, holds):
        deadline = time.monotonic() + 60
        while not holds():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)

    def test_the_first_line_of_the_log_says_where_settings_came_from_and_who_may_call(self):
        first = json.loads(self.server.log[0])
        self.assertEqual(first["event"], "configuration")
        self.assertIn("auth-tokens = ", first["flags"])
        self.assertEqual(first["callers"], f"who holds a token of {self.folder / 'tokens'} on loopback")

    def test_a_misspelled_setting_starts_no_server(self):
        file = self.folder / "c3pod.toml"
        command = [BINARY, "--config", str(file)]
        for text, message in ((f'auth_tokens = "{self.folder / "tokens"}"', "did you mean auth-tokens?"),
                              (f'auth-tokens = "{self.folder / "tokens"}', "the string has no end"),
                              ("[server]", "a table")):
            file.write_text(text)
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 2, text)
            self.assertIn(message, done.stderr)

    def test_what_would_be_unsafe_or_wrong_refuses_to_start(self):
        def start_error(*flags):
            command = [BINARY, "--model", str(server_process.TINY_MODEL), "--store", str(self.folder / "x.db"),
                       "--metrics-port", "-1", "--embedder", "model", *map(str, flags)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            self.assertNotEqual(done.returncode, 0, flags)
            return done.stderr.splitlines()[-1]

        f, loopback = self.folder, ("--listen", "127.0.0.1:0")
        tls = ("--tls-cert", f / "server.pem", "--tls-key", f / "server.key")
        for address in ("0.0.0.0:0", "[::]:0", f"{socket.gethostname()}:0"):
            self.assertIn("--insecure", start_error("--listen", address))
        self.assertIn("--tls-key", start_error(*loopback, "--tls-cert", f / "server.pem"))
        self.assertIn("--tls-client-ca", start_error(*loopback, "--tls-client-ca", f / "authority.pem"))
        self.assertIn("--tls-key", start_error(*loopback, "--tls-cert", f / "server.pem", "--tls-key", f / "client.key"))
        self.assertIn("nowhere.pem", start_error(*loopback, "--tls-cert", f / "nowhere.pem", "--tls-key", f / "server.key"))
        self.assertIn("--tls-client-ca", start_error(*loopback, *tls, "--tls-client-ca", f / "tokens"))
        self.assertIn("--allow-oracle", start_error(*loopback, "--auth-tokens", f / "tokens", "--allow-oracle"))
        (f / "wrong").write_text("\nann root 00\n")
        self.assertIn("wrong:2: role", start_error(*loopback, "--auth-tokens", f / "wrong"))
        self.assertIn("nowhere", start_error(*loopback, "--auth-tokens", f / "nowhere"))
        server = self.start("--insecure", "--listen", "0.0.0.0:0", store="insecure")
        self.addCleanup(server.process.kill)
        self.assertEqual(self.health(server.channel()), SERVING)
        self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    pathlib.Path(BINARY).resolve(strict=True)
    unittest.main(verbosity=2)
