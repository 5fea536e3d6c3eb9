"""All services of c3po.v1 and the health service in this process, on a free loopback port, for tests of the Python client. A test
says what a method does; every call is recorded."""

import concurrent.futures
import threading

import grpc
from c3po.v1 import generation_pb2 as gen
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from c3po_client import health, methods

SERVING = health.HealthStatus.SERVING.value


def fail(context, code, message="", reason="", fields=(), retry_delay=None, pushback=None):
    """Ends the call as the server does: with google.rpc details."""
    details = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="c3po"))
    if fields:
        details.append(error_details_pb2.BadRequest(field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description) for field, description in fields]))
    if retry_delay is not None:
        nanoseconds = int(retry_delay * 1e9)
        delay = duration_pb2.Duration(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    trailers = [("grpc-status-details-bin", status_pb2.Status(code=code.value[0], message=message, details=packed).SerializeToString())]
    if pushback is not None:
        trailers.append(("grpc-retry-pushback-ms", str(pushback)))
    context.set_trailing_metadata(trailers)
    context.abort(code, message)


def answer(*texts):
    """The messages of a whole answer."""
    yield gen.GenerateResponse(optimization=gen.OptimizationReport(collection="default"))
    for index, text in enumerate(texts):
        yield gen.GenerateResponse(delta=gen.TextDelta(text=text, token_ids=[index]))
    yield gen.GenerateResponse(summary=gen.GenerationSummary(request_id="r-1", finish_reason=gen.FINISH_REASON_STOP,
                                                             answers=[gen.AnswerSummary()]))


class FakeServer:
    """`on["Score"] = lambda request, context: ...` before the calls; streams yield. A method that no test set is UNIMPLEMENTED."""

    def __init__(self, credentials=None):
        self.on = {"Check": lambda request, context: health.CHECK.response(status=SERVING)}
        self.requests = {}  # by method, in order
        self.metadata = {}  # of the last call, by method
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool)
        for service in {method.service for method in (*methods.ALL_METHODS, health.CHECK)}:
            handlers = {method.name: self._handler(method) for method in (*methods.ALL_METHODS, health.CHECK) if method.service == service}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        bound = self._server.add_insecure_port if credentials is None else lambda at: self._server.add_secure_port(at, credentials)
        self.port = bound("127.0.0.1:0")
        self.target = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self):
        self._server.stop(None).wait()
        self._pool.shutdown()

    def calls(self, name):
        return len(self.requests.get(name, []))

    def _handler(self, method):
        def run(request, context):
            with self._lock:
                self.requests.setdefault(method.name, []).append(request)
                self.metadata[method.name] = dict(context.invocation_metadata())
            if method.name not in self.on:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "no test set it")
            return self.on[method.name](request, context)

        codec = {"request_deserializer": method.request.FromString, "response_serializer": method.response.SerializeToString}
        if isinstance(method, methods.UnaryMethod):
            return grpc.unary_unary_rpc_method_handler(run, **codec)

        def stream(request, context):
            yield from run(request, context)

        if isinstance(method, methods.StreamMethod):
            return grpc.unary_stream_rpc_method_handler(stream, **codec)
        return grpc.stream_stream_rpc_method_handler(stream, **codec)
