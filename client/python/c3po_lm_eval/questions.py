"""Groups the harness' requests, one per continuation, into questions."""

from dataclasses import dataclass, field


@dataclass
class Question:
    request: object  # its first request, an lm_eval Instance
    context: str
    continuations: list[str] = field(default_factory=list)  # each once, in the order of the requests
    members: list[tuple[int, str]] = field(default_factory=list)  # index of a request, and its continuation


def group_into_questions(requests) -> list[Question]:
    """Requests of one document with the same context are one question: its choices. Two documents that ask the same stay two,
    since their choices may differ and a gate looks at all of them.

    White space at the end of a context belongs to the continuation, as everywhere in the harness, for a word's own space to
    be part of its first token.
    """
    questions = {}
    for index, request in enumerate(requests):
        context, continuation = request.args
        stripped = context.rstrip() or context
        continuation = context[len(stripped) :] + continuation
        key = (request.task_name, request.doc_id, stripped)
        question = questions.setdefault(key, Question(request, stripped))
        if continuation not in question.continuations:
            question.continuations.append(continuation)
        question.members.append((index, continuation))
    return list(questions.values())
