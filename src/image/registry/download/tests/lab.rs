//! Downloads without a network: places whose answers a test writes down, and
//! time that it moves.

use super::super::*;
use hyper::body::{Body, Bytes, Frame};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

pub(super) const BOOT: &str = "0a1b2c3d-0000-4000-8000-000000000000";

/// Bytes that repeat nowhere near.
pub(super) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Part of a body.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    Bytes(Vec<u8>),
    /// Nothing for so long.
    Wait(Duration),
    /// The connection breaks.
    Cut,
    /// Nothing more, ever.
    Hang,
}

/// What a place answers.
pub(super) struct Reply {
    pub(super) offset: u64,
    pub(super) length: Option<u64>,
    pub(super) pieces: Vec<Piece>,
}

pub(super) type Answer = Result<Reply, BlobFault>;
/// Place, offset, and how many were asked before.
type Script = dyn Fn(usize, u64, usize) -> Answer + Send + Sync;

/// Places that do what a script says, and remember what they were asked.
pub(super) struct Places {
    script: Box<Script>,
    count: usize,
    pub(super) asked: Mutex<Vec<(usize, u64, Digest)>>,
    /// When, since the first.
    pub(super) times: Mutex<Vec<Instant>>,
    open: Arc<AtomicUsize>,
    /// Most bodies at the same time.
    pub(super) most: AtomicUsize,
}

impl Places {
    pub(super) fn new(
        count: usize,
        script: impl Fn(usize, u64, usize) -> Answer + Send + Sync + 'static,
    ) -> Arc<Places> {
        Arc::new(Places {
            script: Box::new(script),
            count,
            asked: Mutex::default(),
            times: Mutex::default(),
            open: Arc::default(),
            most: AtomicUsize::new(0),
        })
    }

    /// One place that gives what it is asked for.
    pub(super) fn honest(blob: &[u8]) -> Arc<Places> {
        let blob = blob.to_vec();
        Places::new(1, move |_, offset, _| Ok(rest(&blob, offset)))
    }

    pub(super) fn offsets(&self) -> Vec<(usize, u64)> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|(place, at, _)| (*place, *at)).collect()
    }

    /// Bodies that somebody has.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Seconds between the requests.
    pub(super) fn gaps(&self) -> Vec<f64> {
        let times = self.times.lock().unwrap();
        let pairs = times.windows(2);
        pairs.map(|two| (two[1] - two[0]).as_secs_f64()).collect()
    }
}

impl BlobPlaces for Places {
    fn count(&self) -> usize {
        self.count
    }

    fn host(&self, place: usize) -> String {
        format!("host{place}")
    }

    fn begin(
        &self,
        place: usize,
        digest: &Digest,
        offset: u64,
    ) -> Pin<Box<dyn Future<Output = Result<BlobBody, BlobFault>> + Send + '_>> {
        let mut asked = self.asked.lock().unwrap();
        let before = asked.len();
        asked.push((place, offset, *digest));
        self.times.lock().unwrap().push(Instant::now());
        drop(asked);
        Box::pin(async move {
            let reply = (self.script)(place, offset, before)?;
            let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(open, Ordering::SeqCst);
            let body = Pieces {
                left: reply.pieces.into(),
                waiting: None,
                open: self.open.clone(),
            };
            let response = hyper::Response::new(reqwest::Body::wrap(body));
            Ok(BlobBody {
                offset: reply.offset,
                length: reply.length,
                response: response.into(),
            })
        })
    }
}

struct Pieces {
    left: VecDeque<Piece>,
    waiting: Option<Pin<Box<Sleep>>>,
    open: Arc<AtomicUsize>,
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            match self.left.pop_front() {
                Some(Piece::Bytes(bytes)) => {
                    return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
                }
                Some(Piece::Wait(time)) => {
                    self.waiting = Some(Box::pin(tokio::time::sleep(time)));
                }
                Some(Piece::Cut) => {
                    return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
                }
                Some(Piece::Hang) => {
                    self.left.push_front(Piece::Hang);
                    return Poll::Pending;
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

/// All of a blob from an offset on, as an honest place gives it.
pub(super) fn rest(blob: &[u8], offset: u64) -> Reply {
    part(blob, offset, blob.len(), None)
}

/// A blob's bytes up to `end`, then something else.
pub(super) fn part(blob: &[u8], offset: u64, end: usize, then: Option<Piece>) -> Reply {
    let start = usize::try_from(offset).unwrap();
    let bytes = blob[start..end.max(start)].chunks(70_000);
    Reply {
        offset,
        length: Some(blob.len() as u64),
        pieces: (bytes.map(|bytes| Piece::Bytes(bytes.to_vec())))
            .chain(then)
            .collect(),
    }
}

pub(super) fn later(after: Option<u64>) -> BlobFault {
    BlobFault::Again {
        after: after.map(Duration::from_secs),
        error: status("host", 503),
    }
}

pub(super) fn status(host: &str, status: u16) -> RegistryError {
    RegistryError::Status {
        host: host.to_owned(),
        what: "GET blob".to_owned(),
        status,
        message: String::new(),
    }
}

pub(super) fn not_found() -> RegistryError {
    RegistryError::NotFound {
        image: "image".to_owned(),
        hosts: "host".to_owned(),
    }
}

/// A directory, and a runtime that the test drives.
pub(super) struct Lab {
    pub(super) dir: tempfile::TempDir,
    pub(super) runtime: Runtime,
}

impl Lab {
    /// Time jumps to the next thing that happens when nothing else does.
    pub(super) fn new() -> Lab {
        let lab = Lab::in_real_time();
        lab.pause();
        lab
    }

    /// Time passes as it does, so that a silence stays one.
    pub(super) fn in_real_time() -> Lab {
        let runtime = Builder::new_current_thread().enable_all().build();
        Lab {
            dir: tempfile::tempdir().unwrap(),
            runtime: runtime.unwrap(),
        }
    }

    pub(super) fn pause(&self) {
        self.runtime.block_on(async { tokio::time::pause() });
    }

    pub(super) fn resume(&self) {
        self.runtime.block_on(async { tokio::time::resume() });
    }

    pub(super) fn downloads(&self) -> Downloads {
        self.downloads_with(DownloadSettings::default())
    }

    pub(super) fn downloads_with(&self, settings: DownloadSettings) -> Downloads {
        let spools = Spools::open(self.dir.path(), BOOT).unwrap();
        Downloads::new(settings, spools, self.runtime.handle().clone())
    }

    /// Does something that blocks on another thread, and drives the runtime.
    pub(super) fn drive<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = oneshot::channel();
        let worker = thread::spawn(move || {
            let _ = done.send(work());
        });
        let result = self.runtime.block_on(result);
        worker.join().unwrap();
        result.unwrap()
    }

    /// Lets the tasks do what they can do now.
    pub(super) fn settle(&self) {
        self.runtime.block_on(async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
    }

    pub(super) fn read(&self, blob: &Arc<Blob>) -> Result<Data, RegistryError> {
        let reader = blob.reader();
        self.drive(move || read(reader))
    }

    /// Lengths of the files, by name.
    pub(super) fn files(&self) -> BTreeMap<String, u64> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let entries = entries.map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, entry.metadata().unwrap().len())
        });
        entries.collect()
    }
}

/// Fetches until so many bytes are there.
pub(super) fn fetch_some(lab: &Lab, blob: &Arc<Blob>, bytes: usize) -> BlobReader {
    let mut reader = blob.reader();
    lab.drive(move || {
        reader.read_exact(&mut vec![0; bytes]).unwrap();
        reader
    })
}

pub(super) fn wanted(blob: &[u8]) -> Wanted<'static> {
    Wanted {
        domain: "",
        digest: Digest::of(blob),
        size: blob.len() as u64,
    }
}

/// What was read, and too long to be shown.
pub(super) struct Data(Vec<u8>);

impl PartialEq<Vec<u8>> for Data {
    fn eq(&self, other: &Vec<u8>) -> bool {
        self.0 == *other
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

pub(super) fn read(mut reader: BlobReader) -> Result<Data, RegistryError> {
    let mut bytes = Vec::new();
    match reader.read_to_end(&mut bytes) {
        Ok(_) => Ok(Data(bytes)),
        Err(error) => Err(registry_error(error)),
    }
}

/// What a reader's error has inside.
pub(super) fn registry_error(error: io::Error) -> RegistryError {
    let inner = error.into_inner().unwrap();
    *inner.downcast::<RegistryError>().unwrap()
}
