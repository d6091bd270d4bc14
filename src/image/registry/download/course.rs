//! Which place is asked next, and when: decided from what happened so far, with
//! the time and chance given, so that tests can compare.

use super::error::telling;
use super::places::BlobFault;
use super::stats::Retry;
use crate::image::registry::RegistryError;
use std::time::Duration;
use tokio::time::Instant;

/// Bounds of the waits after a fault, which double from the one to the other.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A host is not waited for longer than this, whatever it asks for.
pub(super) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);
/// So many faults in a row, and another place is asked if there is one.
const FAULTS_BEFORE_NEXT: u32 = 3;
/// How often in a row a blob is read again from its start without getting further
/// than before. A host that cannot continue and is always cut off at the same
/// place would have it read for ever.
const FRUITLESS: u32 = 8;
/// After so many bytes a fault is the first one again. Less is what a host sends
/// that accepts every request and breaks it off.
const FORGIVEN_AFTER: u64 = 64 << 10;

/// The places of one blob and what is known of them.
#[derive(Debug)]
pub(super) struct Course {
    places: Vec<Place>,
    current: usize,
    /// Faults since there was progress.
    faults: u32,
    /// Bytes since the last fault.
    bytes: u64,
    fruitless: u32,
}

#[derive(Debug, Default)]
struct Place {
    /// Why it is not asked any more.
    gone: Option<RegistryError>,
    /// Faults in a row.
    faults: u32,
    /// When it may be asked again.
    not_before: Option<Instant>,
    /// It cannot continue where a download stopped.
    from_zero: bool,
    /// It gave broken bytes; the others come first.
    is_avoided: bool,
}

/// What is done next.
#[derive(Debug)]
pub(super) enum Step {
    /// A place is asked.
    Ask {
        place: usize,
        /// First there is this wait.
        wait: Duration,
        /// So much of it was the host's wish.
        asked: Duration,
    },
    /// It has failed.
    Fail(RegistryError),
}

impl Course {
    /// `avoided` says for each place whether it is one to be avoided.
    pub(super) fn new(avoided: impl IntoIterator<Item = bool>) -> Course {
        let places: Vec<Place> = (avoided.into_iter())
            .map(|is_avoided| Place {
                is_avoided,
                ..Place::default()
            })
            .collect();
        let first = places.iter().position(|place| !place.is_avoided);
        Course {
            places,
            current: first.unwrap_or(0),
            faults: 0,
            bytes: 0,
            fruitless: 0,
        }
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// Whether the place has to be asked for the whole blob.
    pub(super) fn is_from_zero(&self, place: usize) -> bool {
        self.places.get(place).is_some_and(|place| place.from_zero)
    }

    /// New bytes came from the present place.
    pub(super) fn progressed(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.fruitless = 0;
        if self.bytes >= FORGIVEN_AFTER {
            self.faults = 0;
            for place in &mut self.places {
                place.faults = 0;
            }
        }
    }

    /// A body that began with bytes that were there ended before there were new
    /// ones.
    pub(super) fn was_fruitless(&mut self) {
        self.fruitless += 1;
    }

    /// Something went wrong at the present place. `chance` is below 1.
    pub(super) fn after(
        &mut self,
        fault: BlobFault,
        now: Instant,
        chance: f64,
        from_zero: bool,
    ) -> (Retry, Step) {
        self.bytes = 0;
        let current = self.current;
        let Some(place) = self.places.get_mut(current) else {
            return (Retry::Elsewhere, Step::Fail(RegistryError::Cancelled));
        };
        match fault {
            BlobFault::Range(error) if from_zero => {
                place.gone = Some(error);
                (Retry::Elsewhere, self.elsewhere(now))
            }
            BlobFault::Range(_) => {
                place.from_zero = true;
                (Retry::Range, self.ask(current, now, Duration::ZERO))
            }
            BlobFault::Elsewhere(error) => {
                place.gone = Some(error);
                (Retry::Elsewhere, self.elsewhere(now))
            }
            BlobFault::Again { after, error } => {
                place.faults += 1;
                let backoff = backoff(self.faults, chance);
                self.faults += 1;
                if let Some(after) = after {
                    place.not_before = Some(now + after.min(LONGEST_RETRY_AFTER));
                }
                if self.fruitless >= FRUITLESS {
                    place.gone = Some(error);
                    self.fruitless = 0;
                    return (Retry::Elsewhere, self.elsewhere(now));
                }
                let is_enough = place.faults >= FAULTS_BEFORE_NEXT || after.is_some();
                let next = match is_enough {
                    true => self.next(now),
                    false => current,
                };
                let is_fresh = self.places.get(next).is_some_and(|place| place.faults == 0);
                let reason = match after {
                    Some(_) => Retry::RateLimited,
                    None => Retry::Busy,
                };
                let wait = if is_fresh { Duration::ZERO } else { backoff };
                (reason, self.ask(next, now, wait))
            }
        }
    }

    /// The error that ends it all where there was no progress for too long: what
    /// a place said that somebody can do something about, if any did.
    pub(super) fn stalled(&mut self, otherwise: RegistryError) -> RegistryError {
        let said = self.most_telling();
        let denied = telling(&RegistryError::Denied {
            host: String::new(),
            image: String::new(),
            tried: String::new(),
        });
        said.filter(|error| telling(error) >= denied)
            .unwrap_or(otherwise)
    }

    fn ask(&mut self, place: usize, now: Instant, backoff: Duration) -> Step {
        self.current = place;
        let not_before = self.places.get(place).and_then(|place| place.not_before);
        let asked = not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        // On top of what the host asked for, or all would come back at once.
        let wait = asked + backoff;
        Step::Ask { place, wait, asked }
    }

    fn elsewhere(&mut self, now: Instant) -> Step {
        if self.places.iter().any(|place| place.gone.is_none()) {
            let next = self.next(now);
            return self.ask(next, now, Duration::ZERO);
        }
        let error = self.most_telling();
        Step::Fail(error.unwrap_or(RegistryError::Cancelled))
    }

    /// Of the places that are left, the next in their order that may be asked at
    /// once; else the one that may be asked first. Avoided ones come last.
    fn next(&self, now: Instant) -> usize {
        let count = self.places.len().max(1);
        let left = (1..=count)
            .map(|step| (self.current + step) % count)
            .filter_map(|index| Some((index, self.places.get(index)?)))
            .filter(|(_, place)| place.gone.is_none());
        left.min_by_key(|(_, place)| {
            let not_before = place.not_before.filter(|at| *at > now);
            (place.is_avoided, not_before)
        })
        .map_or(self.current, |(index, _)| index)
    }

    fn most_telling(&mut self) -> Option<RegistryError> {
        // Of two that say as much the later: the registry itself comes last.
        let errors = self.places.iter_mut().filter_map(|place| place.gone.take());
        errors.max_by_key(telling)
    }
}

/// Full jitter: anything between nothing and the doubled wait, so that a node's
/// downloads, or a cluster's nodes, do not come back together.
fn backoff(faults: u32, chance: f64) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << faults.min(16));
    doubled.min(LONGEST_WAIT).mul_f64(chance.clamp(0.0, 1.0))
}

/// Whether there is progress: at least a byte within the deadline, and so many
/// bytes a second on the average of each span of that length.
#[derive(Debug)]
pub(super) struct Pace {
    deadline: Duration,
    least: u64,
    last: Instant,
    span: Instant,
    bytes: u64,
    /// What hosts asked to wait since the last byte.
    excused: Duration,
}

impl Pace {
    pub(super) fn new(deadline: Duration, bytes_per_second: u64, now: Instant) -> Pace {
        Pace {
            deadline,
            least: bytes_per_second.saturating_mul(deadline.as_secs()),
            last: now,
            span: now,
            bytes: 0,
            excused: Duration::ZERO,
        }
    }

    pub(super) fn came(&mut self, bytes: u64, now: Instant) {
        if bytes > 0 {
            self.bytes = self.bytes.saturating_add(bytes);
            self.last = now;
            self.excused = Duration::ZERO;
        }
    }

    /// Time that does not count: a turn was waited for.
    pub(super) fn excuse(&mut self, time: Duration) {
        self.last += time;
        self.span += time;
    }

    /// Time that a host asked for. It does not count either, but not for ever: a
    /// host that always says "later" is one that gives nothing.
    pub(super) fn excuse_asked(&mut self, time: Duration) {
        let left = LONGEST_RETRY_AFTER.saturating_sub(self.excused);
        let time = time.min(left);
        self.excused += time;
        self.excuse(time);
    }

    /// Whether there was too little of it, and for how long.
    pub(super) fn stalled(&mut self, now: Instant) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.last);
        let span = now.saturating_duration_since(self.span);
        if silent >= self.deadline {
            return Some(silent);
        }
        if span >= self.deadline {
            if self.bytes < self.least {
                return Some(span);
            }
            (self.span, self.bytes) = (now, 0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(after: Option<u64>) -> BlobFault {
        let after = after.map(Duration::from_secs);
        let error = RegistryError::Cancelled;
        BlobFault::Again { after, error }
    }

    fn gone() -> BlobFault {
        BlobFault::Elsewhere(RegistryError::Cancelled)
    }

    /// Which place is asked next, and after how many milliseconds at most.
    fn step(course: &mut Course, fault: BlobFault, now: Instant) -> Option<(usize, u128)> {
        match course.after(fault, now, 1.0, false).1 {
            Step::Ask { place, wait, .. } => Some((place, wait.as_millis())),
            Step::Fail(_) => None,
        }
    }

    #[test]
    fn waits_double_up_to_a_bound_until_something_comes() {
        let now = Instant::now();
        let mut course = Course::new([false]);
        let mut waits = || step(&mut course, again(None), now).unwrap().1;
        let found: Vec<u128> = (0..11).map(|_| waits()).collect();
        let doubled = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600];
        assert_eq!(found[..9], doubled);
        assert_eq!(found[9..], [30_000, 30_000]);
        // A byte is not enough.
        course.progressed(1);
        assert_eq!(step(&mut course, again(None), now), Some((0, 30_000)));
        course.progressed(FORGIVEN_AFTER);
        assert_eq!(step(&mut course, again(None), now), Some((0, 100)));
        // Anything up to that is waited.
        assert_eq!(backoff(3, 0.0), Duration::ZERO);
        assert_eq!(backoff(3, 0.5), Duration::from_millis(400));
    }

    #[test]
    fn places_take_turns_and_those_to_be_avoided_come_last() {
        let now = Instant::now();
        let mut course = Course::new([true, false, false]);
        assert_eq!(course.current(), 1);
        let mut places = Vec::new();
        for _ in 0..9 {
            places.push(step(&mut course, again(None), now).unwrap().0);
        }
        assert_eq!(places, [1, 1, 2, 2, 2, 1, 2, 1, 2]);
        // Only the one that is to be avoided is left.
        assert_eq!(step(&mut course, gone(), now), Some((1, 0)));
        assert_eq!(step(&mut course, gone(), now), Some((0, 0)));
        assert_eq!(step(&mut course, gone(), now), None);
    }

    #[test]
    fn who_said_when_is_asked_then() {
        let now = Instant::now();
        let mut course = Course::new([false, false]);
        assert_eq!(step(&mut course, again(Some(50)), now), Some((1, 0)));
        // Both did: the first that may be asked, and nobody before.
        assert_eq!(step(&mut course, again(Some(90)), now), Some((0, 50_200)));
        let later = now + Duration::from_secs(60);
        assert_eq!(step(&mut course, again(Some(7200)), later).unwrap().0, 1);
        let capped = Course::new([false])
            .after(again(Some(7200)), now, 0.0, false)
            .1;
        let Step::Ask { wait, asked, .. } = capped else {
            panic!("{capped:?}");
        };
        assert_eq!((wait, asked), (LONGEST_RETRY_AFTER, LONGEST_RETRY_AFTER));
    }

    #[test]
    fn a_place_that_cannot_continue_is_asked_for_the_whole_once() {
        let now = Instant::now();
        let refused = || BlobFault::Range(RegistryError::Cancelled);
        let mut course = Course::new([false]);
        assert_eq!(step(&mut course, refused(), now), Some((0, 0)));
        assert!(course.is_from_zero(0));
        assert!(matches!(
            course.after(refused(), now, 0.0, true).1,
            Step::Fail(_)
        ));
        // And not for ever, where it is never read further than before.
        let mut course = Course::new([false]);
        for _ in 0..FRUITLESS {
            assert!(step(&mut course, again(None), now).is_some());
            course.was_fruitless();
        }
        assert_eq!(step(&mut course, again(None), now), None);
    }
}
