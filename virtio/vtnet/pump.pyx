"""The pump: joins a vtnet driver to a port, so that a TAP makes it a network interface of the kernel."""

from libc.stdint cimport int64_t, uint32_t

from virtio._ring cimport driver_disable_intr
from virtio.core.atomic cimport virtio_load32
from virtio.core.counters cimport add_count, counted
from virtio.core.lock cimport queue_lock, queue_unlock, virtio_trylock
from virtio.event.notifier cimport virtio_bell, virtio_bell_ring
from virtio.event.worker cimport VIRTIO_WORK_CHAIN, virtio_turn, virtio_wait, virtio_wait_bell
from virtio.offload.net_hdr cimport VIRTIO_OFFLOAD_MRG, VIRTIO_OFFLOAD_RSC, VIRTIO_OFFLOAD_TO_DRIVER
from virtio.ports.port cimport (
    VIRTIO_BURST, port_flush, port_offloads, port_ring, turn_is_full, turn_resume, virtio_packet,
)
from virtio.ports.software_offload cimport execute_send, executor_figures, executor_free, executor_new
from virtio.virtqueue.structs cimport VIRTIO_FAULT_NONE
from virtio.vtnet.rxq cimport (
    VtnetReceive, rx_done_merged, rx_packets, rx_post, rx_segs, rx_take_merged, rx_waits, vtnet_rx,
)
from virtio.vtnet.txq cimport VtnetTransmit, tx_arm, tx_begin, tx_disarm, tx_flush, tx_has_room

cdef enum:
    # of the offloads of a direction, those that are about frames
    LEFT_UNDONE = 0xfff & ~(VIRTIO_OFFLOAD_TO_DRIVER | VIRTIO_OFFLOAD_MRG | VIRTIO_OFFLOAD_RSC)


# ---- port to device ----

cdef uint32_t transmit_poll(virtio_task *task, virtio_turn *turn) noexcept nogil:
    cdef pump_transmit *pump = <pump_transmit *>task
    cdef uint32_t n = 0
    cdef virtio_bell *bell = NULL
    if not virtio_trylock(pump.tx.sink.lock):
        return 0
    if task.active:
        tx_begin(pump.tx)
        n = pump.port.receive(pump.port, pump.queue, &pump.tx.sink, VIRTIO_BURST, turn)
        bell = tx_flush(&pump.tx.sink)
        add_count(&pump.bursts, n != 0)
        add_count(&pump.packets, n)
    queue_unlock(pump.tx.sink.lock)
    if bell is not NULL:
        virtio_bell_ring(bell)
    return n


cdef bint transmit_arm(virtio_task *task, virtio_wait *wait) noexcept nogil:
    cdef pump_transmit *pump = <pump_transmit *>task
    cdef bint work = False
    if not virtio_trylock(pump.tx.sink.lock):
        return True
    if task.active:
        pump.tx.wanting = 0
        # without room a frame that waits is no work: the port is not asked to wake us for it
        if tx_has_room(pump.tx, pump.tx.sink.frame_max):
            work = pump.port.arm_receive(pump.port, pump.queue, wait)
        if not work:
            work = tx_arm(&pump.tx.sink, wait)
    queue_unlock(pump.tx.sink.lock)
    return work


cdef void transmit_disarm(virtio_task *task) noexcept nogil:
    cdef pump_transmit *pump = <pump_transmit *>task
    queue_lock(pump.tx.sink.lock)
    if task.active:
        tx_disarm(&pump.tx.sink)
        if pump.port.disarm is not NULL:
            pump.port.disarm(pump.port, pump.queue)
    queue_unlock(pump.tx.sink.lock)


# ---- device to port ----

cdef uint32_t receive_poll(virtio_task *task, virtio_turn *turn) noexcept nogil:
    cdef pump_receive *pump = <pump_receive *>task
    cdef vtnet_rx *rx = pump.rx
    cdef virtio_packet *packets
    cdef virtio_bell *bell = NULL
    cdef virtio_bell *other = NULL
    cdef uint32_t n
    cdef uint32_t before = 0
    cdef uint32_t sent = 0
    cdef bint part = False
    if not virtio_trylock(&rx.q.lock):
        return 0
    if task.active:
        if rx.npackets == 0:  # what was cut in part is not there any more
            pump.resume = 0
        before = pump.resume
        n = rx_take_merged(rx, VIRTIO_BURST)
        if n:
            packets = rx_packets(rx)
            packets.done = before
            turn.resume = 0
            # what a port can do may change: a TAP's tunnels do
            if not rx.typed and not rx.given & LEFT_UNDONE & ~port_offloads(pump.port):
                sent = pump.port.send(pump.port, pump.queue, packets, n, rx_segs(rx), turn)
            else:
                sent = execute_send(pump.executor, pump.port, pump.queue, packets, n, rx_segs(rx), turn)
            packets.done = 0
            pump.resume = turn_resume(turn, sent, before)
            pump.full = sent < n and turn_is_full(turn, sent, before)
            part = pump.resume > before
            turn.left -= <int64_t>sent * VIRTIO_WORK_CHAIN
            add_count(&rx.stats.rescheduled, pump.full)
            rx_done_merged(rx, sent)
            add_count(&pump.bursts, 1)
            add_count(&pump.packets, sent)
        if rx.ngone or rx.pool.nfree or virtio_load32(&rx.pool.nreturned):
            bell = rx_post(rx)
        other = port_flush(pump.port, pump.queue)
    queue_unlock(&rx.q.lock)
    port_ring(pump.port, pump.queue, other)
    if bell is not NULL:
        virtio_bell_ring(bell)
    return sent if sent else part


cdef bint receive_arm(virtio_task *task, virtio_wait *wait) noexcept nogil:
    cdef pump_receive *pump = <pump_receive *>task
    cdef vtnet_rx *rx = pump.rx
    cdef bint work = False
    if not virtio_trylock(&rx.q.lock):
        return True
    if task.active and rx.q.fault.code == VIRTIO_FAULT_NONE:
        if rx.npackets:
            work = pump.port.arm_send(pump.port, pump.queue, wait)
        elif rx_waits(rx):
            work = True
        elif rx.call is not NULL:
            work = virtio_wait_bell(wait, rx.call)
    queue_unlock(&rx.q.lock)
    return work


cdef void receive_disarm(virtio_task *task) noexcept nogil:
    cdef pump_receive *pump = <pump_receive *>task
    queue_lock(&pump.rx.q.lock)
    if task.active:
        driver_disable_intr(pump.rx.q)
        if pump.port.disarm is not NULL:
            pump.port.disarm(pump.port, pump.queue)
    queue_unlock(&pump.rx.q.lock)


# ---- the Python face ----

cdef class PumpTransmit(Task):
    """What ``port`` receives on a queue goes to the device. A task for a Worker; not active until resumed."""

    def __init__(self, VtnetTransmit transmit not None, Port port not None, uint32_t queue=0):
        if self.transmit is not None:
            raise TypeError("pump is initialised already")
        if queue >= port.c.queues:
            raise ValueError(f"queue {queue} out of range (port has {port.c.queues})")
        self.transmit, self.port = transmit, port
        self.c.task.poll, self.c.task.arm, self.c.task.disarm = transmit_poll, transmit_arm, transmit_disarm
        self.c.tx, self.c.port, self.c.queue = &transmit.c, &port.c, queue
        self.task, self.lock = &self.c.task, transmit.c.sink.lock

    def connect(self):
        """Give the port the queue: ports that deliver of themselves (cables, loopback) do so from now on."""
        self.port.connect(self.c.queue, &self.transmit.c.sink, self.transmit)
        self.connected = True

    def disconnect(self):
        """Take the queue from the port: it is not touched once this returns."""
        if self.connected:
            self.connected = False
            self.port.connect(self.c.queue, NULL, None)

    def retarget(self, VtnetTransmit transmit not None):
        """Work another queue from now on. For a task that is paused; its worker has let go of it meanwhile."""
        if transmit is self.transmit:
            return
        worker = self.worker
        if worker is not None:
            worker.remove(self)
        self.transmit = transmit
        self.c.tx, self.lock = &transmit.c, transmit.c.sink.lock
        if worker is not None:
            worker.add(self)

    def statistics(self):
        """Return what was counted, by name."""
        return {"bursts": counted(&self.c.bursts), "packets": counted(&self.c.packets)}


cdef class PumpReceive(Task):
    """What comes from the device goes to ``port``. A task for a Worker; not active until resumed.

    What the port cannot do (``Port.offloads``) is done here: checksums completed, frames cut.
    """

    def __init__(self, VtnetReceive receive not None, Port port not None, uint32_t queue=0):
        if self.receive is not None:
            raise TypeError("pump is initialised already")
        if queue >= port.c.queues:
            raise ValueError(f"queue {queue} out of range (port has {port.c.queues})")
        self.receive, self.port = receive, port
        self.c.task.poll, self.c.task.arm, self.c.task.disarm = receive_poll, receive_arm, receive_disarm
        self.c.rx, self.c.port, self.c.queue = &receive.c, &port.c, queue
        self.task, self.lock = &self.c.task, &receive.c.q.lock
        self.make_executor()

    cdef int make_executor(self) except -1:
        if self.receive.c.given & LEFT_UNDONE and self.c.executor is NULL:
            self.c.executor = executor_new()
            if self.c.executor is NULL:
                raise MemoryError()
        return 0

    def retarget(self, VtnetReceive receive not None):
        """Work another queue from now on. For a task that is paused; its worker has let go of it meanwhile."""
        if receive is self.receive:
            return
        worker = self.worker
        if worker is not None:
            worker.remove(self)
        self.receive = receive
        self.c.rx, self.lock = &receive.c, &receive.c.q.lock
        self.make_executor()
        if worker is not None:
            worker.add(self)

    def __dealloc__(self):
        executor_free(self.c.executor)

    def statistics(self):
        """Return what was counted, by name."""
        figures = {"bursts": counted(&self.c.bursts), "packets": counted(&self.c.packets)}
        if self.c.executor is not NULL:
            figures.update(executor_figures(self.c.executor))
            figures["dropped"] = sum(figures["dropped"].values())
        return figures
