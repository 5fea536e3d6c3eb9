"""The manifests of Kubernetes fit its schemas and agree with each other, with the images and with c3pod's command line.
Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_kubernetes.py"""

import os
import pathlib
import re
import subprocess

from manifests import DEPLOY, KUBERNETES, SOURCE, USER, accepted, check_flags, lineage, objects, read


def pods() -> list[dict]:
    return [item["spec"]["template"] for (kind, _), item in objects().items() if kind in ("Deployment", "Job")]


def containers(pod: dict) -> list[dict]:
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def test_objects_are_of_known_kinds_in_one_namespace() -> None:
    versions = {"Namespace": "v1", "PersistentVolumeClaim": "v1", "Service": "v1", "Deployment": "apps/v1", "Job": "batch/v1",
                "HorizontalPodAutoscaler": "autoscaling/v2", "PodDisruptionBudget": "policy/v1",
                "NetworkPolicy": "networking.k8s.io/v1",
                "ServiceMonitor": "monitoring.coreos.com/v1", "PrometheusRule": "monitoring.coreos.com/v1"}
    assert {kind for kind, _ in objects()} == set(versions)
    for (kind, name), item in objects().items():
        assert item["apiVersion"] == versions[kind], name
        assert item["metadata"].get("namespace", "c3po") == "c3po" and (kind == "Namespace" or "namespace" in item["metadata"]), name


def test_objects_fit_the_schemas_of_kubernetes() -> None:
    """Kinds of others (the Prometheus operator, kustomize) have none there."""
    accepted("-m", "kubernetes_validate", "--strict", "--no-warn",
             *(path for path in KUBERNETES.glob("*.yaml") if path.name != "kustomization.yaml"))


def test_kustomization_lists_files_that_are_there() -> None:
    kustomization = read(KUBERNETES / "kustomization.yaml")[0]
    assert all((KUBERNETES / name).is_file() for name in kustomization["resources"])
    kinds = {document["kind"] for name in kustomization["resources"] for document in read(KUBERNETES / name)}
    assert kinds == {"Namespace", "PersistentVolumeClaim", "Deployment", "Service", "NetworkPolicy", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
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


def lets_in(namespace: dict, pod: dict, port: str, target: dict) -> bool:
    """Whether the policies let a pod with these labels, in a namespace with these, connect to a port of a pod with the labels
    `target`, as Kubernetes defines it: any rule of any policy that selects the target is enough; no such policy, and all may."""
    def selects(selector: dict, labels: dict) -> bool:
        assert set(selector) <= {"matchLabels"}
        return selector.get("matchLabels", {}).items() <= labels.items()

    def is_peer(peer: dict) -> bool:
        if "namespaceSelector" not in peer and namespace.get("kubernetes.io/metadata.name") != "c3po":
            return False
        return selects(peer.get("namespaceSelector", {}), namespace) and selects(peer.get("podSelector", {}), pod)

    policies = [item["spec"] for (kind, _), item in objects().items() if kind == "NetworkPolicy"]
    selected = [policy for policy in policies if "Ingress" in policy["policyTypes"] and selects(policy["podSelector"], target)]
    rules = [rule for policy in selected for rule in policy.get("ingress", [])]
    return not selected or any(any(is_peer(peer) for peer in rule["from"]) and port in [p["port"] for p in rule["ports"]] for rule in rules)


def test_network_lets_clients_call_and_prometheus_scrape_and_nobody_else() -> None:
    template = objects()["Deployment", "c3pod"]["spec"]["template"]
    server = template["metadata"]["labels"]
    own, monitoring, clients, others = ({"kubernetes.io/metadata.name": name} for name in ("c3po", "monitoring", "clients", "others"))
    clients["c3po-client"] = "true"
    expected = {"grpc": [(own, {"c3po-client": "true"}), (clients, {}), (clients, {"c3po-client": "true"})], "metrics": [(monitoring, {})]}
    assert set(expected) == {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    sources = [(namespace, pod) for namespace in (own, monitoring, clients, others) for pod in ({}, {"c3po-client": "true"})]
    for port, allowed in expected.items():
        for namespace, pod in sources:
            may = (namespace, pod) in allowed or (port == "metrics" and namespace is monitoring)
            assert lets_in(namespace, pod, port, server) == may, (port, namespace, pod)
    for job in (item for (kind, _), item in objects().items() if kind == "Job"):
        assert not any(lets_in(*source, "grpc", job["spec"]["template"]["metadata"]["labels"]) for source in sources)
    out = [item["spec"] for (kind, _), item in objects().items() if kind == "NetworkPolicy" and "Egress" in item["spec"]["policyTypes"]]
    assert any(policy["podSelector"] == {} and not policy.get("egress") for policy in out), "no pod of ours calls anybody"


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
