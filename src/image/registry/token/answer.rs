//! What a token server answers. Pure.

use super::super::dates::{http_date, rfc3339};
use crate::secret::Secret;
use std::time::Duration;
use tokio::time::Instant;

/// How long a token is good if its server does not say.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// How long a token is used at most, whatever its server says: a credential that
/// was revoked must not be good for hours here.
const MAX_LIFETIME: Duration = Duration::from_secs(300);

/// A token and how long it is used.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) text: Secret,
    pub(super) until: Instant,
}

#[derive(serde::Deserialize)]
struct RawToken {
    #[serde(default, deserialize_with = "secret")]
    token: Option<Secret>,
    #[serde(default, deserialize_with = "secret")]
    access_token: Option<Secret>,
    expires_in: Option<f64>,
    issued_at: Option<String>,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    let text = <Option<String> as serde::Deserialize>::deserialize(deserializer)?;
    Ok(text.map(Secret::new))
}

/// Reads an answer that came `now` with the header `Date: date`. The reason
/// against it fits behind "the answer", and has nothing of it.
pub(super) fn parse(bytes: &[u8], date: Option<&str>, now: Instant) -> Result<Token, &'static str> {
    let raw: RawToken = serde_json::from_slice(bytes).map_err(|_| "is not the JSON of a token")?;
    let tokens = [raw.token, raw.access_token].into_iter().flatten();
    let text = tokens
        .into_iter()
        .find(|token| !token.expose().is_empty())
        .ok_or("has no token")?;
    if !text.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has a token that no header can hold");
    }
    let lifetime = match raw.expires_in {
        Some(seconds) if seconds > 0.0 => {
            Duration::try_from_secs_f64(seconds).unwrap_or(MAX_LIFETIME)
        }
        _ => DEFAULT_LIFETIME,
    };
    // A server may give out a token that it made before. Both dates are of its
    // clock, so that ours does not matter.
    let issued = raw.issued_at.as_deref().and_then(rfc3339);
    let age = match (date.and_then(http_date), issued) {
        (Some(date), Some(issued)) => date.duration_since(issued).unwrap_or_default(),
        _ => Duration::ZERO,
    };
    // The last quarter is for requests under way.
    let rest = lifetime.saturating_sub(age).min(MAX_LIFETIME);
    Ok(Token {
        text,
        until: now + rest * 3 / 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(json: &str, date: Option<&str>) -> f64 {
        let now = Instant::now();
        let token = parse(json.as_bytes(), date, now).unwrap();
        (token.until - now).as_secs_f64()
    }

    #[test]
    fn a_token_is_used_for_three_quarters_of_its_time() {
        let date = Some("Thu, 29 Feb 2024 23:59:59 GMT");
        for (json, date, expected) in [
            (r#"{"token":"x"}"#, None, 45.0),
            (r#"{"token":"x","expires_in":100}"#, None, 75.0),
            (r#"{"token":"x","expires_in":0}"#, None, 45.0),
            (r#"{"token":"x","expires_in":-5}"#, None, 45.0),
            (r#"{"token":"x","expires_in":1e300}"#, None, 225.0),
            (r#"{"token":"x","expires_in":86400,"more":[]}"#, None, 225.0),
            (
                r#"{"token":"x","expires_in":100,"issued_at":"2024-02-29T23:59:19Z"}"#,
                date,
                45.0,
            ),
            (
                r#"{"token":"x","expires_in":100,"issued_at":"2024-02-29T20:59:19Z"}"#,
                date,
                0.0,
            ),
            // A clock that is ahead, or a date that says nothing.
            (
                r#"{"token":"x","expires_in":100,"issued_at":"2025-02-28T23:59:19Z"}"#,
                date,
                75.0,
            ),
            (
                r#"{"token":"x","expires_in":100,"issued_at":"2024-02-29T20:59:19Z"}"#,
                None,
                75.0,
            ),
            (
                r#"{"token":"x","expires_in":100,"issued_at":"0001-01-01T00:00:00Z"}"#,
                date,
                75.0,
            ),
            (
                r#"{"token":"","access_token":"y","expires_in":100}"#,
                None,
                75.0,
            ),
        ] {
            assert_eq!(seconds(json, date), expected, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_what_is_in_it() {
        for (json, reason) in [
            ("hunter2", "not the JSON"),
            (r#"{"token":["hunter2"]}"#, "not the JSON"),
            (r#"{"token":""}"#, "no token"),
            (r#"{"hunter2":1}"#, "no token"),
            (r#"{"token":"hunter2\r\nx: y"}"#, "no header"),
        ] {
            let error = parse(json.as_bytes(), None, Instant::now()).unwrap_err();
            assert!(
                error.contains(reason) && !error.contains("hunter2"),
                "{json}: {error}"
            );
        }
        let token = parse(br#"{"token":"hunter2"}"#, None, Instant::now()).unwrap();
        assert!(!format!("{token:?}").contains("hunter2"));
    }
}
