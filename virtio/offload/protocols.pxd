# Numbers of the protocols in a frame, and where their headers have the checksum.
cdef enum:
    ETHERNET = 14               # bytes of the header
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_ARP = 0x0806
    ETHERTYPE_TEB = 0x6558      # transparent Ethernet bridging
    ETHERTYPE_VLAN = 0x8100     # 802.1Q
    ETHERTYPE_IPV6 = 0x86dd
    ETHERTYPE_QINQ = 0x88a8     # 802.1ad
    ETHERTYPE_QINQ_OLD = 0x9100

    # IANA's protocol numbers: of IPv4's protocol and IPv6's next header
    HOP_BY_HOP = 0
    ICMP = 1
    TCP = 6
    UDP = 17
    ROUTING = 43
    FRAGMENT = 44
    ESP = 50
    AH = 51
    ICMPV6 = 58
    NO_NEXT = 59
    DESTINATION = 60
    SCTP = 132
    MOBILITY = 135

    IPV4_DF = 0x4000
    IPV4_MORE = 0x2000
    IPV4_OFFSET = 0x1fff
    OPTION_END = 0              # of IPv4
    OPTION_NOP = 1

    # flags of TCP
    FIN = 0x01
    PSH = 0x08
    CWR = 0x80

    # offset of the checksum in the header
    IPV4_FIELD = 10
    TCP_FIELD = 16
    UDP_FIELD = 6
    ICMP_FIELD = 2              # of ICMPv6, too
    SCTP_FIELD = 8
