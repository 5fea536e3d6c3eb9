"""A copy of the server's reference store, as a file here."""

from __future__ import annotations

import hashlib
import os
import pathlib
from types import TracebackType

from c3po.v1 import reference_pb2 as ref
from c3po_client.errors import C3poError


class BackupFile:
    """Writes beside `path` and takes its place once the copy is whole. In a `with`; what is left of a copy that failed is removed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._digest, self._bytes, self._last = hashlib.sha256(), 0, ref.BackupStoreResponse()

    def __enter__(self) -> BackupFile:
        self._file = open(self._partial, "wb")
        return self

    def write(self, response: ref.BackupStoreResponse) -> None:
        self._file.write(response.chunk)
        self._digest.update(response.chunk)
        self._bytes += len(response.chunk)
        self._last = response

    def finish(self) -> int:
        """Bytes of the copy. C3poError: it is not what the server said it would be."""
        if self._bytes != self._last.total_bytes or self._digest.hexdigest() != self._last.sha256:
            raise C3poError(f"{self._path}: the copy did not arrive whole: {self._bytes} bytes of {self._last.total_bytes}")
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._partial, self._path)
        return self._bytes

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)
