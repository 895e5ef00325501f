"""What all tests run under: one thread, the same examples each time, no window, and no network."""

import os
import socket

# Before anything imports huggingface_hub, which reads this once.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import matplotlib
import pytest
import torch

torch.set_num_threads(1)
# Not through MPLBACKEND: notebooks that are tested from this process would inherit it and draw nothing inline.
matplotlib.use("Agg")

hypothesis.settings.register_profile("course", derandomize=True, deadline=None, max_examples=100, database=None)
hypothesis.settings.load_profile("course")


# ---------------------------------------------------------------- no network

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def local_only(reach, where):
    """`reach` for this machine; for any other it fails the test. `where` picks the host from its arguments.

    pytest.fail raises a BaseException, so that no library's "except Exception: try the cache" hides the attempt.
    """

    def guarded(*arguments, **options):
        host = where(*arguments)
        if host not in LOOPBACK:
            pytest.fail(f"a test reached for the network: {host!r}")
        return reach(*arguments, **options)

    return guarded


def host_of(own, address):
    """The host of an address, or localhost for sockets that cannot leave the machine, such as files."""
    return address[0] if own.family in (socket.AF_INET, socket.AF_INET6) else "localhost"


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Nothing in a test connects to another machine or asks a name server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only(socket.socket.connect, host_of))
        patch.setattr(socket.socket, "connect_ex", local_only(socket.socket.connect_ex, host_of))
        patch.setattr(socket, "getaddrinfo", local_only(socket.getaddrinfo, lambda host, *_, **__: host or "localhost"))
        yield
