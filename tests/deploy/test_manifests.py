"""The manifests of deploy/ agree with themselves, with each other and with c3pod's command line: what can be told without a
container engine, a cluster or a proxy.  Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_manifests.py"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

SOURCE = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = SOURCE / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
sys.path.insert(0, str(DEPLOY / "envoy"))
import make_descriptor
from google.api import annotations_pb2

YAML_FILES = sorted(path for suffix in ("yaml", "yml") for path in DEPLOY.rglob(f"*.{suffix}"))
USER = 10001
# Flags that the manifests use and that c3pod may not have yet.
EXPECTED_FLAGS = {"--insecure", "--tls-cert", "--tls-key", "--tls-client-ca", "--auth-tokens"}


class UniqueKeyLoader(yaml.SafeLoader):
    """A key given twice is an error: the plain loader keeps the last one in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if len(keys) != len(set(keys)):
            raise yaml.YAMLError(f"{node.start_mark}: a key twice in {keys}")
        return super().construct_mapping(node, deep)


def read(path: pathlib.Path) -> list[dict]:
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader))


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_parses_without_repeated_keys(path: pathlib.Path) -> None:
    assert all(isinstance(document, dict) and document for document in read(path))


@functools.cache
def server_flags() -> frozenset[str]:
    text = subprocess.run([os.environ["C3POD"], "--help"], capture_output=True, text=True, check=True).stdout
    flags = frozenset(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert {"--listen", "--metrics-port"} <= flags
    return flags


def check_flags(arguments: list[str]) -> None:
    assert {argument.partition("=")[0] for argument in arguments} <= server_flags() | EXPECTED_FLAGS, arguments


# --- Dockerfile ---


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest), continuation lines joined."""
    text = re.sub(r"\\\n", " ", (SOURCE / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """name -> (parent, instructions)"""
    found: dict[str, tuple[str, list]] = {}
    for instruction, rest in dockerfile():
        if instruction == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            assert name not in found
            found[name] = (parent, [])
            current = found[name][1]
        else:
            current.append((instruction, rest))
    return found


def lineage(name: str) -> list[tuple[str, str]]:
    """Instructions of a stage and of the stages it is made from."""
    parent, instructions = stages()[name]
    return (lineage(parent) if parent in stages() else []) + instructions


def test_stages_come_from_pinned_images_or_earlier_stages() -> None:
    earlier: set[str] = set()
    for name, (parent, instructions) in stages().items():
        assert parent in earlier or parent == "debian:bookworm-slim", name
        for _, rest in instructions:
            copied = re.match(r"--from=(\S+)", rest)
            assert copied is None or copied.group(1) in earlier, name
        earlier.add(name)
    assert list(stages())[-1] == "cpu", "what is built without --target"


def test_scripts_that_the_images_run_are_there_and_parse() -> None:
    scripts = {script for _, rest in dockerfile() for script in re.findall(r"deploy/\S+\.sh", rest)}
    scripts |= {str(path.relative_to(SOURCE)) for path in (DEPLOY / "docker").glob("*.sh")}
    assert {"deploy/install_deps.sh", "deploy/docker/build.sh", "deploy/docker/stage.sh"} <= scripts
    for script in scripts:
        assert os.access(SOURCE / script, os.X_OK), script
        assert subprocess.run(["bash", "-n", SOURCE / script]).returncode == 0, script


@pytest.mark.parametrize("target", ("cpu", "cuda"))
def test_server_images_run_as_nobody_special_and_say_whether_they_are_well(target: str) -> None:
    instructions = dict(lineage(target))
    assert instructions["USER"] == f"{USER}:{USER}"
    assert "healthcheck.sh" in json.loads(instructions["HEALTHCHECK"].partition("CMD ")[2])
    assert json.loads(instructions["ENTRYPOINT"]) == ["c3pod"]
    assert json.loads(instructions["VOLUME"]) == ["/models", "/var/lib/c3po"]
    environment = {name: value for instruction, rest in lineage(target) if instruction == "ENV"
                   for name, value in re.findall(r"(\w+)=(\S+)", rest)}
    settings = {name for name in environment if name.startswith("C3PO_")}
    assert {"--" + name.removeprefix("C3PO_").lower().replace("_", "-") for name in settings} <= server_flags()
    ports = {environment["C3PO_LISTEN"].rpartition(":")[2], environment["C3PO_METRICS_PORT"]}
    assert set(instructions["EXPOSE"].split()) == ports
    assert environment["PATH"].startswith("/opt/c3po/bin:")
    assert (environment.get("C3PO_DEVICE") == "cuda") == (target == "cuda")


# --- Compose ---

SERVICE_KEYS = {"image", "build", "command", "depends_on", "ports", "volumes", "environment", "restart", "read_only", "tmpfs",
                "cap_drop", "security_opt", "stop_grace_period", "deploy"}
CONDITIONS = {"service_healthy", "service_completed_successfully", "service_started"}


def test_compose_names_only_what_it_has() -> None:
    compose = read(DEPLOY / "compose" / "compose.yaml")[0]
    assert set(compose) == {"name", "services", "volumes"}
    services, used = compose["services"], set()
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        assert ":" in service["image"] or service["build"]["target"] in stages(), "a tag, or made here"
        if "build" in service:
            context = DEPLOY / "compose" / service["build"]["context"]
            assert (context / "Dockerfile").resolve() == SOURCE / "Dockerfile"
        needed = service.get("depends_on", [])
        assert set(needed) <= set(services), name
        if isinstance(needed, dict):
            assert {need["condition"] for need in needed.values()} <= CONDITIONS
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).exists(), volume
                assert volume.endswith(":ro"), volume
            else:
                used.add(source)
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), f"{name}: {port} is open to the network"
    assert used == set(compose["volumes"])
    check_flags(services["c3pod"]["command"])


def test_compose_mounts_what_the_images_declare() -> None:
    services = read(DEPLOY / "compose" / "compose.yaml")[0]["services"]
    mounted = {volume.split(":")[1] for volume in services["c3pod"]["volumes"]}
    assert mounted == set(json.loads(dict(lineage("cpu"))["VOLUME"]))
    assert dict(lineage("models"))["VOLUME"] in {volume.split(":")[1] for volume in services["models"]["volumes"]}


def test_cuda_overlay_only_changes_services_that_are_there() -> None:
    overlay = read(DEPLOY / "compose" / "compose.cuda.yaml")[0]["services"]
    assert set(overlay) <= set(read(DEPLOY / "compose" / "compose.yaml")[0]["services"])
    assert overlay["c3pod"]["build"]["target"] == "cuda"


def test_prometheus_and_grafana_find_each_other_in_compose() -> None:
    services = read(DEPLOY / "compose" / "compose.yaml")[0]["services"]
    scrape = read(DEPLOY / "prometheus" / "prometheus.yaml")[0]["scrape_configs"][0]
    host, port = scrape["static_configs"][0]["targets"][0].split(":")
    assert scrape["job_name"] == "c3pod" and host in services
    assert any(published.endswith(f":{port}") for published in services[host]["ports"])
    source = read(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")[0]["datasources"][0]
    host, port = source["url"].removeprefix("http://").split(":")
    assert host in services and services[host]["ports"][0].endswith(f":{port}")
    provider = read(DEPLOY / "grafana" / "provisioning" / "dashboards" / "c3po.yaml")[0]["providers"][0]
    mounts = dict(volume.split(":")[1::-1] for volume in services["grafana"]["volumes"])
    folder = (DEPLOY / "compose" / mounts[provider["options"]["path"]]).resolve()
    assert {path.name for path in folder.glob("*.json")} >= {"traffic.json", "pathways.json", "references.json", "process.json"}
    assert (DEPLOY / "compose" / mounts["/etc/grafana/provisioning"]).resolve() == DEPLOY / "grafana" / "provisioning"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (folder / pathlib.Path(home).name).exists()


# --- Kubernetes ---


def objects() -> dict[tuple[str, str], dict]:
    found = {}
    for path in [*KUBERNETES.glob("*.yaml"), *(KUBERNETES / "monitoring").glob("*.yaml")]:
        for document in read(path):
            if "kind" in document and document["kind"] != "Kustomization":
                key = (document["kind"], document["metadata"]["name"])
                assert key not in found, key
                found[key] = document
    return found


def pods() -> list[dict]:
    return [item["spec"]["template"] for (kind, _), item in objects().items() if kind in ("Deployment", "Job")]


def containers(pod: dict) -> list[dict]:
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def test_objects_are_of_known_kinds_in_one_namespace() -> None:
    versions = {"Namespace": "v1", "PersistentVolumeClaim": "v1", "Service": "v1", "Deployment": "apps/v1", "Job": "batch/v1",
                "HorizontalPodAutoscaler": "autoscaling/v2", "PodDisruptionBudget": "policy/v1",
                "ServiceMonitor": "monitoring.coreos.com/v1", "PrometheusRule": "monitoring.coreos.com/v1"}
    assert {kind for kind, _ in objects()} == set(versions)
    for (kind, name), item in objects().items():
        assert item["apiVersion"] == versions[kind], name
        assert item["metadata"].get("namespace", "c3po") == "c3po" and (kind == "Namespace" or "namespace" in item["metadata"]), name


def test_kustomization_lists_files_that_are_there() -> None:
    kustomization = read(KUBERNETES / "kustomization.yaml")[0]
    assert all((KUBERNETES / name).is_file() for name in kustomization["resources"])
    kinds = {document["kind"] for name in kustomization["resources"] for document in read(KUBERNETES / name)}
    assert kinds == {"Namespace", "PersistentVolumeClaim", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    images = {image["name"] for image in kustomization["images"]}
    assert images <= {container["image"] for pod in pods() for container in containers(pod)}


def test_selectors_select_the_pods() -> None:
    labels = objects()["Deployment", "c3pod"]["spec"]["template"]["metadata"]["labels"]
    selectors = [objects()["Deployment", "c3pod"]["spec"]["selector"]["matchLabels"],
                 objects()["Service", "c3pod"]["spec"]["selector"],
                 objects()["PodDisruptionBudget", "c3pod"]["spec"]["selector"]["matchLabels"],
                 objects()["Deployment", "c3pod"]["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]]
    for selector in selectors:
        assert selector and selector.items() <= labels.items()
    for (kind, name), item in objects().items():
        if kind == "Job":
            assert not selectors[1].items() <= item["spec"]["template"]["metadata"]["labels"].items(), f"{name} would get calls"
    monitored = objects()["ServiceMonitor", "c3pod"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= objects()["Service", "c3pod"]["metadata"]["labels"].items()
    target = objects()["HorizontalPodAutoscaler", "c3pod"]["spec"]["scaleTargetRef"]
    assert objects()[target["kind"], target["name"]]["apiVersion"] == target["apiVersion"]
    assert "replicas" not in objects()["Deployment", "c3pod"]["spec"], "the autoscaler owns it"


def test_ports_have_one_name_and_number_everywhere() -> None:
    pod = objects()["Deployment", "c3pod"]["spec"]["template"]
    server = pod["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert {str(port) for port in ports.values()} == set(dict(lineage("cpu"))["EXPOSE"].split())
    service = objects()["Service", "c3pod"]["spec"]
    assert service["clusterIP"] == "None"
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["port"] in ports and server[probe]["httpGet"]["path"] in ("/readyz", "/healthz")
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    endpoints = objects()["ServiceMonitor", "c3pod"]["spec"]["endpoints"]
    assert {endpoint["port"] for endpoint in endpoints} <= {port["name"] for port in service["ports"]}


def test_pod_has_time_to_drain() -> None:
    pod = objects()["Deployment", "c3pod"]["spec"]["template"]["spec"]
    server = pod["containers"][0]
    waits = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    drains = int(re.search(r"^drain-seconds\S* = (\d+)$", subprocess.run(
        [os.environ["C3POD"], "--print-config"], capture_output=True, text=True, check=True).stdout, re.M).group(1))
    assert pod["terminationGracePeriodSeconds"] >= waits + drains + 10
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300, "large models load for minutes"
    compose = read(DEPLOY / "compose" / "compose.yaml")[0]["services"]["c3pod"]
    assert int(compose["stop_grace_period"].removesuffix("s")) >= drains + 10


def test_containers_may_do_nothing_but_serve() -> None:
    for pod in pods():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == context["fsGroup"] == USER
        assert context["seccompProfile"] == {"type": "RuntimeDefault"} and not pod["spec"]["automountServiceAccountToken"]
        for container in containers(pod):
            own = container["securityContext"]
            assert own == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]) and "memory" in container["resources"]["limits"]


def test_volumes_are_declared_mounted_and_claimed() -> None:
    claims = {name for kind, name in objects() if kind == "PersistentVolumeClaim"}
    for pod in pods():
        declared = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == set(declared)
        for container in containers(pod):
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(set(paths)) == len(paths)
            for mount in container["volumeMounts"]:
                claim = declared[mount["name"]].get("persistentVolumeClaim")
                if claim:
                    assert claim["claimName"] in claims
                    assert mount.get("readOnly", False) == claim.get("readOnly", False)


def test_server_arguments_are_flags_and_files_of_mounted_secrets() -> None:
    pod = objects()["Deployment", "c3pod"]["spec"]["template"]["spec"]
    server = pod["containers"][0]
    check_flags(server["args"])
    flags = dict(argument.split("=", 1) for argument in server["args"])
    secrets = {volume["name"] for volume in pod["volumes"] if "secret" in volume}
    mounts = {mount["mountPath"] for mount in server["volumeMounts"] if mount["name"] in secrets and mount["readOnly"]}
    for flag in ("--tls-cert", "--tls-key", "--auth-tokens"):
        assert str(pathlib.PurePosixPath(flags[flag]).parent) in mounts
    importing = objects()["Job", "c3po-import"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert (DEPLOY / "docker" / importing[0]).is_file()
    assert pathlib.PurePosixPath(importing[1]).name in pod["initContainers"][0]["command"][2]


def test_autoscaler_asks_for_the_metric_that_the_adapter_makes() -> None:
    rule = read(KUBERNETES / "monitoring" / "adapter_values.yaml")[0]["rules"]["custom"][0]
    metric = objects()["HorizontalPodAutoscaler", "c3pod"]["spec"]["metrics"][0]
    assert metric["type"] == "Pods" and metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = rule["seriesQuery"].partition("{")[0]
    assert f'"{series}"' in (SOURCE / "server" / "metrics" / "prometheus_exporter.cc").read_text(encoding="utf-8")


def test_rules_for_the_operator_are_the_rules() -> None:
    assert objects()["PrometheusRule", "c3pod"]["spec"] == read(DEPLOY / "prometheus" / "alerts.yaml")[0]


# --- Envoy ---


def envoy() -> dict:
    return read(DEPLOY / "envoy" / "envoy.yaml")[0]["static_resources"]


def connection_manager() -> dict:
    return envoy()["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def test_envoy_routes_every_service_to_the_headless_one() -> None:
    clusters = {cluster["name"]: cluster for cluster in envoy()["clusters"]}
    routes = [route for host in connection_manager()["route_config"]["virtual_hosts"] for route in host["routes"]]
    assert {route["route"]["cluster"] for route in routes} == set(clusters)
    prefixes = tuple(route["match"]["prefix"] for route in routes)
    transcoder = next(f for f in connection_manager()["http_filters"] if f["name"].endswith("transcoder"))["typed_config"]
    services = {f"{file.package}.{service.name}" for file in make_descriptor.compile_protos().file for service in file.service}
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
    descriptors = make_descriptor.annotated()
    messages = {f".{file.package}.{message.name}": {field.name for field in message.field}
                for file in descriptors.file for message in file.message_type}
    seen = set()
    for file in descriptors.file:
        for service in file.service:
            for method in service.method:
                if not method.options.HasExtension(annotations_pb2.http):
                    assert method.client_streaming, f"{method.name} has no rule"
                    continue
                rule = method.options.Extensions[annotations_pb2.http]
                verb = rule.WhichOneof("pattern")
                path = getattr(rule, verb)
                assert path.startswith("/v1/") and (verb, path) not in seen
                seen.add((verb, path))
                assert set(re.findall(r"{(\w+)}", path)) <= messages[method.input_type], path
                assert (verb == "get") == (rule.body == ""), path
                assert not method.client_streaming
    assert len(seen) == 14


def test_descriptor_holds_its_imports_and_the_details_of_errors(tmp_path: pathlib.Path) -> None:
    output = tmp_path / "c3po.pb"
    subprocess.run([sys.executable, DEPLOY / "envoy" / "make_descriptor.py", output], check=True)
    descriptors = make_descriptor.descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    names = {file.name for file in descriptors.file}
    assert {dependency for file in descriptors.file for dependency in file.dependency} <= names
    assert {"google/rpc/error_details.proto", "c3po/v1/generation.proto"} <= names


def test_rule_without_a_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_descriptor, "read_rules", lambda: {"c3po.v1.GenerationService.Dream": make_descriptor.http_pb2.HttpRule()})
    with pytest.raises(ValueError, match="Dream"):
        make_descriptor.annotated()
