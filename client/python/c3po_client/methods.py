"""The methods of c3po.v1 with their types, and which of them may be repeated. What Client has no method for is called by
Client.call() and Client.stream() with one of these."""

from __future__ import annotations

import dataclasses
import enum
from typing import Generic, TypeVar

from google.protobuf.message import Message

from c3po.v1 import generation_pb2 as gen
from c3po.v1 import reference_pb2 as ref
from c3po.v1 import server_pb2 as srv

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

GENERATION = "c3po.v1.GenerationService"
REFERENCE = "c3po.v1.ReferenceService"
SERVER = "c3po.v1.ServerService"


class Retried(enum.Enum):
    """Who tries a call again after UNAVAILABLE."""

    NEVER = "never"  # A second call would do the first one's work again.
    HERE = "here"  # What the client has streamed has to be sent again.
    BY_GRPC = "by_grpc"  # Repeating it changes nothing: the service config says so.


@dataclasses.dataclass(frozen=True)
class Method(Generic[RequestT, ResponseT]):
    service: str
    name: str
    request: type[RequestT]
    response: type[ResponseT]
    retried: Retried = Retried.BY_GRPC

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


class UnaryMethod(Method[RequestT, ResponseT]):
    """One request, one response."""


class StreamMethod(Method[RequestT, ResponseT]):
    """One request, a stream of responses."""


class DuplexMethod(Method[RequestT, ResponseT]):
    """A stream of requests, a stream of responses."""


GENERATE = StreamMethod(GENERATION, "Generate", gen.GenerateRequest, gen.GenerateResponse)
SCORE = UnaryMethod(GENERATION, "Score", gen.ScoreRequest, gen.ScoreResponse)
TOKENIZE = UnaryMethod(GENERATION, "Tokenize", gen.TokenizeRequest, gen.TokenizeResponse)
DETOKENIZE = UnaryMethod(GENERATION, "Detokenize", gen.DetokenizeRequest, gen.DetokenizeResponse)
ADD = DuplexMethod(REFERENCE, "Add", ref.AddReferencesRequest, ref.AddReferencesResponse, Retried.HERE)
SEARCH = UnaryMethod(REFERENCE, "Search", ref.SearchReferencesRequest, ref.SearchReferencesResponse)
GET = UnaryMethod(REFERENCE, "Get", ref.GetReferenceRequest, ref.GetReferenceResponse)
LIST = UnaryMethod(REFERENCE, "List", ref.ListReferencesRequest, ref.ListReferencesResponse)
DELETE = UnaryMethod(REFERENCE, "Delete", ref.DeleteReferencesRequest, ref.DeleteReferencesResponse)
GET_STATS = UnaryMethod(REFERENCE, "GetStats", ref.GetStatsRequest, ref.GetStatsResponse)
GET_COLLECTION = UnaryMethod(REFERENCE, "GetCollection", ref.GetCollectionRequest, ref.GetCollectionResponse)
SET_PROFILE = UnaryMethod(REFERENCE, "SetProfile", ref.SetProfileRequest, ref.SetProfileResponse)
TUNE_PRIOR = StreamMethod(REFERENCE, "TunePrior", ref.TunePriorRequest, ref.TunePriorResponse, Retried.NEVER)
AMORTIZE_SHIFTS = StreamMethod(REFERENCE, "AmortizeShifts", ref.AmortizeShiftsRequest, ref.AmortizeShiftsResponse, Retried.NEVER)
TUNE_OFFSET = StreamMethod(REFERENCE, "TuneOffset", ref.TuneOffsetRequest, ref.TuneOffsetResponse, Retried.NEVER)
BACKUP_STORE = StreamMethod(REFERENCE, "BackupStore", ref.BackupStoreRequest, ref.BackupStoreResponse)
GET_SERVER_INFO = UnaryMethod(SERVER, "GetServerInfo", srv.GetServerInfoRequest, srv.GetServerInfoResponse)

ALL_METHODS = (GENERATE, SCORE, TOKENIZE, DETOKENIZE, ADD, SEARCH, GET, LIST, DELETE, GET_STATS, GET_COLLECTION, SET_PROFILE, TUNE_PRIOR,
               AMORTIZE_SHIFTS, TUNE_OFFSET, BACKUP_STORE, GET_SERVER_INFO)
