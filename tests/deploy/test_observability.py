"""The metrics of a running c3pod in a real Prometheus: every expression of the dashboards and of the alert rules is asked
over HTTP while a load makes data. Needs Debian's prometheus and C3POD, the server's path in the environment.
Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_observability.py"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Callable

import grpc
import pytest
import yaml

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "tests" / "integration"))
import server_process

DEPLOY = SOURCE / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
SERIES_MAX = 800  # Of one scrape.
SCRAPES_EVERY = "500ms"
WINDOW = "30s"  # What Grafana's $__rate_interval stands for here.

# Gauges of the moment, 0 when nothing runs: the load goes on until a scrape has found each of them above it.
MOMENTARY = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "c3po_import_streams",
             "c3po_call_message_bytes", "c3po_work_memory_bytes")
# Expressions of dashboards that are zero, or empty, all through the load below. The test fails when one of them is not.
QUIET = {
    'sum by (instance) (c3po_index_device_bytes{job="$job",instance=~"$instance"})': "the index is in the host's memory",
    'sum by (instance) (c3po_index_device_budget_bytes{job="$job",instance=~"$instance"})': "the index is in the host's memory",
    'sum by (place) (rate(c3po_index_device_queries_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "the index is in the host's memory",
    'sum (rate(c3po_index_device_refusals_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "the index is in the host's memory",
    'sum by (instance) (c3po_index_device_failed{job="$job",instance=~"$instance"})': "the index is in the host's memory",
    'sum by (part) (c3po_gpu_memory_planned_bytes{job="$job",instance=~"$instance"})': "the model is in the host's memory",
    'sum by (instance) (c3po_gpu_memory_limit_bytes{job="$job",instance=~"$instance"})': "the model is in the host's memory",
    'sum by (instance) (c3po_kv_cache_leaked_blocks{job="$job",instance=~"$instance"})': "not 0 is a bug of the scheduler",
    'sum by (instance,kind) (c3po_learned_ignored{job="$job",instance=~"$instance"})': "everything is of the one model",
    'sum by (instance,kind) (c3po_store_damaged_rows{job="$job",instance=~"$instance"})': "the store is whole",
    'sum by (instance) (c3po_store_lost{job="$job",instance=~"$instance"})': "the store is in its place",
    'sum by (instance) (c3po_index_generations_behind{job="$job",instance=~"$instance"})': "the store is the server's own",
    'sum by (instance) (c3po_store_silent_seconds{job="$job",instance=~"$instance"})': "the store is the server's own",
    'sum by (files,result) (rate(c3po_reloads_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "no file is replaced",
    'sum by (instance,files) (c3po_reload_failed{job="$job",instance=~"$instance"})': "no file is replaced",
    'sum by (instance,thread) (rate(c3po_escaped_exceptions_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "none escapes",
    'sum by (instance) (rate(c3po_log_lines_lost_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "the log is read",
    'sum by (result) (rate(c3po_trace_spans_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "nothing is traced",
    'sum by (instance) (c3po_http_connections{job="$job",instance=~"$instance"})': "no --http-listen",
    'sum by (instance,limit) (rate(c3po_connections_refused_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "few connect",
    'sum by (instance,limit) (rate(c3po_calls_refused_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "few call",
    'sum by (instance) (c3po_health_watches{job="$job",instance=~"$instance"})': "nobody watches",
    'sum by (instance,limit) (rate(c3po_health_watches_refused_total{job="$job",instance=~"$instance"}[$__rate_interval]))': "nobody watches",
}


def rules() -> dict[str, str]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def dashboard_expressions() -> list[tuple[str, str]]:
    """(where, expression as written)"""
    return [(f"{path.stem}: {panel['title']}", target["expr"]) for path in DASHBOARDS
            for panel in json.loads(path.read_text(encoding="utf-8"))["panels"] for target in panel["targets"]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """A Prometheus on loopback that scrapes one target and evaluates the shipped alert rules."""

    def __init__(self, folder: pathlib.Path, target_port: int):
        (folder / "prometheus.yaml").write_text(yaml.safe_dump({
            "global": {"scrape_interval": SCRAPES_EVERY, "scrape_timeout": SCRAPES_EVERY, "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [{"job_name": "c3pod", "static_configs": [{"targets": [f"127.0.0.1:{target_port}"]}]}]}))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = open(folder / "prometheus.log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={self.url.removeprefix('http://')}"], stdout=self.log, stderr=self.log)
        try:
            wait_until(lambda: self.values("up == 1"), "Prometheus scrapes c3pod")
        except AssertionError:
            self.stop()
            raise

    def get(self, path: str, **parameters: str) -> dict:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=60) as response:
            return json.load(response)["data"]

    def values(self, expression: str) -> list[float]:
        """Of the series at this moment; empty while the server is not up."""
        try:
            return [float(series["value"][1]) for series in self.get("query", query=expression)["result"]]
        except (urllib.error.URLError, ConnectionError):
            if self.process.poll() is not None:
                self.log.seek(0)
                raise AssertionError(f"prometheus ended: {self.log.read()}")
            return []

    def range(self, expression: str, start: float, end: float) -> list[float]:
        """Every value of every series between two moments. A malformed expression raises HTTPError 400."""
        result = self.get("query_range", query=expression, start=str(start), end=str(end), step="0.25")["result"]
        return [float(value) for series in result for _, value in series["values"]]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()


def wait_until(condition, what: str, seconds: float = 60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


class Load:
    """Something of everything: each method, imports, learning, cancels, bad requests, more at once than are let in."""

    def __init__(self, server: server_process.ServerProcess):
        pb = server_process.make_stubs()
        self.gen, self.ref, self.opt, self.srv = (pb[name] for name in ("generation_pb2", "reference_pb2", "options_pb2", "server_pb2"))
        self.channel = server.channel()
        self.generation = pb["generation_pb2_grpc"].GenerationServiceStub(self.channel)
        self.references = pb["reference_pb2_grpc"].ReferenceServiceStub(self.channel)
        self.server = pb["server_pb2_grpc"].ServerServiceStub(self.channel)

    def generate(self, method: int, prompt: str = "What is 50 modulo seven?", max_tokens: int = 12, steps: int = 3, **options):
        options.setdefault("gate", self.opt.GateOptions(max_neighbor_distance=2))  # However far the few references are.
        return self.generation.Generate(self.gen.GenerateRequest(
            prompt=prompt, sampling=self.gen.SamplingOptions(max_tokens=max_tokens, ignore_eos=True),
            optimization=self.opt.OptimizationOptions(method=method, collection="set", steps=steps, **options,
                                                      reference_selection=self.opt.REFERENCE_SELECTION_ALL)), timeout=300)

    def add(self, count: int) -> None:
        samples = (self.ref.AddReferencesRequest(collection="set", sequence=i, sample=self.ref.ReferenceSample(
            prompt=f"What is {i} modulo seven?", answer=f" {i % 7}" if i else "", choices=[f" {c}" for c in range(7)] if i % 2 else []))
            for i in [*range(count), count - 1])  # The first is malformed, the last a duplicate.
        list(self.references.Add(samples, timeout=300))

    def score(self, method: int, **fields) -> None:
        self.generation.Score(self.gen.ScoreRequest(
            prompt="What is 51 modulo seven?", continuations=[f" {c}" for c in range(7)],
            optimization=self.opt.OptimizationOptions(method=method, collection="set", steps=3), **fields), timeout=60)

    def fail(self, call) -> None:
        with pytest.raises(grpc.RpcError):
            call()

    def cancel(self, count: Callable[[str], float]) -> None:
        """Cancels calls until one of them was let in and not yet answered. `count`: a metric's value."""
        def cancelled() -> bool:
            call = self.generate(self.opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, steps=1000)
            wait_until(lambda: call.done() or count("vllm:num_requests_running"), "the call runs")
            call.cancel()
            wait_until(lambda: not count("vllm:num_requests_running"), "the call has ended")
            return count("c3po_cancel_to_release_seconds_count") > 0

        wait_until(cancelled, "a call is cancelled")

    def keep_busy(self, enough) -> None:
        """Callers that optimize, one that tokenizes a large text, and an open import, until `enough` says so."""
        done = threading.Event()

        def ask(_) -> None:
            while not done.is_set():
                with contextlib.suppress(grpc.RpcError):  # More at once than are let in.
                    list(self.generate(self.opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, max_tokens=50, steps=30))

        def tokenize() -> None:
            while not done.is_set():
                self.generation.Tokenize(self.gen.TokenizeRequest(text="seven " * 100_000), timeout=300)

        def wait_for_end():
            done.wait()
            yield from ()

        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            added = self.references.Add(wait_for_end(), timeout=600)
            tokenized = pool.submit(tokenize)
            asked = pool.map(ask, range(8))
            try:
                wait_until(enough, "every gauge of the moment is above 0 once", seconds=300)
            finally:
                done.set()
            tokenized.result()
            list(asked)
            list(added)

    def crowd(self, callers: int, method: int, **options) -> int:
        """Asks all at once; returns how many were refused."""
        def ask(_) -> int:
            try:
                list(self.generate(method, **options))
                return 0
            except grpc.RpcError as error:
                return int(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED)
        with concurrent.futures.ThreadPoolExecutor(callers) as pool:
            return sum(pool.map(ask, range(callers)))

    def run(self, count: Callable[[str], float]) -> None:
        opt, ref = self.opt, self.ref
        self.add(24)
        list(self.references.TunePrior(ref.TunePriorRequest(collection="set", epochs=1, batch_size=8), timeout=300))
        list(self.references.AmortizeShifts(ref.AmortizeShiftsRequest(
            collection="set", optimization=opt.OptimizationOptions(steps=2)), timeout=300))
        for method in (opt.METHOD_NONE, opt.METHOD_MODE_FINDING, opt.METHOD_KERNEL_REGRESSION, opt.METHOD_AMORTIZED_SHIFT,
                       opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, opt.METHOD_COLLECTION_PRIOR):
            list(self.generate(method))
        self.score(opt.METHOD_ORACLE, oracle_answer=" 2")
        self.score(opt.METHOD_NONE)
        for distance in (1e-6, 2.0):  # The gate skips; the gate lets through.
            list(self.generate(opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, gate=opt.GateOptions(enabled=True, max_neighbor_distance=distance)))
        for _ in range(2):  # The second finds the first's beginning in the cache.
            list(self.generate(opt.METHOD_NONE, prompt=" ".join(f"Count: {i}." for i in range(20))))
        self.generation.Tokenize(self.gen.TokenizeRequest(text="seven"))
        self.references.GetStats(ref.GetStatsRequest())
        self.references.Search(ref.SearchReferencesRequest(collection="set", text="seven"))
        self.server.GetServerInfo(self.srv.GetServerInfoRequest())
        self.fail(lambda: list(self.generate(opt.METHOD_NONE, prompt="")))
        self.fail(lambda: self.references.Get(ref.GetReferenceRequest(id="nobody")))

        def preempted() -> float:
            self.crowd(8, opt.METHOD_NONE, max_tokens=200)
            return count("vllm:num_preemptions_total")

        self.cancel(count)
        # Of work that takes longer than it takes to ask; and of answers that, side by side, are more than the KV cache holds.
        wait_until(lambda: self.crowd(24, opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT, steps=100), "a crowd finds too few places")
        wait_until(preempted, "an answer is preempted")


@dataclasses.dataclass
class Observed:
    prometheus: Prometheus
    server: server_process.ServerProcess
    start: float
    end: float
    exposition: str


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("observability")
    server = server_process.ServerProcess(os.environ["C3POD"], folder, "--allow-oracle", "--threads", "1", "--embedder",
                                          str(server_process.cache_folder() / "models" / "all-minilm-l6-v2"), "--running-sequences-max", "4",
                                          "--pending-requests-max", "12", "--kv-cache-tokens", "384")  # So few that some have to wait.
    prometheus = None
    try:
        assert server.metrics_port, server.log
        prometheus = Prometheus(folder, server.metrics_port)
        start = time.time()
        load = Load(server)
        load.run(lambda name: sum(float(line.rsplit(" ", 1)[1]) for line in server.http("/metrics").splitlines()
                                  if re.match(rf"{name}[ {{]", line)))
        load.keep_busy(lambda: all(any(prometheus.range(gauge, start, time.time())) for gauge in MOMENTARY))
        load.channel.close()
        # Twice, so that a rate sees the last change.
        scraped = lambda: max(prometheus.values("timestamp(c3po_references)"), default=0)  # None is there after a scrape that failed.
        for _ in range(2):
            before = time.time()
            wait_until(lambda: scraped() > before, "another scrape")
        yield Observed(prometheus, server, start, time.time(), server.http("/metrics"))
    finally:
        if prometheus:
            prometheus.stop()
        if server.process.poll() is None:
            server.stop()


def as_asked(expression: str) -> str:
    """An expression of a dashboard as Grafana sends it."""
    return expression.replace("$__rate_interval", WINDOW).replace("$job", "c3pod").replace("$instance", ".*")


@pytest.mark.parametrize("where, expression", [pytest.param(*pair, id=pair[0] + f" #{at}") for at, pair in enumerate(dashboard_expressions())])
def test_every_expression_of_the_dashboards_shows_the_load(observed: Observed, where: str, expression: str) -> None:
    assert "$" not in as_asked(expression)
    values = observed.prometheus.range(as_asked(expression), observed.start, observed.end)
    moved = any(math.isfinite(value) and value != 0 for value in values)
    if expression in QUIET:
        assert not moved, f"take it off the list of quiet ones: {expression}"
    else:
        assert moved, f"{where}: {expression} gives {values[:5]}"


def test_quiet_expressions_are_on_a_dashboard() -> None:
    assert set(QUIET) <= {expression for _, expression in dashboard_expressions()}


# `a > b` is empty where it does not hold; `a > bool b` is 0, so it shows whether there is anything to compare. A time
# shift asks for more history than a test has.
@pytest.mark.parametrize("alert", rules())
def test_every_alert_rule_finds_what_it_compares(observed: Observed, alert: str) -> None:
    expression = rules()[alert]
    assert observed.prometheus.get("query", query=expression)["resultType"] == "vector"
    compared, count = re.subn(r" (>|<|==|!=|>=|<=) ", r" \1 bool ", re.sub(r" offset \w+", "", expression))
    assert count > 0
    values = observed.prometheus.range(compared, observed.start, observed.end)
    assert any(math.isfinite(value) for value in values), compared


def test_prometheus_evaluates_every_rule(observed: Observed) -> None:
    def evaluated() -> list[dict]:
        found = [rule for group in observed.prometheus.get("rules")["groups"] for rule in group["rules"]]
        return found if all(rule["health"] == "ok" for rule in found) else []

    assert {rule["name"] for rule in wait_until(evaluated, "all rules are healthy")} == set(rules())


def test_series_of_a_scrape_are_within_the_budget_and_do_not_grow(observed: Observed) -> None:
    counts = observed.prometheus.range('scrape_samples_scraped{job="c3pod"} and up{job="c3pod"} == 1', observed.start, observed.end)
    assert min(counts) == max(counts) < SERIES_MAX


def test_every_metric_is_on_a_dashboard_or_in_an_alert(observed: Observed) -> None:
    shown = " ".join([expression for _, expression in dashboard_expressions()] + list(rules().values()))
    families = re.findall(r"^# TYPE (\S+) (\S+)$", observed.exposition, re.M)
    assert len(families) > 30
    unseen = {name for name, _ in families if not re.search(rf"(?<![\w:]){name}(_bucket|_sum|_count)?\{{", shown)}
    assert unseen == set()


def test_every_label_has_few_values(observed: Observed) -> None:
    for label in ("model_name", "method", "decision", "code", "service", "finished_reason", "work", "verdict", "moment", "stage", "kind", "part",
                  "files", "result", "limit"):
        values = observed.prometheus.get(f"label/{label}/values")
        assert 0 < len(values) <= 40, label  # 34 methods, of the five services and HTTP.


def check_metrics(exposition: str) -> tuple[int, list[str]]:
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, text=True, timeout=120)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_promtool_accepts_the_metrics(observed: Observed) -> None:
    """Names that dashboards of language-model servers know hold a colon, which promtool keeps for recording rules: nothing
    else may be told of them, and nothing at all of ours."""
    _, told = check_metrics(observed.exposition)
    assert told and all(re.fullmatch(r"vllm:\w+ metric names should not contain ':'", line) for line in told), told
    assert check_metrics(observed.exposition.replace("vllm:", "vllm_")) == (0, [])


@pytest.mark.parametrize("command", (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"],
                                     ["check", "config", "prometheus.yaml"]))
def test_promtool_accepts_the_rules(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=ALERTS.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_every_alert_has_a_fault_that_fires_it() -> None:
    tested = ALERTS.with_name("alerts_test.yaml").read_text(encoding="utf-8")
    assert [alert for alert in rules() if f'alertname="{alert}"' not in tested] == []


def test_dashboards_are_what_the_script_writes(tmp_path: pathlib.Path) -> None:
    spec = importlib.util.spec_from_file_location("make_dashboards", DEPLOY / "grafana" / "make_dashboards.py")
    make_dashboards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_dashboards)
    assert {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS} == make_dashboards.DASHBOARDS
    for content in make_dashboards.DASHBOARDS.values():
        panels = content["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
        cells = [(panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y) for panel in panels
                 for x in range(panel["gridPos"]["w"]) for y in range(panel["gridPos"]["h"])]
        assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < make_dashboards.COLUMNS, "panels overlap"


def test_stopped_server_is_told_as_down(observed: Observed) -> None:
    """Last: the others need the server."""
    wait_until(lambda: observed.prometheus.values("up == 1") and not observed.prometheus.values(rules()["C3poDown"]), "the server is up")
    assert observed.server.stop() == 0
    wait_until(lambda: observed.prometheus.values(rules()["C3poDown"]), "C3poDown finds the server gone")
