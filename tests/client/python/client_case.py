"""What tests of Client and of AsyncClient share: one fake server a test, and one way to write a call for both."""

import asyncio
import inspect
import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
try:
    import c3po_client
except ModuleNotFoundError:  # Not installed: the clone's, with stubs made anew.
    sys.path.insert(0, str(ROOT / "client" / "python"))
    import make_stubs

    sys.path[:0] = make_stubs.import_path()
    import c3po_client

from fake_server import FakeServer

QUICK = c3po_client.RetryPolicy(initial_backoff=0.01, backoff_max=0.02)


class ClientCase(unittest.TestCase):
    """A subclass for each client sets `client_class`; `self.run_(...)` is the result of a call, awaited where it has to be."""

    client_class = None

    def setUp(self):
        self.server = FakeServer()
        self.addCleanup(self.server.stop)
        self.loop = asyncio.new_event_loop()
        self.addCleanup(self.loop.close)
        self.client = self.connect()

    def connect(self, target=None, **options):
        options = {"timeout": 20, "retry": QUICK, **options}
        client = self.client_class(target or self.server.target, **options)
        self.addCleanup(lambda: self.run_(client.aclose() if self.is_async else client.close()))
        return client

    @property
    def is_async(self):
        return self.client_class is c3po_client.AsyncClient

    def run_(self, call):
        """`call`: a result, something to await, or a function that gives one."""
        async def awaited():
            result = call() if inspect.isfunction(call) or inspect.ismethod(call) else call
            return await result if inspect.isawaitable(result) else result

        return self.loop.run_until_complete(awaited()) if self.is_async else (call() if callable(call) else call)

    def all_of(self, begin):
        """What an iterator gives; `begin()` makes it."""
        async def gathered():
            return [item async for item in begin()]

        return self.loop.run_until_complete(gathered()) if self.is_async else list(begin())

    def raises(self, kind, call):
        with self.assertRaises(kind) as caught:
            self.run_(call)
        return caught.exception


def for_both(case):
    """Two test classes of a mixin: one per client."""
    module = sys.modules[case.__module__]
    for client_class in (c3po_client.Client, c3po_client.AsyncClient):
        name = f"{client_class.__name__}{case.__name__}"
        setattr(module, name, type(name, (case, ClientCase), {"client_class": client_class, "__module__": case.__module__}))
    return case
