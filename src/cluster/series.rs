//! What is the same again, and what is too much.
//!
//! The API server keeps every event for an hour. So the same event again only
//! counts up the first, and a pod that fails on and on gets few of them. Both
//! as client-go does it for kubelet, in `tools/events` and `tools/record`.

use super::event::{Note, Subject, event_name};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant, SystemTime};

/// How long after the last one an event is the same again.
pub(super) const SAME_WITHIN: Duration = Duration::from_secs(10 * 60);
/// Events of one pod at once, and how often it gets another: `defaultSpamBurst`
/// and `defaultSpamQPS` of client-go.
const POD_BURST: f64 = 25.0;
const POD_EVERY: Duration = Duration::from_secs(5 * 60);
/// Events of the whole node at once, and how often there is another.
const NODE_BURST: f64 = 50.0;
const NODE_EVERY: Duration = Duration::from_millis(100);
/// Events, and pods, that are remembered. A node has at most some hundred pods.
const REMEMBERED: usize = 1024;

/// How an event gets to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// The event's name there.
    pub(super) name: String,
    /// How often it has happened.
    pub(super) count: u32,
    /// When it happened first.
    pub(super) first: SystemTime,
    /// Whether it is there already, as far as is known.
    pub(super) is_known: bool,
}

/// Holds so many tokens, and gets another one from time to time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
    burst: f64,
    every: Duration,
}

impl Bucket {
    fn full(burst: f64, every: Duration, at: Instant) -> Self {
        Bucket {
            tokens: burst,
            at,
            burst,
            every,
        }
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since / self.every.as_secs_f64()).min(self.burst);
        self.at = now;
    }

    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }
}

/// How fast the whole node may be.
#[derive(Debug)]
pub(super) struct Pace(Bucket);

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Pace(Bucket::full(NODE_BURST, NODE_EVERY, now))
    }

    /// How long the next event has to wait. It has its place from now on.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        self.0.fill(now);
        self.0.tokens -= 1.0;
        NODE_EVERY.mul_f64((-self.0.tokens).max(0.0))
    }
}

#[derive(Debug)]
struct Seen {
    step: Step,
    last: Instant,
}

/// What was sent of late.
#[derive(Debug, Default)]
pub(super) struct Series {
    seen: HashMap<Subject, Seen>,
    pods: HashMap<(String, String, String), Bucket>,
    number: u64,
}

impl Series {
    /// How the event is sent; nothing if its pod has had too many.
    pub(super) fn admit(&mut self, note: &Note, now: Instant) -> Option<Step> {
        let Subject {
            namespace,
            pod,
            uid,
            ..
        } = &note.subject;
        let pod = (namespace.clone(), pod.clone(), uid.clone());
        make_room(
            &mut self.pods,
            &pod,
            |bucket| bucket.at,
            |bucket| {
                // One that is full again is like one that was never there.
                let mut filled = *bucket;
                filled.fill(now);
                filled.tokens >= filled.burst
            },
        );
        let bucket = self
            .pods
            .entry(pod)
            .or_insert_with(|| Bucket::full(POD_BURST, POD_EVERY, now));
        if !bucket.take(now) {
            return None;
        }
        self.number += 1;
        let number = self.number;
        let is_over = |seen: &Seen| now.saturating_duration_since(seen.last) > SAME_WITHIN;
        make_room(&mut self.seen, &note.subject, |seen| seen.last, is_over);
        let seen = self
            .seen
            .entry(note.subject.clone())
            .and_modify(|seen| seen.step.count = seen.step.count.saturating_add(1))
            .or_insert_with(|| Seen {
                step: Step {
                    name: event_name(&note.subject.pod, note.at, number),
                    count: 1,
                    first: note.at,
                    is_known: false,
                },
                last: now,
            });
        seen.last = now;
        Some(seen.step.clone())
    }

    /// The event is there under this name.
    pub(super) fn sent(&mut self, note: &Note, name: &str) {
        if let Some(seen) = self.seen.get_mut(&note.subject) {
            seen.step.is_known = true;
            name.clone_into(&mut seen.step.name);
        }
    }

    /// Another name for the event, because the one that was there is gone.
    pub(super) fn rename(&mut self, note: &Note) -> String {
        self.number += 1;
        event_name(&note.subject.pod, note.at, self.number)
    }
}

/// Forgets what is over, if the map is full and the key is not in it; and if
/// nothing is over, the oldest.
fn make_room<K: Clone + Eq + Hash, V>(
    map: &mut HashMap<K, V>,
    key: &K,
    time: impl Fn(&V) -> Instant,
    is_over: impl Fn(&V) -> bool,
) {
    if map.get(key).is_some_and(&is_over) {
        map.remove(key);
    }
    if map.len() < REMEMBERED || map.contains_key(key) {
        return;
    }
    map.retain(|_, value| !is_over(value));
    if map.len() >= REMEMBERED {
        let oldest = map.iter().min_by_key(|(_, value)| time(value));
        if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
            map.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Reason;
    use super::*;
    use crate::volume::Pod;

    fn note(uid: &str, message: &str) -> Note {
        let pod = Pod {
            namespace: "team".to_owned(),
            name: "web".to_owned(),
            uid: uid.to_owned(),
        };
        Note::new(&pod, Reason::Failed, message).unwrap()
    }

    #[test]
    fn the_same_within_ten_minutes_counts_up() {
        let (mut series, start) = (Series::default(), Instant::now());
        let same = note("1", "no space");
        let first = series.admit(&same, start).unwrap();
        assert_eq!((first.count, first.is_known), (1, false));
        series.sent(&same, &first.name);
        let other = series.admit(&note("2", "no space"), start).unwrap();
        assert_ne!(other.name, first.name);
        assert_eq!(other.count, 1, "another pod");
        assert_eq!(series.admit(&note("1", "no"), start).unwrap().count, 1);

        let mut now = start;
        for count in 2..5 {
            // From the last one, however long ago the first one was.
            now += SAME_WITHIN;
            let again = series.admit(&same, now).unwrap();
            let wanted = Step {
                count,
                is_known: true,
                ..first.clone()
            };
            assert_eq!(again, wanted);
        }
        now += SAME_WITHIN + Duration::from_millis(1);
        let anew = series.admit(&same, now).unwrap();
        assert_eq!((anew.count, anew.is_known), (1, false));
        assert_ne!(anew.name, first.name);
    }

    #[test]
    fn a_pod_has_25_events_and_one_more_every_five_minutes() {
        let (mut series, start) = (Series::default(), Instant::now());
        let mut admitted = |uid: &str, events: usize, now: Instant| {
            let one = |number| series.admit(&note(uid, &format!("{number}")), now);
            (0..events).filter_map(one).count()
        };
        assert_eq!(admitted("1", 30, start), 25);
        assert_eq!(admitted("2", 3, start), 3, "another pod");
        let minutes = |count: u32| start + Duration::from_secs(60) * count;
        assert_eq!(admitted("1", 3, minutes(4)), 0);
        assert_eq!(admitted("1", 3, minutes(5)), 1);
        assert_eq!(admitted("1", 30, minutes(300)), 25);
    }

    #[test]
    fn a_node_has_50_events_and_ten_more_each_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..50 {
            assert_eq!(pace.wait(start), Duration::ZERO);
        }
        let waits: Vec<u128> = (0..3).map(|_| pace.wait(start).as_millis()).collect();
        assert_eq!(waits, [100, 200, 300]);
        let later = start + Duration::from_secs(3600);
        let waiting = (0..51).filter(|_| pace.wait(later) > Duration::ZERO);
        assert_eq!(waiting.count(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut series, start) = (Series::default(), Instant::now());
        for number in 0..3 * REMEMBERED {
            let now = start + Duration::from_millis(number as u64);
            assert!(series.admit(&note(&number.to_string(), "x"), now).is_some());
        }
        assert_eq!(
            (series.seen.len(), series.pods.len()),
            (REMEMBERED, REMEMBERED)
        );
        // The latest are still known.
        let last = note(&(3 * REMEMBERED - 1).to_string(), "x");
        assert_eq!(
            series
                .admit(&last, start + Duration::from_secs(9))
                .unwrap()
                .count,
            2
        );
    }
}
