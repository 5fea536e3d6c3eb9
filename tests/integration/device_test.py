"""What c3pod says without a GPU where one is asked for, and what it loads where none is.
usage: device_test.py C3POD [LIBC3PO_CUDA FOLDER], a folder with driver_stand_in.cc as libcuda.so.1"""

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

import server_process

BINARY = pathlib.Path(sys.argv.pop(1))
LIBRARY, DRIVER = (pathlib.Path(sys.argv.pop(1)), sys.argv.pop(1)) if len(sys.argv) > 2 else (None, None)


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class DeviceTest(unittest.TestCase):
    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, self.folder)
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        self.binary = self.bin / "c3pod"
        shutil.copy2(BINARY, self.binary)

    def refusal(self, **settings):
        """A start with --device cuda must fail: exit code 1, and one sentence beside the log's lines."""
        ended = subprocess.run([self.binary, "--device", "cuda", "--model", server_process.TINY_MODEL, "--embedder", "model", "--store",
                                self.folder / "store.db", "--listen", "127.0.0.1:0", "--metrics-port", "0"], capture_output=True, text=True,
                               timeout=120, env={**os.environ, **settings})
        self.assertEqual(ended.returncode, 1, ended.stderr)
        lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
        self.assertEqual(len(lines), 1, ended.stderr)
        return lines[0]

    def test_a_build_without_cuda_code_says_so_and_how_to_get_it(self):
        said = self.refusal()
        self.assertTrue(said.startswith("c3pod: device cuda: this build of c3po is without CUDA code: "), said)
        for words in (str(self.bin / "libc3po_cuda.so"), str(self.folder / "lib" / "libc3po_cuda.so"), "deploy/install_deps.sh"):
            self.assertIn(words, said)

    def test_a_cut_library_is_named(self):
        (self.bin / "libc3po_cuda.so").write_bytes(b"\x7fELF")
        said = self.refusal()
        self.assertTrue(said.startswith(f"c3pod: device cuda: the CUDA code of c3po does not load: {self.bin}"), said)

    @unittest.skipIf(LIBRARY is None, "built without libc3po_cuda.so")
    @unittest.skipIf(has_driver(), "there is a driver")
    def test_a_machine_without_a_driver_is_told_so(self):
        for place in (self.bin, self.folder / "lib"):
            with self.subTest(place=place.name):
                place.mkdir(exist_ok=True)
                shutil.copy2(LIBRARY, place)
                self.assertEqual(self.refusal(), "c3pod: device cuda: no NVIDIA driver on this machine: libcuda.so.1 does not load")
                (place / LIBRARY.name).unlink()

    @unittest.skipIf(LIBRARY is None, "built without libc3po_cuda.so")
    def test_a_driver_that_is_too_old_sees_no_gpu_or_fails_is_told_apart(self):
        shutil.copy2(LIBRARY, self.bin)
        for version, error, why in (
                ("11080", "0", r"the NVIDIA driver is too old: it serves CUDA 11\.8, and 1\d\.\d is needed"),
                ("99000", "100", r"no NVIDIA GPU that this process may use \(CUDA_VISIBLE_DEVICES, or the container's devices\)"),
                ("99000", "999", "the NVIDIA driver does not open a GPU: unknown error")):
            with self.subTest(version=version, error=error):
                said = self.refusal(LD_LIBRARY_PATH=DRIVER, STAND_IN_DRIVER_VERSION=version, STAND_IN_DRIVER_ERROR=error)
                self.assertRegex(said, f"^c3pod: device cuda: {why}$")

    def test_a_server_on_the_cpu_loads_none_of_it(self):
        if LIBRARY is not None:
            shutil.copy2(LIBRARY, self.bin)
        server = server_process.ServerProcess(str(self.binary), self.folder)
        try:
            maps = pathlib.Path(f"/proc/{server.process.pid}/maps").read_text().splitlines()
        finally:
            self.assertEqual(server.stop(), 0)
        loaded = {pathlib.Path(line.split()[-1]).name for line in maps}
        self.assertIn("libtorch_cpu.so", loaded)
        self.assertFalse(loaded & {"libc3po_cuda.so", "libtorch_cuda.so", "libcuda.so.1"})


if __name__ == "__main__":
    unittest.main()
