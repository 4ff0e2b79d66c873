//! Quantities of Kubernetes (`resource.Quantity`), as far as they are whole numbers of bytes.

use std::ops::RangeInclusive;

use crate::reader::Field;
use crate::tree::Value;

/// Bytes within a range: a whole number, or a quantity such as `64Ki`.
pub(crate) fn bytes(field: &Field<'_>, range: RangeInclusive<u64>) -> Option<u64> {
    let bytes = match field.value() {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::String(text) => quantity(text),
        _ => None,
    };
    let fitting = bytes.filter(|bytes| range.contains(bytes));
    if fitting.is_none() {
        field.expected(format_args!(
            "{} to {} bytes, such as `64Ki` or `1Mi`",
            range.start(),
            range.end()
        ));
    }
    fitting
}

/// A whole quantity with or without its suffix (Kubernetes, `resource.Quantity`).
fn quantity(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::quantity;

    #[test]
    fn quantities_are_whole_numbers_with_a_unit() {
        for (text, expected) in [
            ("65536", Some(65_536)),
            ("64Ki", Some(65_536)),
            ("1Mi", Some(1 << 20)),
            ("2k", Some(2_000)),
            ("1G", Some(1_000_000_000)),
            ("", None),
            ("Ki", None),
            ("1.5Ki", None),
            ("-1", None),
            ("1 Ki", None),
            ("1KiB", None),
            ("99999999999999999999", None),
            ("18446744073709551615Gi", None),
        ] {
            assert_eq!(quantity(text), expected, "{text}");
        }
    }
}
