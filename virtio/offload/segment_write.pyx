"""Writing the segments of a plan."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from virtio.core.iov cimport iov_cursor, iov_left, iovec
from virtio.offload.inet_checksum cimport (
    store_sum16, sum_be16, sum_bytes, sum_copy, sum_finish, sum_fold, sum_gather, sum_swap,
)
from virtio.offload.protocols cimport IPV4_MORE
from virtio.offload.segmenter cimport (
    VIRTIO_SEGMENT_FRAGMENTS, VIRTIO_SEGMENT_HEADERS_MAX, VIRTIO_SEGMENT_TCP, segment_copy_header, segment_header_size,
    segment_payload_at, segment_payload_size, virtio_segment_ip,
)


cdef extern from *:
    uint32_t sum_be32 "__builtin_bswap32"(uint32_t v) nogil


cdef inline void write_ip(const virtio_segment_ip *ip, uint8_t *to, uint32_t i, uint32_t last) noexcept nogil:
    cdef uint16_t id
    if ip.v4:
        id = sum_be16(<uint16_t>(ip.id + i * ip.step))
        store_sum16(to + ip.at + 4, id)
        store_sum16(to + ip.at + 10, <uint16_t>~sum_fold(ip.sum[last] + id))
        if last:
            store_sum16(to + ip.at + 2, ip.length[1])
    elif last:
        store_sum16(to + ip.at + 4, ip.length[1])


cdef inline void write_header(const virtio_segmenter *s, uint8_t *to, uint32_t i, uint64_t payload) noexcept nogil:
    """Headers of segment i, TCP or UDP. payload: its partial sum, unless checksums are partial."""
    cdef uint32_t last = i == s.count - 1
    cdef uint64_t sum = s.l4_sum[last] + payload
    cdef uint8_t *l4 = to + s.l4
    cdef uint16_t word, checksum
    cdef uint32_t seq
    segment_copy_header(to, s.headers, s.header)
    write_ip(&s.ip[0], to, i, last)
    if s.tunnel:
        write_ip(&s.ip[1], to, i, last)
        if last:
            store_sum16(to + s.outer_l4 + 4, s.outer_length[1])
            if s.outer_check:
                store_sum16(to + s.outer_l4 + 6, s.outer_checksum[1])
    if s.kind == VIRTIO_SEGMENT_TCP:
        seq = sum_be32(s.seq + i * s.unit)
        memcpy(l4 + 4, &seq, 4)
        word = s.flags[0]
        if i == 0 or last:
            word = s.flags[(i == 0) + 2 * last]
            store_sum16(l4 + 12, word)
        l4 += 16
        checksum = <uint16_t>~sum_fold(sum + seq + word)
    else:
        if last:
            store_sum16(l4 + 4, s.udp_length[1])
        l4 += 6
        checksum = sum_finish(sum)
    if not s.partial:
        store_sum16(l4, checksum)
    elif last:
        store_sum16(l4, s.l4_checksum[1])


cdef void write_fragment(const virtio_segmenter *s, uint8_t *to, uint32_t i) noexcept nogil:
    """Headers of fragment i; RFC 791, 3.2, and RFC 8200, 4.5."""
    cdef const virtio_segment_ip *ip = &s.ip[0]
    cdef uint32_t last = i == s.count - 1
    cdef uint16_t id = sum_be16(ip.id), fragment
    cdef uint8_t *p = to + ip.at
    cdef uint64_t sum = ip.sum[last]
    segment_copy_header(to, s.headers, segment_header_size(s, i))
    if not ip.v4:
        store_sum16(p + 4, ip.length[last])
        if s.count > 1:  # the Fragment header is the last
            fragment = sum_be16(<uint16_t>(i * s.unit | (0 if last else 1)))
            store_sum16(to + s.header - 6, fragment)
        return
    if i == 0:
        memcpy(p + 20, s.options, s.noptions)
        sum = s.first_sum
    store_sum16(p + 2, ip.length[last])
    store_sum16(p + 4, id)
    if s.count > 1:
        fragment = sum_be16(<uint16_t>(i * (s.unit // 8) | (0 if last else IPV4_MORE)))
        store_sum16(p + 6, fragment)
        sum += fragment
    store_sum16(p + 10, <uint16_t>~sum_fold(sum + id))


cdef inline void write_any(const virtio_segmenter *s, uint8_t *to, uint32_t i, uint64_t payload) noexcept nogil:
    if s.kind >= VIRTIO_SEGMENT_FRAGMENTS:
        write_fragment(s, to, i)
    else:
        write_header(s, to, i, payload)


cdef inline bint wants_sum(const virtio_segmenter *s) noexcept nogil:
    return not s.partial and s.kind < VIRTIO_SEGMENT_FRAGMENTS


cdef inline const iovec *seek(virtio_segmenter *s, uint32_t at, uint32_t *skip) noexcept nogil:
    """Find the piece that holds byte `at` of the frame, from the last one found on; *skip bytes into it."""
    if at < s.passed:
        s.piece = s.passed = 0
    while at - s.passed >= s.pieces[s.piece].iov_len and s.piece + 1 < s.npieces:
        s.passed += <uint32_t>s.pieces[s.piece].iov_len
        s.piece += 1
    skip[0] = at - s.passed
    return s.pieces + s.piece


cdef inline uint64_t payload_sum(virtio_segmenter *s, uint32_t i) noexcept nogil:
    cdef uint32_t at = s.payload_at + segment_payload_at(s, i), n = segment_payload_size(s, i), skip
    cdef const iovec *piece
    if s.frame is not NULL:
        return sum_bytes(s.frame + at, n)
    piece = seek(s, at, &skip)
    return sum_gather(piece, s.npieces - s.piece, skip, n)


cdef uint8_t *write_middle(const virtio_segmenter *s, uint32_t i, uint32_t end, uint8_t *to,
                           uint32_t stride) noexcept nogil:
    """Headers of segments [i, end), TCP or UDP, of full size and neither first nor last, from a frame in one piece.

    The same as write_header() for each. What they share is in locals: the compiler must take it that a store to a
    header changes the plan.
    """
    cdef const uint8_t *headers = &s.headers[0]
    cdef const uint8_t *payload = s.frame + s.payload_at + segment_payload_at(s, i)
    cdef uint32_t size = s.header, unit = s.unit, seq = s.seq + i * unit, stored_seq
    cdef uint32_t ip_at = s.ip[0].at, outer_at = s.ip[1].at, l4 = s.l4
    cdef uint32_t step = s.ip[0].step, id = s.ip[0].id + i * step
    cdef uint32_t outer_step = s.ip[1].step, outer_id = s.ip[1].id + i * outer_step
    cdef uint64_t ip_sum = s.ip[0].sum[0], outer_sum = s.ip[1].sum[0], l4_sum = s.l4_sum[0]
    cdef bint v4 = s.ip[0].v4, outer_v4 = s.tunnel and s.ip[1].v4, tcp = s.kind == VIRTIO_SEGMENT_TCP
    cdef bint full = not s.partial
    cdef uint16_t word
    cdef uint64_t sum
    if tcp:
        l4_sum += s.flags[0]
    while i < end:
        segment_copy_header(to, headers, size)
        if v4:
            word = sum_be16(<uint16_t>id)
            store_sum16(to + ip_at + 4, word)
            store_sum16(to + ip_at + 10, <uint16_t>~sum_fold(ip_sum + word))
            id += step
        if outer_v4:
            word = sum_be16(<uint16_t>outer_id)
            store_sum16(to + outer_at + 4, word)
            store_sum16(to + outer_at + 10, <uint16_t>~sum_fold(outer_sum + word))
            outer_id += outer_step
        sum = l4_sum
        if tcp:
            stored_seq = sum_be32(seq)
            memcpy(to + l4 + 4, &stored_seq, 4)
            seq += unit
            sum += stored_seq
        if full:
            sum += sum_bytes(payload, unit)
            payload += unit
            if tcp:
                store_sum16(to + l4 + 16, <uint16_t>~sum_fold(sum))
            else:
                store_sum16(to + l4 + 6, sum_finish(sum))
        to += stride
        i += 1
    return to


cdef uint32_t segment_headers(virtio_segmenter *s, uint32_t first, uint32_t n, uint8_t *to,
                              uint32_t stride) noexcept nogil:
    cdef uint32_t i = first, end
    cdef bint full = wants_sum(s)
    if first >= s.count or stride < s.header + s.extra:
        return 0
    if n > s.count - first:
        n = s.count - first
    end = first + n
    while i < end:
        if i and s.frame is not NULL and s.kind < VIRTIO_SEGMENT_FRAGMENTS and i < s.count - 1:
            to = write_middle(s, i, min(end, s.count - 1), to, stride)
            i = min(end, s.count - 1)
        else:
            write_any(s, to, i, payload_sum(s, i) if full else 0)
            to += stride
            i += 1
    return n


cdef uint32_t segment_views(virtio_segmenter *s, uint32_t first, uint32_t n, iovec *views, uint32_t room,
                            uint32_t *nviews) noexcept nogil:
    cdef uint32_t i, at, left, skip, used = 0, mine
    cdef size_t part
    cdef const iovec *piece
    if first >= s.count:
        return 0
    if n > s.count - first:
        n = s.count - first
    for i in range(n):
        at = s.payload_at + segment_payload_at(s, first + i)
        left = segment_payload_size(s, first + i)
        mine = 0
        if s.frame is not NULL:
            if left:
                if used == room:
                    return i
                views[used].iov_base = <void *>(s.frame + at)
                views[used].iov_len = left
                mine = 1
        else:
            while left:
                piece = seek(s, at, &skip)
                if used + mine == room:
                    return i
                part = min(piece.iov_len - skip, <size_t>left)
                views[used + mine].iov_base = <uint8_t *>piece.iov_base + skip
                views[used + mine].iov_len = part
                mine += 1
                at += <uint32_t>part
                left -= <uint32_t>part
        nviews[i] = mine
        used += mine
    return n


cdef uint64_t copy_pieces(iov_cursor *to, iov_cursor *source, size_t n, bint full) noexcept nogil:
    """Copy n bytes, which both have, and sum them if full."""
    cdef uint64_t total = 0, sum
    cdef size_t done = 0, part
    cdef uint8_t *p
    cdef const uint8_t *q
    while done < n:
        part = min(iov_left(to), iov_left(source), n - done)
        p = <uint8_t *>to.piece.iov_base + to.skip
        q = <const uint8_t *>source.piece.iov_base + source.skip
        if full:
            sum = sum_copy(p, q, part)
            total += sum_swap(sum) if done & 1 else sum
        else:
            memcpy(p, q, part)
        to.skip += part
        source.skip += part
        done += part
    return total


cdef uint32_t segment_copy(virtio_segmenter *s, uint32_t i, const iovec *to, uint32_t npieces,
                           uint32_t skip) noexcept nogil:
    cdef uint8_t header[VIRTIO_SEGMENT_HEADERS_MAX]
    cdef uint32_t header_size, n, at, source_skip
    cdef uint64_t sum = 0
    cdef size_t room = 0, offset = skip
    cdef iovec whole
    cdef iov_cursor target, source, header_source
    cdef uint8_t *p
    cdef uint32_t k
    if i >= s.count:
        return 0
    header_size = segment_header_size(s, i)
    n = segment_payload_size(s, i)
    at = s.payload_at + segment_payload_at(s, i)
    while npieces and offset >= to.iov_len:
        offset -= to.iov_len
        to += 1
        npieces -= 1
    if npieces == 0:
        return 0
    room = to.iov_len - offset
    p = <uint8_t *>to.iov_base + offset
    if room >= header_size + n and s.frame is not NULL:
        if wants_sum(s):
            sum = sum_copy(p + header_size, s.frame + at, n)
        else:
            memcpy(p + header_size, s.frame + at, n)
        write_any(s, p, i, sum)
        return header_size + n
    for k in range(1, npieces):
        if room >= header_size + n:
            break
        room += to[k].iov_len
    if room < header_size + n:
        return 0
    target.piece = to
    target.skip = offset + header_size
    if s.frame is not NULL:
        whole.iov_base = <void *>(s.frame + at)
        whole.iov_len = n
        source.piece = &whole
        source.skip = 0
    else:
        source.piece = seek(s, at, &source_skip)
        source.skip = source_skip
    sum = copy_pieces(&target, &source, n, wants_sum(s))
    write_any(s, header, i, sum)
    whole.iov_base = header
    whole.iov_len = header_size
    header_source.piece = &whole
    header_source.skip = 0
    target.piece = to
    target.skip = offset
    copy_pieces(&target, &header_source, header_size, False)
    return header_size + n
