//! Wall-clock time as the interfaces show it.

use std::num::NonZeroU8;

use nix::time::{ClockId, clock_gettime};
use time::OffsetDateTime;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, TimePrecision};
use time::format_description::well_known::{Iso8601, Rfc3339};

/// Three digits of a second, whatever they are: `Rfc3339` leaves out zeros at the end.
const MILLISECONDS: EncodedConfig = Config::DEFAULT
    .set_time_precision(TimePrecision::Second {
        decimal_digits: NonZeroU8::new(3),
    })
    .encode();

/// Now, in whole seconds, as RFC 3339.
pub fn now() -> String {
    rfc3339(OffsetDateTime::now_utc().unix_timestamp())
}

/// Seconds since 1970, as RFC 3339.
pub fn rfc3339(unix: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        // Outside of the years 0 to 9999 there is no RFC 3339.
        .unwrap_or_else(|| format!("{unix} s since 1970"))
}

/// A moment of `CLOCK_MONOTONIC`, in nanoseconds as the kernel's programs tell it, as RFC 3339 with milliseconds.
pub fn of_monotonic(nanoseconds: u64) -> String {
    let now = OffsetDateTime::now_utc();
    // A clock that cannot be read would not let this process run.
    let ago = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |monotonic| {
        let now = i128::from(monotonic.tv_sec()) * 1_000_000_000 + i128::from(monotonic.tv_nsec());
        now - i128::from(nanoseconds)
    });
    with_milliseconds(now.unix_timestamp_nanos() - ago)
}

/// Nanoseconds since 1970, as RFC 3339 with the milliseconds that are over.
fn with_milliseconds(unix: i128) -> String {
    // The format rounds.
    OffsetDateTime::from_unix_timestamp_nanos(unix - unix.rem_euclid(1_000_000))
        .ok()
        .and_then(|moment| moment.format(&Iso8601::<MILLISECONDS>).ok())
        .unwrap_or_else(|| format!("{unix} ns since 1970"))
}

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_is_written_as_rfc_3339() {
        assert_eq!(super::rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(
            super::rfc3339(i64::MAX),
            format!("{} s since 1970", i64::MAX)
        );
    }

    #[test]
    fn milliseconds_have_three_digits() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (600_999_999, "1970-01-01T00:00:00.600Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(super::with_milliseconds(unix), text);
        }
    }
}
