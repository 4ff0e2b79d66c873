//! Durations of the Gateway API (GEP-2257).

use std::time::Duration;

use crate::tree::shortened;

/// One to four numbers of at most five digits, each with its unit `h`, `m`, `s` or `ms`; zero is one.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const PARTS: usize = 4;
    const DIGITS: usize = 5;
    let expected = || {
        format!(
            "expected a duration such as `10s`, `1m30s` or `500ms`, got `{}`",
            shortened(text)
        )
    };
    let mut milliseconds = 0u64;
    let mut rest = text;
    for _ in 0..PARTS {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        if digits == 0 || digits > DIGITS {
            return Err(expected());
        }
        let end = behind.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, behind) = behind.split_at(end);
        let unit = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return Err(expected()),
        };
        // At most five digits, four times: far from the end of 64 bits.
        milliseconds += number.parse::<u64>().map_err(|_| expected())? * unit;
        rest = behind;
        if rest.is_empty() {
            return Ok(Duration::from_millis(milliseconds));
        }
    }
    Err(expected())
}

#[cfg(test)]
mod tests {
    use super::duration;
    use std::time::Duration;

    #[test]
    fn durations_are_those_of_gep_2257() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1h30m10s5ms", 5_410_005),
            ("500ms", 500),
            ("99999h", 359_996_400_000),
            ("1s1s", 2_000),
        ] {
            let expected = Ok(Duration::from_millis(milliseconds));
            assert_eq!(duration(text), expected, "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "1.5s",
            "-1s",
            "+1s",
            "1 s",
            "100000s",
            "1d",
            "1us",
            "1S",
            "1s1s1s1s1s",
            "1s ",
            "1sm",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
