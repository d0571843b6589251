/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The paths that kernels are written for. No file is compiled with -march: a kernel says its target itself, and is
 * called only when the CPU (and the operating system, which saves the registers) has it.
 */
#ifndef VIRTIO_SIMD_H
#define VIRTIO_SIMD_H

#define VIRTIO_SIMD_SCALAR 0 /* portable C, which may use what the compiler's baseline has: SSE2, NEON */
#define VIRTIO_SIMD_AVX2 1   /* AVX2; also SSE4.2 and PCLMUL, which every CPU with AVX2 has */
#define VIRTIO_SIMD_AVX512 2 /* AVX-512 F and BW, on top */

static inline int virtio_simd_best(void)
{
#ifdef __x86_64__
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul"))
        return VIRTIO_SIMD_SCALAR;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw"))
        return VIRTIO_SIMD_AVX2;
    return VIRTIO_SIMD_AVX512;
#else
    return VIRTIO_SIMD_SCALAR;
#endif
}

#endif
