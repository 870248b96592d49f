/* CRC32C of a buffer, alone or of the bytes that a copy moves, in one pass over memory.

   Folding by carry-less multiplication after Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ"
   (Intel, 2009). A constant for a distance of D bits is x^(D + 31) and x^(D - 33) mod P, bits reflected: the product of
   two reflected 64-bit numbers is one bit short, and the constant stands in the low half of its 64 bits. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

#define POLYNOMIAL 0x82F63B78u

#if defined(__SSE4_2__)
#define HAVE_STEP 1
static uint64_t step8(uint64_t crc, uint64_t word) { return _mm_crc32_u64(crc, word); }
static uint32_t step1(uint32_t crc, uint8_t byte) { return _mm_crc32_u8(crc, byte); }
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#define HAVE_STEP 1
static uint64_t step8(uint64_t crc, uint64_t word) { return __crc32cd((uint32_t)crc, word); }
static uint32_t step1(uint32_t crc, uint8_t byte) { return __crc32cb(crc, byte); }
#endif

#if !defined(HAVE_STEP)
static uint32_t table[8][256];

static uint64_t step8(uint64_t crc, uint64_t word) {
    word ^= crc;
    uint32_t next = 0;
    for (int i = 0; i < 8; i++) next ^= table[7 - i][word >> 8 * i & 255];
    return next;
}

static uint32_t step1(uint32_t crc, uint8_t byte) { return crc >> 8 ^ table[0][(crc ^ byte) & 255]; }

__attribute__((constructor)) static void fill_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        table[0][i] = crc;
    }
    for (int row = 1; row < 8; row++)
        for (uint32_t i = 0; i < 256; i++)
            table[row][i] = table[row - 1][i] >> 8 ^ table[0][table[row - 1][i] & 255];
}
#endif

static uint32_t scalar(uint32_t crc, uint8_t *to, const uint8_t *from, size_t n) {
    if (to) memcpy(to, from, n);
    const uint8_t *bytes = to ? to : from;
    for (; n >= 8; n -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        crc = (uint32_t)step8(crc, word);
    }
    for (; n; n--) crc = step1(crc, *bytes++);
    return crc;
}

#if defined(__VPCLMULQDQ__) && defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HAVE_FOLD 1
enum { LANES = 4, STRIDE = 64 * LANES };

static uint64_t power(unsigned exponent) {
    uint32_t value = 0x80000000u;
    for (; exponent; exponent--) value = value >> 1 ^ (value & 1 ? POLYNOMIAL : 0);
    return value;
}

static __m512i far, near;
static __m128i lane;

__attribute__((constructor)) static void fill_constants(void) {
    far = _mm512_broadcast_i32x4(_mm_set_epi64x(power(8 * STRIDE - 33), power(8 * STRIDE + 31)));
    near = _mm512_broadcast_i32x4(_mm_set_epi64x(power(512 - 33), power(512 + 31)));
    lane = _mm_set_epi64x(power(128 - 33), power(128 + 31));
}

static inline __m512i fold(__m512i sum, __m512i by, __m512i next) {
    return _mm512_ternarylogic_epi64(
        _mm512_clmulepi64_epi128(sum, by, 0x00), _mm512_clmulepi64_epi128(sum, by, 0x11), next, 0x96);
}

static inline __m128i fold_lane(__m128i sum, __m128i next) {
    return _mm_ternarylogic_epi64(
        _mm_clmulepi64_si128(sum, lane, 0x00), _mm_clmulepi64_si128(sum, lane, 0x11), next, 0x96);
}

/* Whole strides only. `stream`: stores pass the cache by, which saves reading what is overwritten; `to` is 64-aligned. */
static inline __attribute__((always_inline)) uint32_t folded(
    uint32_t crc, uint8_t *to, const uint8_t *from, size_t n, int copies, int stream) {
    __m512i sum[LANES];
    for (size_t at = 0; at < n; at += STRIDE)
        for (int i = 0; i < LANES; i++) {
            /* 4 KiB ahead: the hardware's own prefetching stops at the page's end. */
            __m512i next = _mm512_loadu_si512(from + at + 64 * i);
            _mm_prefetch((const char *)from + at + 64 * i + 4096, _MM_HINT_T0);
            if (copies && stream) _mm512_stream_si512((__m512i *)(to + at + 64 * i), next);
            else if (copies) _mm512_storeu_si512(to + at + 64 * i, next);
            if (at) sum[i] = fold(sum[i], far, next);
            else sum[i] = i ? next : _mm512_xor_si512(next, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
        }
    __m512i all = sum[0];
    for (int i = 1; i < LANES; i++) all = fold(all, near, sum[i]);
    __m128i one = _mm512_castsi512_si128(all);
    one = fold_lane(one, _mm512_extracti64x2_epi64(all, 1));
    one = fold_lane(one, _mm512_extracti64x2_epi64(all, 2));
    one = fold_lane(one, _mm512_extracti64x2_epi64(all, 3));
    if (stream) _mm_sfence();
    uint64_t half = _mm_crc32_u64(0, (uint64_t)_mm_extract_epi64(one, 0));
    return (uint32_t)_mm_crc32_u64(half, (uint64_t)_mm_extract_epi64(one, 1));
}
#endif

/* CRC32C of n bytes that follow those `crc` is of (0: none). With `to`, they are copied there, and the sum is of what
   was written. Buffers do not overlap. */
uint32_t shoal_crc32c(uint32_t crc, uint8_t *to, const uint8_t *from, uint64_t n, int stream) {
    crc = ~crc;
#if defined(HAVE_FOLD)
    size_t whole = n / STRIDE * STRIDE;
    if (whole) {
        stream = stream && (uintptr_t)to % 64 == 0;
        if (!to) crc = folded(crc, to, from, whole, 0, 0);
        else crc = stream ? folded(crc, to, from, whole, 1, 1) : folded(crc, to, from, whole, 1, 0);
        from += whole;
        n -= whole;
        if (to) to += whole;
    }
#else
    (void)stream;
    enum { PIECE = 1 << 16 }; /* copied, then summed while it is in the cache */
    for (; n > PIECE; n -= PIECE, from += PIECE) {
        crc = scalar(crc, to, from, PIECE);
        if (to) to += PIECE;
    }
#endif
    return ~scalar(crc, to, from, n);
}

/* CRC32Cs of `count` buffers of n bytes each, into `sums`. */
void shoal_crc32c_each(const uint64_t *addresses, uint64_t count, uint64_t n, uint32_t *sums) {
    for (uint64_t i = 0; i < count; i++) sums[i] = shoal_crc32c(0, 0, (const uint8_t *)(uintptr_t)addresses[i], n, 0);
}
