//! The two ways in which servers write dates. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// What HTTP prefers: `Sun, 06 Nov 1994 08:49:37 GMT`. The two older forms are
/// not read: a date that is not understood is as good as none.
pub(super) fn http_date(text: &str) -> Option<SystemTime> {
    let rest = text.split_once(", ")?.1.strip_suffix(" GMT")?;
    let mut parts = rest.split(' ');
    let day = number(parts.next()?, 2)?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year = number(parts.next()?, 4)?;
    let time = clock(parts.next()?)?;
    parts
        .next()
        .is_none()
        .then(|| instant(year, month, day, time))?
}

/// What JSON has: `2024-05-01T10:20:30.5Z`, or with an offset in place of `Z`.
/// Fractions of a second are dropped.
pub(super) fn rfc3339(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let mut parts = date.split('-');
    let year = number(parts.next()?, 4)?;
    let month = number(parts.next()?, 2)?;
    let day = number(parts.next()?, 2)?;
    if parts.next().is_some() {
        return None;
    }
    let time = clock(rest.get(..8)?)?;
    let zone = rest.get(8..)?;
    let zone = match zone.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => zone,
    };
    let at = instant(year, month, day, time)?;
    if zone.eq_ignore_ascii_case("z") {
        return Some(at);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let offset = Duration::from_secs(number(hours, 2)? * 3600 + number(minutes, 2)? * 60);
    match zone.get(..1)? {
        "+" => at.checked_sub(offset),
        "-" => at.checked_add(offset),
        _ => None,
    }
}

/// Exactly `digits` digits.
fn number(text: &str, digits: usize) -> Option<u64> {
    let all = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok())?
}

/// `hh:mm:ss` as seconds since midnight; a leap second counts.
fn clock(text: &str) -> Option<u64> {
    let mut parts = text.split(':');
    let (hours, minutes, seconds) = (
        number(parts.next()?, 2)?,
        number(parts.next()?, 2)?,
        number(parts.next()?, 2)?,
    );
    let valid = parts.next().is_none() && hours < 24 && minutes < 60 && seconds <= 60;
    valid.then_some(hours * 3600 + minutes * 60 + seconds)
}

fn instant(year: u64, month: u64, day: u64, seconds: u64) -> Option<SystemTime> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let is = |year: u64, every| year.is_multiple_of(every);
    let leap = |year: u64| is(year, 4) && (!is(year, 100) || is(year, 400));
    let before = (1970..year)
        .map(|year| 365 + u64::from(leap(year)))
        .sum::<u64>();
    const LENGTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months: u64 = LENGTHS.iter().take(month as usize - 1).sum();
    let leap_day = u64::from(leap(year) && month > 2);
    let days = before + months + leap_day + day - 1;
    UNIX_EPOCH.checked_add(Duration::from_secs(days * 86400 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(at: Option<SystemTime>) -> Option<u64> {
        at.map(|at| at.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn dates_are_read() {
        // The values are those of `date -d … +%s`.
        for (text, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("120", None),
            ("", None),
        ] {
            assert_eq!(seconds(http_date(text)), expected, "{text}");
        }
        for (text, expected) in [
            ("2024-02-29T23:59:59Z", Some(1_709_251_199)),
            ("2024-02-29T23:59:59.123456789Z", Some(1_709_251_199)),
            ("2024-03-01T01:59:59+02:00", Some(1_709_251_199)),
            ("2024-02-29T18:29:59-05:30", Some(1_709_251_199)),
            ("2024-02-29", None),
            ("2024-02-29T23:59:59", None),
            ("2024-02-29T23:59:59é", None),
            ("0001-01-01T00:00:00Z", None),
            ("2024-13-01T00:00:00Z", None),
        ] {
            assert_eq!(seconds(rfc3339(text)), expected, "{text}");
        }
    }
}
