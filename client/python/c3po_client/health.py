"""grpc.health.v1, described here rather than generated: a second set of generated modules beside those of grpcio-health-checking
could not be imported in one program. The pool is this module's own."""

from __future__ import annotations

import enum

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from c3po_client.methods import Retried, UnaryMethod


class HealthStatus(enum.Enum):
    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def _check_method() -> UnaryMethod[Message, Message]:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3")
    file.message_type.add(name="HealthCheckRequest").field.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    # An enum in the published file, which is an int32 on the wire.
    file.message_type.add(name="HealthCheckResponse").field.add(name="status", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    request, response = (message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.health.v1.{name}"))
                         for name in ("HealthCheckRequest", "HealthCheckResponse"))
    return UnaryMethod("grpc.health.v1.Health", "Check", request, response, Retried.NEVER)


CHECK = _check_method()


def check_request(service: str) -> Message:
    return CHECK.request(service=service)


def status_of(response: Message) -> HealthStatus:
    """UNKNOWN for a number that this client does not know."""
    number = getattr(response, "status")
    return HealthStatus(number) if number in (status.value for status in HealthStatus) else HealthStatus.UNKNOWN
