//! SHA-256 of streams, two at a time where the processor gains from that.
//!
//! A processor with instructions for SHA-256 waits most of the time in a single
//! stream: every round needs the result of the last. Where the instructions of
//! two streams alternate, one works while the other waits ([`two`]). A single
//! stream is left to the `sha2` crate.

mod two;

use sha2::block_api::compress256;

const BLOCK: usize = 64;
/// FIPS 180-4, 5.3.3: the square roots of the first eight primes.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Whether [`Sha256::update_both`] is faster than one stream after the other.
pub(in crate::layer) fn gains_from_pairs() -> bool {
    two::is_supported()
}

/// The digest of the bytes that came so far.
#[derive(Debug, Clone)]
pub(in crate::layer) struct Sha256 {
    state: [u32; 8],
    /// The last bytes that are no whole block, at its beginning.
    tail: [u8; BLOCK],
    length: u64,
}

impl Sha256 {
    pub(in crate::layer) fn new() -> Self {
        Sha256 {
            state: INITIAL,
            tail: [0; BLOCK],
            length: 0,
        }
    }

    pub(in crate::layer) fn update(&mut self, bytes: &[u8]) {
        let (blocks, end) = self.complete_tail(bytes).as_chunks();
        compress256(&mut self.state, blocks);
        self.keep(end);
    }

    /// Updates two streams with bytes of their own; as many as both have are
    /// hashed together.
    pub(in crate::layer) fn update_both(streams: [&mut Sha256; 2], bytes: [&[u8]; 2]) {
        let [first, second] = streams;
        let (first_blocks, first_end) = first.complete_tail(bytes[0]).as_chunks();
        let (second_blocks, second_end) = second.complete_tail(bytes[1]).as_chunks();
        let common = first_blocks.len().min(second_blocks.len());
        let (first_both, first_more) = first_blocks.split_at(common);
        let (second_both, second_more) = second_blocks.split_at(common);
        let states = [&mut first.state, &mut second.state];
        if !two::compress(states, [first_both, second_both]) {
            compress256(&mut first.state, first_both);
            compress256(&mut second.state, second_both);
        }
        compress256(&mut first.state, first_more);
        compress256(&mut second.state, second_more);
        first.keep(first_end);
        second.keep(second_end);
    }

    pub(in crate::layer) fn finish(mut self) -> [u8; 32] {
        let bits = (self.length * 8).to_be_bytes();
        // A one bit, zeros up to the last eight bytes of a block, the length.
        let mut padding = [0; 2 * BLOCK];
        padding[0] = 0x80;
        let zeros = (2 * BLOCK - 9 - self.filled()) % BLOCK;
        padding[1 + zeros..][..8].copy_from_slice(&bits);
        self.update(&padding[..1 + zeros + 8]);
        let mut digest = [0; 32];
        for (out, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *out = word.to_be_bytes();
        }
        digest
    }

    fn filled(&self) -> usize {
        // Less than a block.
        (self.length % BLOCK as u64) as usize
    }

    /// Takes what completes the block that was begun, and returns the rest: all
    /// of `bytes` if none was begun, nothing if they do not complete it.
    fn complete_tail<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let filled = self.filled();
        if filled == 0 {
            self.length += bytes.len() as u64;
            return bytes;
        }
        let (taken, rest) = bytes.split_at(bytes.len().min(BLOCK - filled));
        self.tail[filled..filled + taken.len()].copy_from_slice(taken);
        if filled + taken.len() == BLOCK {
            compress256(&mut self.state, &[self.tail]);
        }
        self.length += bytes.len() as u64;
        rest
    }

    /// Keeps what is left behind the whole blocks. Nothing is left if a block
    /// that was begun is not complete yet.
    fn keep(&mut self, end: &[u8]) {
        self.tail[..end.len()].copy_from_slice(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    fn expected(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    #[test]
    fn every_length_around_blocks_and_padding_agrees() {
        for length in 0..=4 * BLOCK {
            let bytes = noise(length, length as u64);
            let mut one = Sha256::new();
            one.update(&bytes);
            assert_eq!(one.finish(), expected(&bytes), "{length}");
            for other in [0, 1, 55, 56, 63, 64, 65, 200, 300] {
                let others = noise(other, 7);
                let (mut left, mut right) = (Sha256::new(), Sha256::new());
                Sha256::update_both([&mut left, &mut right], [&bytes, &others]);
                assert_eq!(left.finish(), expected(&bytes), "{length}, {other}");
                assert_eq!(right.finish(), expected(&others), "{length}, {other}");
            }
        }
    }

    #[test]
    fn the_length_counts_beyond_32_bits() {
        let chunk = vec![0x5a; 8 << 20];
        let (mut own, mut peer) = (Sha256::new(), sha2::Sha256::new());
        // In bits; in bytes it would take too long.
        for _ in 0..65 {
            own.update(&chunk);
            peer.update(&chunk);
        }
        let expected: [u8; 32] = peer.finalize().into();
        assert_eq!(own.finish(), expected);
    }

    /// One update: of the first stream, the second, or both, and how much.
    fn steps() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
        let length = || prop_oneof![0..3usize, 0..200usize, 0..20_000usize];
        proptest::collection::vec((0..3usize, length(), length()), 0..12)
    }

    proptest! {
        #[test]
        fn streams_do_not_disturb_each_other_however_they_are_cut(steps in steps()) {
            let (mut left, mut right) = (Sha256::new(), Sha256::new());
            let (mut left_all, mut right_all) = (Vec::new(), Vec::new());
            for (number, (which, first, second)) in steps.into_iter().enumerate() {
                let (a, b) = (noise(first, number as u64), noise(second, 99 + number as u64));
                match which {
                    0 => left.update(&a),
                    1 => right.update(&b),
                    _ => Sha256::update_both([&mut left, &mut right], [&a, &b]),
                }
                if which != 1 { left_all.extend(a) }
                if which != 0 { right_all.extend(b) }
            }
            prop_assert_eq!(left.finish(), expected(&left_all));
            prop_assert_eq!(right.finish(), expected(&right_all));
        }
    }
}
