"""The Dockerfile, compose and what compose mounts agree with each other and with c3pod's command line: what can be told without
a container engine.  Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_containers.py"""

import json
import os
import pathlib
import re
import subprocess

import pytest

from manifests import DEPLOY, SOURCE, USER, accepted, check_flags, dockerfile, lineage, read, server_flags, stages

YAML_FILES = sorted(path for suffix in ("yaml", "yml") for path in DEPLOY.rglob(f"*.{suffix}"))


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_parses_without_repeated_keys(path: pathlib.Path) -> None:
    assert all(isinstance(document, dict) and document for document in read(path))


def test_stages_come_from_pinned_images_or_earlier_stages() -> None:
    earlier: set[str] = set()
    for name, (parent, instructions) in stages().items():
        assert parent in earlier or parent == "debian:bookworm-slim", name
        for _, rest in instructions:
            copied = re.match(r"--from=(\S+)", rest)
            assert copied is None or copied.group(1) in earlier | {"debian:bookworm-slim"}, name
        earlier.add(name)
    assert list(stages())[-1] == "cpu", "what is built without --target"


def test_scripts_that_the_images_run_are_there_and_parse() -> None:
    scripts = {script for _, rest in dockerfile() for script in re.findall(r"deploy/\S+\.sh", rest)}
    scripts |= {str(path.relative_to(SOURCE)) for path in (DEPLOY / "docker").glob("*.sh")}
    assert {"deploy/install_deps.sh", "deploy/docker/build.sh", "deploy/docker/stage.sh"} <= scripts
    for script in scripts:
        assert os.access(SOURCE / script, os.X_OK), script
        assert subprocess.run(["bash", "-n", SOURCE / script]).returncode == 0, script


def test_server_images_hold_what_c3pod_runs() -> None:
    script = (DEPLOY / "install_deps.sh").read_text(encoding="utf-8")
    needed = set(re.search(r"^RUN_PACKAGES=\(([^)]*)\)", script, re.M).group(1).split())
    installed = {word for instruction, rest in lineage("cpu") if instruction == "RUN" for word in rest.split()}
    assert needed and needed <= installed


def test_security_paper_names_flags_files_and_limits_that_are_there() -> None:
    text = (SOURCE / "SECURITY.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (SOURCE / target).exists(), target
    for anchor in re.findall(r"server/README\.md#([\w-]+)", text):
        headings = re.findall(r"^## (.+)$", (SOURCE / "server" / "README.md").read_text(encoding="utf-8"), re.M)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, anchor
    flags = set(re.findall(r"`(--[a-z][a-z-]+)`", text))
    assert flags and flags <= server_flags(), flags - server_flags()
    envoy = (DEPLOY / "envoy" / "envoy.yaml").read_text(encoding="utf-8")
    for setting in ("premature_reset_total_stream_count: 200", "max_request_headers_kb: 16", "request_headers_timeout: 10s", "hpack_table_size: 0",
                    "max_concurrent_streams: 128"):
        assert setting in envoy, setting


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


SERVICE_KEYS = {"image", "build", "command", "depends_on", "ports", "volumes", "environment", "restart", "read_only", "tmpfs",
                "cap_drop", "security_opt", "stop_grace_period", "deploy", "mem_limit", "mem_reservation"}
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


def test_compose_files_fit_the_schema() -> None:
    accepted("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *(DEPLOY / "compose").glob("*.yaml"))


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
