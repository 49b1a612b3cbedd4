//! Sizes, times and shares as people read them.
use std::time::{Duration, SystemTime};

use queue::job::record::parse_timestamp;

/// `1.2 GiB`; at most four digits before the unit.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// The two largest units: `3h 12m`, `4m 5s`; below ten seconds `1.4s`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds < 10 => format!("{:.1}s", duration.as_secs_f64()),
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// The largest unit alone: `3m`, `2h`, `12d`.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Seconds from a file, which may be any number.
pub fn seconds(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "-".to_owned(), duration)
}

/// How long ago a time was; `None` if it cannot be read.
pub fn since(time: &str, now: SystemTime) -> Option<Duration> {
    let time = parse_timestamp(time)?;
    Some(now.duration_since(time).unwrap_or_default())
}

/// From one time to another; `None` if either cannot be read.
pub fn between(from: &str, to: &str) -> Option<Duration> {
    let (from, to) = (parse_timestamp(from)?, parse_timestamp(to)?);
    to.duration_since(from).ok()
}

/// A time to the second: `2025-06-01 12:00:00Z`.
pub fn moment(time: &str) -> String {
    parse_timestamp(time).map_or_else(
        || time.to_owned(),
        |time| {
            let text = humantime::format_rfc3339_seconds(time).to_string();
            text.replacen('T', " ", 1)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_four_digits_at_most() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (20 << 30, "20.0 GiB"),
            (412 << 30, "412 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn times_show_what_matters() {
        for (millis, long, short) in [
            (1400, "1.4s", "1s"),
            (42_000, "42s", "42s"),
            (245_000, "4m 5s", "4m"),
            (11_520_000, "3h 12m", "3h"),
            (356_400_000, "4d 3h", "4d"),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!((duration(time).as_str(), age(time).as_str()), (long, short));
        }
        assert_eq!((seconds(-1.0), seconds(1e300)), ("-".into(), "-".into()));
        assert_eq!(moment("2025-06-01T12:00:00.123Z"), "2025-06-01 12:00:00Z");
        assert_eq!(moment("soon"), "soon");
    }
}
