"""A collector of OpenTelemetry's traces for tests: it keeps what is sent to it. Needs PyPI's opentelemetry-proto."""

import concurrent.futures
import threading
import time

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


def value_of(any_value):
    """Of an attribute, as Python has it."""
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in any_value.array_value.values]
    return getattr(any_value, kind)


def attributes(owner):
    return {pair.key: value_of(pair.value) for pair in owner.attributes}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, port=0, credentials=None):
        self.lock = threading.Lock()
        self.spans, self.resources, self.metadata, self.exports = [], [], [], 0
        self.hangs = threading.Event()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        address = f"127.0.0.1:{port}"
        self.port = self.server.add_secure_port(address, credentials) if credentials else self.server.add_insecure_port(address)
        self.server.start()

    def Export(self, request, context):
        if self.hangs.is_set():
            while context.is_active():
                time.sleep(0.01)
            return trace_service_pb2.ExportTraceServiceResponse()
        with self.lock:
            self.exports += 1
            self.metadata.append(dict(context.invocation_metadata()))
            for resource in request.resource_spans:
                self.resources.append(attributes(resource.resource))
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self):
        self.server.stop(None).wait()

    def of(self, trace_id):
        """The spans of a trace, by its hexadecimal id."""
        with self.lock:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def whole(self, trace_id, seconds=60):
        """The same once the server's span is among them, which comes with all of its call."""
        for _ in range(seconds * 50):
            spans = self.of(trace_id)
            if any(span.kind == span.SPAN_KIND_SERVER for span in spans):
                return spans
            time.sleep(0.02)
        raise AssertionError(f"trace {trace_id} did not come; there are {[span.name for span in self.spans]}")
