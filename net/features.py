"""Features of a network device, and which needs which (VIRTIO 1.4, 5.1.3.1)."""

from __future__ import annotations

from virtio.constants import NetFeature
from virtio.features import Table

_N = NetFeature
_GUEST_TSO = _N.GUEST_TSO4 | _N.GUEST_TSO6
_HOST_TSO = _N.HOST_TSO4 | _N.HOST_TSO6
_NEED_GUEST_CSUM = (_N.GUEST_TSO4, _N.GUEST_TSO6, _N.GUEST_UFO, _N.GUEST_USO4, _N.GUEST_USO6)
_NEED_CSUM = (_N.HOST_TSO4, _N.HOST_TSO6, _N.HOST_UFO, _N.HOST_USO)
_NEED_CTRL = (
    *(_N.CTRL_RX, _N.CTRL_VLAN, _N.GUEST_ANNOUNCE, _N.MQ, _N.CTRL_MAC_ADDR),
    *(_N.NOTF_COAL, _N.VQ_NOTF_COAL, _N.RSS),
)

TABLE = Table(
    NetFeature,
    {
        **dict.fromkeys(_NEED_GUEST_CSUM, (_N.GUEST_CSUM,)),
        **dict.fromkeys(_NEED_CSUM, (_N.CSUM,)),
        **dict.fromkeys(_NEED_CTRL, (_N.CTRL_VQ,)),
        _N.GUEST_ECN: (_GUEST_TSO,),
        _N.HOST_ECN: (_HOST_TSO,),
        _N.RSC_EXT: (_HOST_TSO,),
        _N.GUEST_UDP_TUNNEL_GSO: (_N.GUEST_TSO4, _N.GUEST_TSO6, _N.GUEST_USO4, _N.GUEST_USO6),
        _N.GUEST_UDP_TUNNEL_GSO_CSUM: (_N.GUEST_UDP_TUNNEL_GSO,),
        _N.HOST_UDP_TUNNEL_GSO: (_N.HOST_TSO4, _N.HOST_TSO6, _N.HOST_USO),
        _N.HOST_UDP_TUNNEL_GSO_CSUM: (_N.HOST_UDP_TUNNEL_GSO,),
        _N.HASH_TUNNEL: (_N.CTRL_VQ, _N.RSS | _N.HASH_REPORT),
        _N.RSS_CONTEXT: (_N.CTRL_VQ, _N.RSS),
    },
    useless={
        **dict.fromkeys((_N.CTRL_GUEST_OFFLOADS, _N.CTRL_RX_EXTRA, _N.HASH_REPORT), (_N.CTRL_VQ,)),  # 5.1.4.1
        # to a legacy driver it is the word for all kinds that there were then: Linux before 2.6.25 knows no other
        _N.GSO: (_N.CSUM, _N.HOST_TSO4, _N.HOST_TSO6, _N.HOST_ECN, _N.HOST_UFO),
    },
    legacy_only=_N.GSO,
)
