"""Calls a c3po server: `Client` in plain programs, `AsyncClient` in an event loop. README.md beside this package shows how.

Messages are those of proto/c3po/v1, ready-made: `from c3po.v1 import generation_pb2`.
"""

from c3po_client.answers import (Answer, Choice, Event, PathwayRow, RoutedRow, likeliest, pathway_rows, routed_rows, score_per_token,
                                 to_dict, to_json)
from c3po_client.async_calls import AsyncStream
from c3po_client.async_client import AsyncClient, AsyncCollections, AsyncReferences
from c3po_client.client import Client, Collections, References
from c3po_client.connection import Tls
from c3po_client.errors import (ArgumentError, C3poError, CallError, Cancelled, DataLoss, DeadlineExceeded, FailedPrecondition,
                                FieldViolation, Internal, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted,
                                Unauthenticated, Unavailable, Unimplemented)
from c3po_client.generation import AsyncGeneration, Generation
from c3po_client.health import HealthStatus
from c3po_client.importing import AsyncImport, Import, ImportOutcome
from c3po_client.options import ConditionFields, FilterFields, FormFields, GateFields, OptimizationFields, RangeFields, SamplingFields, TunePriorFields
from c3po_client.retry import RetryPolicy
from c3po_client.samples import SampleFields, read_samples
from c3po_client.sync_calls import Stream
from c3po_client.version import __version__

__all__ = [
    "Answer", "ArgumentError", "AsyncClient", "AsyncCollections", "AsyncGeneration", "AsyncImport", "AsyncReferences", "AsyncStream",
    "C3poError", "CallError", "Cancelled", "Choice", "Client", "Collections", "ConditionFields", "DataLoss", "DeadlineExceeded", "Event",
    "FailedPrecondition", "FieldViolation", "FilterFields", "FormFields", "GateFields", "Generation", "HealthStatus", "Import", "ImportOutcome", "Internal",
    "InvalidArgument", "NotFound", "OptimizationFields", "PathwayRow", "PermissionDenied", "RangeFields", "References", "ResourceExhausted",
    "RetryPolicy", "RoutedRow", "SampleFields", "SamplingFields", "Stream", "Tls", "TunePriorFields", "Unauthenticated", "Unavailable",
    "Unimplemented", "__version__", "likeliest", "pathway_rows", "read_samples", "routed_rows", "score_per_token", "to_dict", "to_json",
]
