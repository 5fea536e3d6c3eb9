"""A real Envoy with the shipped configuration in front of two c3pods: TLS, gRPC, JSON. Needs the Envoy of deploy/install_deps.sh
and C3POD, the server's path.  Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_envoy.py"""

import copy
import dataclasses
import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import grpc
import pytest
import yaml

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests" / "integration"), str(SOURCE / "deploy" / "envoy"), str(SOURCE / "deploy" / "attack")]
import http2_frames as h2
import make_descriptor
import server_process
from google.api import annotations_pb2
from manifests import objects

CONFIGURATION = SOURCE / "deploy" / "envoy" / "envoy.yaml"
ENVOY = max(server_process.cache_folder().glob("deploy-tools-*/lib/python3*/site-packages/envoy/_bin/envoy"))


# Ends a test that would hang; nothing is decided by it, however busy the machine is.
SECONDS_MAX = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What the configuration expects in /etc/envoy."""
    path = tmp_path_factory.mktemp("envoy")
    subprocess.run([sys.executable, SOURCE / "deploy" / "envoy" / "make_descriptor.py", path / "c3po.pb"], check=True)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path / "tls.key", "-out", path / "tls.crt",
                    "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    (path / "ca.crt").write_bytes((path / "tls.crt").read_bytes())
    return path


def shipped(folder: pathlib.Path) -> dict:
    return yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8").replace("/etc/envoy/", f"{folder}/"))


def test_envoy_accepts_the_shipped_configuration(folder: pathlib.Path) -> None:
    (folder / "shipped.yaml").write_text(yaml.safe_dump(shipped(folder)))
    done = subprocess.run([ENVOY, "--mode", "validate", "-c", folder / "shipped.yaml"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def resources() -> dict:
    return yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))["static_resources"]


def connection_manager() -> dict:
    return resources()["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def test_envoy_routes_every_service_to_the_headless_one() -> None:
    clusters = {cluster["name"]: cluster for cluster in resources()["clusters"]}
    routes = [route for host in connection_manager()["route_config"]["virtual_hosts"] for route in host["routes"]]
    assert {route["route"]["cluster"] for route in routes} == set(clusters)
    prefixes = tuple(route["match"]["prefix"] for route in routes)
    transcoder = next(f for f in connection_manager()["http_filters"] if f["name"].endswith("transcoder"))["typed_config"]
    services = {f"{file.package}.{service.name}" for file in make_descriptor.descriptors().file for service in file.service}
    assert set(transcoder["services"]) == services
    assert all(f"/{service}/".startswith(prefixes) for service in services)
    assert connection_manager()["http_filters"][-1]["name"] == "envoy.filters.http.router"
    address = clusters["c3pod"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    service = objects()["Service", "c3pod"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    assert address["address"] == host == clusters["c3pod"]["transport_socket"]["typed_config"]["sni"]
    assert address["port_value"] == next(port["port"] for port in service["spec"]["ports"] if port["name"] == "grpc")
    assert clusters["c3pod"]["health_checks"][0]["grpc_health_check"]["service_name"] in services


def test_every_call_but_the_conversation_has_an_http_form_that_fits_its_request() -> None:
    descriptors = make_descriptor.descriptors()
    messages = {f".{file.package}.{message.name}": {field.name for field in message.field}
                for file in descriptors.file for message in file.message_type}
    seen = set()
    for file in descriptors.file:
        for service in file.service:
            for method in service.method:
                if not method.options.HasExtension(annotations_pb2.http):
                    # A backup is the bytes of a file, which JSON would carry as a list of base64 texts.
                    assert method.client_streaming or method.name == "BackupStore", f"{method.name} has no rule"
                    continue
                rule = method.options.Extensions[annotations_pb2.http]
                verb = rule.WhichOneof("pattern")
                path = getattr(rule, verb)
                assert path.startswith("/v1/") and (verb, path) not in seen
                seen.add((verb, path))
                assert set(re.findall(r"{(\w+)}", path)) <= messages[method.input_type], path
                assert (verb == "get") == (rule.body == ""), path
                assert not method.client_streaming
    assert len(seen) == 15


def test_descriptor_holds_its_imports_and_the_details_of_errors(tmp_path: pathlib.Path) -> None:
    output = tmp_path / "c3po.pb"
    subprocess.run([sys.executable, SOURCE / "deploy" / "envoy" / "make_descriptor.py", output], check=True)
    descriptors = make_descriptor.descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    names = {file.name for file in descriptors.file}
    assert {dependency for file in descriptors.file for dependency in file.dependency} <= names
    assert {"google/rpc/error_details.proto", "c3po/v1/generation.proto"} <= names


@dataclasses.dataclass
class Proxied:
    port: int
    admin_address: str
    certificate: pathlib.Path
    servers: list[server_process.ServerProcess]
    pb: dict

    def json(self, path: str, body: object = None, method: str | None = None):
        request = urllib.request.Request(f"https://localhost:{self.port}{path}", method=method,
                                         data=None if body is None else json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS_MAX, context=ssl.create_default_context(cafile=str(self.certificate))) as response:
            return json.load(response)

    def fails(self, path: str, body: object = None) -> tuple[int, dict]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.json(path, body)
        return caught.value.code, json.loads(caught.value.read() or "{}")

    def admin(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.admin_address}{path}", timeout=SECONDS_MAX) as response:
            return response.read()

    def counter(self, name: str) -> int:
        return int(self.admin(f"/stats?filter=^{name}$").split()[-1])

    def ends(self, stream: int, *parts: bytes) -> bool:
        """Sends these frames on a connection of HTTP/2, and waits for the end of one of its streams, an answer's or a reset. False:
        the connection was closed before."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.set_alpn_protocols(["h2"])
        received = b""
        with socket.create_connection(("localhost", self.port), timeout=SECONDS_MAX) as plain, \
                context.wrap_socket(plain, server_hostname="localhost") as made:
            try:
                made.sendall(h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.SETTINGS, h2.ACK, 0) + b"".join(parts))
                while chunk := made.recv(1 << 16):
                    received += chunk
                    if h2.stream_ended(received, stream):
                        return True
            except (ConnectionError, ssl.SSLError):
                pass
        return False

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(f"localhost:{self.port}", grpc.ssl_channel_credentials(self.certificate.read_bytes()))


def found(folder: pathlib.Path, servers: list[server_process.ServerProcess], pb: dict) -> Proxied | None:
    """The Envoy, once it has said where it listens, knows both servers to be healthy, and has passed a call on."""
    address = (folder / "admin").read_text() if (folder / "admin").exists() else ""
    made = Proxied(0, address, folder / "tls.crt", servers, pb)
    try:
        statuses = json.loads(made.admin("/listeners?format=json")).get("listener_statuses", []) if address else []
        made.port = statuses[0]["local_address"]["socket_address"]["port_value"] if statuses else 0
        if not made.port or made.counter("cluster.c3pod.membership_healthy") < len(servers):
            return None
        made.json("/v1/server")
        return made
    except (urllib.error.URLError, ConnectionError):
        return None


@pytest.fixture(scope="module")
def proxied(folder: pathlib.Path):
    """The shipped configuration on ports that Envoy finds free, with the servers' addresses in place of the cluster's name, which
    resolves in Kubernetes only, and without its certificates. Servers have the time of a busy machine to connect and to say that they
    are healthy: one that is taken for ill would get no calls."""
    servers, envoy = [], None
    try:
        for name in ("one", "two"):
            (folder / name).mkdir()
            servers.append(server_process.ServerProcess(os.environ["C3POD"], folder / name, "--threads", "1"))
            assert servers[-1].port, servers[-1].log
        configuration = shipped(folder)
        resources = configuration["static_resources"]
        resources["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
        configuration["admin"]["address"]["socket_address"]["port_value"] = 0
        cluster = resources["clusters"][0]
        del cluster["transport_socket"]
        cluster["connect_timeout"] = cluster["health_checks"][0]["timeout"] = f"{SECONDS_MAX}s"
        endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        endpoints.append(copy.deepcopy(endpoints[0]))
        for endpoint, server in zip(endpoints, servers, strict=True):
            endpoint["endpoint"]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": server.port}
        (folder / "envoy.yaml").write_text(yaml.safe_dump(configuration))
        log = open(folder / "envoy.log", "w+", encoding="utf-8")
        envoy = subprocess.Popen([ENVOY, "-c", folder / "envoy.yaml", "--disable-hot-restart", "--concurrency", "1",
                                  "--admin-address-path", folder / "admin"], stdout=log, stderr=log)
        pb, end = server_process.make_stubs(), time.monotonic() + SECONDS_MAX
        while not (made := found(folder, servers, pb)):
            assert envoy.poll() is None and time.monotonic() < end, (folder / "envoy.log").read_text()
            time.sleep(0.1)
        yield made
    finally:
        if envoy:
            envoy.terminate()
            envoy.wait(timeout=30)
            log.close()
        for server in servers:
            if server.process.poll() is None:
                server.stop()


def test_unary_calls_speak_json(proxied: Proxied) -> None:
    assert proxied.json("/v1/server")["model"]["moe_layers"] > 0
    ids = proxied.json("/v1/tokenize", {"text": "seven"})["ids"]
    assert ids and "seven" in proxied.json("/v1/detokenize", {"ids": ids})["text"]
    scored = proxied.json("/v1/score", {"prompt": "What is 50 modulo seven?", "continuations": [" 1", " 2"],
                                        "optimization": {"method": "METHOD_NONE"}})
    assert len(scored["scores"]) == 2
    proxied.json("/v1/stats")
    proxied.json("/v1/references?page_size=5")


def test_streamed_answer_is_a_json_array(proxied: Proxied) -> None:
    events = proxied.json("/v1/generate", {"prompt": "What is 50 modulo seven?", "sampling": {"max_tokens": 5, "ignore_eos": True},
                                           "optimization": {"method": "METHOD_NONE"}})
    assert [next(iter(event)) for event in events][0] == "optimization" and "summary" in events[-1]
    assert events[-1]["summary"]["usage"]["completion_tokens"] == 5


def test_errors_keep_status_reason_and_field(proxied: Proxied) -> None:
    code, error = proxied.fails("/v1/score", {"prompt": "", "continuations": [" 1"]})
    assert code == 400 and error["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
    # Older Envoys spell the fields of details in camel case.
    violations = kinds["BadRequest"].get("field_violations") or kinds["BadRequest"]["fieldViolations"]
    assert violations[0]["field"] and re.fullmatch(r"[A-Z_]+", kinds["ErrorInfo"]["reason"])
    assert proxied.fails("/v1/references/nobody")[0] == 404
    assert proxied.fails("/v1/nowhere")[0] == 404


def test_grpc_goes_through_tls_and_over_all_servers(proxied: Proxied) -> None:
    gen = proxied.pb["generation_pb2"]

    def calls(server: server_process.ServerProcess) -> int:
        return int(re.search(r'^c3po_rpc_total\{code="OK",method="Tokenize"\S+ (\d+)', server.http("/metrics"), re.M).group(1))

    before = [calls(server) for server in proxied.servers]
    with proxied.channel() as channel:
        stub = proxied.pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        end = time.monotonic() + SECONDS_MAX
        while not all(calls(server) > count for server, count in zip(proxied.servers, before)):
            assert time.monotonic() < end, "one connection, and one of the servers was never asked"
            stub.Tokenize(gen.TokenizeRequest(text="seven"), timeout=SECONDS_MAX)
        request = gen.GenerateRequest(prompt="seven", sampling=gen.SamplingOptions(max_tokens=3, ignore_eos=True))
        request.optimization.method = proxied.pb["options_pb2"].METHOD_NONE
        assert list(stub.Generate(request, timeout=SECONDS_MAX))[-1].summary.usage.completion_tokens == 3


def info_call(stream: int, *more: tuple[bytes, bytes]) -> bytes:
    """One call of GetServerInfo, as frames."""
    return h2.split_headers(stream, h2.call_fields("/c3po.v1.ServerService/GetServerInfo", *more, scheme=b"https")) + \
        h2.data(stream, h2.message(b""))


def test_rapid_resets_close_their_connection_and_cost_nobody_else_a_call(proxied: Proxied) -> None:
    most = shipped(proxied.certificate.parent)["layered_runtime"]["layers"][0]["static_layer"]["overload.premature_reset_total_stream_count"]
    path, premature = "/c3po.v1.GenerationService/Tokenize", "http.c3po.downstream_rq_too_many_premature_resets"

    def outlives_resets(count: int) -> bool:
        """Whether a connection on which so many calls are opened and reset at once answers the call behind them."""
        resets = [h2.headers(2 * i + 1, h2.call_fields(path, scheme=b"https")) + h2.frame(h2.RST_STREAM, 0, 2 * i + 1, b"\0\0\0\x08")
                  for i in range(count)]
        return proxied.ends(2 * count + 1, *resets, info_call(2 * count + 1))

    assert outlives_resets(most // 4), "a client may change its mind"
    assert proxied.counter(premature) == 0
    assert not outlives_resets(2 * most)
    assert proxied.counter(premature) >= 1
    assert proxied.json("/v1/tokenize", {"text": "seven"})["ids"]


def test_headers_beyond_the_limits_are_refused_before_a_server_sees_them(proxied: Proxied) -> None:
    for more in ([(f"x-{i}".encode(), b"1") for i in range(100)], [(b"x-long", b"1" * 20_000)]):
        before = proxied.counter("cluster.c3pod.upstream_rq_total")
        proxied.ends(1, info_call(1, *more))
        assert proxied.counter("cluster.c3pod.upstream_rq_total") == before, more[0]
    assert proxied.ends(1, info_call(1, (b"x-one", b"1")))
    assert proxied.counter("cluster.c3pod.upstream_rq_total") == before + 1


def test_what_hostile_clients_may_hold_is_bounded() -> None:
    configuration = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    monitors = {m["name"].rpartition(".")[2]: m["typed_config"] for m in configuration["overload_manager"]["resource_monitors"]}
    assert 0 < monitors["global_downstream_max_connections"]["max_active_downstream_connections"] <= 10_000
    assert monitors["fixed_heap"]["max_heap_size_bytes"] > 0
    actions = {action["name"].rpartition(".")[2]: action["triggers"] for action in configuration["overload_manager"]["actions"]}
    assert {"stop_accepting_requests", "reset_high_memory_stream"} <= set(actions)
    assert {trigger["name"] for triggers in actions.values() for trigger in triggers} <= {
        m["name"] for m in configuration["overload_manager"]["resource_monitors"]}
    listener, manager = resources()["listeners"][0], connection_manager()
    for limited in (listener, resources()["clusters"][0]):
        assert 0 < limited["per_connection_buffer_limit_bytes"] <= 4 << 20
    assert all("transport_socket_connect_timeout" in chain for chain in listener["filter_chains"])
    common = manager["common_http_protocol_options"]
    assert common["max_requests_per_connection"] > 0 and common["max_headers_count"] <= 100 and "idle_timeout" in common
    assert manager["max_request_headers_kb"] <= 60 and "request_headers_timeout" in manager
    assert manager["http2_protocol_options"]["max_concurrent_streams"] <= 256
    assert "circuit_breakers" in resources()["clusters"][0]


def test_server_that_leaves_costs_no_call(proxied: Proxied) -> None:
    """Last: one server is gone afterwards."""
    gen = proxied.pb["generation_pb2"]
    with proxied.channel() as channel:
        stub = proxied.pb["generation_pb2_grpc"].GenerationServiceStub(channel)
        assert proxied.servers[0].stop() == 0
        for _ in range(10):
            stub.Tokenize(gen.TokenizeRequest(text="seven"), timeout=SECONDS_MAX)
