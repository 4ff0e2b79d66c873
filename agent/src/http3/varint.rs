//! Numbers of variable length (RFC 9000, section 16).

use bytes::{BufMut, BytesMut};

/// Reads the number at the beginning of some bytes. Gives it with its length; none: it is not whole.
pub(super) fn decode(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    let number = rest.iter().fold(u64::from(first & 0x3f), |number, byte| {
        (number << 8) | u64::from(*byte)
    });
    Some((number, length))
}

/// Writes a number in the fewest bytes; none is larger than what has room in 62 bits.
pub(super) fn encode(number: u64, out: &mut BytesMut) {
    match number {
        0..0x40 => out.put_u8(number as u8),
        0x40..0x4000 => out.put_u16(number as u16 | 0x4000),
        0x4000..0x4000_0000 => out.put_u32(number as u32 | 0x8000_0000),
        _ => out.put_u64(number | 0xc000_0000_0000_0000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_long_as_they_have_to_be() {
        // The examples of RFC 9000, appendix A.1.
        let examples: [(&[u8], u64); 4] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ];
        for (bytes, number) in examples {
            assert_eq!(decode(bytes), Some((number, bytes.len())));
            assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
            let mut out = BytesMut::new();
            encode(number, &mut out);
            assert_eq!(out, bytes);
        }
        assert_eq!(decode(&[0x40, 0x25]), Some((37, 2)));
    }
}
