"""The C interface: a capsule for include/virtio/capi.h."""

_C_API: object
