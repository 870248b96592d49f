/* Sixteen float lanes in GNU vector extensions: one source that compiles to AVX-512, AVX2, SSE or NEON.
 *
 * Only the bfloat16 dot product, the rounding to bfloat16 and the maximum use intrinsics, where the CPU has them;
 * everything else is left to the compiler, which splits the 64-byte vectors on narrower machines.
 */
#ifndef SHOAL_SIMD_H
#define SHOAL_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define SHOAL_NATIVE_BF16 1
#else
#define SHOAL_NATIVE_BF16 0
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef f32x16 f32x16_at __attribute__((aligned(1), may_alias));
typedef u32x16 u32x16_at __attribute__((aligned(1), may_alias));
typedef u16x16 u16x16_at __attribute__((aligned(1), may_alias));
typedef uint32_t u32_at __attribute__((aligned(1), may_alias));

typedef uint16_t bf16;

enum { SHOAL_FLOAT32 = 0, SHOAL_BFLOAT16 = 1 };

ALWAYS_INLINE f32x16 splat(float x) { return x - (f32x16){0}; }
ALWAYS_INLINE u32x16 splat_bits(uint32_t x) { return x - (u32x16){0}; }
ALWAYS_INLINE f32x16 as_float(u32x16 x) { return (f32x16)x; }

ALWAYS_INLINE float bf16_to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Round to nearest even; a NaN stays one. */
ALWAYS_INLINE bf16 bf16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

ALWAYS_INLINE f32x16 load_f32(const float *p) { return *(const f32x16_at *)p; }
ALWAYS_INLINE void store_f32(float *p, f32x16 v) { *(f32x16_at *)p = v; }

ALWAYS_INLINE f32x16 load_bf16(const bf16 *p) {
    u32x16 wide = __builtin_convertvector(*(const u16x16_at *)p, u32x16);
    return as_float(wide << 16);
}

ALWAYS_INLINE void store_bf16(bf16 *p, f32x16 v) {
#if SHOAL_NATIVE_BF16
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &rounded, 32);
#else
    u32x16 bits = (u32x16)v;
    u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    u32x16 is_nan = (u32x16)((bits & 0x7fffffffu) > 0x7f800000u);
    rounded = (is_nan & ((bits >> 16) | 0x40u)) | (~is_nan & rounded);
    *(u16x16_at *)p = __builtin_convertvector(rounded, u16x16);
#endif
}

/* acc + the products of the two bfloat16 pairs in each 32-bit lane. */
ALWAYS_INLINE f32x16 dot_bf16_pairs(f32x16 acc, u32x16 a, u32x16 b) {
#if SHOAL_NATIVE_BF16
    return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    acc += as_float(a << 16) * as_float(b << 16);
    return acc + as_float(a & 0xffff0000u) * as_float(b & 0xffff0000u);
#endif
}

ALWAYS_INLINE f32x16 blend(i32x16 mask, f32x16 yes, f32x16 no) {
    return (f32x16)(((i32x16)yes & mask) | ((i32x16)no & ~mask));
}

/* a > b ? a : b in each lane, so b where either is NaN. The compiler does not find the instruction by itself. */
ALWAYS_INLINE f32x16 max_f32(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return blend(a > b, a, b);
#endif
}

/* Halving by register: as a loop over a stored vector, attention spent a fifth of its time here. */
#define DEFINE_REDUCTION(NAME, PAIR)                                 \
    ALWAYS_INLINE float NAME(f32x16 v) {                             \
        f32x8 low8, high8;                                           \
        f32x4 low4, high4;                                           \
        memcpy(&low8, &v, 32);                                       \
        memcpy(&high8, (const char *)&v + 32, 32);                   \
        low8 = PAIR(i32x8, low8, high8);                             \
        memcpy(&low4, &low8, 16);                                    \
        memcpy(&high4, (const char *)&low8 + 16, 16);                \
        low4 = PAIR(i32x4, low4, high4);                             \
        const float a = SCALAR_##PAIR(low4[0], low4[2]), b = SCALAR_##PAIR(low4[1], low4[3]); \
        return SCALAR_##PAIR(a, b);                                  \
    }

#define ADD_PAIR(MASK, a, b) ((a) + (b))
#define MAX_PAIR(MASK, a, b) ((__typeof__(a))(((MASK)(a) & ((a) > (b))) | ((MASK)(b) & ~((a) > (b)))))
#define SCALAR_ADD_PAIR(a, b) ((a) + (b))
#define SCALAR_MAX_PAIR(a, b) ((a) > (b) ? (a) : (b))
DEFINE_REDUCTION(sum_lanes, ADD_PAIR)
DEFINE_REDUCTION(max_lanes, MAX_PAIR)

/* 2^x for x <= 127, exactly 0 below -126 (so also for -inf); relative error below 2e-7.
 * Range reduction to [-0.5, 0.5] by the round-to-integer constant 1.5 * 2^23, then the Taylor terms of 2^f. */
ALWAYS_INLINE f32x16 exp2_f32(f32x16 x) {
    i32x16 tiny = x < -126.0f;
    x = blend(tiny, splat(-126.0f), x);
    f32x16 shifted = x + 12582912.0f;
    i32x16 exponent = (i32x16)shifted - 0x4b400000;
    f32x16 f = x - (shifted - 12582912.0f);
    f32x16 y = f * 1.5403530e-4f + 1.3333558e-3f;
    y = y * f + 9.6181291e-3f;
    y = y * f + 5.5504109e-2f;
    y = y * f + 2.4022651e-1f;
    y = y * f + 6.9314718e-1f;
    y = y * f + 1.0f;
    y = (f32x16)((i32x16)y + (exponent << 23));
    return (f32x16)((i32x16)y & ~tiny);
}

#endif
