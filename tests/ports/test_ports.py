"""Ports by description."""

from __future__ import annotations

from pathlib import Path

import pytest
from spaces import namespaces

from virtio.errors import ConfigError
from virtio.net import ports
from virtio.net.ports import Generator, Loopback, PcapReader, PcapWriter, Port, Sink, Tap, port


def test_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "x.pcap"
    assert type(port("null")) is Port
    assert type(port("loopback")) is Loopback
    assert port("loopback,queues=3,full=drop").queues == 3
    assert type(port("sink,offloads=0x1f")) is Sink
    assert port("sink,offloads=0x1f").offloads == 0x1F
    generator = port("gen,size=1514,kind=tcp,gso-size=1000,rate=1.5e6,verify=false,count=none")
    assert isinstance(generator, Generator)
    assert (generator.kind, generator.verify) == ("tcp", False)
    assert port("loopback:queues=3,full=drop").queues == 3
    generator = port("gen:kind=tcp,size=1514")
    assert isinstance(generator, Generator)
    assert generator.kind == "tcp"
    assert type(port("sink:")) is Sink
    assert (port("sink", queues=2).queues, port("sink,queues=3", queues=2).queues) == (2, 3)
    assert isinstance(port(f"pcap:{file},snaplen=100"), PcapWriter)
    assert isinstance(port(f"replay:{file},loops=2,speed=0.5"), PcapReader)


@pytest.mark.root
def test_tap() -> None:
    with namespaces(1) as (space,):
        tap = space.run(lambda: port("tap:vm0,queues=2,header_size=12"))
        assert isinstance(tap, Tap)
        assert (tap.name, tap.queues, tap.header_size) == ("vm0", 2, 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "port '': '' is none of null, tap, loopback, gen, sink, replay, pcap"),
        ("socket:x", "'socket' is none of"),
        ("tap", "tap needs a name, tap:NAME"),
        ("pcap:,snaplen=3", "pcap needs a name"),
        ("loopback:5", "loopback has no name; options are loopback:OPTION=VALUE"),
        ("gen,fast", "'fast' is not OPTION=VALUE"),
        ("gen,color=red", "port 'gen,color=red': .*color"),
        ("gen,size=5", "size 5 of a raw frame is not within 30 to 65589"),
        ("gen,rate=fast", "port 'gen,rate=fast'"),
    ],
)
def test_mistakes_are_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        port(text)


def test_the_list_is_complete() -> None:
    assert all(hasattr(ports, name) for name in ports.__all__)
    assert {kind for kind, _ in ports.KINDS.values()} <= {getattr(ports, name) for name in ports.__all__}
