//! Texts in the code of HPACK (RFC 7541, section 5.2 and appendix B), which QPACK has as well.
//!
//! The code is canonical: among codes of one length, and from one length to the next, they count up in the order of their
//! bytes. So their lengths are all there is to know.

/// Bits of the code of each byte, and of the end of a text, which is never written.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const SYMBOLS: usize = 257;
const END: u16 = 256;
const LONGEST: usize = 30;

/// Codes by length.
struct Code {
    /// The first of each length.
    first: [u32; LONGEST + 1],
    /// How many there are of each length.
    count: [u32; LONGEST + 1],
    /// Where those of each length begin in `symbols`.
    start: [usize; LONGEST + 1],
    /// What they stand for, in their order.
    symbols: [u16; SYMBOLS],
}

static CODE: Code = {
    let mut code = Code {
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        symbols: [0; SYMBOLS],
    };
    let (mut length, mut next, mut place) = (1, 0, 0);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = place;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                code.symbols[place] = symbol as u16;
                place += 1;
                next += 1;
                code.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
};

/// Writes out a text; none: it is none.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    // The shortest code has five bits.
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut length) = (0, 0);
    for byte in bytes {
        for bit in (0..8).rev() {
            code = (code << 1) | u32::from((byte >> bit) & 1);
            length += 1;
            let place = code.wrapping_sub(CODE.first[length]);
            if place < CODE.count[length] {
                match CODE.symbols[CODE.start[length] + place as usize] {
                    END => return None,
                    symbol => text.push(symbol as u8),
                }
                (code, length) = (0, 0);
            } else if length == LONGEST {
                return None;
            }
        }
    }
    // What is left over is the beginning of the end's code, which is ones, and less than a byte.
    (length < 8 && code + 1 == 1 << length).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_as_the_rfc_has_them() {
        // RFC 7541, appendix C.4 and C.6.
        let rows: [(&[u8], &str); 5] = [
            (
                &[
                    0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
                ],
                "www.example.com",
            ),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (
                &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f],
                "custom-key",
            ),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ];
        for (bytes, text) in rows {
            assert_eq!(decode(bytes).as_deref(), Some(text.as_bytes()));
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for bytes in [
            // Padding of a byte, and of zeros.
            &[0x64, 0x02, 0xff][..],
            &[0x00][..],
            // The end's own code.
            &[0xff, 0xff, 0xff, 0xff][..],
        ] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn every_byte_has_a_code() {
        let mut bits = Vec::new();
        let mut text = Vec::new();
        for length in 1..=LONGEST {
            for place in 0..CODE.count[length] {
                let symbol = CODE.symbols[CODE.start[length] + place as usize];
                if symbol == END {
                    continue;
                }
                let code = CODE.first[length] + place;
                bits.extend((0..length).rev().map(|bit| (code >> bit) & 1));
                text.push(symbol as u8);
            }
        }
        assert_eq!(text.len(), 256);
        while bits.len() % 8 != 0 {
            bits.push(1);
        }
        let bytes: Vec<u8> = bits
            .chunks(8)
            .map(|byte| byte.iter().fold(0, |all, bit| (all << 1) | *bit as u8))
            .collect();
        assert_eq!(decode(&bytes), Some(text));
    }
}
