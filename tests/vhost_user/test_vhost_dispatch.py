"""The table of messages: a row for each, complete, and refused where it says so."""

from __future__ import annotations

import inspect
import os
import re
import socket
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
from vhost_device import Upper
from vhost_frontend import u32s
from vhost_rows import NEGOTIATED, OFFERED

from virtio.errors import VhostUserError
from virtio.net import Loopback, NetDevice
from virtio.vhost_user import PROTOCOL, Backend, ProtocolFeature, dispatch
from virtio.vhost_user.dispatch import RULES, handle
from virtio.vhost_user.message import ADDRESS, INFLIGHT, NO_FD, REGION, STATE, TABLE, U64, Message, Request

R = Request
NONE = ProtocolFeature(0)
BELLS = (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)
SIZED = [request for request in R if RULES[request].payload is not None]
FILED = [  # those that demand file descriptors
    R.SET_MEM_TABLE, R.SET_LOG_BASE, *BELLS, R.SET_BACKEND_REQ_FD, R.SET_INFLIGHT_FD, R.ADD_MEM_REG,
]  # fmt: skip
P = ProtocolFeature
OF_FEATURES = {  # as the document has it
    P.MQ: {R.GET_QUEUE_NUM},
    P.LOG_SHMFD: {R.SET_LOG_BASE},
    P.RARP: {R.SEND_RARP},
    P.MTU: {R.NET_SET_MTU},
    P.BACKEND_REQ: {R.SET_BACKEND_REQ_FD},
    P.RESET_DEVICE: {R.RESET_DEVICE},
    P.CONFIG: {R.GET_CONFIG, R.SET_CONFIG},
    P.INFLIGHT_SHMFD: {R.GET_INFLIGHT_FD, R.SET_INFLIGHT_FD},
    P.CONFIGURE_MEM_SLOTS: {R.GET_MAX_MEM_SLOTS, R.ADD_MEM_REG, R.REM_MEM_REG},
    P.STATUS: {R.SET_STATUS, R.GET_STATUS},
}
each = pytest.mark.parametrize("request_", list(R), ids=lambda request: request.name)


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A connection to a network device, all protocol features negotiated; nothing runs."""
    ours, theirs = socket.socketpair()
    with theirs, NetDevice(Loopback()) as device:
        made = Backend(device, ours)
        made.session.owned, made.session.protocol = True, made.session.protocol_offered
        assert made.session.protocol == PROTOCOL
        yield made
        made.stop()
        made.run()


def valid(request: Request, extra: int = 0) -> Message:
    """A message of the least size, with as many eventfds as its row demands, and so many more."""
    payload = b"" if RULES[request].payload is None else bytes(RULES[request].payload.layout.size)
    if request == R.SET_MEM_TABLE:
        payload = TABLE.pack(1, 0) + bytes(REGION.size)
    if request == R.SET_INFLIGHT_FD:
        payload = INFLIGHT.pack(0, 0, 1, 64)
    count = extra + (request in FILED)
    return Message(request, 1, payload, [os.eventfd(0) for _ in range(count)])


def is_refused(backend: Backend, message: Message) -> str:
    """Return why."""
    try:
        with pytest.raises(VhostUserError) as caught:
            handle(backend, message)
    finally:
        message.close()
    return str(caught.value)


def place(backend: Backend) -> None:
    """Set size and addresses of ring 0, in no memory."""
    handle(backend, Message(R.SET_VRING_NUM, 1, STATE.pack(0, 64)))
    handle(backend, Message(R.SET_VRING_ADDR, 1, ADDRESS.pack(0, 0, 0x1000, 0x2000, 0x3000, 0)))


# ---- the table ----


def test_each_request_has_a_row() -> None:
    assert set(RULES) == set(R)


def test_what_has_no_row_is_refused_by_name(backend: Backend) -> None:
    for number in {*range(256), 1 << 31, (1 << 32) - 1} - set(RULES):
        assert is_refused(backend, Message(number, 1, b"abc")) == f"request {number} (3 bytes) is not served here"


def test_the_table_is_made_once() -> None:
    """It is of all connections: none may change it."""
    with pytest.raises(TypeError):
        cast(dict, RULES)[R.GET_FEATURES] = RULES[R.SET_OWNER]
    with pytest.raises(AttributeError):
        RULES[R.GET_FEATURES].fds = 1  # type: ignore[misc]


@each
def test_a_handler_has_the_name_of_its_message(request_: Request) -> None:
    """A function, not a method of some connection: what a table holds lives on."""
    handler = RULES[request_].handler
    assert inspect.isfunction(handler)
    assert handler.__name__ == request_.name.lower()
    assert handler.__module__.startswith("virtio.vhost_user.")
    assert (handler.__doc__ or "").startswith(f"{request_.name}: ")


@each
def test_what_is_answered_is_what_returns_an_answer(request_: Request) -> None:
    rule = RULES[request_]
    assert inspect.signature(rule.handler).return_annotation == ("None" if rule.answered is False else "Message"
        if request_ == R.GET_INFLIGHT_FD else "bytes")  # fmt: skip
    assert bool(rule.answered) == (request_.name.startswith("GET_") or request_ == R.SET_LOG_BASE)


def test_each_message_of_a_protocol_feature_demands_it() -> None:
    assert not set(OFFERED) & set(NEGOTIATED)
    expected = {request: feature for feature, requests in OF_FEATURES.items() for request in requests}
    assert expected == OFFERED | NEGOTIATED


def test_each_message_that_needs_descriptors_demands_them() -> None:
    assert {request for request in R if RULES[request].fds is not None} == set(FILED)


@each
def test_a_row_demands_what_its_handler_reads(request_: Request, backend: Backend) -> None:
    """Neither struct.error nor IndexError: what passes the row is enough."""
    message = valid(request_)
    with suppress(VhostUserError):
        handle(backend, message)
    message.close()


@each
def test_a_handler_that_reads_has_a_payload(request_: Request) -> None:
    rule = RULES[request_]
    read = re.findall(r"message\.(?:number\(\)|unpack\((\w+)\))", inspect.getsource(rule.handler))
    for name in read:
        assert rule.payload is not None
        assert rule.payload.layout is (getattr(dispatch, name) if name else U64)


# ---- what a row refuses ----


@pytest.mark.parametrize("request_", SIZED, ids=lambda request: request.name)
def test_a_payload_of_a_wrong_size_is_refused(request_: Request, backend: Backend) -> None:
    payload = RULES[request_].payload
    assert payload is not None
    least, most = payload.layout.size, payload.most
    sizes = f"at least {least}" if most is None else f"{least}" if most == least else f"{least} to {most}"
    for size in {0, 1, least - 1, *([] if most is None else [most + 1, 4096])}:
        message = valid(request_)
        message.payload = bytes(size)
        assert is_refused(backend, message) == f"{request_.name} has {size} bytes ({sizes})"


@pytest.mark.parametrize("request_", sorted(set(R) - set(SIZED)), ids=lambda request: request.name)
def test_a_payload_that_no_row_names_is_not_looked_at(request_: Request, backend: Backend) -> None:
    message = valid(request_)
    message.payload = bytes(100)
    RULES[request_].check(backend, message)
    message.close()


@pytest.mark.parametrize("more", [-1, 1, 2])
@pytest.mark.parametrize("request_", FILED, ids=lambda request: request.name)
def test_a_wrong_number_of_descriptors_is_refused(request_: Request, more: int, backend: Backend) -> None:
    of = " of ring 0" if request_ in BELLS else " of 1 regions" if request_ == R.SET_MEM_TABLE else ""
    one = "" if request_ == R.SET_MEM_TABLE else " (1)"
    said = is_refused(backend, valid(request_, more))
    assert said == f"{request_.name}{of} has {1 + more} file descriptors{one}"


@pytest.mark.parametrize("request_", [*sorted(set(R) - set(FILED)), *BELLS], ids=lambda request: request.name)
def test_descriptors_that_no_row_wants_are_closed(request_: Request, backend: Backend) -> None:
    """A frontend may send some with any message, and with NO_FD."""
    message = valid(request_, 2)
    if request_ in BELLS:
        message.payload = U64.pack(NO_FD)
        place(backend)
    fds = [*message.fds]
    RULES[request_].check(backend, message)
    with suppress(VhostUserError):
        handle(backend, message)
    message.close()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.mark.parametrize("request_", [*OFFERED, *NEGOTIATED], ids=lambda request: request.name)
def test_a_message_of_a_feature_that_was_not_offered_is_refused(request_: Request, backend: Backend) -> None:
    """That comes first: a payload of no size at all is not looked at."""
    feature = (OFFERED | NEGOTIATED)[request_]
    backend.session.protocol_offered &= ~feature
    for message in (valid(request_), Message(request_, 1, b"")):
        assert is_refused(backend, message) == f"{request_.name}: {feature.name} was not offered"


@pytest.mark.parametrize("request_", [*OFFERED, *NEGOTIATED], ids=lambda request: request.name)
def test_a_message_of_a_feature_that_was_not_negotiated(request_: Request, backend: Backend) -> None:
    """Of some, to be offered is enough."""
    backend.session.protocol = NONE
    if request_ in NEGOTIATED:
        for message in (valid(request_), Message(request_, 1, b"")):
            said = is_refused(backend, message)
            assert said == f"{request_.name}: {NEGOTIATED[request_].name} is not negotiated"
    else:
        message = valid(request_)
        RULES[request_].check(backend, message)
        message.close()


def test_a_ring_without_addresses_is_not_started(backend: Backend) -> None:
    """Of the states this is the only one that a message demands."""
    assert [request for request in R if RULES[request].state] == [R.SET_VRING_KICK]
    said = "ring 0 is kicked before its size and addresses are set"
    assert is_refused(backend, valid(R.SET_VRING_KICK)) == said
    handle(backend, Message(R.SET_VRING_NUM, 1, STATE.pack(0, 64)))
    assert is_refused(backend, valid(R.SET_VRING_KICK)) == said
    place(backend)
    message = valid(R.SET_VRING_KICK)
    RULES[R.SET_VRING_KICK].check(backend, message)
    message.close()


@pytest.mark.parametrize("negotiated", [False, True])
def test_the_log_is_answered_where_its_feature_is_negotiated(negotiated: bool, backend: Backend) -> None:
    backend.session.protocol = ProtocolFeature.LOG_SHMFD if negotiated else NONE
    fd = os.memfd_create("log")
    os.ftruncate(fd, 4096)
    message = Message(R.SET_LOG_BASE, 1, U64.pack(4096) + U64.pack(0), [fd])
    assert handle(backend, message) == (U64.pack(0) if negotiated else None)
    message.close()


def test_the_walk_of_a_message() -> None:
    """From the socket to the ring's check SET_VRING_ADDR crosses connection, backend, dispatch and vring."""
    ours, theirs = socket.socketpair()
    with theirs:
        backend = Backend(Upper(), ours)
        theirs.send(u32s(R.SET_VRING_ADDR, 1, ADDRESS.size) + ADDRESS.pack(2, 0, 0, 0, 0, 0))
        with pytest.raises(VhostUserError, match=r"ring 2 out of range \(2 rings\)") as caught:
            backend.run()
    walk = [(Path(frame.filename).stem, frame.name) for frame in traceback.extract_tb(caught.value.__traceback__)[1:]]
    assert walk == [
        ("backend", "run"), ("backend", "_turn"), ("backend", "_message"),  # which has Channel.receive read it
        ("dispatch", "handle"), ("vring", "set_vring_addr"), ("vring", "ring_at"),
    ]  # fmt: skip
