"""The frame parse for Python."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t

from virtio.offload.batch cimport Batch
from virtio.offload.coalesce_table cimport NONE
from virtio.offload.frame cimport (
    VIRTIO_EXTENSIONS_MAX, VIRTIO_L3_ARP, VIRTIO_L3_IPV4, VIRTIO_L3_IPV6, VIRTIO_L3_NONE, VIRTIO_L3_OTHER,
    VIRTIO_LAYER_EXTENSIONS, VIRTIO_LAYER_FRAGMENT, VIRTIO_LAYER_HOME, VIRTIO_LAYER_L4, VIRTIO_LAYER_L4_OPTIONS,
    VIRTIO_LAYER_LATER, VIRTIO_LAYER_OPTIONS, VIRTIO_LAYER_PADDED, VIRTIO_LAYER_ROUTED, VIRTIO_LAYER_ROUTING_2,
    VIRTIO_LAYER_TUNNEL, VIRTIO_STOP_ENCRYPTED, VIRTIO_STOP_EXTENSIONS, VIRTIO_STOP_FAULTS, VIRTIO_STOP_FRAGMENT,
    VIRTIO_STOP_IP_LENGTH, VIRTIO_STOP_IP_VERSION, VIRTIO_STOP_IPV4_IHL, VIRTIO_STOP_LLC_LENGTH, VIRTIO_STOP_NO_NEXT,
    VIRTIO_STOP_NOT_IP, VIRTIO_STOP_OFFSETS, VIRTIO_STOP_OK, VIRTIO_STOP_OPTION, VIRTIO_STOP_PROTOCOL,
    VIRTIO_STOP_ROUTING, VIRTIO_STOP_SHORT_ETHERNET, VIRTIO_STOP_SHORT_EXTENSION, VIRTIO_STOP_SHORT_L3,
    VIRTIO_STOP_SHORT_L4, VIRTIO_STOP_SHORT_TUNNEL, VIRTIO_STOP_SHORT_VLAN, VIRTIO_STOP_TCP_OFFSET,
    VIRTIO_STOP_UDP_LENGTH, VIRTIO_TUNNEL_GENEVE, VIRTIO_TUNNEL_NONE, VIRTIO_TUNNEL_VXLAN, frame_parse,
    frame_parse_burst, virtio_frame, virtio_layer,
)
from virtio.offload.results cimport Records

from enum import IntEnum, IntFlag


class Stop(IntEnum):
    """Why a parse stopped. Up to NO_NEXT the frame is sound; the others are faults: see is_fault.

    Sound: OK, all was found. NOT_IP, neither IP nor ARP. PROTOCOL, one behind IP that is not parsed. FRAGMENT, a later
    one, without a transport header. ENCRYPTED, by ESP. NO_NEXT, IPv6's "no next header".

    Faults: SHORT_ETHERNET, SHORT_VLAN, SHORT_L3, SHORT_EXTENSION, SHORT_L4, SHORT_TUNNEL, it ends within that header.
    IP_VERSION, not the EtherType's. IPV4_IHL, a header under 20 bytes. IP_LENGTH, beyond the frame or below its own
    header. EXTENSIONS, too many. TCP_OFFSET, UDP_LENGTH, under the header's size or beyond the packet. OFFSETS, headers
    beyond 65535 bytes. LLC_LENGTH, an 802.3 length beyond the frame. OPTION, an IP option beyond its header. ROUTING,
    a routing header whose next address is not in it. Frame.explain() says it of one frame.
    """

    OK = VIRTIO_STOP_OK
    NOT_IP = VIRTIO_STOP_NOT_IP
    PROTOCOL = VIRTIO_STOP_PROTOCOL
    FRAGMENT = VIRTIO_STOP_FRAGMENT
    ENCRYPTED = VIRTIO_STOP_ENCRYPTED
    NO_NEXT = VIRTIO_STOP_NO_NEXT
    SHORT_ETHERNET = VIRTIO_STOP_SHORT_ETHERNET
    SHORT_VLAN = VIRTIO_STOP_SHORT_VLAN
    SHORT_L3 = VIRTIO_STOP_SHORT_L3
    IP_VERSION = VIRTIO_STOP_IP_VERSION
    IPV4_IHL = VIRTIO_STOP_IPV4_IHL
    IP_LENGTH = VIRTIO_STOP_IP_LENGTH
    SHORT_EXTENSION = VIRTIO_STOP_SHORT_EXTENSION
    EXTENSIONS = VIRTIO_STOP_EXTENSIONS
    SHORT_L4 = VIRTIO_STOP_SHORT_L4
    TCP_OFFSET = VIRTIO_STOP_TCP_OFFSET
    UDP_LENGTH = VIRTIO_STOP_UDP_LENGTH
    OFFSETS = VIRTIO_STOP_OFFSETS
    SHORT_TUNNEL = VIRTIO_STOP_SHORT_TUNNEL
    LLC_LENGTH = VIRTIO_STOP_LLC_LENGTH
    OPTION = VIRTIO_STOP_OPTION
    ROUTING = VIRTIO_STOP_ROUTING

    @property
    def is_fault(self):
        """Whether the frame contradicts itself or is cut off."""
        return self >= VIRTIO_STOP_FAULTS


class L3Kind(IntEnum):
    """The network protocol of a layer: NONE where the frame ends before it; OTHER is neither IP nor ARP."""

    NONE = VIRTIO_L3_NONE
    IPV4 = VIRTIO_L3_IPV4
    IPV6 = VIRTIO_L3_IPV6
    ARP = VIRTIO_L3_ARP
    OTHER = VIRTIO_L3_OTHER


class LayerFlag(IntFlag):
    """What else a layer has; the numbers are those of VIRTIO_LAYER_* in virtio/frame.h.

    L4: a whole transport header. FRAGMENT: of a packet; LATER: not its first. OPTIONS: IPv4's; EXTENSIONS: IPv6's;
    L4_OPTIONS: TCP's. PADDED: bytes lie behind the packet. ROUTED: src or dst is not the address in the IP header.
    HOME: src is in a home address option. ROUTING_2: dst is in a routing header of type 2. TUNNEL: of an inner layer, a
    tunnel within the tunnel, which is payload.
    """

    L4 = VIRTIO_LAYER_L4
    FRAGMENT = VIRTIO_LAYER_FRAGMENT
    LATER = VIRTIO_LAYER_LATER
    OPTIONS = VIRTIO_LAYER_OPTIONS
    EXTENSIONS = VIRTIO_LAYER_EXTENSIONS
    L4_OPTIONS = VIRTIO_LAYER_L4_OPTIONS
    PADDED = VIRTIO_LAYER_PADDED
    ROUTED = VIRTIO_LAYER_ROUTED
    HOME = VIRTIO_LAYER_HOME
    ROUTING_2 = VIRTIO_LAYER_ROUTING_2
    TUNNEL = VIRTIO_LAYER_TUNNEL


class Tunnel(IntEnum):
    """The tunnel that a frame's UDP port names: VXLAN (RFC 7348) or GENEVE (RFC 8926)."""

    NONE = VIRTIO_TUNNEL_NONE
    VXLAN = VIRTIO_TUNNEL_VXLAN
    GENEVE = VIRTIO_TUNNEL_GENEVE


_WORDS = {
    Stop.OK: "",
    Stop.NOT_IP: "neither IP nor ARP",
    Stop.PROTOCOL: "no more is parsed",
    Stop.FRAGMENT: "no transport header in a later fragment",
    Stop.ENCRYPTED: "encrypted from there on",
    Stop.NO_NEXT: "no next header",
    Stop.SHORT_ETHERNET: "ends within the Ethernet header",
    Stop.SHORT_VLAN: "ends within a VLAN tag",
    Stop.SHORT_L3: "ends within the network header",
    Stop.IP_VERSION: "the IP version does not match the EtherType",
    Stop.IPV4_IHL: "IPv4 header length under 20 bytes",
    Stop.IP_LENGTH: "the IP length is beyond the frame, below its own header, or breaks the rules of jumbograms",
    Stop.SHORT_EXTENSION: "ends within an extension header, or an authentication header under 12 bytes",
    Stop.EXTENSIONS: f"more than {VIRTIO_EXTENSIONS_MAX} extension headers",
    Stop.SHORT_L4: "ends within the transport header",
    Stop.TCP_OFFSET: "the TCP data offset is under 20 bytes or beyond the packet",
    Stop.UDP_LENGTH: "the UDP length is under 8 bytes or beyond the packet",
    Stop.OFFSETS: "headers beyond the first 65535 bytes",
    Stop.SHORT_TUNNEL: "ends within the tunnel header",
    Stop.LLC_LENGTH: "the 802.3 length is beyond the frame",
    Stop.OPTION: "an IP option is beyond the header that holds it",
    Stop.ROUTING: "the next address of a routing header is not in it",
}
_PROTOCOLS = {
    0: "hop-by-hop options", 1: "ICMP", 2: "IGMP", 4: "IPv4", 6: "TCP", 17: "UDP", 41: "IPv6", 43: "routing header",
    44: "fragment header", 47: "GRE", 50: "ESP", 51: "AH", 58: "ICMPv6", 59: "no next header",
    60: "destination options", 132: "SCTP", 135: "mobility header", 136: "UDP-Lite",
}
_KINDS = {L3Kind.IPV4: "IPv4", L3Kind.IPV6: "IPv6", L3Kind.ARP: "ARP"}


cdef class Layer:
    """One layer of a frame: Ethernet (or nothing, in a tunnel of IP), a network header and a transport header.

    Offsets are in bytes from the frame's first byte; the names are those of struct virtio_layer in virtio/frame.h.
    Made by parse(); never changes.
    """

    cdef virtio_layer c

    @property
    def end(self):
        """Behind the network packet, by its own length field; at most the frame's length."""
        return self.c.end

    @property
    def l3(self):
        """The network header."""
        return self.c.l3

    @property
    def l4(self):
        """The transport header, or where the parse stopped."""
        return self.c.l4

    @property
    def payload(self):
        """Behind the transport header and its options; l4 if there is no whole one."""
        return self.c.payload

    @property
    def src(self):
        """The source address as checksums count it: an IPv6 home address option's (RFC 6275, 6.3), if there is one."""
        return self.c.src

    @property
    def dst(self):
        """The destination address as checksums count it: the last of a route under way (RFC 791; RFC 8200, 8.1)."""
        return self.c.dst

    @property
    def fragment(self):
        """Offset of a fragment in its packet, in bytes."""
        return self.c.fragment

    @property
    def ethertype(self):
        """EtherType behind all VLAN tags, or a length (802.3)."""
        return self.c.ethertype

    @property
    def tci(self):
        """Tag control information of the first VLAN tag; 0 without."""
        return self.c.tci

    @property
    def vlans(self):
        """Number of VLAN tags."""
        return self.c.vlans

    @property
    def flags(self):
        """LayerFlag bits."""
        return LayerFlag(self.c.flags)

    @property
    def l3_kind(self):
        """L3Kind."""
        return L3Kind(self.c.l3_kind)

    @property
    def protocol(self):
        """IP protocol number behind all extension headers; where the parse stopped at one, its number."""
        return self.c.protocol

    @property
    def protocol_name(self):
        """The same in words; "" where there is no IP."""
        if self.c.l3_kind not in (VIRTIO_L3_IPV4, VIRTIO_L3_IPV6):
            return ""
        return _PROTOCOLS.get(self.c.protocol, f"protocol {self.c.protocol}")

    @property
    def stop(self):
        """Stop."""
        return Stop(self.c.stop)

    def explain(self):
        """Return one line that says what was found, and why no more."""
        cdef list parts = []
        stop = self.stop
        if self.c.vlans:
            parts.append(f"VLAN {self.c.tci & 0xfff}" + (f" of {self.c.vlans} tags" if self.c.vlans > 1 else ""))
        if self.c.l3_kind == VIRTIO_L3_OTHER:
            parts.append(f"EtherType {self.c.ethertype:#06x}" if self.c.ethertype > 1500 else "802.3")
        elif self.c.l3_kind != VIRTIO_L3_NONE:
            parts.append(f"{_KINDS[self.c.l3_kind]} at {self.c.l3}")
        if self.c.flags & VIRTIO_LAYER_OPTIONS:
            parts.append("options")
        if self.c.flags & VIRTIO_LAYER_EXTENSIONS:
            parts.append("extension headers")
        if self.c.flags & VIRTIO_LAYER_FRAGMENT:
            parts.append(f"fragment at {self.c.fragment}")
        if self.c.src and self.c.l4 > self.c.l3:
            parts.append(f"{self.protocol_name} at {self.c.l4}")
        if self.c.flags & VIRTIO_LAYER_L4:
            parts.append(f"{self.c.end - self.c.payload} bytes at {self.c.payload}")
        if stop is not Stop.OK:
            parts.append(f"{'fault' if stop.is_fault else 'stopped'} at {self.c.l4}: {_WORDS[stop]}")
        return ", ".join(parts)

    def __repr__(self):
        return f"<Layer {self.explain()}>"


cdef Layer layer_of(const virtio_layer *c):
    cdef Layer layer = Layer.__new__(Layer)
    layer.c = c[0]
    return layer


cdef class Frame:
    """What a parse of an Ethernet frame found. Offsets are in bytes from its first byte.

    It holds numbers, not the frame. Made by parse(); never changes. Names are those of virtio_frame in virtio/frame.h.
    """

    cdef virtio_frame c

    @property
    def length(self):
        """Bytes of the frame."""
        return self.c.length

    @property
    def tunnel(self):
        """Tunnel."""
        return Tunnel(self.c.tunnel)

    @property
    def inner_l2(self):
        """Behind the tunnel header: the inner Ethernet header, or network header; 0 without a whole tunnel header."""
        return self.c.inner_l2

    @property
    def outer(self):
        """The Layer of the frame itself; with a tunnel, outer.payload is where the tunnel header starts."""
        return layer_of(&self.c.outer)

    @property
    def inner(self):
        """The Layer in the tunnel; None without one."""
        return layer_of(&self.c.inner) if self.c.tunnel else None

    @property
    def stop(self):
        """Why the parse stopped, in the innermost layer it reached: Stop."""
        return Stop(self.c.inner.stop if self.c.tunnel else self.c.outer.stop)

    def explain(self):
        """Return one line that says what was found, and why no more."""
        text = f"{self.c.length} bytes: {self.outer.explain()}"
        if self.c.tunnel:
            text += f"; {self.tunnel.name} at {self.c.outer.payload}: {self.inner.explain()}"
        return text

    def __repr__(self):
        return f"<Frame {self.explain()}>"


cdef const char *FRAME_FORMAT = (
    b"T{=I:length:H:inner_l2:B:tunnel:x"
    b"T{=I:end:H:l3:H:l4:H:payload:H:src:H:dst:H:fragment:H:ethertype:H:tci:H:vlans:H:flags:"
    b"B:l3_kind:B:protocol:B:stop:x}:outer:"
    b"T{=I:end:H:l3:H:l4:H:payload:H:src:H:dst:H:fragment:H:ethertype:H:tci:H:vlans:H:flags:"
    b"B:l3_kind:B:protocol:B:stop:x}:inner:}"
)


cdef class Frames(Records):
    """What parse_burst() found: a sequence of Frame, and a read-only buffer of struct virtio_frame (64 bytes each).

    numpy.asarray(frames) is a record array of it without a copy: ["outer"]["l4"] are all transport offsets, and so on.
    Any thread may read it.
    """

    cdef object record(self, Py_ssize_t i):
        cdef Frame frame = Frame.__new__(Frame)
        frame.c = (<virtio_frame *>self.items)[i]
        return frame


def parse(frame):
    """Parse an Ethernet frame, any buffer, and return a Frame. No frame is an error: see Frame.stop.

    Known: 802.1Q and 802.1ad tags (0x8100, 0x88a8, 0x9100), IPv4 with options (RFC 791), IPv6 with hop-by-hop,
    destination, routing, fragment, authentication and mobility headers (RFC 8200, RFC 4302, RFC 6275; up to 64), with
    jumbo payloads (RFC 2675); TCP, UDP, SCTP, ICMP, ICMPv6, ARP; VXLAN on UDP ports 4789 and 8472 (RFC 7348, with the
    I flag) and GENEVE version 0 on 6081 (RFC 8926), and one layer in them. Of a first fragment the transport header
    must be whole, and a UDP length may be beyond it; tunnels are not looked for in fragments. A UDP length of 0 is
    sound in jumbograms only. Behind a routing header under way, of an unknown type, nothing is parsed.

    Raises ValueError for 4 GiB and more, TypeError for what is no buffer.
    """
    cdef Py_buffer view
    cdef Frame result = Frame.__new__(Frame)
    PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE)
    try:
        if view.len > 0xffffffff:
            raise ValueError(f"frame of {view.len} bytes (limit {0xffffffff})")
        frame_parse(&result.c, <const uint8_t *>view.buf, <uint32_t>view.len)
    finally:
        PyBuffer_Release(&view)
    return result


def parse_burst(frames, offsets=None):
    """Parse many frames, a sequence of buffers or one buffer and offsets, as parse() does; return Frames.

    With ``offsets`` (n + 1 rising numbers) frame i is ``frames[offsets[i]:offsets[i + 1]]``. The GIL is released
    meanwhile. Raises TypeError for what is no buffer, ValueError for offsets out of order or outside the buffer.
    """
    cdef Batch batch = Batch()
    cdef Frames result = Frames.__new__(Frames)
    batch.load(frames, offsets, False)
    result.reserve(batch.count, sizeof(virtio_frame), FRAME_FORMAT)
    with nogil:
        frame_parse_burst(<virtio_frame *>result.items, <const uint8_t *const *>batch.data, batch.lengths, batch.count)
    return result
