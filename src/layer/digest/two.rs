//! The compression function of SHA-256 over two streams in one run of
//! instructions. See [`super`] for why.
//!
//! It is own code because the `sha2` crate has only the function for one stream
//! (ADR 14). Everything but the call itself is safe Rust: the intrinsics work
//! on values, and no pointer is involved.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls a function that needs instructions the processor may lack"
    )
)]

use super::BLOCK;

/// Whether [`compress`] does anything on this processor.
#[cfg(target_arch = "x86_64")]
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
}

/// Compresses as many blocks of each stream as there are of both. Returns
/// whether it could: if not, nothing is changed.
#[cfg(target_arch = "x86_64")]
pub(super) fn compress(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) -> bool {
    if !is_supported() {
        return false;
    }
    // SAFETY: the processor has the instructions, and that is all it takes.
    unsafe { x86::compress(states, blocks) };
    true
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn is_supported() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn compress(_: [&mut [u32; 8]; 2], _: [&[[u8; BLOCK]]; 2]) -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::BLOCK;
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32,
    };

    /// FIPS 180-4, 4.2.2: the cube roots of the first 64 primes. Four rounds a row.
    static ROUNDS: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    /// One of the streams: its state as the instructions have it, named by the
    /// letters of FIPS 180-4, and sixteen words of the message's schedule.
    #[derive(Clone, Copy)]
    struct Lane {
        abef: __m128i,
        cdgh: __m128i,
        words: [__m128i; 4],
    }

    impl Lane {
        #[target_feature(enable = "sha,ssse3,sse4.1")]
        fn new(state: &[u32; 8]) -> Self {
            let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
            Lane {
                abef: _mm_set_epi32(a, b, e, f),
                cdgh: _mm_set_epi32(c, d, g, h),
                words: [_mm_setzero_si128(); 4],
            }
        }

        #[target_feature(enable = "sha,ssse3,sse4.1")]
        fn state(&self) -> [u32; 8] {
            [
                _mm_extract_epi32::<3>(self.abef),
                _mm_extract_epi32::<2>(self.abef),
                _mm_extract_epi32::<3>(self.cdgh),
                _mm_extract_epi32::<2>(self.cdgh),
                _mm_extract_epi32::<1>(self.abef),
                _mm_extract_epi32::<0>(self.abef),
                _mm_extract_epi32::<1>(self.cdgh),
                _mm_extract_epi32::<0>(self.cdgh),
            ]
            .map(i32::cast_unsigned)
        }

        /// Takes the next block. Its words are big-endian.
        #[inline]
        #[target_feature(enable = "sha,ssse3,sse4.1")]
        fn load(&mut self, block: &[u8; BLOCK]) {
            let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
            let halves = block.as_chunks::<8>().0;
            for (number, words) in self.words.iter_mut().enumerate() {
                let low = i64::from_le_bytes(halves[2 * number]);
                let high = i64::from_le_bytes(halves[2 * number + 1]);
                *words = _mm_shuffle_epi8(_mm_set_epi64x(high, low), swap);
            }
        }

        /// The four rounds that use the words `at`.
        #[inline]
        #[target_feature(enable = "sha,ssse3,sse4.1")]
        fn rounds(&mut self, at: usize, constants: __m128i) {
            let sum = _mm_add_epi32(self.words[at], constants);
            // An instruction does two rounds, after which both halves of the
            // state have changed places.
            self.cdgh = _mm_sha256rnds2_epu32(self.cdgh, self.abef, sum);
            let sum = _mm_shuffle_epi32::<0b00_00_11_10>(sum);
            self.abef = _mm_sha256rnds2_epu32(self.abef, self.cdgh, sum);
        }

        /// Replaces the words `at` by those sixteen further on.
        #[inline]
        #[target_feature(enable = "sha,ssse3,sse4.1")]
        fn schedule(&mut self, at: usize) {
            let after = |steps: usize| self.words[(at + steps) % 4];
            let shifted = _mm_alignr_epi8::<4>(after(3), after(2));
            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(after(0), after(1)), shifted);
            self.words[at] = _mm_sha256msg2_epu32(sum, after(3));
        }

        #[inline]
        #[target_feature(enable = "sha,ssse3,sse4.1")]
        fn add(&mut self, before: &Lane) {
            self.abef = _mm_add_epi32(self.abef, before.abef);
            self.cdgh = _mm_add_epi32(self.cdgh, before.cdgh);
        }
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    pub(super) fn compress(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
        let [first, second] = states;
        let mut lanes = [Lane::new(first), Lane::new(second)];
        for (left, right) in blocks[0].iter().zip(blocks[1]) {
            let before = lanes;
            lanes[0].load(left);
            lanes[1].load(right);
            for (number, four) in ROUNDS.as_chunks::<4>().0.iter().enumerate() {
                for (at, constants) in four.iter().enumerate() {
                    let [a, b, c, d] = constants.map(u32::cast_signed);
                    let constants = _mm_set_epi32(d, c, b, a);
                    // This order is the point of it all: what a lane waits for
                    // is worked on while the other lane's turn is.
                    for lane in &mut lanes {
                        lane.rounds(at, constants);
                    }
                    if number < 3 {
                        for lane in &mut lanes {
                            lane.schedule(at);
                        }
                    }
                }
            }
            for (lane, before) in lanes.iter_mut().zip(&before) {
                lane.add(before);
            }
        }
        *first = lanes[0].state();
        *second = lanes[1].state();
    }
}
