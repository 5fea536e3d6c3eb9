"""Writes the dashboards: dashboards/*.json beside this file. The panels are described here; a test holds both equal.
usage: make_dashboards.py [FOLDER]"""

import json
import pathlib
import sys

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
ON = 'job="$job",instance=~"$instance"'  # What every query selects.
WINDOW = "[$__rate_interval]"
COLUMNS, HEIGHT = 24, 8


def rate(metric: str, by: str = "", labels: str = "") -> str:
    """Per second, summed over instances (and kept apart by the labels of `by`)."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{ON}{',' + labels if labels else ''}}}{WINDOW}))"


def quantile(q: float, histogram: str, by: str = "", labels: str = "") -> str:
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', 'le' + (',' + by if by else ''), labels)})"


def mean(histogram: str, by: str = "", labels: str = "") -> str:
    return f"{rate(histogram + '_sum', by, labels)} / {rate(histogram + '_count', by, labels)}"


def gauge(metric: str, by: str = "instance") -> str:
    return f"sum by ({by}) ({metric}{{{ON}}})"


def quantiles(histogram: str) -> list[tuple[str, str]]:
    return [(quantile(q, histogram), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)] + [(mean(histogram), "mean")]


def panel(title: str, unit: str, queries: list[tuple[str, str]], *, width: int = 8, kind: str = "timeseries",
          stacked: bool = False, description: str = "") -> dict:
    custom = {"lineWidth": 1, "fillOpacity": 60 if stacked else 8, "showPoints": "never", "spanNulls": False,
              "stacking": {"mode": "normal" if stacked else "none", "group": "A"}}
    made = {
        "type": kind, "title": title, "description": description, "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom if kind == "timeseries" else {}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [{"refId": chr(ord("A") + at), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend,
                     "range": True} for at, (expression, legend) in enumerate(queries)],
        "gridPos": {"w": width, "h": HEIGHT},
    }
    if kind == "heatmap":
        made["options"] = {"calculate": False, "yAxis": {"unit": unit}, "color": {"scheme": "Blues", "mode": "scheme"}}
        made["targets"][0]["format"] = "heatmap"
    if kind == "stat":
        made["gridPos"] = {"w": width, "h": HEIGHT // 2}
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "area"}
    return made


TRAFFIC = [
    panel("Requests by outcome", "reqps", [(rate("vllm:request_success_total", "finished_reason"), "{{finished_reason}}"),
                                             (rate("c3po_requests_started_total"), "begun")],
          description="Each call that was let in ends as one of these. stop, length: answered. abort: cancelled or late. "
                      "error: failed, or refused once its work was known."),
    panel("Running and waiting", "short", [(gauge("vllm:num_requests_running"), "running {{instance}}"),
                                           (gauge("vllm:num_requests_waiting"), "waiting {{instance}}"),
                                           (gauge("c3po_pending_requests_max"), "limit {{instance}}")]),
    panel("Tokens per second", "short", [(rate("vllm:prompt_tokens_total"), "prompt"),
                                         (rate("vllm:generation_tokens_total"), "generated")]),
    panel("Time to first token", "s", quantiles("vllm:time_to_first_token_seconds")),
    panel("Between tokens", "s", quantiles("vllm:inter_token_latency_seconds")),
    panel("Whole request", "s", quantiles("vllm:e2e_request_latency_seconds")),
    panel("Where the time of an answered call goes (means)", "s", [
        (f"{rate('c3po_call_stage_seconds_total', 'stage')} / ignoring (stage) group_left () "
         f"{rate('vllm:request_queue_time_seconds_count')}", "{{stage}}")], stacked=True,
          description="The stages follow each other and add up to the whole call. queue: waiting for a worker and for the batch. "
                      "optimization_wait: waiting for turns of optimization, while those of others run."),
    panel("Calls by method", "reqps", [(rate("c3po_rpc_total", "method"), "{{method}}")], stacked=True),
    panel("Calls that failed, by status", "reqps", [(rate("c3po_rpc_total", "code", 'code!="OK"'), "{{code}}")], stacked=True,
          description="RESOURCE_EXHAUSTED: refused at the door. INVALID_ARGUMENT and NOT_FOUND: the caller's doing."),
    panel("KV cache in use", "percentunit", [(gauge("vllm:kv_cache_usage_perc"), "{{instance}}")]),
    panel("Prompt positions found in the KV cache", "percentunit", [
        (f"{rate('vllm:prefix_cache_hits_total')} / {rate('vllm:prefix_cache_queries_total')}", "found")],
          description="Beginnings shared with earlier requests are not computed again."),
    panel("Preemptions", "ops", [(rate("vllm:num_preemptions_total"), "sequences")],
          description="Sequences that gave their KV blocks back and are computed again: the cache is too small."),
    panel("From cancel to release", "s", quantiles("c3po_cancel_to_release_seconds")),
    panel("Queue time", "s", quantiles("vllm:request_queue_time_seconds"),
          description="Of answered calls: waiting for a worker and for a place in the engine's batch."),
    panel("Prefill", "s", quantiles("vllm:request_prefill_time_seconds"),
          description="Of answered calls: from a place in the batch to the prompt's last token."),
    panel("Waiting for turns of optimization", "s", quantiles("c3po_optimization_wait_seconds"),
          description="Of one optimization, beside its own work. It grows with the calls that optimize at once."),
    panel("Decode", "s", quantiles("vllm:request_decode_time_seconds"),
          description="Of answered calls: from the pathway that stands to the end."),
]

PATHWAYS = [
    panel("Gate decisions", "reqps", [(rate("c3po_gate_total", "decision"), "{{decision}}")], stacked=True,
          description="not_requested: plain requests. applied: the optimized pathway was used."),
    panel("Share of optimized requests whose pathway was used", "percentunit", [
        (f"{rate('c3po_gate_total', '', 'decision=' + chr(34) + 'applied' + chr(34))} / "
         f"{rate('c3po_gate_total', '', 'decision!=' + chr(34) + 'not_requested' + chr(34))}", "applied")]),
    panel("Share by method", "percentunit", [
        (f"{rate('c3po_optimization_seconds_count', 'method')} / ignoring (method) group_left () "
         f"{rate('c3po_optimization_seconds_count')}", "{{method}}")], stacked=True),
    panel("Nearest neighbor's distance", "none", quantiles("c3po_neighbor_distance"),
          description="Euclidean, between unit vectors: 0 is the same text, 1.41 is unrelated."),
    panel("Distribution of the nearest neighbor's distance", "none", [(rate("c3po_neighbor_distance_bucket", "le"), "{{le}}")],
          kind="heatmap"),
    panel("Neighbors' loss before and after", "none", [(mean("c3po_surrogate_loss", "moment"), "mean {{moment}}"),
                                                       (quantile(0.9, "c3po_surrogate_loss", "moment"), "p90 {{moment}}")],
          description="Kernel-weighted negative log-likelihood, nats per token, of the neighbors under the query's pathway."),
    panel("Share of the loss that was removed", "percentunit", quantiles("c3po_surrogate_loss_reduction")),
    panel("Time to optimize, p90 by method", "s", [(quantile(0.9, "c3po_optimization_seconds", "method"), "{{method}}")],
          description="A request's own work, without its waiting for turns."),
    panel("Gradient steps per second", "short", [(rate("c3po_optimization_steps_total"), "steps")]),
    panel("Engine steps by work", "ops", [(rate("c3po_engine_steps_total", "work"), "{{work}}")]),
]

REFERENCES = [
    panel("References", "short", [(gauge("c3po_references"), "{{instance}}")], kind="stat", width=6),
    panel("Index generation", "short", [(gauge("c3po_index_generation"), "{{instance}}")], kind="stat", width=6),
    panel("Recall at k of graph search", "percentunit", [(gauge("c3po_recall_at_k"), "{{instance}}")], kind="stat", width=6,
          description="Against exact search over the same references, measured at start and after imports; 1 where every search is exact."),
    panel("Neighbor cache", "bytes", [(gauge("c3po_neighbor_cache_bytes"), "{{instance}}"), (gauge("c3po_work_memory_bytes"), "at work {{instance}}")],
          kind="stat", width=6, description="At work: what the optimizations that run take at most, as they were estimated."),
    panel("Samples offered, by verdict", "ops", [(rate("c3po_references_added_total", "verdict"), "{{verdict}}")], stacked=True),
    panel("References over time", "short", [(gauge("c3po_references"), "{{instance}}"),
                                            (gauge("c3po_references_usable"), "usable {{instance}}")],
          description="Usable: made with the server's own model and embedder. The others are ignored until they are imported again."),
    panel("Learned on another model, ignored", "short", [(gauge("c3po_learned_ignored", "instance,kind"), "{{kind}} {{instance}}")],
          description="Profiles, priors and shifts. Requests get the server's defaults instead; calibrate and tune again."),
    panel("Damage of the store", "short", [(gauge("c3po_store_damaged_rows", "instance,kind"), "damaged {{kind}} {{instance}}"),
                                           (gauge("c3po_store_lost"), "file lost {{instance}}")],
          description="Rows that do not match their checksum are left out. Lost: the file is no longer in its place, and nothing can be stored."),
    panel("Changes of a shared store not seen yet", "short", [(gauge("c3po_index_generations_behind"), "{{instance}}")],
          description="By each server of it. 0 where the store is one server's own."),
    panel("Time since a shared store answered", "s", [(gauge("c3po_store_silent_seconds"), "{{instance}}")],
          description="While it grows, calls are answered from memory and changes are refused."),
    panel("Neighbor cache hit rate", "percentunit", [
        (f"{rate('c3po_neighbor_cache_hits_total')} / ({rate('c3po_neighbor_cache_hits_total')} + "
         f"{rate('c3po_neighbor_cache_misses_total')})", "hits")],
          description="A miss computes the neighbor's states again: one prefill of the reference."),
    panel("References in a GPU's memory", "bytes", [(gauge("c3po_index_device_bytes"), "taken {{instance}}"),
                                                    (gauge("c3po_index_device_budget_bytes"), "at most {{instance}}")],
          description="0 where the index lies in the host's memory (--index-device)."),
    panel("Searches of a GPU's index, by place", "ops", [(rate("c3po_index_device_queries_total", "place"), "{{place}}"),
                                                         (rate("c3po_index_device_refusals_total"), "allocations refused")], stacked=True),
    panel("GPU of the index has failed", "short", [(gauge("c3po_index_device_failed"), "{{instance}}")],
          description="1: searches are answered on the CPU. Where the model computes on that GPU, the server ends."),
    panel("Retrieval", "s", quantiles("c3po_retrieval_seconds")),
    panel("Embedding", "s", quantiles("c3po_embedding_seconds")),
    panel("Calls of the reference service", "reqps", [
        (rate("c3po_rpc_total", "method,code", 'service="ReferenceService"'), "{{method}} {{code}}")]),
]

PROCESS = [
    panel("Up", "short", [("sum by (instance) (up{" + ON + "})", "{{instance}}")], kind="stat", width=6),
    panel("Uptime", "s", [(f"time() - {gauge('process_start_time_seconds')}", "{{instance}}")], kind="stat", width=6),
    panel("Version", "short", [(gauge("c3po_build_info", "version"), "{{version}}")], kind="stat", width=6),
    panel("Model", "short", [(gauge("c3po_model_info", "dtype,device"), "{{dtype}} {{device}}")], kind="stat", width=6),
    panel("CPU", "percentunit", [(rate("process_cpu_seconds_total", "instance"), "{{instance}}")],
          description="1 is one core."),
    panel("Memory", "bytes", [(gauge("process_resident_memory_bytes"), "resident {{instance}}"),
                              (gauge("c3po_memory_limit_bytes"), "limit {{instance}}")]),
    panel("Memory planned, by part", "bytes", [(gauge("c3po_memory_planned_bytes", "part"), "{{part}}")], stacked=True,
          description="Of the host's, at the start, caches when they are full. other: code, tokenizer, the store's cache."),
    panel("Memory of a GPU planned, by part", "bytes", [(gauge("c3po_gpu_memory_planned_bytes", "part"), "{{part}}")], stacked=True,
          description="At the start; parts that grow with their limits. other: the driver's own, other programs'. 0 without a GPU."),
    panel("Memory of a GPU: limit", "bytes", [(gauge("c3po_gpu_memory_limit_bytes"), "{{instance}}")],
          description="The share that the server plans with (--gpu-memory-fraction)."),
    panel("Replaced files", "ops", [(rate("c3po_reloads_total", "files,result"), "{{files}} {{result}}"),
                                    (gauge("c3po_reload_failed", "instance,files"), "{{files}} refused now {{instance}}")],
          description="Certificates and tokens. Refused: the old ones are in force; /readyz says why."),
    panel("Certificate expires in", "s", [(f"{gauge('c3po_tls_certificate_expiry_timestamp_seconds')} - time()", "{{instance}}")],
          description="Without TLS: below zero."),
    panel("Address space", "bytes", [(gauge("process_virtual_memory_bytes"), "{{instance}}")]),
    panel("File descriptors", "short", [(gauge("process_open_fds"), "open {{instance}}"),
                                        (gauge("process_max_fds"), "limit {{instance}}")]),
    panel("Threads", "short", [(gauge("process_threads"), "{{instance}}")]),
    panel("Connections", "short", [(gauge("c3po_connections"), "{{instance}}"), (gauge("c3po_http_connections"), "HTTP {{instance}}")]),
    panel("Connections refused per second", "ops", [(rate("c3po_connections_refused_total", "instance,limit"), "{{limit}} {{instance}}")],
          description="By the limit that they met: of all, of one address, of file descriptors."),
    panel("Calls refused for their caller's limits per second", "ops", [(rate("c3po_calls_refused_total", "instance,limit"), "{{limit}} {{instance}}")],
          description="By the limit that they met: calls at once, calls a minute, tokens a minute. The audit lines of the log say whose."),
    panel("Health watches", "short", [(gauge("c3po_health_watches"), "{{instance}}")],
          description="Open Watch streams of grpc.health.v1."),
    panel("Health watches refused per second", "ops", [(rate("c3po_health_watches_refused_total", "instance,limit"), "{{limit}} {{instance}}")],
          description="By the limit that they met: of all, of one address."),
    panel("Messages of calls", "bytes", [(gauge("c3po_call_message_bytes"), "{{instance}}")],
          description="Requests and unread answers that calls hold; --call-memory-mb is the most."),
    panel("Open imports", "short", [(gauge("c3po_import_streams"), "{{instance}}")],
          description="Add streams; --import-streams-max is the most."),
    panel("Exceptions caught per second", "ops", [(rate("c3po_escaped_exceptions_total", "instance,thread"), "{{thread}} {{instance}}")],
          description="Each ended one call, and is a line of the log. Out of memory, or a bug."),
    panel("Log lines lost per second", "ops", [(rate("c3po_log_lines_lost_total", "instance"), "{{instance}}")],
          description="Their reader does not keep up; calls do not wait for it."),
    panel("Spans of traces per second", "ops", [(rate("c3po_trace_spans_total", "result"), "{{result}}")],
          description="With --otlp-traces-endpoint. Dropped: the collector is away or refuses them; calls do not wait for it."),
    panel("Leaked cache blocks", "short", [(gauge("c3po_kv_cache_leaked_blocks"), "{{instance}}")],
          description="Anything but 0 is a bug."),
    panel("Engine step", "s", quantiles("c3po_engine_step_seconds")),
    panel("Engine steps per second", "ops", [(rate("c3po_engine_step_seconds_count", "instance"), "{{instance}}")]),
]


def variables() -> list[dict]:
    def asked(name: str, label: str, query: str, multi: bool) -> dict:
        made = {"type": "query", "name": name, "label": label, "datasource": DATASOURCE, "refresh": 2, "sort": 1, "multi": multi,
                "includeAll": multi, "query": {"query": query, "refId": name}}
        return made | ({"allValue": ".*", "current": {"text": "All", "value": "$__all"}} if multi else {})

    return [{"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"},
            asked("job", "Job", "label_values(c3po_build_info, job)", False),
            asked("instance", "Instance", 'label_values(c3po_build_info{job="$job"}, instance)', True)]


def dashboard(uid: str, title: str, panels: list[dict]) -> dict:
    x = y = row_height = 0
    placed = []
    for number, made in enumerate(panels, 1):
        width, height = made["gridPos"]["w"], made["gridPos"]["h"]
        if x + width > COLUMNS:
            x, y, row_height = 0, y + row_height, 0
        placed.append(made | {"id": number, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x, row_height = x + width, max(row_height, height)
    return {"uid": uid, "title": title, "tags": ["c3po"], "timezone": "", "schemaVersion": 39, "version": 1, "editable": True,
            "refresh": "10s", "time": {"from": "now-30m", "to": "now"}, "templating": {"list": variables()},
            "links": [{"type": "dashboards", "tags": ["c3po"], "title": "c3po", "asDropdown": True, "keepTime": True,
                       "includeVars": True}],
            "panels": placed}


DASHBOARDS = {
    "traffic": dashboard("c3po-traffic", "c3po: traffic and latency", TRAFFIC),
    "pathways": dashboard("c3po-pathways", "c3po: pathway optimization", PATHWAYS),
    "references": dashboard("c3po-references", "c3po: references and index", REFERENCES),
    "process": dashboard("c3po-process", "c3po: process", PROCESS),
}


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent / "dashboards"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in DASHBOARDS.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
