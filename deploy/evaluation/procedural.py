"""Our own procedural questions: known operations on words and small numbers, four choices each, made from a seed.

An *instance* is an operation with what it is applied to ("reverse" on "garden"). References and held-out questions
share no instance, and no pair of words where an operation has two (hot and cold). Each operation has phrasings of two
kinds: the seen ones are used on both sides, the unseen ones for half of the held-out questions only, which their
metadata say."""

import hashlib
import string
from typing import Callable, Iterator, NamedTuple

from benchmarks import Item, Task

SEED = "c3po-procedural-1"
REFERENCES = HELDOUT = 600
_CHOICES = 4

TASK = Task("procedural", "procedural", "raw", "{a phrasing of an operation on words or numbers}\\nAnswer:",
            ("generated", "generated"), lambda *_: iter(()), source="procedural.py")

_WORDS = (
    "garden window market silver bridge planet basket candle forest pencil rocket button winter orange kitten mirror "
    "pocket jacket castle dragon hammer island ladder napkin pepper rabbit saddle tunnel velvet walnut anchor blanket "
    "cabin desert engine finger guitar harbor insect jungle kettle lemon magnet needle oyster parrot quarry ribbon "
    "shadow temple violin wagon yellow zipper branch copper donkey flower gravel helmet").split()
_OPPOSITES = (
    "hot cold|big small|up down|early late|open closed|happy sad|light dark|full empty|fast slow|hard soft|rich poor|"
    "young old|wet dry|loud quiet|high low|strong weak|deep shallow|clean dirty|sharp dull|wide narrow|thick thin|"
    "brave cowardly|true false|always never|inside outside|buy sell|push pull|win lose|begin end|ascend descend|"
    "rough smooth|polite rude|tight loose|heavy weightless|cheap expensive|ancient modern|accept refuse|arrive depart|"
    "remember forget|import export").split("|")
_CATEGORIES = {
    "animal": "horse sheep tiger monkey camel otter badger whale",
    "fruit": "apple banana cherry mango peach plum grape melon",
    "color": "red blue green purple brown white black pink",
    "tool": "hammer saw wrench drill chisel shovel rake pliers",
    "vehicle": "car truck train bicycle tractor ship bus tram",
    "metal": "iron copper gold zinc lead tin nickel aluminum",
    "instrument": "piano flute drum cello trumpet harp banjo oboe",
    "furniture": "table chair sofa desk bed shelf stool wardrobe",
}
_PLURALS = (
    "child children|mouse mice|foot feet|tooth teeth|goose geese|man men|woman women|box boxes|city cities|baby babies|"
    "leaf leaves|wolf wolves|knife knives|bus buses|dish dishes|church churches|story stories|lady ladies|"
    "party parties|half halves|shelf shelves|hero heroes|potato potatoes|glass glasses|brush brushes|fox foxes|"
    "berry berries|ox oxen|country countries|thief thieves|life lives|match matches|puppy puppies|"
    "loaf loaves|tomato tomatoes|dress dresses|wife wives|bench benches|fly flies|penny pennies").split("|")
_PASTS = (
    "go went|see saw|take took|give gave|eat ate|run ran|sing sang|write wrote|buy bought|think thought|catch caught|"
    "teach taught|bring brought|find found|leave left|keep kept|sleep slept|feel felt|build built|send sent|"
    "break broke|speak spoke|choose chose|drive drove|ride rode|fly flew|know knew|grow grew|throw threw|draw drew|"
    "begin began|swim swam|drink drank|hold held|tell told|sell sold|stand stood|win won|make made|"
    "hear heard").split("|")


class Stream:
    """Numbers from SHA-256 in counter mode: the same on every machine and under every Python."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def below(self, bound: int) -> int:
        """Uniform in [0, bound) but for a bias below bound / 2^64."""
        self._count += 1
        digest = hashlib.sha256(f"{SEED}\n{self._name}\n{self._count}".encode("utf-8")).digest()
        return int.from_bytes(digest[:8], "big") % bound

    def between(self, low: int, high: int) -> int:
        """Uniform in [low, high]."""
        return low + self.below(high - low + 1)

    def shuffled(self, values: list) -> list:
        left, result = list(values), []
        while left:
            result.append(left.pop(self.below(len(left))))
        return result


class Instance(NamedTuple):
    """answer and wrong are texts without the space at their start; `tie` is what instances on two sides must not
    share."""

    argument: str
    answer: str
    wrong: list[str]
    tie: str


class Operation(NamedTuple):
    name: str
    seen: list[str]  # {} is the argument.
    unseen: list[str]
    instances: Callable[[Stream], Iterator[Instance]]


def _near_numbers(value: int, stream: Stream) -> list[str]:
    offsets = stream.shuffled([-3, -2, -1, 1, 2, 3, 10, -10])
    return [str(value + offset) for offset in offsets if value + offset >= 0]


def _on_words(apply: Callable[[str], str], wrong: Callable[[str, Stream], list[str]]
              ) -> Callable[[Stream], Iterator[Instance]]:
    def instances(stream: Stream) -> Iterator[Instance]:
        for word in _WORDS:
            yield Instance(word, apply(word), wrong(word, stream), word)
    return instances


def _scrambled(word: str, stream: Stream) -> list[str]:
    return ["".join(stream.shuffled(list(word))) for _ in range(8)]


def _letters_of(word: str, stream: Stream) -> list[str]:
    return stream.shuffled(sorted(set(word))) + stream.shuffled(list(string.ascii_lowercase))


def _count_near(word: str, stream: Stream) -> list[str]:
    return _near_numbers(len(word), stream)


def _other_capitals(word: str, stream: Stream) -> list[str]:
    return stream.shuffled([word, word.capitalize(), word[:-1] + word[-1].upper(), word[0] + word[1:].upper()])


def _vowels(word: str) -> int:
    return sum(letter in "aeiou" for letter in word)


def _arithmetic(sign: str, compute: Callable[[int, int], int], low: int,
                high: int) -> Callable[[Stream], Iterator[Instance]]:
    def instances(stream: Stream) -> Iterator[Instance]:
        for _ in range(120):
            left, right = stream.between(low, high), stream.between(low, high)
            if sign == "-" and left < right:
                left, right = right, left
            value = compute(left, right)
            yield Instance(f"{left} {sign} {right}", str(value), _near_numbers(value, stream),
                           f"{min(left, right)} {max(left, right)}")
    return instances


def _shifted_letter(step: int) -> Callable[[Stream], Iterator[Instance]]:
    """Triples of letters, so that there are enough instances: A, B, C -> the letter `step` after the last."""
    def instances(stream: Stream) -> Iterator[Instance]:
        for start in range(26):
            for stride in (1, 2, 3):
                run = [start + step * stride * index for index in range(4)]
                if 0 <= run[-1] < 26:
                    letters = [string.ascii_uppercase[at] for at in run]
                    close = [string.ascii_uppercase[run[-1] + offset] for offset in (-2, -1, 1, 2, 3, -3)
                             if 0 <= run[-1] + offset < 26]
                    yield Instance(", ".join(letters[:3]), letters[3], stream.shuffled(close), "".join(letters[:3]))
    return instances


def _paired(pairs: list[str], both_ways: bool, wrong: Callable[[str, str, Stream], list[str]]
            ) -> Callable[[Stream], Iterator[Instance]]:
    def instances(stream: Stream) -> Iterator[Instance]:
        for pair in pairs:
            left, right = pair.split()
            yield Instance(left, right, wrong(left, right, stream), pair)
            if both_ways:
                yield Instance(right, left, wrong(right, left, stream), pair)
    return instances


def _others(pairs: list[str], column: int | None) -> Callable[[str, str, Stream], list[str]]:
    """Words of other pairs: of one column, or of both."""
    words = [word for pair in pairs for word in (pair.split() if column is None else [pair.split()[column]])]
    return lambda asked, answer, stream: [word for word in stream.shuffled(words) if word not in (asked, answer)]


def _misspelled_plural(asked: str, answer: str, stream: Stream) -> list[str]:
    return stream.shuffled([asked + "s", asked + "es", asked + "en", answer + "s", asked[:-1] + "ies"])


def _misformed_past(asked: str, answer: str, stream: Stream) -> list[str]:
    return stream.shuffled([asked + "ed", asked + "en", asked + "s", asked + "ing", answer + "ed"])


def _categories(stream: Stream) -> Iterator[Instance]:
    for category, members in _CATEGORIES.items():
        for word in members.split():
            yield Instance(word, category, stream.shuffled([name for name in _CATEGORIES if name != category]), word)


def _odd_one_out(stream: Stream) -> Iterator[Instance]:
    names = list(_CATEGORIES)
    for _ in range(100):
        inside, outside = stream.shuffled(names)[:2]
        same = stream.shuffled(_CATEGORIES[inside].split())[:3]
        odd = stream.shuffled(_CATEGORIES[outside].split())[0]
        words = stream.shuffled(same + [odd])
        yield Instance(", ".join(words), odd, same, " ".join(sorted(words)))


def _spaced(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _digits(apply: Callable[[list[int]], list[int]]) -> Callable[[Stream], Iterator[Instance]]:
    def instances(stream: Stream) -> Iterator[Instance]:
        for _ in range(100):
            digits = stream.shuffled(list(range(1, 10)))[:4]
            right = apply(digits)
            wrong = [_spaced(stream.shuffled(right)) for _ in range(10)]
            yield Instance(_spaced(digits), _spaced(right), wrong, _spaced(sorted(digits)))
    return instances


def _extreme(choose: Callable[[list[int]], int]) -> Callable[[Stream], Iterator[Instance]]:
    def instances(stream: Stream) -> Iterator[Instance]:
        for _ in range(100):
            numbers = [stream.between(10, 99) for _ in range(4)]
            if len(set(numbers)) == 4:
                yield Instance(", ".join(map(str, numbers)), str(choose(numbers)),
                               [str(number) for number in numbers if number != choose(numbers)],
                               " ".join(map(str, sorted(numbers))))
    return instances


def _sequences(stream: Stream) -> Iterator[Instance]:
    for _ in range(120):
        start, step = stream.between(1, 40), stream.between(2, 12)
        numbers = [start + step * index for index in range(5)]
        yield Instance(", ".join(map(str, numbers[:4])), str(numbers[4]), _near_numbers(numbers[4], stream),
                       f"{start} {step}")


OPERATIONS = [
    Operation("reverse", ["Write the word {} backwards.", "Reverse the letters of: {}",
                          "What is {} spelled in reverse?"],
              ["Read {} from right to left.", "Flip the order of the letters in {}."],
              _on_words(lambda word: word[::-1], _scrambled)),
    Operation("first_letter", ["What is the first letter of {}?", "First letter of: {}", "{} begins with the letter"],
              ["Which letter opens the word {}?", "Name the initial of {}."],
              _on_words(lambda word: word[0], _letters_of)),
    Operation("last_letter", ["What is the last letter of {}?", "Last letter of: {}", "{} ends with the letter"],
              ["Which letter closes the word {}?", "Name the final letter in {}."],
              _on_words(lambda word: word[-1], _letters_of)),
    Operation("count_letters", ["How many letters are in {}?", "Count the letters of: {}",
                                "The length of the word {} is"],
              ["If you spell {}, how many characters do you write?", "Give the letter count for {}."],
              _on_words(lambda word: str(len(word)), _count_near)),
    Operation("count_vowels", ["How many vowels are in {}?", "Count the vowels of: {}",
                               "The number of vowels in {} is"],
              ["How often does {} use a, e, i, o or u?", "Give the vowel count for {}."],
              _on_words(lambda word: str(_vowels(word)), lambda word, stream: _near_numbers(_vowels(word), stream))),
    Operation("uppercase", ["Write {} in capital letters.", "Uppercase: {}", "What is {} in upper case?"],
              ["Shout the word {} on paper.", "Turn every letter of {} into a capital."],
              _on_words(str.upper, _other_capitals)),
    Operation("add", ["What is {}?", "Compute: {}", "{} ="], ["Work out the sum {}.", "Find the value of {}."],
              _arithmetic("+", lambda left, right: left + right, 2, 60)),
    Operation("subtract", ["What is {}?", "Compute: {}", "{} ="],
              ["Work out the difference {}.", "Find the value of {}."],
              _arithmetic("-", lambda left, right: left - right, 2, 60)),
    Operation("multiply", ["What is {}?", "Compute: {}", "{} ="], ["Work out the product {}.", "Find the value of {}."],
              _arithmetic("*", lambda left, right: left * right, 2, 12)),
    Operation("next_letter", ["Which letter comes next: {}?", "Continue the letters: {}", "The letter after {} is"],
              ["{} and then which letter?", "Extend this run of letters by one: {}"], _shifted_letter(1)),
    Operation("next_letter_down", ["Going back in the alphabet, which letter comes next: {}?",
                                   "Continue the letters backwards: {}", "Counting down the alphabet, after {} comes"],
              ["{} and then which earlier letter?", "Extend this descending run of letters: {}"], _shifted_letter(-1)),
    Operation("next_number", ["Which number comes next: {}?", "Continue the numbers: {}", "The number after {} is"],
              ["{} and then which number?", "Extend this sequence by one: {}"], _sequences),
    Operation("sort_digits", ["Sort in ascending order: {}", "Put these digits in order, smallest first: {}",
                              "What is {} from low to high?"],
              ["Arrange {} so that they rise.", "Line up the digits {} by size."], _digits(sorted)),
    Operation("reverse_digits", ["Write these digits backwards: {}", "Reverse the list: {}",
                                 "What is {} in reverse order?"],
              ["Read the digits {} from right to left.", "Flip this list: {}"], _digits(lambda digits: digits[::-1])),
    Operation("largest", ["Which number is the largest: {}?", "Maximum of: {}", "The greatest of {} is"],
              ["Pick the biggest value among {}.", "Of {}, nothing exceeds"], _extreme(max)),
    Operation("smallest", ["Which number is the smallest: {}?", "Minimum of: {}", "The least of {} is"],
              ["Pick the lowest value among {}.", "Of {}, everything else exceeds"], _extreme(min)),
    Operation("opposite", ["What is the opposite of {}?", "Opposite of: {}", "The opposite of {} is"],
              ["Name an antonym for {}.", "Not {} but quite the contrary:"],
              _paired(_OPPOSITES, True, _others(_OPPOSITES, None))),
    Operation("plural", ["What is the plural of {}?", "Plural of: {}", "One {}, two"],
              ["There is more than one {}. Which word do you use?", "Many of a {} are called"],
              _paired(_PLURALS, False, _misspelled_plural)),
    Operation("past_tense", ["What is the past tense of {}?", "Past tense of: {}", "Today they {}, yesterday they"],
              ["Put the verb {} into the simple past.", "If it is over, {} becomes"],
              _paired(_PASTS, False, _misformed_past)),
    Operation("category", ["What kind of thing is {}?", "Category of: {}", "The word {} names a kind of"],
              ["Under which heading would you file {}?", "Classify: {}"], _categories),
    Operation("odd_one_out", ["Which word does not belong: {}?", "Odd one out of: {}",
                              "The word that does not fit in {} is"],
              ["Three of these go together and one does not: {}", "Spot the stranger among {}."], _odd_one_out),
]


def _sides(operation: Operation) -> tuple[list[Instance], list[Instance]]:
    """The operation's instances in a seeded order, those of one tie on one side, as even as that allows."""
    stream = Stream(operation.name)
    by_tie: dict[str, list[Instance]] = {}
    seen = set()
    for instance in operation.instances(stream):
        wrong = [text for text in dict.fromkeys(instance.wrong) if text != instance.answer][:_CHOICES - 1]
        if instance.argument not in seen and len(wrong) == _CHOICES - 1:
            seen.add(instance.argument)
            by_tie.setdefault(instance.tie, []).append(instance._replace(wrong=wrong))
    sides: tuple[list[Instance], list[Instance]] = ([], [])
    for tie in stream.shuffled(list(by_tie)):
        min(sides, key=len).extend(by_tie[tie])
    return sides


def _question(operation: Operation, instance: Instance, phrasing: str, unseen: bool) -> Item:
    native_id = f"{operation.name}/{instance.argument}"
    choices = Stream(f"{native_id} choices").shuffled([" " + text for text in [instance.answer, *instance.wrong]])
    return Item(native_id, f"{phrasing.format(instance.argument)}\nAnswer:", " " + instance.answer, choices,
                {"operation": operation.name, "argument": instance.argument, "phrasing": phrasing,
                 "unseen_phrasing": "true" if unseen else "false"}, ())


def _round_robin(sides: list[list[Instance]], wanted: int) -> list[tuple[int, Instance]]:
    """(operation, instance), one of each operation in turn while it has any. ValueError: they do not suffice."""
    taken: list[tuple[int, Instance]] = []
    for turn in range(max(map(len, sides))):
        taken += [(number, side[turn]) for number, side in enumerate(sides) if turn < len(side)]
    if len(taken) < wanted:
        raise ValueError(f"procedural: {len(taken)} instances for {wanted} questions")
    return taken[:wanted]


def questions() -> tuple[list[Item], list[Item]]:
    """(references, held out)."""
    sides = [_sides(operation) for operation in OPERATIONS]
    made: tuple[list[Item], list[Item]] = ([], [])
    for held_out, wanted in ((0, REFERENCES), (1, HELDOUT)):
        uses = [0] * len(OPERATIONS)
        for place, (number, instance) in enumerate(_round_robin([side[held_out] for side in sides], wanted)):
            operation = OPERATIONS[number]
            unseen = bool(held_out) and place % 2 == 1
            phrasings = operation.unseen if unseen else operation.seen
            made[held_out].append(_question(operation, instance, phrasings[uses[number] % len(phrasings)], unseen))
            uses[number] += 1
    return made
