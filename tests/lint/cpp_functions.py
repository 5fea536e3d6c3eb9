"""Where the functions of a C++ file begin and how long they are, by its braces: enough for code that clang-format has laid out.
Only the standard library is used."""

import re
from typing import List, NamedTuple, Optional, Tuple


class Function(NamedTuple):
    line: int  # The first one of its signature.
    lines: int


# Comments, and literals, whose braces and quotes are no code.
NO_CODE = re.compile(r"""//[^\n]*|/\*.*?\*/|R"(?P<mark>[^(\s]*)\(.*?\)(?P=mark)"|"(?:\\.|[^"\\\n])*"|(?<!\w)(?:u8|[LuU])?'(?:\\.|[^'\\\n])*'""",
                     re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
CONTROL = re.compile(r"(?:if|for|while|switch|catch|do|else|return)\b")
# A macro without a semicolon may stand before it.
SCOPE = re.compile(r"(?:^|\n)\s*(?:template\s*<[^\n]*>\s*)?(?:inline\s+)?(?:namespace|extern|class|struct|union|enum)\b[^(]*$")
ACCESS = re.compile(r"(?:public|private|protected)$")
# Braces of a member's initializer, which come before those of the constructor.
INITIALIZER = re.compile(r"\)\s*:[^:]")
BODY_AFTER = re.compile(r"(?:[)}]|\b(?:const|noexcept|override|final|try))$")


def bare_code(text: str) -> str:
    """The code without comments, literals and preprocessor lines, on the lines that it had."""
    def blank(match: "re.Match[str]") -> str:
        return ("" if match.group(0).startswith("/") else '""') + "\n" * match.group(0).count("\n")
    text = NO_CODE.sub(blank, text)
    return DIRECTIVE.sub(lambda match: "\n" * match.group(0).count("\n"), text)


def functions_of(text: str) -> List[Function]:
    """Definitions of functions, in classes too; what is defined within one counts as part of it."""
    code = bare_code(text)
    found: List[Function] = []
    open_braces: List[bool] = []  # Whether each is an initializer's.
    begin, parentheses = 0, 0  # Where the present declaration begins.
    function: Optional[Tuple[int, int]] = None  # Braces around it, where it begins.
    for i, character in enumerate(code):
        if character == "(":
            parentheses += 1
        elif character == ")":
            parentheses -= 1
        elif character == "{":
            head = code[begin:i].strip()
            at_declaration = function is None and parentheses == 0
            open_braces.append(at_declaration and bool(INITIALIZER.search(head)) and not BODY_AFTER.search(head))
            if open_braces[-1]:
                continue
            if at_declaration and "(" in head and not CONTROL.match(head) and not SCOPE.search(head):
                function = (len(open_braces) - 1, i - len(code[begin:i].lstrip()))
            if at_declaration and function is None:  # Braces within parentheses are those of a default argument.
                begin = i + 1
        elif character == "}" and open_braces:
            if open_braces.pop():
                continue
            if function is not None and len(open_braces) == function[0]:
                first = code.count("\n", 0, function[1]) + 1
                found.append(Function(first, code.count("\n", 0, i) + 2 - first))
                function = None
            if function is None and parentheses == 0:
                begin = i + 1
        elif function is None and parentheses == 0 and (character == ";" or
                                                         (character == ":" and ACCESS.search(code[max(0, i - 9):i]))):
            begin = i + 1
    return found
