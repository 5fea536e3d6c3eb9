"""README leads a newcomer by what works: labeled samples are imported, then calibrated, then asked by their choices. A classification that is
asked for as free text, or before it is calibrated, is what went wrong for those who tried. usage: first_steps_test.py README"""

import pathlib
import re
import sys
import unittest

README = pathlib.Path(sys.argv.pop(1)).read_text()


class FirstStepsTest(unittest.TestCase):
    def test_own_samples_are_imported_calibrated_and_asked_in_this_order(self):
        section = re.search(r"^## Your own labeled samples.*?(?=^## )", README, re.M | re.S)
        self.assertIsNotNone(section, "README has no section on one's own labeled samples")
        commands = re.findall(r"^\$?c3po (refs import|calibrate|ask|score)\b(.*)$", section.group(), re.M)
        self.assertEqual([name for name, _ in commands], ["refs import", "calibrate", "ask", "score"])
        self.assertIn("--choices", dict(commands)["ask"])

    def test_no_question_is_asked_of_a_collection_before_that_section(self):
        before = README[:README.index("## Your own labeled samples")]
        self.assertNotRegex(before, r"c3po ask\b")


if __name__ == "__main__":
    unittest.main()
