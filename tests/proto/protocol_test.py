"""c3po.v1 by buf: the rules of proto/buf.yaml, and nothing broken since each release. Every check is shown to find something: on
copies of the .proto files that are changed, and without each of the exceptions.
usage: protocol_test.py, with the Python of deploy/install_deps.sh's client tools"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
PROTO = SOURCE / "proto"
BUF = pathlib.Path(sys.prefix) / "bin" / "buf"
sys.path.insert(0, str(PROTO))
import descriptor_image

# (file, what is there, what it becomes, what buf says).
BREAKING = (
    ("generation", "optional string request_id = 6;", "", 'field "6" with name "request_id" on message "GenerateRequest" was deleted'),
    ("generation", "optional double top_p = 3;", "optional double nucleus = 3;", 'changed name from "top_p" to "nucleus"'),
    ("generation", "optional double min_p = 4;", "optional float min_p = 4;", 'changed type from "double" to "float"'),
    ("generation", "PRIORITY_LOW = 1;", "PRIORITY_IDLE = 1;", 'changed name from "PRIORITY_LOW" to "PRIORITY_IDLE"'),
    ("generation", "uint32 completion_tokens = 2;\n}\n\nmessage Provenance", "uint32 completion_tokens = 3;\n}\n\nmessage Provenance",
     'field "2" with name "completion_tokens" on message "Usage" was deleted'),
    ("options", "repeated uint32 critical_layers = 8;", "uint32 critical_layers = 8;", 'changed cardinality from "repeated"'),
    ("reference", "rpc BackupStore(BackupStoreRequest) returns (stream BackupStoreResponse);", "",
     'RPC "BackupStore" on service "ReferenceService" was deleted'),
    ("server", "returns (GetServerInfoResponse)", "returns (ModelInfo)", 'changed response type from "c3po.v1.GetServerInfoResponse"'),
)
LINT = (
    ("generation", "service GenerationService {", "service Generation {", 'should be suffixed with "Service"'),
    ("options", "KERNEL_MATERN = 2;", "MATERN = 2;", "should be prefixed with"),
    ("server", "uint32 context_window = 12;", "uint32 contextWindow = 12;", "should be lower_snake_case"),
)


def buf(*arguments):
    return subprocess.run([BUF, *map(str, arguments)], capture_output=True, text=True)


class ProtocolTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="c3po_protocol_")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def image(self, *changes):
        """Of the protocol, with `changes` (file, old, new)."""
        protos = self.folder / "proto"
        shutil.rmtree(protos, ignore_errors=True)
        shutil.copytree(PROTO / "c3po", protos / "c3po")
        for name, old, new in changes:
            path = protos / "c3po" / "v1" / f"{name}.proto"
            text = path.read_text()
            self.assertEqual(text.count(old), 1, old)
            path.write_text(text.replace(old, new))
        target = self.folder / "now.binpb"
        descriptor_image.make_image(target, protos, source_info=True)
        return target

    def breaking(self, image, released):
        return buf("breaking", image, "--against", released, "--config", PROTO / "buf.yaml")

    def test_the_rules_are_kept(self):
        done = buf("lint", self.image(), "--config", PROTO / "buf.yaml")
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)

    def test_the_rules_find_names_of_another_style(self):
        for name, old, new, said in LINT:
            with self.subTest(new):
                done = buf("lint", self.image((name, old, new)), "--config", PROTO / "buf.yaml")
                self.assertEqual(done.returncode, 100, done.stderr)
                self.assertIn(said, done.stdout)

    def test_each_exception_is_needed(self):
        config = (PROTO / "buf.yaml").read_text()
        rules = re.findall(r"^    (RPC\w+):\n      - \S+\n", config, re.MULTILINE)
        self.assertEqual(len(rules), 2)
        image = self.image()
        for rule in rules:
            changed = self.folder / "buf.yaml"
            changed.write_text(re.sub(rf"^    {rule}:\n      - \S+\n", "", config, flags=re.MULTILINE))
            self.assertEqual(buf("lint", image, "--config", changed).returncode, 100, rule)

    def test_nothing_is_broken_since_each_release(self):
        released = sorted((PROTO / "released").glob("c3po_v1_*.binpb"))
        self.assertTrue(released)
        for image in released:
            done = self.breaking(self.image(), image)
            self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)

    def test_whatever_breaks_a_client_is_found(self):
        (latest,) = sorted((PROTO / "released").glob("c3po_v1_*.binpb"))[-1:]
        for name, old, new, said in BREAKING:
            with self.subTest(said):
                done = self.breaking(self.image((name, old, new)), latest)
                self.assertEqual(done.returncode, 100, done.stderr)
                self.assertIn(said, done.stdout)

    def test_the_commands_tool_makes_a_releases_image(self):
        target = self.folder / "released.binpb"
        subprocess.run([sys.executable, PROTO / "descriptor_image.py", target], check=True)
        self.assertEqual(self.breaking(target, self.image()).returncode, 0)
        self.assertEqual(self.breaking(self.image(), target).returncode, 0)


if __name__ == "__main__":
    unittest.main()
