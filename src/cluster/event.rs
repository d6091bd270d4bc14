//! What happened, as the API has it: `events` of the core group, version 1.

use crate::stage::Pulled;
use crate::volume::Pod;
use serde::Serialize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest message in bytes, which is what the API server takes at most.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Longest name of a pod, and of an event, in bytes.
const MAX_NAME_BYTES: usize = 253;
/// Longest name of a namespace in bytes.
const MAX_NAMESPACE_BYTES: usize = 63;
/// Room for what makes an event's name its own, in bytes.
const SUFFIX_BYTES: usize = 24;
/// Who reports, next to kubelet and the scheduler.
const COMPONENT: &str = "aufs-csi";

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// An image is being fetched.
    Pulling,
    /// An image is there.
    Pulled,
    /// A volume cannot be published.
    Failed,
}

impl Reason {
    /// As kubelet says it of the images that containers run from.
    fn name(self) -> &'static str {
        match self {
            Reason::Pulling => "Pulling",
            Reason::Pulled => "Pulled",
            Reason::Failed => "Failed",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Reason::Pulling | Reason::Pulled => "Normal",
            Reason::Failed => "Warning",
        }
    }
}

/// What makes an event the same as an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) reason: Reason,
    /// One line, not longer than the API takes.
    pub(super) message: String,
}

/// Something that happened to a pod's volume.
#[derive(Debug, Clone)]
pub(super) struct Note {
    pub(super) subject: Subject,
    pub(super) at: SystemTime,
}

impl Note {
    /// It happens now. Nothing, if the pod's names are not ones that Kubernetes
    /// gives: they become part of a path.
    pub(super) fn new(pod: &Pod, reason: Reason, message: &str) -> Option<Self> {
        let is_valid = is_name(&pod.namespace, MAX_NAMESPACE_BYTES)
            && is_name(&pod.name, MAX_NAME_BYTES)
            && (pod.uid.is_empty() || is_name(&pod.uid, MAX_NAME_BYTES));
        is_valid.then(|| Note {
            subject: Subject {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
                reason,
                message: one_line(message),
            },
            at: SystemTime::now(),
        })
    }
}

/// Lower-case letters, digits, `-` and `.`, which need no escaping in a URL; and
/// not only dots.
fn is_name(text: &str, longest: usize) -> bool {
    let is_inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    let is_outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= longest
        && text.bytes().all(is_inner)
        && is_outer(text.as_bytes().first())
        && is_outer(text.as_bytes().last())
}

/// Control characters are blanks, and what is too long for the API is cut off.
fn one_line(text: &str) -> String {
    const CUT: char = '…';
    let line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.len() <= MAX_MESSAGE_BYTES {
        return line;
    }
    let mut end = MAX_MESSAGE_BYTES - CUT.len_utf8();
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", &line[..end])
}

pub(super) fn pulling(image: &str) -> String {
    format!("Pulling image {:?}", as_written(image))
}

pub(super) fn pulled(image: &str, pulled: &Pulled) -> String {
    let Pulled { digest, bytes, .. } = pulled;
    let (image, took) = (as_written(image), seconds(pulled.took));
    if pulled.cached {
        format!(
            "Image {image:?} is on this node already ({digest}, {bytes} bytes); looked up in {took} s"
        )
    } else {
        format!("Pulled image {image:?} ({digest}, {bytes} bytes) in {took} s")
    }
}

/// Without what says that it is of a registry, as people write it.
fn as_written(image: &str) -> &str {
    image.strip_prefix("docker://").unwrap_or(image)
}

fn seconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64())
}

/// A name for a new event on the pod; `number` is another one each time.
pub(super) fn event_name(pod: &str, at: SystemTime, number: u64) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let stem = &pod[..pod.len().min(MAX_NAME_BYTES - 1 - SUFFIX_BYTES)];
    // What is cut off may have been in the middle of a label.
    let stem = stem.trim_end_matches(['-', '.']);
    let since = u64::try_from(since).unwrap_or(u64::MAX);
    format!("{stem}.{since:x}{:x}", number % 0x1_0000)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    involved_object: Involved<'a>,
    reason: &'static str,
    message: &'a str,
    r#type: &'static str,
    source: Origin<'a>,
    reporting_component: &'static str,
    reporting_instance: &'a str,
    first_timestamp: String,
    last_timestamp: String,
    count: u32,
}

#[derive(Debug, Serialize)]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Involved<'a> {
    kind: &'static str,
    api_version: &'static str,
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
}

#[derive(Debug, Serialize)]
struct Origin<'a> {
    component: &'static str,
    host: &'a str,
}

/// What the API takes to create an event.
pub(super) fn creation(
    subject: &Subject,
    name: &str,
    node: &str,
    count: u32,
    first: SystemTime,
    last: SystemTime,
) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Body {
        api_version: "v1",
        kind: "Event",
        metadata: Metadata {
            name,
            namespace: &subject.namespace,
        },
        involved_object: Involved {
            kind: "Pod",
            api_version: "v1",
            name: &subject.pod,
            namespace: &subject.namespace,
            uid: &subject.uid,
        },
        reason: subject.reason.name(),
        message: &subject.message,
        r#type: subject.reason.kind(),
        source: Origin {
            component: COMPONENT,
            host: node,
        },
        reporting_component: crate::DRIVER_NAME,
        reporting_instance: node,
        first_timestamp: timestamp(first),
        last_timestamp: timestamp(last),
        count,
    })
}

/// What the API takes as a merge patch when the same has happened again.
pub(super) fn repetition(count: u32, last: SystemTime) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Repetition {
        count: u32,
        last_timestamp: String,
    }
    serde_json::to_vec(&Repetition {
        count,
        last_timestamp: timestamp(last),
    })
}

/// As RFC 3339 has it, in whole seconds of UTC.
fn timestamp(at: SystemTime) -> String {
    const DAY: u64 = 24 * 60 * 60;
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (day, second) = (since / DAY, since % DAY);
    // Years that begin in March have their leap day at the end. Howard Hinnant,
    // "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{of_month:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;
    use serde_json::json;

    fn pod() -> Pod {
        Pod {
            namespace: "team".to_owned(),
            name: "web-0".to_owned(),
            uid: "0b1c".to_owned(),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(at(seconds)), text);
        }
    }

    #[test]
    fn an_event_is_what_the_api_takes() {
        let note = Note::new(&pod(), Reason::Failed, "no\nsuch image").unwrap();
        let body = creation(
            &note.subject,
            "web-0.1",
            "node-a",
            2,
            at(0),
            at(951_782_400),
        );
        let body: serde_json::Value = serde_json::from_slice(&body.unwrap()).unwrap();
        let wanted = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "web-0.1", "namespace": "team"},
            "involvedObject": {
                "kind": "Pod", "apiVersion": "v1",
                "name": "web-0", "namespace": "team", "uid": "0b1c",
            },
            "reason": "Failed",
            "message": "no such image",
            "type": "Warning",
            "source": {"component": "aufs-csi", "host": "node-a"},
            "reportingComponent": "aufs-csi.dev",
            "reportingInstance": "node-a",
            "firstTimestamp": "1970-01-01T00:00:00Z",
            "lastTimestamp": "2000-02-29T00:00:00Z",
            "count": 2,
        });
        assert_eq!(body, wanted);
        let patch = String::from_utf8(repetition(3, at(0)).unwrap()).unwrap();
        assert_eq!(
            patch,
            r#"{"count":3,"lastTimestamp":"1970-01-01T00:00:00Z"}"#
        );
    }

    #[test]
    fn messages_are_one_line_that_the_api_takes() {
        assert_eq!(one_line("\tone\r\ntwo\n"), "one  two");
        let fits = "x".repeat(MAX_MESSAGE_BYTES);
        assert_eq!(one_line(&fits), fits);
        for text in ["x".repeat(MAX_MESSAGE_BYTES + 1), "ä".repeat(600)] {
            let cut = one_line(&text);
            assert!(cut.len() <= MAX_MESSAGE_BYTES && cut.len() > MAX_MESSAGE_BYTES - 3);
            assert!(text.starts_with(cut.strip_suffix('…').unwrap()));
        }
    }

    #[test]
    fn messages_say_what_a_pods_author_asks() {
        assert_eq!(
            pulling("docker://example.org/a:1"),
            "Pulling image \"example.org/a:1\""
        );
        let mut done = Pulled {
            digest: Digest::of(b""),
            bytes: 12_345,
            took: Duration::from_millis(61_500),
            cached: false,
        };
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(
            pulled("a", &done),
            format!("Pulled image \"a\" ({digest}, 12345 bytes) in 61.500 s")
        );
        done.cached = true;
        assert_eq!(
            pulled("a", &done),
            format!(
                "Image \"a\" is on this node already ({digest}, 12345 bytes); looked up in 61.500 s"
            )
        );
    }

    #[test]
    fn names_that_kubernetes_does_not_give_reach_no_path() {
        let note = |namespace: &str, name: &str, uid: &str| {
            let pod = Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
            };
            Note::new(&pod, Reason::Pulling, "").is_some()
        };
        assert!(note("team", "web-0.a", "") && note("team", "web", "0-1"));
        for foreign in [
            "", ".", "..", "a/b", "a?b", "a#", "A", "-a", "a-", "a b", "ä",
        ] {
            assert!(!note(foreign, "web", "1"), "{foreign}");
            assert!(!note("team", foreign, "1"), "{foreign}");
            assert!(foreign.is_empty() || !note("team", "web", foreign));
        }
        assert!(!note(&"a".repeat(64), "web", "1"));
        assert!(!note("team", &"a".repeat(254), "1"));
    }

    #[test]
    fn names_of_events_are_ones_that_the_api_takes() {
        let (first, second) = (
            event_name("web-0", at(1), 0x1_0001),
            event_name("web-0", at(1), 2),
        );
        assert_eq!(first, "web-0.3b9aca001");
        assert_ne!(first, second);
        for pod in ["a".repeat(253), format!("{}-.{}", "a".repeat(227), "b")] {
            let name = event_name(&pod, SystemTime::now(), u64::MAX);
            assert!(is_name(&name, MAX_NAME_BYTES), "{name}");
            assert!(!name.contains("-.") && !name.contains(".."), "{name}");
        }
    }
}
