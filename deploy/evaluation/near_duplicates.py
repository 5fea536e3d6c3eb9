"""Finds texts that say nearly the same: Jaccard similarity of their sets of normalized tokens, exactly, by an inverted
index over rare tokens (prefix filtering: Chaudhuri et al. 2006, Bayardo et al. 2007).

Why that is exact: order all tokens from rare to frequent. Sets A and B of similarity t or more share at least
ceil(t * |A|) tokens, so the first |A| - ceil(t * |A|) + 1 tokens of A and the like of B have one in common; only sets
that meet in such a prefix are compared."""

import collections
import math
import re
import unicodedata
from typing import Iterable, Iterator, Sequence

THRESHOLD = 0.8
_TOKEN = re.compile(r"[^\W_]+")
_SLACK = 1e-9  # 0.8 * 5 must not round up to 5.


def normalized(text: str) -> str:
    """Letters and digits, case-folded and one space apart. A text of symbols only stays as it is: it must not
    vanish."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_TOKEN.findall(folded)) or " ".join(folded.split())


def tokens(text: str) -> frozenset[str]:
    return frozenset(normalized(text).split())


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """|left & right| / |left | right|, in [0, 1]; of two empty sets 1."""
    shared = len(left & right)
    union = len(left) + len(right) - shared
    return shared / union if union else 1.0


def pairs(texts: Sequence[str], threshold: float = THRESHOLD) -> Iterator[tuple[int, int]]:
    """Yields every pair of indices (earlier, later) whose texts' similarity is at least `threshold`, in (0, 1], once.
    Empty texts are similar to nothing."""
    sets = [tokens(text) for text in texts]
    frequency = collections.Counter(token for tokens_of_text in sets for token in tokens_of_text)
    index: dict[str, list[int]] = collections.defaultdict(list)
    by_size = sorted((at for at in range(len(sets)) if sets[at]), key=lambda at: (len(sets[at]), at))
    for at in by_size:
        own = sets[at]
        shared_at_least = math.ceil(threshold * len(own) - _SLACK)
        rare_first = sorted(own, key=lambda token: (frequency[token], token))
        candidates = set()
        for token in rare_first[:len(own) - shared_at_least + 1]:
            candidates.update(index[token])
            index[token].append(at)
        for other in sorted(candidates):
            # Those in the index are not larger; of much smaller ones the union alone decides.
            if len(sets[other]) >= threshold * len(own) - _SLACK and jaccard(own, sets[other]) >= threshold - _SLACK:
                yield min(at, other), max(at, other)


class Groups:
    """Disjoint sets over 0..count-1 (union-find). Not safe for concurrent calls."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, item: int) -> int:
        """The smallest member of the item's group."""
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, left: int, right: int) -> None:
        left, right = sorted((self.root(left), self.root(right)))
        self._parent[right] = left

    def join_equal(self, keys: Iterable[object]) -> None:
        """Joins all items that have the same key; keys are in the order of the items, None is a key of nobody."""
        first: dict[object, int] = {}
        for item, key in enumerate(keys):
            if key is not None:
                self.join(first.setdefault(key, item), item)

    def members(self) -> list[list[int]]:
        """All groups, by their smallest member; members ascend."""
        found: dict[int, list[int]] = collections.defaultdict(list)
        for item in range(len(self._parent)):
            found[self.root(item)].append(item)
        return list(found.values())
