#!/usr/bin/env python3
"""Self-test of shell_quoting.py: what a shell does with a string is what counts, and each fault is found in its line."""

import subprocess
import unittest

from shell_quoting import lost_line_breaks, shell_blocks


class ShellQuotingTest(unittest.TestCase):
    def lost(self, text):
        return [(found.line, found.text) for found in lost_line_breaks(text)]

    def test_a_line_break_in_double_quotes_is_lost(self):
        self.assertEqual(self.lost('c3po ask "Question: …\\nAnswer:"'), [(1, "Question: …\\nAnswer:")])
        self.assertEqual(self.lost('c3po info\nc3po ask --choices " no" "a\\nb"'), [(2, "a\\nb")])
        self.assertEqual(self.lost('a "$(b "c\\nd")"'), [(1, "c\\nd")])
        self.assertEqual(self.lost('# it\'s a comment\nc3po ask "a\\nb"  # "c\\nd"'), [(2, "a\\nb")])

    def test_elsewhere_it_is_what_was_meant(self):
        for text in ("c3po ask $'a\\nb'", "c3po ask $'it\\'s\\n' \"plain\"", 'printf "a\\n"', "echo \"$(tr -d '\\n' < f | cut -c1)\"",
                     "c3po ask 'a\\nb'", 'echo -e "a\\n"', 'c3po ask "a\nb"', 'c3po ask "a\\\\name"', '# "a\\nb"'):
            self.assertEqual(self.lost(text), [], text)

    def test_a_shell_agrees(self):
        for text in ("a\\nb", "a\\\\name", "a\\tb"):
            said = subprocess.run(["bash", "-c", f'printf %s "{text}"'], capture_output=True, text=True, check=True).stdout
            self.assertEqual("\\n" in said and text != "a\\\\name", bool(self.lost(f'c3po ask "{text}"')), text)

    def test_blocks_of_other_languages_are_left_out(self):
        document = 'a\n```python\nx = "a\\nb"\n```\n```\nfirst\n```\n\n```sh\nsecond\nthird\n```\n'
        self.assertEqual(list(shell_blocks(document)), [(6, "first"), (10, "second\nthird")])


if __name__ == "__main__":
    unittest.main()
