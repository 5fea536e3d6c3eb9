"""Windows for the log-likelihood of a text longer than the context window."""

from typing import Callable, Iterator

SEAM_SEARCH_TOKENS = 64  # How far back of the harness' own seam another one is looked for.


def rolling_windows(
    tokens: list[int], prefix_token: int, max_seq_len: int, is_seam: Callable[[int, int], bool]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields (context, predicted) as lm_eval.utils.get_rolling_token_windows with context_len = 1 and make_disjoint_window do:
    each token is predicted exactly once; the first window has the prefix token alone as its context, a middle one its last
    token, the final one as many tokens as fit. len(context) + len(predicted) <= max_seq_len + 1.

    A continuation goes to the server as text, and not every sequence of token ids is what its text is cut into: a character
    may be split. So a window ends at the last `end` for which is_seam(start, end) holds, at most SEAM_SEARCH_TOKENS before
    the harness' own; where none holds, at the harness' own. If all of the harness' ends are seams, the windows are the
    harness' exactly.
    """
    start = 0
    while start < len(tokens):
        planned = min(len(tokens), start + max_seq_len)
        end = planned
        if planned < len(tokens):
            candidates = range(planned, max(start, planned - SEAM_SEARCH_TOKENS), -1)
            end = next((e for e in candidates if is_seam(start, e)), planned)
        context = tokens[max(0, end - max_seq_len - 1) : start] if start > 0 else [prefix_token]
        yield context, tokens[start:end]
        start = end
