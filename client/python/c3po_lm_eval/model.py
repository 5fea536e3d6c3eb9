"""C3poLM: the harness' model interface over a c3po server."""

import collections
import concurrent.futures
import logging
import threading
from typing import Callable

from lm_eval.api.model import LM
from tqdm import tqdm

from c3po.v1 import generation_pb2, options_pb2
from c3po_client import C3poError
from c3po_client.options import word_of
from c3po_lm_eval.chats import chat_of_text, question_of, text_of_chat
from c3po_lm_eval.connection import Connection
from c3po_lm_eval.optimization_args import optimization_from_args, unsigned_integer
from c3po_lm_eval.questions import Question, group_into_questions
from c3po_lm_eval.rolling_windows import rolling_windows
from c3po_lm_eval.sampling_args import DEFAULT_MAX_TOKENS, sampling_from_kwargs

LOGGER = logging.getLogger(__name__)
DEFAULT_TARGET = "127.0.0.1:50051"
CONTINUATIONS_MAX = 256  # The server's limit of one call.
# Looked for where the tokenizer itself puts nothing before a text and no prefix_token is given.
END_OF_TEXT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


class C3poLM(LM):
    """Arguments, beside those of optimization_args.py:

    target          host:port of the server.
    concurrency     Calls in flight, at least 1. The server batches them, so that sums are rounded in another order; where an expert's
                    weight is at the edge of the top k, gradient descent can make that visible. 1 repeats bit by bit.
    timeout         Seconds of one call, the wait in the server's queue included.
    prefix_token    Text of the token that stands for an empty context. Not given: what the tokenizer itself puts before a
                    text, else the end-of-text token.
    max_gen_toks    Of generation tasks that do not say.

    batch_size, max_batch_size and device, which the harness adds, change nothing. Raises C3poError for a wrong argument, a
    server that cannot be reached, and a call that fails.
    """

    def __init__(self, target=DEFAULT_TARGET, concurrency=8, timeout=600, prefix_token=None, max_gen_toks=DEFAULT_MAX_TOKENS,
                 batch_size=None, max_batch_size=None, device=None, **optimization):
        super().__init__()
        if unsigned_integer("concurrency", concurrency) == 0 or unsigned_integer("max_gen_toks", max_gen_toks) == 0:
            raise C3poError("model_args: concurrency and max_gen_toks must be at least 1")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0:
            raise C3poError(f"model_args: timeout: {timeout!r} is not a number of seconds above 0")
        self._optimization = optimization_from_args(optimization)
        self._concurrency = concurrency
        self._max_gen_toks = max_gen_toks
        self._connection = Connection(str(target), timeout)
        self._info = self._connection.server_info()
        self._window = self._info.model.context_window
        self._prefix_token = None if prefix_token is None else self._single_token(str(prefix_token))
        if prefix_token is not None and self._prefix_token is None:
            raise C3poError(f"model_args: prefix_token: {prefix_token!r} is not one token of the server's vocabulary")
        self._among_references = 0
        self._gate_decisions = collections.Counter()
        self._optimization_seconds = 0.0
        self._lock = threading.Lock()

    # --- What the harness calls ---

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """One Score call per question, with all its continuations, so that its pathway is optimized once."""
        results = [None] * len(requests)

        def answer(question: Question):
            scores = self._score_question(question)
            for index, continuation in question.members:
                score = scores[continuation]
                results[index] = (score.log_likelihood, score.is_greedy)
                self.cache_hook.add_partial("loglikelihood", requests[index].args, results[index])

        questions = group_into_questions(requests)
        self._run(questions, answer, "loglikelihood", disable_tqdm)
        self._tell_known({question.context for question in questions}, disable_tqdm)
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        results = [None] * len(requests)

        def answer(index: int):
            (text,) = requests[index].args
            results[index] = self._rolling_log_likelihood(text)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), results[index])

        self._run(range(len(requests)), answer, "loglikelihood_rolling", disable_tqdm,
                  lambda index: requests[index])
        return results

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        results = [None] * len(requests)

        def answer(index: int):
            results[index] = self._generate(*requests[index].args)
            self.cache_hook.add_partial("generate_until", requests[index].args, results[index])

        self._run(range(len(requests)), answer, "generate_until", disable_tqdm, lambda index: requests[index])
        self._tell_known({request.args[0] for request in requests}, disable_tqdm)
        return results

    def apply_chat_template(self, chat_history, add_generation_prompt=True) -> str:
        """The chat itself, for the server to render."""
        if not self._info.model.chat:
            raise C3poError("--apply_chat_template: the server's model has no chat template")
        return text_of_chat(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return f"c3po-{self._info.model.digest}"

    def get_model_info(self) -> dict:
        """Goes into the harness' results file: which model gave these figures, and what C3PO did."""
        model = self._info.model
        return {
            "model_name": model.name,
            "model_digest": model.digest,
            "model_num_parameters": model.parameters,
            "model_dtype": model.dtype,
            "c3po_server_version": self._info.version,
            "c3po_embedder_digest": self._info.embedder.digest,
            "c3po_gate_decisions": dict(sorted(self._gate_decisions.items())),
            "c3po_optimization_seconds": self._optimization_seconds,
            "c3po_questions_among_references": self._among_references,
        }

    # --- Calls ---

    def _run(self, items, answer: Callable, name: str, disable_tqdm: bool, request_of=lambda question: question.request):
        """answer(item) for each, `concurrency` at a time. The first failure ends the run, with its document named."""

        def located(item):
            try:
                answer(item)
            except C3poError as error:
                request = request_of(item)
                raise C3poError(f"task {request.task_name}, document {request.doc_id}: {error}") from error

        with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
            futures = [pool.submit(located, item) for item in items]
            try:
                done = concurrent.futures.as_completed(futures)
                for future in tqdm(done, total=len(futures), desc=f"c3po {name}", disable=disable_tqdm):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _tell_known(self, contexts: set[str], disable_tqdm: bool) -> None:
        """Counts the questions that are among the references. Their neighbors hold their answers, and the harness leaves no
        question out: all that can be done is to tell."""
        if self._optimization.method == options_pb2.METHOD_NONE:
            return
        collection = self._optimization.collection or "default"
        asked = sorted({question for question in map(question_of, contexts) if question.strip()})
        with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
            found = pool.map(lambda context: self._connection.is_among_references(collection, context), asked)
            known = sum(tqdm(found, total=len(asked), desc="c3po looks for known questions", disable=disable_tqdm))
        self._among_references += known
        if known > 0:
            LOGGER.warning("%d of %d questions are among the references of %s: what is gained on them says nothing of new ones",
                           known, len(asked), collection)

    def _score_question(self, question: Question) -> dict:
        """The ContinuationScore of each continuation."""
        scores = {}
        for first in range(0, len(question.continuations), CONTINUATIONS_MAX):
            continuations = question.continuations[first : first + CONTINUATIONS_MAX]
            request = generation_pb2.ScoreRequest(
                **self._score_input(question.context, continuations), continuations=continuations, optimization=self._optimization
            )
            response = self._connection.score(request)
            self._count(response.optimization)
            scores.update(zip(continuations, response.scores))
        return scores

    def _score_input(self, context: str, continuations: list[str]) -> dict:
        if (chat := chat_of_text(context)) is not None:
            return {"chat": chat}
        longest = max(continuations, key=lambda text: len(text.encode()))
        if self._surely_fits(context + longest):
            return self._input(context, None)
        after = max(len(self._connection.tokenize(text, False)) for text in continuations) + 1  # 1: cut anew at the seam.
        return self._input(context, self._window - after)

    def _generate(self, context: str, kwargs: dict) -> str:
        sampling = sampling_from_kwargs(kwargs, self._max_gen_toks)
        left = self._window - sampling.options.max_tokens
        if left < 1:
            raise C3poError(f"generation_kwargs: {sampling.options.max_tokens} new tokens leave nothing of the context window of "
                            f"{self._window} for the prompt")
        request = generation_pb2.GenerateRequest(
            **self._input(context, left), sampling=sampling.options, optimization=self._optimization
        )
        text, report = self._connection.generate(request)
        self._count(report)
        return sampling.cut(text)

    def _input(self, context: str, tokens_max: int | None) -> dict:
        """The `prompt`, or the `token_ids` of a prompt that is empty or has to lose its beginning (the harness' rule)."""
        if (chat := chat_of_text(context)) is not None:  # The server refuses one that is too long: no turn can be cut off unseen.
            return {"chat": chat}
        if context == "":
            return {"token_ids": generation_pb2.TokenIds(ids=[self._prefix()])}
        if tokens_max is None or len(context.encode()) + self._tokens_added() <= tokens_max:
            return {"prompt": context}
        ids = self._connection.tokenize(context, True)
        if len(ids) <= tokens_max:
            return {"prompt": context}
        if tokens_max < 1:
            raise C3poError(f"the continuation leaves nothing of the context window of {self._window} for the context")
        return {"token_ids": generation_pb2.TokenIds(ids=ids[-tokens_max:])}

    def _surely_fits(self, text: str) -> bool:
        return len(text.encode()) + self._tokens_added() <= self._window  # A token has at least one byte.

    @staticmethod
    def _tokens_added() -> int:
        return 8  # More than any tokenizer puts around a text.

    def _rolling_log_likelihood(self, text: str) -> float:
        tokens = self._connection.tokenize(text, False)
        windows = list(rolling_windows(tokens, self._prefix(), self._window - 1,
                                       lambda start, end: self._is_seam(tokens, start, end)) if tokens else [])
        total = 0.0
        for context, predicted in windows:
            # One window: the text itself. More: the text of the tokens, which has to be cut into the same ones again.
            continuation = text if len(windows) == 1 else self._text_after(context, predicted)
            if continuation is None:
                raise C3poError("loglikelihood_rolling: the text is longer than the context window, and a window's text is not cut "
                                "into the same tokens apart from the rest, as Score would need")
            request = generation_pb2.ScoreRequest(token_ids=generation_pb2.TokenIds(ids=context), continuations=[continuation],
                                                  optimization=self._optimization)
            response = self._connection.score(request)
            if response.scores[0].token_count != len(predicted):
                raise C3poError(f"loglikelihood_rolling: the server cut a window into {response.scores[0].token_count} tokens, not "
                                f"{len(predicted)}")
            self._count(response.optimization)
            total += response.scores[0].log_likelihood
        return total

    def _is_seam(self, tokens: list[int], start: int, end: int) -> bool:
        """Whether the tokens before and after `end` are what their texts are cut into, each after the token before it."""
        parts = ((tokens[:start][-1:] or [self._prefix()], tokens[start:end]),
                 (tokens[end - 1 : end], tokens[end : end + self._window - 1]))
        return all(self._text_after(context, part) is not None for context, part in parts)

    def _text_after(self, context: list[int], predicted: list[int]) -> str | None:
        """The text that the ids `predicted` add to that of the ids `context`, if the server scores these ids for it; else None, as
        within a character. Where both texts together are cut at the seam, so is the continuation after the ids."""
        for skip_special_tokens in (True, False):
            before = self._connection.detokenize(context, skip_special_tokens)
            whole = self._connection.detokenize(context + predicted, skip_special_tokens)
            if not whole.startswith(before) or len(whole) == len(before):
                continue
            if self._connection.tokenize(whole, False)[-len(predicted) :] == predicted:
                return whole[len(before) :]
        return None

    def _prefix(self) -> int:
        """The token that stands for an empty context. Found once; finding it twice at once does no harm."""
        if self._prefix_token is None:
            with_special, plain = (self._connection.tokenize("a", special) for special in (True, False))
            if len(with_special) > len(plain) and with_special[-len(plain) :] == plain:
                self._prefix_token = with_special[0]
            else:
                found = (self._single_token(text) for text in END_OF_TEXT_TOKENS)
                self._prefix_token = next((token for token in found if token is not None), None)
            if self._prefix_token is None:
                raise C3poError("model_args: prefix_token: must be given; the tokenizer puts nothing before a text, and has none of "
                                f"{', '.join(END_OF_TEXT_TOKENS)}")
        return self._prefix_token

    def _single_token(self, text: str) -> int | None:
        ids = self._connection.tokenize(text, False)
        return ids[0] if len(ids) == 1 else None

    def _count(self, report) -> None:
        decision = word_of(options_pb2.GateDecision.DESCRIPTOR, report.gate)
        with self._lock:
            self._gate_decisions[decision] += 1
            self._optimization_seconds += report.timings.optimization_seconds
