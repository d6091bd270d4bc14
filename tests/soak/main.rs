//! `make soak`: a node whose disk is always nearly full, on which volumes come, are
//! written to and go, images are staged and collected, and processes are killed in
//! the middle of it. After each step the volumes have to show what they should; at
//! the end there is just what the live ones need, and after that nothing.
//!
//! ```text
//! AUFS_CSI_SOAK_SECONDS   how long; an hour if not given
//! AUFS_CSI_SOAK_SEED      another run's, to have its steps again
//! ```
//!
//! The seed decides every step and where a process dies. Only where two processes
//! are at work at once does the machine decide who is first.
#![allow(missing_docs, reason = "a test crate")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod node;
mod worker;

use node::{MIB, Node, SIZE_MIB, limit};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};
use support::node::chain;
use support::tree::{Compared, Tree, assert_same, read};
use worker::{Order, Work};

/// How often all volumes are compared, in steps.
const LOOK_EVERY: u64 = 25;
/// Volumes at the same time at most.
const MAX_VOLUMES: usize = 10;
/// The last step of a process that is to be killed, at most. Most work has fewer.
const MAX_POINT: u64 = 90;

/// Numbers that only the seed decides: xorshift64*.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit.max(1)
    }
}

/// A volume as it should be.
struct Volume {
    images: Vec<usize>,
    read_only: bool,
    shows: Tree,
    /// Files that were written to it, by number.
    written: BTreeMap<u64, Vec<u8>>,
}

#[derive(Debug, Default)]
struct Counts {
    published: u64,
    limited: u64,
    full: u64,
    unpublished: u64,
    written: u64,
    staged: u64,
    collected: u64,
    killed: u64,
    together: u64,
}

struct Soak {
    node: Node,
    random: Random,
    volumes: BTreeMap<String, Volume>,
    next: u64,
    counts: Counts,
}

fn main() {
    if worker::is_one() {
        return worker::run();
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds: u64 = number("AUFS_CSI_SOAK_SECONDS").unwrap_or(3600);
    let clock = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let seed = number("AUFS_CSI_SOAK_SEED").unwrap_or(clock as u64 % 1_000_000_007);
    println!("soak: {seconds} s, AUFS_CSI_SOAK_SEED={seed}");
    let mut random = Random::new(seed);
    let mut soak = Soak {
        node: Node::new(&mut random),
        random,
        volumes: BTreeMap::new(),
        next: 0,
        counts: Counts::default(),
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut told = Instant::now();
    let mut step = 0;
    while Instant::now() < end {
        step += 1;
        soak.step(step);
        if step % LOOK_EVERY == 0 {
            soak.look(&format!("after step {step}"));
        }
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            println!("soak: {step} steps, {:?}", soak.counts);
        }
    }
    soak.look("at the end");
    soak.node.quiet(&soak.live());
    soak.end();
    println!("soak: passed, {step} steps, {:?}", soak.counts);
    let counts = &soak.counts;
    let least = [
        counts.published,
        counts.limited,
        counts.full,
        counts.unpublished,
        counts.written,
        counts.collected,
        counts.killed,
    ];
    // In less time something may not come up, and nothing was looked at for long.
    assert!(
        seconds < 60 || least.iter().all(|count| *count > 0),
        "{counts:?}"
    );
}

impl Soak {
    fn step(&mut self, step: u64) {
        let what = format!("step {step}");
        match self.random.below(100) {
            0..30 => self.publish(&what),
            30..45 => self.unpublish(&what),
            45..60 => self.write(&what),
            60..68 => self.stage(),
            68..74 => self.collect(&what),
            74..92 => self.kill(&what),
            _ => self.together(&what),
        }
    }

    fn live(&self) -> Vec<String> {
        self.volumes.keys().cloned().collect()
    }

    fn any_volume(&mut self) -> Option<String> {
        let number = self.random.below(self.volumes.len() as u64);
        self.volumes.keys().nth(number as usize).cloned()
    }

    fn any_image(&mut self) -> usize {
        self.random.below(self.node.images.len() as u64) as usize
    }

    /// A new volume, or one again that is there.
    fn wanted(&mut self) -> (String, Vec<usize>, bool) {
        if let Some(id) = self.any_volume()
            && self.random.below(6) == 0
        {
            let volume = &self.volumes[&id];
            return (id, volume.images.clone(), volume.read_only);
        }
        self.next += 1;
        let mut images = vec![self.any_image()];
        let second = self.any_image();
        if self.random.below(4) == 0 && second != images[0] {
            images.push(second);
        }
        (format!("v{}", self.next), images, self.random.below(3) == 0)
    }

    fn publish(&mut self, what: &str) {
        if self.volumes.len() >= MAX_VOLUMES {
            return self.unpublish(what);
        }
        let (id, images, read_only) = self.wanted();
        self.publish_this(&id, &images, read_only, what);
    }

    /// In this process, to the end; what came of it is in the model.
    fn publish_this(&mut self, id: &str, images: &[usize], read_only: bool, what: &str) {
        match self.node.publish(id, images, read_only) {
            Ok(existed) => {
                self.counts.published += 1;
                assert_eq!(existed, self.volumes.contains_key(id), "{what}: {id}");
                if !existed {
                    let shows = self.node.shows(images);
                    let volume = Volume {
                        images: images.to_vec(),
                        read_only,
                        shows,
                        written: BTreeMap::new(),
                    };
                    self.counts.limited += u64::from(!read_only && limit(id).is_some());
                    self.volumes.insert(id.to_owned(), volume);
                }
                self.compare(id, what);
            }
            Err(error) => {
                self.full(&error, what);
                let is_there = self.volumes.contains_key(id);
                assert!(!is_there, "{what}: {id} was there, and was refused");
                self.node.is_gone(id, what);
            }
        }
    }

    /// Only for want of space may anything fail.
    fn full(&mut self, error: &aufs_csi::volume::VolumeError, what: &str) {
        let kind = error.kind();
        let expected = aufs_csi::volume::ErrorKind::ResourceExhausted;
        assert_eq!(kind, expected, "{what}: {}", chain(error));
        self.counts.full += 1;
    }

    fn unpublish(&mut self, what: &str) {
        if let Some(id) = self.any_volume() {
            self.compare(&id, what);
            self.node.unpublish(&id, what);
            self.volumes.remove(&id);
            self.counts.unpublished += 1;
        }
    }

    /// A pod writes a file, or removes one that it wrote.
    fn write(&mut self, what: &str) {
        let Some(id) = self.any_volume() else {
            return;
        };
        self.compare(&id, what);
        let target = self.node.target(&id);
        let number = self.random.below(4);
        let length = self.random.below(MIB);
        let fill = self.random.next() as u8;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let path = target.join(format!("written-{number}"));
        if volume.read_only {
            let error = fs::write(&path, "no").unwrap_err();
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ReadOnlyFilesystem,
                "{what}"
            );
            return;
        }
        if volume.written.remove(&number).is_some() {
            fs::remove_file(&path).unwrap();
        } else {
            let content = vec![fill; length as usize];
            let write = || -> std::io::Result<()> {
                let mut file = fs::File::create(&path)?;
                file.write_all(&content)?;
                file.sync_all()
            };
            match write() {
                Ok(()) => {
                    volume.written.insert(number, content);
                }
                // The pod tidies up.
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                    self.counts.full += 1;
                    let _ = fs::remove_file(&path);
                }
                Err(error) => panic!("{what}: {}: {error}", path.display()),
            }
        }
        volume.shows = read(&target).unwrap();
        self.counts.written += 1;
        self.written(&id, what);
    }

    /// What was written is there, byte by byte.
    fn written(&self, id: &str, what: &str) {
        let target = self.node.target(id);
        for number in 0..4 {
            let path = target.join(format!("written-{number}"));
            let found = fs::read(&path).ok();
            let expected = self.volumes[id].written.get(&number);
            assert!(found.as_ref() == expected, "{what}: {}", path.display());
        }
    }

    fn stage(&mut self) {
        let image = self.any_image();
        match self.node.stage(image) {
            Ok(()) => self.counts.staged += 1,
            Err(error) => self.full(&error, "stage"),
        }
    }

    fn collect(&mut self, what: &str) {
        let all = self.random.below(8) == 0;
        self.node.collect(all, what);
        self.counts.collected += 1;
    }

    /// Some work by a process that is killed at one of its steps, and then what
    /// kubelet does: it asks again, or for the end.
    fn kill(&mut self, what: &str) {
        let point = 1 + self.random.below(MAX_POINT);
        let order = self.order(point);
        let is_killed = self.node.start(&order).end(what);
        self.counts.killed += u64::from(is_killed);
        self.settle(&order, what);
    }

    /// Two at once: one collects or stages, killed or not, the other publishes.
    fn together(&mut self, what: &str) {
        let point = self.random.below(2) * (1 + self.random.below(MAX_POINT));
        let image = self.any_image();
        let work = match self.random.below(3) {
            0 => Work::Stage(image),
            _ => Work::Collect(self.random.below(8) == 0),
        };
        let running = self.node.start(&Order { work, point });
        self.publish(what);
        let is_killed = running.end(what);
        self.counts.together += 1;
        self.counts.killed += u64::from(is_killed);
    }

    fn order(&mut self, point: u64) -> Order {
        let image = self.any_image();
        let work = match self.random.below(5) {
            0 => Work::Stage(image),
            1 | 2 => Work::Collect(self.random.below(4) == 0),
            3 => match self.any_volume() {
                Some(id) => Work::Unpublish(id),
                None => Work::Collect(true),
            },
            _ => {
                let (id, images, read_only) = self.wanted();
                Work::Publish(id, images, read_only)
            }
        };
        Order { work, point }
    }

    fn settle(&mut self, order: &Order, what: &str) {
        match &order.work {
            Work::Stage(_) | Work::Collect(_) => {}
            Work::Unpublish(id) => {
                self.node.unpublish(id, what);
                self.volumes.remove(id);
            }
            Work::Publish(id, images, read_only) => {
                if self.volumes.contains_key(id) {
                    // It was there all the time.
                    self.publish_this(id, images, *read_only, what);
                } else if self.random.below(2) == 0 {
                    self.node.unpublish(id, what);
                } else {
                    self.take(id, images, *read_only, what);
                }
            }
        }
    }

    /// Asks for a volume that may be there by now, or not.
    fn take(&mut self, id: &str, images: &[usize], read_only: bool, what: &str) {
        match self.node.publish(id, images, read_only) {
            Ok(_) => {
                let shows = self.node.shows(images);
                let volume = Volume {
                    images: images.to_vec(),
                    read_only,
                    shows,
                    written: BTreeMap::new(),
                };
                self.volumes.insert(id.to_owned(), volume);
                self.counts.published += 1;
                self.compare(id, what);
            }
            Err(error) => {
                self.full(&error, what);
                self.node.is_gone(id, what);
            }
        }
    }

    fn compare(&self, id: &str, what: &str) {
        let found = read(&self.node.target(id)).unwrap();
        let what = format!("{what}: {id}");
        assert_same(&what, &self.volumes[id].shows, &found, Compared::ALL);
        self.written(id, &what);
    }

    /// All volumes are as they should be, and no others are there.
    fn look(&self, what: &str) {
        for id in self.volumes.keys() {
            self.compare(id, what);
        }
        self.node.has_just(&self.live(), what);
    }

    fn end(&mut self) {
        for id in self.live() {
            self.node.unpublish(&id, "the end");
        }
        self.volumes.clear();
        self.node.quiet(&[]);
        self.node.is_empty();
    }
}

/// Names in a directory; none where there is none.
pub(crate) fn names(dir: &Path) -> std::collections::BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

const _: () = assert!(SIZE_MIB >= 16, "an image and its copy have to fit");
