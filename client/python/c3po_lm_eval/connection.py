"""The calls that the harness needs, by c3po_client."""

import math

from c3po.v1 import generation_pb2
from c3po_client import C3poError, Client, Internal, InvalidArgument, NotFound, RetryPolicy, methods

# A search may fail so where nothing is known of a question: no such collection, or a prompt that cannot be embedded.
NOT_KNOWN = (NotFound, InvalidArgument, Internal)
SAME_TEXT_DISTANCE_MAX = 1e-4  # Embeddings this near are of one text, up to rounding (client/eval/known_questions.h).
RETRY = RetryPolicy(initial_backoff=0.5)  # An evaluation is in no hurry.


class Connection:
    """Thread-safe. The token and the certificates are the environment's, as for the c3po command. Every method raises C3poError when
    the call fails."""

    def __init__(self, target: str, timeout_seconds: float):
        self._client = Client.from_environment(target, timeout=timeout_seconds, retry=RETRY)

    def server_info(self):
        return self._client.server_info()

    def score(self, request):
        """A generation_pb2.ScoreResponse with as many scores as the request has continuations."""
        response = self._client.call(methods.SCORE, request)
        if len(response.scores) != len(request.continuations):
            raise C3poError(f"the server scored {len(response.scores)} continuations of {len(request.continuations)}")
        for score in response.scores:
            if not math.isfinite(score.log_likelihood):  # The harness would take the first choice that is NaN for the best.
                raise C3poError(f"the server gave a log-likelihood of {score.log_likelihood}")
        return response

    def generate(self, request):
        """(text, generation_pb2.OptimizationReport) of a whole stream."""
        with self._client.generate_request(request) as generation:
            return generation.text(), generation.report or generation_pb2.OptimizationReport()

    def is_among_references(self, collection: str, prompt: str) -> bool:
        """Whether the collection has the prompt as a reference: the same text but for white space at its ends, or distance 0."""
        try:
            hits = self._client.references.search(prompt, collection=collection, k=4)
        except NOT_KNOWN:
            return False
        return any(hit.distance <= SAME_TEXT_DISTANCE_MAX or hit.reference.sample.prompt.strip() == prompt.strip() for hit in hits)

    def tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._client.tokenize(text, add_special_tokens=add_special_tokens).ids) if text else []

    def detokenize(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._client.detokenize(ids, skip_special_tokens=skip_special_tokens)
