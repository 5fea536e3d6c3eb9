#!/usr/bin/env python3
"""Self-test of repository_lint.py: a small made tree without fault passes, and each fault put into it is found, alone."""

import os
import subprocess
import tempfile
import unittest
from typing import Dict, List, Optional, Tuple

import cpp_functions
import repository_lint

# Machine paths are put together here, or this file would break the rule itself.
SLASH = "/"


def header(path: str, body: str = "") -> str:
    guard = "C3PO_" + path.upper().replace("/", "_").replace(".", "_") + "_"
    return f"#ifndef {guard}\n#define {guard}\n{body}\n#endif  // {guard}\n"


def include(*names: str) -> str:
    return "".join(f'#include "{name}"\n' for name in names)


def function(lines: int) -> str:
    return "void Long() {\n" + "  Do();\n" * (lines - 2) + "}\n"


BASE = {
    "index/base/sha256.h": header("index/base/sha256.h"),
    "index/types/neighbor.h": header("index/types/neighbor.h"),
    "index/store/store.h": header("index/store/store.h", include("index/types/neighbor.h")),
    "index/store/store.cc": include("index/store/store.h", "index/base/sha256.h", "sqlite3.h", "nlohmann/json.hpp"),
    "index/search/graph.h": header("index/search/graph.h"),
    "index/search/graph.cc": include("index/search/graph.h", "hnswlib/hnswlib.h"),
    "server/types/params.h": header("server/types/params.h", include("index/types/neighbor.h")),
    "server/metrics/metrics.h": header("server/metrics/metrics.h"),
    "server/metrics/logging.h": header("server/metrics/logging.h"),
    "server/metrics/http_server.h": header("server/metrics/http_server.h"),
    "server/metrics/http_server.cc": include("boost/beast/http.hpp", "server/metrics/http_server.h"),
    "server/metrics/exporter.cc": "#include <prometheus/counter.h>\n" + include("server/metrics/metrics.h"),
    "server/sampling/sampler.h": header("server/sampling/sampler.h", include("server/types/params.h")),
    "server/scheduler/batcher.h": header("server/scheduler/batcher.h"),
    "server/scheduler/batcher.cc": include("server/scheduler/batcher.h", "server/metrics/logging.h"),
    "server/weights/safetensors.h": header("server/weights/safetensors.h"),
    "index/base/cuda/runtime.h": header("index/base/cuda/runtime.h", "#include <cstdint>"),
    "index/base/cuda/device.h": header("index/base/cuda/device.h",
                                       "#ifdef __CUDACC__\n#include <cuda_runtime.h>\n#else\n" +
                                       include("index/base/cuda/runtime.h", "tests/host_cuda/device.h") + "#endif"),
    "index/base/cuda/library.h": header("index/base/cuda/library.h", "#include <string>\n" + include("absl/status/status.h")),
    "index/base/cuda/runtime.cu": "#include <cuda_runtime.h>\n__global__ void Probe() {}\n",
    "tests/host_cuda/device.h": header("tests/host_cuda/device.h"),
    "server/compute/cuda/norm.h": header("server/compute/cuda/norm.h", "#include <cstdint>\n" + include("index/base/cuda/runtime.h")),
    "server/compute/cuda/norm.cu": include("server/compute/cuda/norm.h", "index/base/cuda/device.h") + "SyncBlock();  // __syncthreads\n",
    "server/compute/cpu/products.h": header("server/compute/cpu/products.h"),
    "server/compute/cpu/products.cc": include("hwy/highway.h", "server/compute/cpu/products.h"),
    "tests/server/sixteen_lanes/hwy/highway.h": header("tests/server/sixteen_lanes/hwy/highway.h"),
    "server/model/moe.h": header("server/model/moe.h", include("server/compute/cpu/products.h")),
    "server/model/moe.cc": include("server/weights/safetensors.h", "server/types/params.h"),
    "server/compute/aten/products.cc": include("ATen/ATen.h"),
    "server/compute/device_queue.h": header("server/compute/device_queue.h", include("ATen/core/Tensor.h")),
    "server/embed/encoder.cc": include("server/weights/safetensors.h", "server/compute/device_queue.h", "torch/torch.h"),
    "server/pipeline/pipeline.h": header("server/pipeline/pipeline.h",
                                         include("server/scheduler/batcher.h", "index/search/graph.h")),
    "server/rpc/service.cc": include("server/pipeline/pipeline.h", "index/store/store.h", "grpcpp/grpcpp.h",
                                     "c3po/v1/generation.grpc.pb.h"),
    "server/main.cc": include("server/metrics/http_server.h", "server/pipeline/pipeline.h", "grpcpp/grpcpp.h"),
    "client/client.cc": include("c3po/v1/generation.pb.h", "index/base/sha256.h", "google/protobuf/message.h"),
    "tests/server/model/moe_test.cc": include("ATen/ATen.h", "server/model/moe.cc", "hnswlib/hnswlib.h"),
    "README.md": "See server" + SLASH + "work and https://example.org" + SLASH + "home/x.\n" * 500,
    "tests/lint/exceptions.txt": "# none\n",
}

# What is added to or replaced in BASE (None removes), then the one violation expected: rule, path, part of the message.
CASES: List[Tuple[str, Dict[str, Optional[str]], Tuple[str, str, str]]] = [
    ("index includes server", {"index/base/a.cc": include("server/types/params.h")},
     ("room", "index/base/a.cc", "index/base may not include server/types/params.h")),
    ("two types of one name", {"server/text/a.h": header("server/text/a.h", "struct Segment {\n};"),
                               "server/model/b.h": header("server/model/b.h", "class Segment final : public A {"),
                               "client/c.h": header("client/c.h", "struct Segment {")},
     ("one-definition", "server/text/a.h", "Segment is also defined in server/model/b.h")),
    ("types includes store", {"index/types/a.cc": include("index/store/store.h")}, ("room", "index/types/a.cc", "store.h")),
    ("store includes search", {"index/store/a.cc": include("index/search/graph.h")}, ("room", "index/store/a.cc", "graph.h")),
    ("sampling includes the scheduler", {"server/sampling/a.cc": include("server/scheduler/batcher.h")},
     ("room", "server/sampling/a.cc", "batcher.h")),
    ("server types includes metrics", {"server/types/a.cc": include("server/metrics/metrics.h")},
     ("room", "server/types/a.cc", "metrics.h")),
    ("a room includes more of metrics than its seam", {"server/model/a.cc": include("server/metrics/http_server.h")},
     ("room", "server/model/a.cc", "http_server.h")),
    ("embed includes the model", {"server/embed/a.cc": include("server/model/moe.h")},
     ("room", "server/embed/a.cc", "server/embed may not include server/model/moe.h")),
    ("embed includes kernels beside its queue", {"server/embed/a.cc": include("server/compute/cpu/products.h")},
     ("room", "server/embed/a.cc", "server/embed may not include server/compute/cpu/products.h")),
    ("the kernels include the model", {"server/compute/cpu/a.cc": include("server/model/moe.h")},
     ("room", "server/compute/cpu/a.cc", "moe.h")),
    ("model includes store", {"server/model/a.cc": include("index/store/store.h")}, ("room", "server/model/a.cc", "store.h")),
    ("text includes the model", {"server/text/a.cc": include("server/model/moe.h")}, ("room", "server/text/a.cc", "moe.h")),
    ("pipeline includes proto", {"server/pipeline/a.cc": include("c3po/v1/generation.pb.h")},
     ("room", "server/pipeline/a.cc", "generation.pb.h")),
    ("rpc includes the scheduler", {"server/rpc/a.cc": include("server/scheduler/batcher.h")},
     ("room", "server/rpc/a.cc", "batcher.h")),
    ("client includes server", {"client/a.cc": include("server/types/params.h")}, ("room", "client/a.cc", "params.h")),
    ("server includes tests", {"server/text/a.cc": include("tests/fakes/a.h"), "tests/fakes/a.h": header("tests/fakes/a.h")},
     ("room", "server/text/a.cc", "tests/fakes/a.h")),
    ("index tests include server", {"tests/index/a_test.cc": include("server/types/params.h")},
     ("room", "tests/index/a_test.cc", "params.h")),
    ("a room that no table knows", {"server/attic/a.cc": ""}, ("room", "server/attic/a.cc", "in no table")),
    ("an include that is not there", {"server/model/a.cc": include("server/model/gone.h")},
     ("include-path", "server/model/a.cc", "not a tracked file")),
    ("an include beside its file", {"index/store/a.cc": include("store.h")}, ("include-path", "index/store/a.cc", "from the root")),
    ("a relative include", {"index/store/a.cc": include("../base/sha256.h")},
     ("include-path", "index/store/a.cc", "from the root")),
    ("hnswlib in a header", {"index/search/a.h": header("index/search/a.h", include("hnswlib/hnswlib.h"))},
     ("third-party", "index/search/a.h", "hnswlib")),
    ("sqlite in the client", {"client/a.cc": "#include <sqlite3.h>\n"}, ("third-party", "client/a.cc", "sqlite")),
    ("prometheus in a header", {"server/metrics/a.h": header("server/metrics/a.h", "#include <prometheus/gauge.h>")},
     ("third-party", "server/metrics/a.h", "prometheus")),
    ("Asio in the client", {"client/a.cc": include("boost/asio/io_context.hpp")}, ("third-party", "client/a.cc", "Boost.Asio")),
    ("httplib in the client", {"client/a.cc": include("httplib.h")}, ("third-party", "client/a.cc", "cpp-httplib")),
    ("grpc in the pipeline", {"server/pipeline/a.cc": include("grpcpp/server.h")},
     ("third-party", "server/pipeline/a.cc", "gRPC")),
    ("protobuf in index", {"index/types/a.cc": "#include <google/protobuf/message.h>\n"},
     ("third-party", "index/types/a.cc", "protobuf")),
    ("torch in the scheduler", {"server/scheduler/a.cc": include("ATen/core/Tensor.h")},
     ("third-party", "server/scheduler/a.cc", "libtorch")),
    ("ATen in the model", {"server/model/a.cc": include("ATen/ATen.h")}, ("third-party", "server/model/a.cc", "libtorch")),
    ("ATen under both backends", {"server/compute/a.cc": include("ATen/ATen.h")}, ("third-party", "server/compute/a.cc", "libtorch")),
    ("ATen in the CPU's backend", {"server/compute/cpu/a.cc": include("c10/core/Device.h")},
     ("third-party", "server/compute/cpu/a.cc", "libtorch")),
    ("c10 in the pathway", {"server/pathway/a.cc": include("c10/core/Device.h")},
     ("third-party", "server/pathway/a.cc", "libtorch")),
    ("nlohmann in a header", {"server/text/a.h": header("server/text/a.h", include("nlohmann/json.hpp"))},
     ("third-party", "server/text/a.h", "nlohmann")),
    ("no guard", {"server/text/a.h": "#pragma once\n"}, ("header-guard", "server/text/a.h", "C3PO_SERVER_TEXT_A_H_")),
    ("another file's guard", {"server/text/a.h": header("server/text/b.h")},
     ("header-guard", "server/text/a.h", "must begin with")),
    ("guard without its end", {"server/text/a.h": header("server/text/a.h").rsplit("  //", 1)[0] + "\n"},
     ("header-guard", "server/text/a.h", "must end with")),
    ("a banned file", {"server/text/string_utils.cc": ""}, ("name", "server/text/string_utils.cc", '"utils"')),
    ("a banned word among others", {"server/scheduler/kv_block_manager.cc": ""},
     ("name", "server/scheduler/kv_block_manager.cc", '"manager"')),
    ("a banned folder", {"deploy/common/a.sh": ""}, ("name", "deploy/common/a.sh", '"common"')),
    ("a wall clock for a duration", {"server/rpc/a.cc": "auto t = absl::Now();  // now\n"}, ("wall-clock", "server/rpc/a.cc", "Now")),
    ("a timed wait by the wall clock", {"index/base/a.cc": "mu.AwaitWithTimeout(c, d);\n"}, ("wall-clock", "index/base/a.cc", "Await")),
    ("a file read as a stream", {"server/text/a.cc": "std::ifstream in(path);\n"}, ("file-reads", "server/text/a.cc", "ifstream")),
    ("a work folder", {"deploy/run.sh": "echo\ncd " + SLASH + "work/x\n"}, ("machine-path", "deploy/run.sh", "work")),
    ("a home folder", {"deploy/run.py": 'p = "' + SLASH + 'home/me/x"\n'}, ("machine-path", "deploy/run.py", "home")),
    ("root's folder for a compiler", {"deploy/cmake/a.cmake": "-I" + SLASH + "root/include\n"},
     ("machine-path", "deploy/cmake/a.cmake", "root")),
    ("a long file", {"client/a.cc": "\n" * 401}, ("file-length", "client/a.cc", "401 lines")),
    ("a long CMake file", {"tests/CMakeLists.txt": "\n" * 401}, ("file-length", "tests/CMakeLists.txt", "401")),
    ("a long file of the server", {"server/text/a.cc": "\n" * 451}, ("file-length", "server/text/a.cc", "451 lines")),
    ("a long file with a word in place of a reason", {"index/base/a.cc": "// Long because needed.\n" + "\n" * 450},
     ("file-length", "index/base/a.cc", "451 lines")),
    ("a long file whose reason is not in front", {"index/base/a.cc": "int a;\n// Long because it is a table.\n" + "\n" * 450},
     ("file-length", "index/base/a.cc", "452 lines")),
    ("a reason that nothing needs", {"server/text/a.cc": "// Long because it is a table.\n"},
     ("file-length", "server/text/a.cc", "need no")),
    ("a long function", {"server/text/a.cc": "\n" + function(71)}, ("function-length", "server/text/a.cc", "71 lines")),
    ("a long function whose reason is another's",
     {"index/base/a.h": header("index/base/a.h", "int a;\n// Long because it is a table.\n" + function(3) + function(71))},
     ("function-length", "index/base/a.h", "71 lines")),
    ("a cast to a kind of index", {"index/search/a.cc": "auto* graph = dynamic_cast<HnswIndex*>(index);  // No.\n"},
     ("index-kind", "index/search/a.cc", "dynamic_cast")),
    ("a question about the device outside backends", {"server/model/a.cc": "if (x.is_cuda()) return;\n",
                                                      "server/compute/aten/b.cc": "if (x.is_cuda()) return;\n"},
     ("device-question", "server/model/a.cc", "where a tensor lies")),
    ("a device of its own beside the engine's", {"server/embed/a.cc": "const at::Device device = at::kCPU;\n",
                                                 "server/compute/weight_tensors.cc": "x.to(at::kCPU);\n"},
     ("device-name", "server/embed/a.cc", "names a device")),
    ("a device opened by its name outside compute", {"server/model/a.cc": "auto device = OpenDevice(options.device);\n"},
     ("device-name", "server/model/a.cc", "names a device")),
    ("a device told by its word", {"server/main.cc": 'const bool on_host = config.device == "cpu";\n'},
     ("device-name", "server/main.cc", "names a device")),
    ("index includes tests", {"index/base/cuda/a.h": header("index/base/cuda/a.h", include("tests/host_cuda/device.h"))},
     ("room", "index/base/cuda/a.h", "tests/host_cuda/device.h")),
    ("the execution model includes the server", {"tests/host_cuda/a.h": header("tests/host_cuda/a.h", include("server/types/params.h"))},
     ("room", "tests/host_cuda/a.h", "params.h")),
    ("the index's kernels include the server", {"index/search/cuda/a.cc": include("server/types/params.h")},
     ("room", "index/search/cuda/a.cc", "params.h")),
    ("the model's kernels include the walk", {"server/compute/cuda/a.cc": include("server/model/moe.h")},
     ("room", "server/compute/cuda/a.cc", "moe.h")),
    ("a kernel that sees a third party", {"server/compute/cuda/a.cu": include("absl/types/span.h")},
     ("kernel-include", "server/compute/cuda/a.cu", "absl/types/span.h")),
    ("a kernel that sees the system", {"index/search/cuda/a.cu": "#include <vector>\n#include <unistd.h>\n"},
     ("kernel-include", "index/search/cuda/a.cu", "unistd.h")),
    ("a kernel that sees another folder's header", {"server/compute/cuda/a.cu": include("server/compute/device_queue.h")},
     ("kernel-include", "server/compute/cuda/a.cu", "device_queue.h")),
    ("a third party behind a kernel's header",
     {"server/compute/cuda/a.cu": include("server/compute/cuda/a.h"), "server/compute/cuda/b.cu": include("server/compute/cuda/a.h"),
      "server/compute/cuda/a.h": header("server/compute/cuda/a.h", include("index/base/sha256.h"))},
     ("kernel-include", "server/compute/cuda/a.h", "sha256.h")),
    ("a third party behind a header of every kernel", {"server/compute/cuda/a.cu": include("index/base/cuda/library.h")},
     ("kernel-include", "index/base/cuda/library.h", "absl/status/status.h")),
    ("CUDA's header in a kernel's", {"server/compute/cuda/a.h": header("server/compute/cuda/a.h", "#include <cuda_bf16.h>")},
     ("kernel-word", "server/compute/cuda/a.h", "cuda_bf16.h")),
    ("CUDA's word in a kernel", {"index/search/cuda/a.cu": "void A() {\n  __syncthreads();\n}\n"},
     ("kernel-word", "index/search/cuda/a.cu", "__syncthreads")),
    ("a loop that only nvcc unrolls", {"index/search/cuda/a.cu": "#pragma unroll\nfor (;;) {}\n"},
     ("kernel-word", "index/search/cuda/a.cu", "unroll")),
    ("a kernel that is another under test", {"index/search/cuda/a.h": header("index/search/cuda/a.h", "#ifdef __CUDACC__\n#endif")},
     ("kernel-word", "index/search/cuda/a.h", "other code")),
    ("an exception without a reason", {"server/text/a.cc": "\n",
                                       "tests/lint/exceptions.txt": "file-length server/text/a.cc\n"},
     ("exceptions", "tests/lint/exceptions.txt", "rule path reason")),
    ("an exception that nothing needs", {"server/text/a.cc": "\n" * 400,
                                         "tests/lint/exceptions.txt": "file-length server/text/a.cc it was long once\n"},
     ("exceptions", "tests/lint/exceptions.txt", "does not need")),
]

# Definitions, and the first line and length of each; other braces and quotes are between them.
FUNCTIONS = [
    ("int a() {\n  return 1;\n}\n", [(1, 3)]),
    ("namespace x {\nnamespace {\n\nint a(int b,\n      int c) {\n  if (b) {\n  }\n}\n\n}  // namespace\n}  // namespace x\n", [(4, 5)]),
    ("struct A {\n  int b = 1;\n\n  A() : c_{1}, d_(2) {\n  }\n  int c_, d_;\n};\nint e() { return 1; }\n", [(4, 2), (8, 1)]),
    ("class A : public B {\n public:\n  int size() const override {\n    return 1;\n  }\n};\n", [(3, 3)]),
    ("const int kTable[] = {\n  1,\n  2};\nconst B kB = Make({\n  1});\nvoid a() {\n}\n", [(6, 2)]),
    ("const auto kA = [](int b) {\n  return b;\n};\nvoid a() {}\n", [(1, 3), (4, 1)]),
    ("void a() {\n  const char c = '{', *t = \"{\\\"{\";\n  // {\n  /* {\n */\n}\nvoid b() {}\n", [(1, 6), (7, 1)]),
    ("constexpr char kSql[] = R\"sql(\n  {{\n)sql\";\nvoid a() {\n  int b = 1'000'000;\n}\n", [(4, 3)]),
    ("#define A(x) \\\n  { x\n#if B\nvoid a() {\n  auto b = [] {\n  };\n}\n#endif\n", [(4, 4)]),
    ("PUSH(\"a,b\")\nnamespace c {\nvoid a() {\n}\n}\n", [(3, 2)]),
    ("template <typename T>\nbool operator==(const T& a, const T& b) {\n  return true;\n}\n", [(1, 4)]),
    ("enum class E { kA, kB };\nextern \"C\" {\nint a(void) {\n  struct B {\n    int c() { return 1; }\n  };\n}\n}\n", [(3, 5)]),
    ("void a(B b = {}, std::vector<int> c = {1, 2}) {\n  c = {};\n}\nvoid d() {\n}\n", [(1, 3), (4, 2)]),
    ("void a() {\n  const auto c = L'{', d = u'{', e = U'{', f = u8'{';\n}\nvoid b() {}\n", [(1, 3), (4, 1)]),
    ("auto a() -> std::vector<int> {\n  for (;;) {\n  }\n}\nvoid b() try {\n} catch (...) {\n}\n", [(1, 4), (5, 2)]),
]


class MadeTree:
    """BASE with changes, in a temporary folder."""

    def __init__(self, changes: Dict[str, Optional[str]]):
        self.folder = tempfile.TemporaryDirectory()
        for path, text in {**BASE, **changes}.items():
            if text is None:
                continue
            full = os.path.join(self.folder.name, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w", encoding="utf-8") as file:
                file.write(text)

    def __enter__(self) -> str:
        return self.folder.name

    def __exit__(self, *_) -> None:
        self.folder.cleanup()


def lint(changes: Dict[str, Optional[str]]) -> List[repository_lint.Violation]:
    with MadeTree(changes) as root:
        return repository_lint.lint(root)


class RepositoryLintTest(unittest.TestCase):
    def test_a_tree_without_fault_passes(self):
        self.assertEqual(lint({}), [])

    def test_each_fault_is_found_and_nothing_else(self):
        for name, changes, (rule, path, part) in CASES:
            with self.subTest(name):
                found = lint(changes)
                self.assertEqual([(v.rule, v.path) for v in found], [(rule, path)], [str(v) for v in found])
                self.assertIn(part, found[0].message)

    def test_every_rule_has_a_case(self):
        with open(repository_lint.__file__, encoding="utf-8") as file:
            text = file.read()
        rules = set(repository_lint.re.findall(r'Violation\("([a-z-]+)"', text)) | {"kernel-include", "kernel-word"}
        self.assertEqual(rules, {rule for _, _, (rule, _, _) in CASES})

    def test_a_third_party_in_two_files_is_told_of_both(self):
        for name in ("hnswlib/hnswlib.h", "sqlite3.h", "prometheus/gauge.h", "httplib.h", "spdlog/spdlog.h", "libpq-fe.h"):
            with self.subTest(name):
                found = lint({"server/text/a.cc": include(name), "server/model/b.cc": include(name)})
                self.assertTrue(found)
                self.assertEqual({v.rule for v in found}, {"third-party"})
                self.assertLessEqual({"server/text/a.cc", "server/model/b.cc"}, {v.path for v in found})

    def test_an_exception_lifts_its_rule_for_its_file_only(self):
        reason = "file-length client/a.cc a table of the Unicode standard\n"
        long = "\n" * 401
        self.assertEqual(lint({"client/a.cc": long, "tests/lint/exceptions.txt": reason}), [])
        found = lint({"client/a.cc": long, "client/b.cc": long, "tests/lint/exceptions.txt": reason})
        self.assertEqual([v.path for v in found], ["client/b.cc"])

    def test_functions_are_found_and_measured(self):
        for text, expected in FUNCTIONS:
            with self.subTest(text):
                self.assertEqual([tuple(found) for found in cpp_functions.functions_of(text)], expected)

    def test_what_is_long_for_a_reason_passes(self):
        self.assertEqual(lint({"server/text/a.cc": "// A table.\n// Long because it has a line for each character.\n" + "\n" * 500}), [])
        self.assertEqual(lint({"server/text/a.cc": '#include "server/types/params.h"\n// Long because it is a table.\n' + "\n" * 500}), [])
        self.assertEqual(lint({"server/text/a.cc": "\n" * 380 + function(70)}), [])
        self.assertEqual(lint({"server/text/a.cc": "int a;\n// All of it.\n// Long because it has a line for each flag.\n" + function(90)}), [])
        self.assertEqual(lint({"client/a.cc": function(90), "tests/a_test.cc": function(90)}), [])

    def test_line_numbers_are_those_of_the_fault(self):
        found = lint({"index/base/a.cc": "// One.\n\n" + include("server/types/params.h")})
        self.assertEqual(found[0].line, 3)

    def test_binary_files_are_left_alone(self):
        self.assertEqual(lint({"tests/golden/a.bin": "\0" + SLASH + "work/x"}), [])

    def test_in_a_git_checkout_only_tracked_files_count(self):
        with MadeTree({"server/text/string_utils.cc": ""}) as root:
            git = ["git", "-C", root, "-c", "user.name=t", "-c", "user.email=t@example.org"]
            subprocess.run(git + ["init", "-q"], check=True)
            subprocess.run(git + ["add", "README.md", "index", "server/types", "tests/host_cuda"], check=True)
            self.assertEqual(repository_lint.lint(root), [])
            subprocess.run(git + ["add", "server/text"], check=True)
            self.assertEqual([v.rule for v in repository_lint.lint(root)], ["name"])

    def test_the_command_exits_1_on_a_violation_and_0_without(self):
        for changes, code in (({}, 0), ({"deploy/helpers.py": ""}, 1)):
            with MadeTree(changes) as root:
                result = subprocess.run([os.sys.executable, repository_lint.__file__, "--root", root],
                                        capture_output=True, text=True, check=False)
                self.assertEqual(result.returncode, code, result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main()
