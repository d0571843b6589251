"""Fixtures of more than one test file, and the marks that a test has by where it is and what it uses."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from guardpages import children
from hypothesis import HealthCheck, settings
from offloads import guarded, simd
from spaces import space

__all__ = ["children", "guarded", "simd", "space"]

# how fast inputs are made says something of the machine, and nothing of the code
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

TESTS = Path(__file__).parent
# a mark, and the beginnings of the names (folder/file::test) of all tests that have it
BY_NAME = {
    "guest": "guests/ console/test_console_guest",
    "root": """
        cli/test_netns net/test_net_kernel net/test_net_midstream offload/test_capture offload/test_kernel
        ports/test_tap
    """,
    # what starts many processes or goes through all moments, each byte before a page that is not there, any input
    "long": """
        cli/test_iperf cli/test_net_ cli/test_top test_fork test_no_cycles test_readme
        device/test_device_hostile device/test_malformed_snapshots memory/test_memory_model
        net/test_guard net/test_hostile_guest net/test_net_rx.py::test_any_mixture net/test_net_tx.py::test_any_mixture
        offload/test_coalesce_lossless offload/test_fuzz offload/test_guard offload/test_segment_errors.py::test_lies
        offload/test_frame.py::test_changed_bytes offload/test_frame.py::test_headers_are
        offload/test_offload_rx.py::test_burst offload/test_offload_tx.py::test_burst
        offload/test_offload_tx.py::test_every_path offload/test_offload_tx.py::test_unasked
        offload/test_offload_tx.py::test_what_is_forwarded offload/test_offload_tx.py::test_with_all_features
        offload/test_segment.py::test_as_scapy offload/test_segment.py::test_flags
        offload/test_segment.py::test_gather offload/test_segment.py::test_headers_of_every_length
        offload/test_segment.py::test_pieces offload/test_toeplitz.py::test_what_is_hashed
        pci/test_legacy_driver.py::test_a_device_that_is_unplugged pci/test_pci_bus.py::TestHostileGuest
        pci/test_pci_legacy.py::TestRegisters pci/test_pci_legacy.py::test_write pci/test_pci_msix.py::TestMasks
        ports/test_guard ports/test_net_execute.py::test_any_frame
        vhost_user/test_vhost_connects vhost_user/test_vhost_fuzz vhost_user/test_vhost_inflight.py::test_bad_messages
        vhost_user/test_vhost_inflight_kill vhost_user/test_vhost_truncation
        virtqueue/test_guard virtqueue/test_hostile_device.py::test_random virtqueue/test_inflight_steps
        virtqueue/test_ring_stateful virtqueue/test_run virtqueue/test_stress
        vtnet/test_vtnet_offload.py::test_every_device vtnet/test_vtnet_rx.py::test_lies
    """,
}
BY_FIXTURE = {"space": "root", "kernel": "root"}


def pytest_configure() -> None:
    """Take SIGINT, which a shell ignores for a suite in its background: programs under test inherit that, and stay."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # -m chooses by these marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    by_name = {mark: tuple(beginnings.split()) for mark, beginnings in BY_NAME.items()}
    for item in items:
        name = "::".join([item.path.relative_to(TESTS).as_posix(), *item.nodeid.split("::")[1:]])
        marks = {mark for mark, beginnings in by_name.items() if name.startswith(beginnings)}
        marks |= {mark for fixture, mark in BY_FIXTURE.items() if fixture in getattr(item, "fixturenames", ())}
        for mark in marks:
            item.add_marker(mark)
        if not any(item.get_closest_marker(mark) for mark in ("guest", "root", "install", "long")):
            item.add_marker("quick")
