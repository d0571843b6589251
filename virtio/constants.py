"""Numbers of the VIRTIO specification that users meet, by their names there (VIRTIO 1.4, chapter 6)."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Feature(IntFlag):
    """Feature bits of the transports and queues (VIRTIO 1.4, chapter 6). Values are masks: ``1 << bit``."""

    NOTIFY_ON_EMPTY = 1 << 24
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41
    SUSPEND = 1 << 43

    def __invert__(self) -> int:  # type: ignore[override]
        # IntFlag's is as wide as its members: `features & ~bit` would lose all bits above. A base's would not be used
        return ~int(self)


class NetFeature(IntFlag):
    """Feature bits of the network device (VIRTIO 1.4, 5.1.3). Values are masks, wider than 64 bits from bit 64 on."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GSO = 1 << 6  # legacy
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    DEVICE_STATS = 1 << 50
    HASH_TUNNEL = 1 << 51
    VQ_NOTF_COAL = 1 << 52
    NOTF_COAL = 1 << 53
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    HASH_REPORT = 1 << 57
    GUEST_HDRLEN = 1 << 59
    RSS = 1 << 60
    RSC_EXT = 1 << 61
    STANDBY = 1 << 62
    SPEED_DUPLEX = 1 << 63
    RSS_CONTEXT = 1 << 64
    GUEST_UDP_TUNNEL_GSO = 1 << 65
    GUEST_UDP_TUNNEL_GSO_CSUM = 1 << 66
    HOST_UDP_TUNNEL_GSO = 1 << 67
    HOST_UDP_TUNNEL_GSO_CSUM = 1 << 68
    OUT_NET_HEADER = 1 << 69
    IPSEC = 1 << 70

    def __invert__(self) -> int:  # type: ignore[override]
        return ~int(self)  # see Feature


class GsoType(IntFlag):
    """gso_type of struct virtio_net_hdr (VIRTIO 1.4, 5.1.9): one type, and bits that are or'ed to it."""

    NONE = 0
    TCPV4 = 1
    UDP = 3  # IPv4 fragments (UFO)
    TCPV6 = 4
    UDP_L4 = 5  # datagrams (USO)
    UDP_TUNNEL_IPV4 = 0x20  # the packet within a UDP tunnel, which is of IPv4
    UDP_TUNNEL_IPV6 = 0x40
    ECN = 0x80  # the first segment has CWR set


class NetHeaderFlag(IntFlag):
    """flags of struct virtio_net_hdr (VIRTIO 1.4, 5.1.9)."""

    NEEDS_CSUM = 1  # the checksum at csum_start + csum_offset is the pseudo header's, and to be completed
    DATA_VALID = 2  # to the driver: the checksum was verified
    RSC_INFO = 4  # to the driver: csum_start and csum_offset count merged segments and duplicate ACKs
    UDP_TUNNEL_CSUM = 8  # the tunnel's outer UDP checksum is to be computed, or was verified


class Status(IntFlag):
    """Device status (VIRTIO 1.4, 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class DeviceType(IntEnum):
    """Device types (VIRTIO 1.4, chapter 5)."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5
    SCSI = 8
    P9 = 9


class Postpone(IntEnum):
    """How long ``DriverQueue.postpone_intr`` waits, as a share of the chains outstanding (FreeBSD's vq_postpone_t)."""

    SHORT = 0
    LONG = 1
    EMPTIED = 2
