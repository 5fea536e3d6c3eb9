"""What tests of one class share: a c3pod of their own, in a folder of its own, with a channel and stubs."""

import unittest

import server_process
from service_calls import pb, ref


class ServerCase(unittest.TestCase):
    """A class sets `binary`, and FLAGS or `started`."""
    FLAGS = ()
    binary = None

    @classmethod
    def started(cls):
        """The server, in cls.folder."""
        return server_process.ServerProcess(cls.binary, cls.folder, *cls.FLAGS)

    @classmethod
    def setUpClass(cls):
        cls.folder = server_process.fresh_folder()
        cls.server = cls.started()
        cls.channel = cls.server.channel()
        cls.generation = pb["generation_pb2_grpc"].GenerationServiceStub(cls.channel)
        cls.references = pb["reference_pb2_grpc"].ReferenceServiceStub(cls.channel)

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        code = cls.server.stop()
        server_process.remove_folder(cls.folder)
        if code != 0:
            raise AssertionError(f"c3pod exited with {code}: {cls.server.log[-20:]}")

    @classmethod
    def add(cls, collection, all_samples):
        """The verdicts of an import."""
        requests = (ref.AddReferencesRequest(collection=collection, sequence=i, sample=sample) for i, sample in enumerate(all_samples))
        return [verdict for response in cls.references.Add(requests, timeout=120) for verdict in response.verdicts]
