//! Moments as documents write them.

/// A moment of RFC 3339, ordered by time: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: i64,
    nanoseconds: u32,
}

impl Timestamp {
    /// Reads a moment of RFC 3339, section 5.6. Leap seconds count as the second before them.
    pub fn new(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let number = |at: usize, length: usize| -> Option<i64> {
            let digits = bytes.get(at..at + length)?;
            digits.iter().try_fold(0, |sum: i64, digit| {
                digit
                    .is_ascii_digit()
                    .then(|| sum * 10 + i64::from(digit - b'0'))
            })
        };
        let mark = |at: usize, marks: &[u8]| bytes.get(at).filter(|byte| marks.contains(byte));
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
        for (at, marks) in [(4, "-"), (7, "-"), (10, "Tt "), (13, ":"), (16, ":")] {
            mark(at, marks.as_bytes())?;
        }
        let within = (1..=12).contains(&month)
            && (1..=days_of(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second <= 60;
        if !within {
            return None;
        }
        let mut at = 19;
        let mut nanoseconds = 0;
        if mark(at, b".").is_some() {
            at += 1;
            let start = at;
            let mut unit = 100_000_000;
            while let Some(digit) = bytes.get(at).filter(|byte| byte.is_ascii_digit()) {
                nanoseconds += u32::from(digit - b'0') * unit;
                unit /= 10;
                at += 1;
            }
            if at == start {
                return None;
            }
        }
        let zone = &bytes[at..];
        let offset = match zone {
            [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
                let (hours, minutes) = (number(at + 1, 2)?, number(at + 4, 2)?);
                if hours > 23 || minutes > 59 {
                    return None;
                }
                let seconds = hours * 3600 + minutes * 60;
                if *sign == b'-' { -seconds } else { seconds }
            }
            _ => return None,
        };
        let clock = hour * 3600 + minute * 60 + second.min(59);
        Some(Self {
            seconds: days_since_1970(year, month, day) * 86_400 + clock - offset,
            nanoseconds,
        })
    }
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar; years begin in March here, so that a leap day is
/// the last one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn moments_are_read_and_ordered() {
        for (text, seconds, nanoseconds) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2024-02-29T12:00:00Z", 1_709_208_000, 0),
            ("2026-11-27T00:24:28Z", 1_795_739_068, 0),
            ("2026-11-27T01:24:28+01:00", 1_795_739_068, 0),
            ("2026-11-26t23:24:28.5-01:00", 1_795_739_068, 500_000_000),
            ("1969-12-31T23:59:60Z", -1, 0),
            (
                "2000-03-01T00:00:00.123456789999Z",
                951_868_800,
                123_456_789,
            ),
        ] {
            let expected = Timestamp {
                seconds,
                nanoseconds,
            };
            assert_eq!(Timestamp::new(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "2026",
            "2026-11-27",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-27T24:00:00Z",
            "2026-11-27T00:00:00",
            "2026-11-27T00:00:00.Z",
            "2026-11-27T00:00:00+0100",
            "2026-11-27T00:00:00Z ",
            "2026-11-27T00:00:0\u{660}Z",
        ] {
            assert_eq!(Timestamp::new(text), None, "{text}");
        }
    }
}
