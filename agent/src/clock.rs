//! Wall-clock time as the interfaces show it.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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
}
