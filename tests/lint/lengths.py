"""How long files and functions may be. Under server/ and index/ what is longer says why, beginning with "Long because": a file in
its first comment, a function in the comment above it. Elsewhere a reason stands in exceptions.txt. Only the standard library is
used."""

import os
import re
from typing import Iterable, List, Tuple

from cpp_functions import functions_of

REASONED_FOLDERS = ("server/", "index/")
REASONED_LINES_MAX = 450
FUNCTION_LINES_MAX = 70
LINES_MAX = 400  # Of a file elsewhere.
REASON = re.compile(r"\bLong because \w+(?:\W+\w+){2}")  # At least three words.
SOURCE_SUFFIXES = (".h", ".cc", ".cu", ".cuh", ".py", ".sh", ".proto", ".cmake")
CPP_SUFFIXES = (".h", ".cc", ".cu", ".cuh")

Fault = Tuple[int, str]  # Line, message.


def words_of(comment_lines: Iterable[str]) -> str:
    return " ".join(line.strip().lstrip("/# ") for line in comment_lines if line.lstrip().startswith(("//", "# ")))


def leading_comment(text: str) -> str:
    """The comments before the first line of code; preprocessor lines do not end them."""
    lines = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith(("//", "#")):
            break
        lines.append(line)
    return words_of(lines)


def file_faults(path: str, text: str) -> List[Fault]:
    lines = len(text.splitlines())
    if not path.endswith(SOURCE_SUFFIXES) and os.path.basename(path) != "CMakeLists.txt":
        return []
    if not path.startswith(REASONED_FOLDERS):
        return [(lines, f"{lines} lines are more than {LINES_MAX}: split it, or enter a reason")] if lines > LINES_MAX else []
    reasoned = bool(REASON.search(leading_comment(text)))
    if lines > REASONED_LINES_MAX and not reasoned:
        return [(lines, f'{lines} lines are more than {REASONED_LINES_MAX}: part it, or say in its first comment "Long because ..."')]
    return [(1, f'{lines} lines need no "Long because"')] if reasoned and lines <= REASONED_LINES_MAX else []


def function_faults(path: str, text: str) -> List[Fault]:
    if not path.startswith(REASONED_FOLDERS) or not path.endswith(CPP_SUFFIXES):
        return []
    lines = text.splitlines()
    faults = []
    for function in functions_of(text):
        if function.lines <= FUNCTION_LINES_MAX:
            continue
        above = function.line - 1
        while above > 0 and lines[above - 1].lstrip().startswith("//"):
            above -= 1
        if not REASON.search(words_of(lines[above:function.line - 1])):
            faults.append((function.line, f"a function of {function.lines} lines, more than {FUNCTION_LINES_MAX}: part it, or say "
                                          'above it "Long because ..."'))
    return faults
