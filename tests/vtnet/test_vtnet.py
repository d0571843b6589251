"""The vtnet driver as a whole: up and down, what it tells the device, several queues, watchdog, figures."""

from __future__ import annotations

import struct
import threading
import time
from typing import Any

import pytest
from netdev import MAC, HandDevice, attached, frames_of
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from virtio import GuestMemory
from virtio.constants import Feature, Status
from virtio.constants import NetFeature as N
from virtio.direct import DirectTransport
from virtio.errors import ConfigError, DeviceBroken, NegotiationError, PoolExhausted
from virtio.memory.dma import DmaPool
from virtio.net import Loopback, NetDevice, Vtnet
from virtio.net.vtnet import WANTED

DATA = b"x" * 60


def nic_on(device: NetDevice, **options: Any) -> Vtnet:
    return attached(device, idle=device.poll, **options)


def flows(count: int) -> list[bytes]:
    ether = Ether(dst=MAC.hex(":"), src="02:00:00:00:00:02")
    return [bytes(ether / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9000 + i) / DATA) for i in range(count)]


# ---- up and down ----


def test_attach_and_detach_leave_nothing() -> None:
    device = HandDevice()
    memory = GuestMemory.allocate(32 << 20)
    pool = DmaPool(memory, 0, 32 << 20)
    with Vtnet(DirectTransport(device, memory), pool) as nic:
        assert nic.attached and device.status & Status.DRIVER_OK and pool.used > 0
        assert nic.mac == MAC and nic.mtu == 1500 and nic.link_up and nic.max_pairs == 1
        assert (nic.speed, nic.duplex) == (10_000, "full")
    assert not nic.attached and device.status == 0
    assert pool.used == 0 and nic.pairs == []
    nic.attach()
    nic.transmit(frames_of(3))
    assert device.sent() == frames_of(3)
    nic.detach()
    nic.detach()
    assert pool.used == 0


@pytest.mark.parametrize("size", [1 << 14, 1 << 17, 1 << 20, 3 << 20])
def test_memory_that_is_too_small(size: int) -> None:
    device = HandDevice()
    memory = GuestMemory.allocate(4 << 20)
    pool = DmaPool(memory, 0, size)
    nic = Vtnet(DirectTransport(device, memory), pool)
    with pytest.raises(PoolExhausted):
        nic.attach()
    assert pool.used == 0 and not nic.attached and nic.pairs == []
    assert device.status in (0, Status.FAILED)


def test_down_loses_what_is_in_the_queues_and_up_goes_on() -> None:
    device = HandDevice()
    nic = attached(device)
    nic.transmit(frames_of(100))
    nic.down()
    assert device.status == 0
    nic.up()
    nic.up()
    assert nic.transmit(frames_of(256)) == 256
    assert device.sent() == frames_of(256)
    device.give(*frames_of(5))
    assert nic.receive() == frames_of(5)
    nic.suspend()
    nic.resume()
    device.give(*frames_of(5))
    assert nic.receive() == frames_of(5)
    assert nic.statistics()["txq0.opackets"] == 356  # counters go on
    nic.detach()
    nic.up()
    assert nic.attached


def test_what_is_wanted_and_what_is_refused() -> None:
    nic = attached(HandDevice(), want="RING_PACKED", refuse="MRG_RXBUF HOST_UFO")
    negotiation = nic.negotiation
    assert negotiation is not None
    assert "RING_PACKED" in negotiation.names(nic.features)
    assert not nic.features & (N.MRG_RXBUF | N.HOST_UFO | N.GSO)
    assert nic.queues[0].layout.is_packed
    assert "MRG_RXBUF" in nic.report() and "MTU 1500" in nic.report() and "1 of 1 queue pairs" in nic.report()
    with pytest.raises(ValueError, match="SPEED_DUPEX"):
        attached(HandDevice(), refuse="SPEED_DUPEX")


def test_lro_off_leaves_the_guest_offloads() -> None:
    nic = attached(HandDevice(), lro=None)
    assert not nic.features & (N.GUEST_TSO4 | N.GUEST_TSO6 | N.GUEST_UFO | N.GUEST_USO4)
    assert nic.features & N.GUEST_CSUM
    assert nic.pairs[0].receive.pool.room == 2048


@pytest.mark.parametrize(("mtu", "kept"), [(67, False), (68, True), (9000, True), (65535, True)])
def test_mtu_of_the_device(mtu: int, kept: bool) -> None:
    device = HandDevice(mtu=mtu)
    nic = attached(device, mtu=1400, memory=GuestMemory.allocate(256 << 20))
    assert bool(nic.features & N.MTU) == kept
    assert nic.mtu == (mtu if kept else 1400)
    frame = bytes(12) + b"\x81\0" + bytes(nic.mtu + 4)  # a tag counts on top
    assert nic.transmit([frame]) == 1 and device.sent() == [frame]
    assert nic.pairs[0].transmit.small.room >= len(frame)


def test_mtu_can_be_set() -> None:
    device = HandDevice(mtu=9000, withhold="GUEST_CSUM HOST_TSO4 HOST_TSO6 HOST_UFO HOST_USO CTRL_VQ")
    nic = attached(device, refuse="MTU")
    assert nic.mtu == 1500
    (view,) = nic.buffers(1, 60)
    old = nic.pairs[0].transmit
    nic.set_mtu(1400)
    assert nic.pairs[0].transmit is old  # they fit
    nic.set_mtu(9000)
    assert nic.mtu == 9000
    frame = b"j" * 9014
    assert nic.transmit([frame]) == 1 and device.sent() == [frame]
    device.give(frame)
    assert nic.receive() == [frame]
    view[:] = b"v" * 60  # nobody else has its memory
    assert nic.transmit([frame] * 10) == 10 and device.sent() == [frame] * 10
    view.release()
    nic.detach()
    nic.attach()
    assert nic.mtu == 9000
    nic.detach()
    assert nic.pool.used == 0
    limited = attached(HandDevice(mtu=2000))
    for mtu in (67, 2001):
        with pytest.raises(ConfigError, match="68 to 2000"):
            limited.set_mtu(mtu)
    limited.set_mtu(1000)
    limited.detach()
    limited.attach()
    assert limited.mtu == 1000


@pytest.mark.parametrize("pairs", [0, 0x8001, 0xFFFF])
def test_pairs_that_no_device_has(pairs: int) -> None:
    device = HandDevice()
    device.config[8:10] = struct.pack("<H", pairs)
    nic = attached(device, pairs=4)
    assert not nic.features & N.MQ and len(nic.pairs) == 1


def test_arguments() -> None:
    for wrong in ({"pairs": 0}, {"pairs": 0x8001}, {"mtu": 67}, {"mtu": 65536}):
        with pytest.raises(ConfigError):
            attached(HandDevice(), **wrong)
    nic = attached(HandDevice())
    with pytest.raises(IndexError):
        nic.transmit([bytes(60)], queue=1)
    with pytest.raises(ConfigError, match="1 to 1"):
        nic.set_pairs(2)
    assert WANTED & N.MRG_RXBUF


# ---- what the device is told ----


def test_filters_reach_the_device_and_survive_a_reset() -> None:
    device = NetDevice(Loopback(), mac=MAC)
    nic = nic_on(device)
    assert nic.filter.promiscuous is None and device.control.modes == 1
    other, group = bytes.fromhex("020000000009"), bytes.fromhex("01005e000001")
    nic.filter.promiscuous = False
    nic.filter.set_addresses([other], [group])
    nic.filter.add_vlan(7)
    nic.filter.add_vlan(9)
    nic.filter.remove_vlan(7)
    nic.filter.no_broadcast = True
    for _ in range(2):
        assert device.control.modes == 32
        assert device.control.unicast == (other,) and device.control.multicast == (group,)
        assert device.control.vlans is not None
        assert [vid for vid in range(4096) if device.control.vlans[vid >> 3] >> (vid & 7) & 1] == [9]
        start = bytes.fromhex("020000000002") + b"\x88\xb5" + bytes(60)
        pass_, stop = [MAC, other, group], [bytes.fromhex("020000000008"), b"\xff" * 6, bytes.fromhex("01005e000002")]
        nic.transmit([address + start for address in pass_ + stop])
        device.poll()
        assert nic.receive() == [address + start for address in pass_]
        nic.reset()
    assert nic.filter.vlans == {9} and nic.filter.unicast == (other,) and nic.filter.multicast == (group,)


def test_all_modes() -> None:
    device = NetDevice(mac=MAC)
    nic = nic_on(device)
    names = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
    for i, name in enumerate(names):
        setattr(nic.filter, name, True)
        assert device.control.modes & 1 << i and getattr(nic.filter, name) is True
        setattr(nic.filter, name, False)
        assert not device.control.modes & 1 << i and getattr(nic.filter, name) is False


def test_tables_that_are_too_long_become_modes() -> None:
    device = NetDevice(mac=MAC)
    nic = nic_on(device)
    nic.filter.promiscuous = False
    many = [bytes([2, 0, 0, 0, 1, i]) for i in range(129)]
    nic.filter.set_addresses(many)
    assert nic.filter.promiscuous and device.control.modes == 1
    nic.filter.promiscuous = False
    nic.filter.set_addresses([], [bytes([1, 0, 0, 0, 1, i]) for i in range(129)])
    assert nic.filter.all_multicast and device.control.modes == 2


def test_filters_that_cannot_be() -> None:
    nic = nic_on(NetDevice(mac=MAC))
    for vid in (-1, 4096):
        with pytest.raises(ConfigError, match="out of range"):
            nic.filter.add_vlan(vid)
    with pytest.raises(ConfigError, match="has 5 bytes"):
        nic.filter.set_addresses([bytes(5)])
    with pytest.raises(ConfigError, match="is a multicast address"):
        nic.filter.set_addresses([b"\1" * 6])
    with pytest.raises(ConfigError, match="is no multicast address"):
        nic.filter.set_addresses([], [b"\2" * 6])
    nic = nic_on(NetDevice(mac=MAC, withhold="CTRL_RX CTRL_VLAN"))
    with pytest.raises(ConfigError, match="CTRL_RX was not negotiated"):
        nic.filter.promiscuous = True
    with pytest.raises(ConfigError, match="CTRL_VLAN was not negotiated"):
        nic.filter.add_vlan(1)
    nic = nic_on(NetDevice(mac=MAC, withhold="CTRL_VQ"))
    with pytest.raises(ConfigError, match="CTRL_VQ was not negotiated"):
        nic.command(0, 0, b"\0")


def test_address() -> None:
    device = NetDevice(mac=MAC)
    nic = nic_on(device)
    assert nic.mac == MAC
    nic.set_mac(bytes.fromhex("0200000000aa"))
    assert device.mac == "02:00:00:00:00:aa" and nic.mac.hex() == "0200000000aa"
    nic.reset()
    assert device.mac == "02:00:00:00:00:aa"
    for wrong in (b"\1" * 6, bytes(5)):
        with pytest.raises(ConfigError):
            nic.set_mac(wrong)
    nic.detach()
    assert device.mac == MAC.hex(":")


def test_address_of_a_legacy_device_is_written_to_its_configuration() -> None:
    device = NetDevice(mac=MAC, withhold="CTRL_MAC_ADDR")
    nic = nic_on(device, legacy=True)
    nic.set_mac(bytes.fromhex("0200000000aa"))
    assert device.mac == "02:00:00:00:00:aa"
    modern = nic_on(NetDevice(mac=MAC, withhold="CTRL_MAC_ADDR"))
    with pytest.raises(ConfigError, match="CTRL_MAC_ADDR"):
        modern.set_mac(bytes.fromhex("0200000000aa"))


def test_a_device_without_an_address_gets_a_random_one() -> None:
    nics = [attached(HandDevice(withhold="MAC")) for _ in range(2)]
    assert nics[0].mac != nics[1].mac and nics[0].mac == nics[0].mac
    assert all(nic.mac[0] & 3 == 2 for nic in nics)  # unicast, locally administered


def test_lro_can_be_turned_off_and_on() -> None:
    device = NetDevice(mac=MAC)
    nic = nic_on(device)
    nic.set_lro(False)
    assert device.control.offloads == N.GUEST_CSUM
    nic.reset()
    assert device.control.offloads == N.GUEST_CSUM
    nic.set_lro(True)
    assert device.control.offloads & N.GUEST_TSO4
    with pytest.raises(ConfigError, match="CTRL_GUEST_OFFLOADS"):
        nic_on(NetDevice(mac=MAC, withhold="CTRL_GUEST_OFFLOADS")).set_lro(False)


def test_link_and_announcement() -> None:
    device = NetDevice(Loopback(), mac=MAC)
    nic = nic_on(device)
    seen: list[bool] = []
    nic.on_link = seen.append
    nic.tick()
    assert seen == []
    device.link = False
    nic.tick()
    device.link = True
    nic.tick()
    assert seen == [False, True] and nic.counters["link_changes"] == 2
    assert device.announce()
    nic.tick()
    assert not device.config[6] & 2  # acknowledged
    device.poll()
    (frame,) = nic.receive()
    assert frame[:6] == b"\xff" * 6 and frame[6:12] == MAC and frame[12:14] == b"\x80\x35" and frame[22:28] == MAC
    assert nic.counters["announcements"] == 1
    silent = attached(HandDevice(status=0, withhold="STATUS"))
    assert silent.link_up
    assert not attached(HandDevice(status=0)).link_up


# ---- several queues ----


def test_flows_keep_to_their_queue() -> None:
    device = NetDevice(Loopback(queues=4), mac=MAC, queue_pairs=4)
    nic = nic_on(device, pairs=4)
    assert nic.active_pairs == device.control.pairs == 4
    frames = flows(64)
    assert nic.transmit(frames + frames) == 128
    device.poll()
    by_queue = [nic.receive(256, queue=i) for i in range(4)]
    assert all(len(got) > 8 for got in by_queue)
    for got in by_queue:
        assert got[: len(got) // 2] == got[len(got) // 2 :]  # both rounds alike, and in order
    assert sorted(frame for got in by_queue for frame in got) == sorted(frames + frames)


def test_a_pair_of_ones_choice() -> None:
    device = NetDevice(Loopback(queues=2), mac=MAC, queue_pairs=2)
    nic = nic_on(device, pairs=2)
    frames = flows(10)
    nic.transmit(frames, queue=1)
    device.poll()
    assert nic.receive(queue=0) == [] and nic.receive(queue=1) == frames
    nic.transmit(frames, queue=1)
    nic.transmit(frames, queue=0)
    device.poll()
    assert sorted(nic.receive(5) + nic.receive(100)) == sorted(frames + frames)
    nic.transmit(frames, queue=1)
    device.poll()
    assert [b"".join(views) for views in nic.receive_views()] == frames


def test_a_full_queue_stops_the_burst_where_it_is() -> None:
    device = HandDevice(pairs=2, queue_size=16)
    nic = multi(device)
    frames = flows(200)
    taken = nic.transmit(frames)
    assert 16 <= taken < 33
    sent = sorted(device.sent(0) + device.sent(1))
    assert sent == sorted(frames[:taken])


def multi(device: HandDevice, **options: Any) -> Vtnet:
    """A driver with two pairs: its commands are answered as by a device that does them."""
    answer = threading.Event()

    def idle() -> None:
        queue = device.device_queue(4)
        while (chain := queue.pop()) is not None:
            chain.write(b"\0")
            queue.add_used(chain)
        answer.set()

    nic = attached(device, pairs=2, idle=idle, **options)
    assert answer.is_set() and nic.active_pairs == 2
    return nic


def test_one_broken_queue_and_the_others() -> None:
    from netdev import lie_used

    device = HandDevice(pairs=2, queue_size=64)
    nic = multi(device)
    lie_used(nic, 0, (1000, 0))
    lie_used(nic, 1, (1000, 0))
    device.give(*frames_of(3), pair=1)
    assert nic.receive() == frames_of(3)
    with pytest.raises(DeviceBroken, match="receive queue 0"):
        nic.receive()
    assert nic.transmit(frames_of(3), queue=1) == 3
    assert device.sent(1) == frames_of(3)
    assert nic.transmit(frames_of(64), queue=0) == 64
    with pytest.raises(DeviceBroken, match="transmit queue 1"):
        nic.transmit(frames_of(64), queue=0)


@pytest.mark.threads
def test_two_threads_a_queue_each() -> None:
    device = NetDevice(Loopback(queues=2), mac=MAC, queue_pairs=2, worker="own")
    nic = attached(device, pairs=2)
    errors: list[BaseException] = []

    def work(queue: int) -> None:
        try:
            frames = flows(32)
            for _ in range(100):
                got: list[bytes] = []
                assert nic.transmit(frames, queue=queue) == 32
                while len(got) < 32:
                    got += nic.receive(queue=queue)
                assert got == frames
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(queue,)) for queue in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nic.detach()
    assert not errors


def test_a_device_that_refuses_pairs() -> None:
    device = HandDevice(pairs=2)
    memory = GuestMemory.allocate(64 << 20)

    def idle() -> None:
        queue = device.device_queue(4)
        while (chain := queue.pop()) is not None:
            chain.write(b"\1")
            queue.add_used(chain)

    nic = Vtnet(DirectTransport(device, memory), DmaPool(memory, 0, 64 << 20), pairs=2, idle=idle)
    with pytest.raises(ConfigError, match="refused 2 queue pairs"):
        nic.attach()
    assert nic.pool.used == 0 and not nic.attached


# ---- waiting ----


def test_wait() -> None:
    device = HandDevice()
    nic = attached(device)
    assert not nic.wait(0)
    assert not nic.wait(0.01)
    device.give(*frames_of(1))
    assert nic.wait(0) and nic.wait()
    assert nic.receive() == frames_of(1)
    timer = threading.Timer(0.05, device.give, frames_of(1))
    timer.start()
    assert nic.wait(10)
    timer.join()
    assert nic.receive() == frames_of(1)
    assert not nic.wait(0)


# ---- watchdog ----


def test_watchdog_resets_a_device_that_stands_still() -> None:
    device = HandDevice()
    nic = attached(device, watchdog=0.05)

    def later() -> None:
        time.sleep(0.06)
        nic.tick()

    later()
    later()
    assert nic.counters["watchdog_timeouts"] == 0  # nothing is out
    for _ in range(3):
        nic.transmit(frames_of(3))
        nic.tick()
        device.sent()
        later()
    assert nic.counters["watchdog_timeouts"] == 0  # it moves
    nic.transmit(frames_of(3))
    nic.tick()
    later()
    assert nic.counters["watchdog_timeouts"] == 1 and nic.counters["resets"] == 1
    assert nic.attached and nic.transmit(frames_of(2)) == 2 and device.sent() == frames_of(2)
    patient = attached(HandDevice(), watchdog=60.0)
    patient.transmit(frames_of(3))
    patient.tick()
    patient.tick()
    assert patient.counters["watchdog_timeouts"] == 0


def test_tick_takes_back_what_was_sent() -> None:
    device = HandDevice()
    nic = attached(device)
    (view,) = nic.buffers(1, 60)
    nic.transmit([view])
    view.release()
    device.sent()
    small = nic.pairs[0].transmit.small
    assert small.nfree == small.count - 1
    nic.tick()
    assert small.nfree == small.count


def test_a_device_that_asks_for_a_reset_gets_it() -> None:
    device = HandDevice()
    nic = attached(device)
    device.needs_reset("test")
    nic.tick()
    assert nic.counters["resets"] == 1 and not device.status & Status.DEVICE_NEEDS_RESET
    device.give(*frames_of(2))
    assert nic.receive() == frames_of(2)
    nic.down()
    nic.tick()  # nothing to do


def test_a_device_that_is_another_after_a_reset() -> None:
    device = HandDevice()
    nic = attached(device)
    device.offered &= ~int(N.CSUM)
    with pytest.raises(NegotiationError):
        nic.reset()
    assert not nic.attached and nic.pool.used == 0
    nic.up()
    assert nic.attached and not nic.features & N.CSUM


# ---- figures ----


def test_statistics_have_freebsds_names() -> None:
    device = NetDevice(Loopback(), mac=MAC)
    nic = nic_on(device)
    nic.transmit([b"\xff" * 6 + bytes(60), *flows(3)])
    device.poll()
    nic.receive()
    counts = nic.statistics()
    names = {
        "max_vq_pairs", "req_vq_pairs", "act_vq_pairs",
        "txq0.opackets", "txq0.obytes", "txq0.omcasts", "txq0.csum", "txq0.tso", "txq0.rescheduled",
        "rxq0.ipackets", "rxq0.ibytes", "rxq0.iqdrops", "rxq0.ierrors", "rxq0.csum", "rxq0.csum_failed",
        "rxq0.host_lro", "rxq0.rescheduled",
        "rx_csum_bad_ethtype", "rx_csum_bad_ipproto", "rx_csum_bad_offset", "rx_csum_failed", "rx_csum_offloaded",
        "rx_csum_inaccessible_ipproto", "rx_enq_replacement_failed", "rx_frame_too_large", "rx_mergeable_failed",
        "rx_task_rescheduled", "tx_csum_offloaded", "tx_csum_proto_mismatch", "tx_csum_unknown_ethtype",
        "tx_task_rescheduled", "tx_tso_not_tcp", "tx_tso_offloaded", "tx_tso_without_csum",
    }  # fmt: skip
    assert names <= set(counts)
    assert (counts["txq0.opackets"], counts["txq0.omcasts"], counts["rxq0.ipackets"]) == (4, 1, 4)
    assert counts["tx_opackets"] == 4 and counts["rx_ibytes"] == counts["txq0.obytes"]
    assert counts["tx_kicks"] >= 1
    nic.detach()
    assert nic.statistics()["max_vq_pairs"] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queue_size": -1}, "queue size -1 out of range"),
        ({"queue_size": 32769}, "queue size 32769 out of range"),
        ({"rx_buffer": 63}, "63 bytes: out of range"),
        ({"rx_buffer": 65590}, "65590 bytes: out of range"),
        ({"pairs": 0}, "0 queue pairs"),
        ({"mtu": 67}, "MTU 67 out of range"),
    ],
)
def test_arguments_out_of_range_are_refused_before_the_device_is_touched(options: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        attached(HandDevice(), **options)


def test_notify_on_empty_interrupts_only_when_the_ring_empties() -> None:
    """Under load it does not; when traffic stops it tells, once, that all is sent."""
    device = NetDevice(Loopback(full="drop"))
    nic = attached(device, legacy=True, want="NOTIFY_ON_EMPTY", refuse="EVENT_IDX")
    assert nic.features & Feature.NOTIFY_ON_EMPTY
    (transmit,) = [task for task in device.tasks if type(task).__name__ == "NetTransmit"]
    interrupt = nic.queues[1].interrupt
    assert interrupt is not None
    before = interrupt.rings
    nic.transmit(frames_of(64))
    for _ in range(100):
        assert nic.transmit(frames_of(64)) == 64
        transmit.poll()
    assert interrupt.rings == before
    device.poll()
    assert interrupt.rings == before + 1
