#!/usr/bin/env python3
"""Checks the commands in the documents: a `\\n` in plain double quotes reaches a program as a backslash and an n, and a prompt copied
from there is another one. $'...' holds a line break. Prints `path:line: what` for each, and exits 1 if there are any.

    shell_quoting.py FILE.md...

Only code blocks of a shell, or of no language, are read. Programs that read such a sequence themselves (printf, tr, echo -e) may
have it."""

import re
import sys
from typing import Iterator, List, NamedTuple, Tuple

SHELLS = {"", "sh", "bash", "shell", "console"}
READS_ESCAPES = re.compile(r"^(?:printf|tr|sed|awk|grep|python3?|echo\s+-\w*e)\b")


class Found(NamedTuple):
    line: int  # of the text, counted from 1
    text: str


def shell_blocks(document: str) -> Iterator[Tuple[int, str]]:
    """(number of its first line, text) of each code block that is a shell's."""
    language, begin, block = None, 0, []
    for number, line in enumerate(document.splitlines(), 1):
        fence = re.match(r"\s*```\s*(\w*)", line)
        if fence and language is None:
            language, begin, block = fence.group(1), number + 1, []
        elif fence:
            if language in SHELLS:
                yield begin, "\n".join(block)
            language = None
        elif language is not None:
            block.append(line)


def lost_line_breaks(text: str) -> List[Found]:
    """Double-quoted strings of shell commands that hold a `\\n`."""
    found: List[Found] = []
    at = 0

    def command_before(position: int) -> str:
        """The words of the simple command that a position is in, so far."""
        return re.split(r"[|;&\n(]", text[:position])[-1].strip()

    def skip_single(position: int, escapes: bool) -> int:
        while position < len(text) and text[position] != "'":
            position += 2 if escapes and text[position] == "\\" else 1
        return position + 1

    def double_quoted(begin: int) -> int:
        """From behind the opening quote to behind the closing one."""
        position, holds = begin, False
        while position < len(text) and text[position] != '"':
            if text[position] == "\\":
                holds = holds or text[position + 1:position + 2] == "n"
                position += 2
            elif text.startswith("$(", position):
                position = commands(position + 2, nested=True)
            else:
                position += 1
        if holds and not READS_ESCAPES.match(command_before(begin - 1)):
            found.append(Found(text.count("\n", 0, begin) + 1, text[begin:position]))
        return position + 1

    def commands(position: int, nested: bool) -> int:
        """To the end, or behind the parenthesis that ends a nested one."""
        depth = 0
        while position < len(text):
            character = text[position]
            if character == "\\":
                position += 2
            elif text.startswith("$'", position):
                position = skip_single(position + 2, escapes=True)
            elif character == "'":
                position = skip_single(position + 1, escapes=False)
            elif character == '"':
                position = double_quoted(position + 1)
            elif character == "#" and (position == 0 or text[position - 1] in " \t\n"):
                end = text.find("\n", position)
                position = len(text) if end < 0 else end
            elif nested and character == ")" and depth == 0:
                return position + 1
            else:
                depth += (character == "(") - (character == ")")
                position += 1
        return position

    while at < len(text):
        at = commands(at, nested=False)
    return found


def main(paths: List[str]) -> int:
    count = 0
    for path in paths:
        with open(path, encoding="utf-8") as file:
            document = file.read()
        blocks = list(shell_blocks(document))
        if not blocks:
            print(f"{path}: has no command to read")
            count += 1
        for begin, block in blocks:
            for found in lost_line_breaks(block):
                print(f"{path}:{begin + found.line - 1}: \"{found.text}\": the shell leaves \\n as it is; write $'...'")
                count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
