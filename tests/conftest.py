"""Fixtures of more than one test file, and the marks that a test has by where it is and what it uses."""

from __future__ import annotations

import gc
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
        cli/test_iperf cli/test_net_ cli/test_top console/test_console_control
        console/test_console_snapshot.py::test_malformed device/test_device_hostile device/test_malformed_snapshots
        device/test_dispatch.py::test_resets driver/test_hostile_config.py::test_random_lies
        event/test_notifier.py::test_a_ring_while event/test_notifier.py::test_a_write_that_holds
        memory/test_dma.py::test_no_two_overlap memory/test_memory_model net/test_guard net/test_hostile_guest
        net/test_net_control.py::test_garbage netdev/test_net_rx.py::test_any_mixture
        net/test_net_stop.py::test_the_command netdev/test_net_tx.py::test_a_port_that_is_full
        netdev/test_net_tx.py::test_any_mixture netdev/test_odd_frames.py::test_a_short_frame
        netdev/test_odd_frames.py::test_fragments_of_ipv6 netdev/test_odd_frames.py::test_lengths_by_way
        net/test_turns.py::test_shares offload/test_checksum.py::test_environment
        offload/test_checksum.py::test_every_length_copied offload/test_checksum.py::test_more_than_one_piece
        offload/test_coalesce_flushes.py::test_table_of_many_flows offload/test_coalesce_lossless
        offload/test_frame.py::test_batch offload/test_frame.py::test_changed_bytes
        offload/test_frame.py::test_every_cut offload/test_frame.py::test_headers_are
        offload/test_frame_checksum.py::test_filling offload/test_frame_checksum.py::test_noise
        offload/test_frame_checksum.py::test_preparing offload/test_frame_checksum.py::test_verdicts_of_any_frame
        offload/test_fuzz offload/test_guard offload/test_offload_rx.py::test_any_claim
        offload/test_offload_rx.py::test_burst offload/test_offload_rx.py::test_what_our_device_sends
        offload/test_offload_tx.py::test_burst offload/test_offload_tx.py::test_every_path
        offload/test_offload_tx.py::test_outer_checksum offload/test_offload_tx.py::test_unasked
        offload/test_offload_tx.py::test_what_is_forwarded offload/test_offload_tx.py::test_what_leaves
        offload/test_offload_tx.py::test_with_all_features offload/test_segment.py::test_64_kib
        offload/test_segment.py::test_as_scapy offload/test_segment.py::test_flags offload/test_segment.py::test_gather
        offload/test_segment.py::test_headers_of_every_length offload/test_segment.py::test_ipv4_fragments
        offload/test_segment.py::test_mss_of_one offload/test_segment.py::test_pieces
        offload/test_segment_errors.py::test_lies offload/test_toeplitz.py::test_what_is_hashed
        pci/test_legacy_driver.py::test_a_device_that_is_unplugged pci/test_pci_bus.py::TestHostileGuest
        pci/test_pci_config.py::test_any_writes pci/test_pci_config.py::test_write_everywhere
        pci/test_pci_legacy.py::TestRegisters pci/test_pci_legacy.py::test_read pci/test_pci_legacy.py::test_write
        pci/test_pci_msix.py::TestMasks pci/test_pci_msix.py::test_write_everywhere ports/test_guard
        ports/test_pcap.py::test_no_file_does_harm ports/test_software_offload.py::test_any_frame
        test_fork test_no_cycles test_readme vhost_user/test_vhost_connects
        vhost_user/test_vhost_drain.py::test_what_the_device_writes_is_garbage vhost_user/test_vhost_fuzz
        vhost_user/test_vhost_ghost.py::test_a_frontend_that_passes vhost_user/test_vhost_inflight.py::test_bad_messages
        vhost_user/test_vhost_inflight_kill vhost_user/test_vhost_memory_moves.py::test_a_connection_that_ends
        vhost_user/test_vhost_memory_moves.py::test_the_region_comes_back vhost_user/test_vhost_truncation
        vhost_user/test_vhost_user.py::test_a_channel_for_requests virtqueue/test_guard
        virtqueue/test_hostile_device.py::test_random virtqueue/test_hostile_driver.py::test_memory_that_changes
        virtqueue/test_hostile_driver.py::test_random_bytes virtqueue/test_inflight_steps virtqueue/test_ring_stateful
        virtqueue/test_fastpath virtqueue/test_stress vtnet/test_vtnet_offload.py::test_every_device
        vtnet/test_vtnet_rx.py::test_lies
    """,
}
BEGINNINGS = {mark: tuple(names.split()) for mark, names in BY_NAME.items()}
BY_FIXTURE = {"space": "root", "kernel": "root"}


def pytest_configure() -> None:
    """Take SIGINT, which a shell ignores for a suite in its background: programs under test inherit that, and stay."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare `make quick` the import of files that have none of its tests."""
    if config.option.markexpr == "quick" and collection_path.is_relative_to(TESTS):
        return marks_of(collection_path.relative_to(TESTS).as_posix()) != set() or None
    return None


def marks_of(name: str) -> set[str]:
    """Return the marks that a test, or all tests of a file, have by name."""
    return {mark for mark, beginnings in BEGINNINGS.items() if name.startswith(beginnings)}


def pytest_collection_finish() -> None:
    """Keep a hundred thousand objects that stay from each garbage collection: many tests ask for one."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # -m chooses by these marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = "::".join([item.path.relative_to(TESTS).as_posix(), *item.nodeid.split("::")[1:]])
        marks = marks_of(name)
        marks |= {mark for fixture, mark in BY_FIXTURE.items() if fixture in getattr(item, "fixturenames", ())}
        for mark in marks:
            item.add_marker(mark)
        if not any(item.get_closest_marker(mark) for mark in ("guest", "root", "install", "long")):
            item.add_marker("quick")
