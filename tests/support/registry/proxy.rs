//! Stands between a client and a registry, counts what it passes, and does the
//! harm that a test asks for. Offsets are of the whole blob, also where the
//! client asks for a part of it.

use super::http::{self, Head};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a client begins with that wants TLS.
const TLS_HANDSHAKE: u8 = 22;
/// Bytes that are passed at once.
const PIECE: usize = 16 << 10;
/// How often one that is held looks whether its client is still there.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is done to an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is closed before this byte of the body.
    Cut(u64),
    /// One bit of this byte is another one.
    Corrupt(u64),
    /// Nothing comes from this byte on until the gate is opened.
    Hold(u64, Gate),
    /// It begins so much later.
    Delay(Duration),
    /// No more than so many bytes in a second, about.
    Throttle(u64),
    /// Another answer, which the registry knows nothing of.
    Status {
        code: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// The client is sent to the same path below this URL.
    Redirect(String),
    /// The whole blob, whatever part was asked for.
    NoRange,
}

impl Fault {
    pub fn status(code: u16) -> Self {
        let body = format!("{{\"errors\":[{{\"code\":\"X\",\"message\":\"asked for {code}\"}}]}}");
        Fault::Status {
            code,
            headers: Vec::new(),
            body,
        }
    }

    /// Too many requests; what the client is told to wait.
    pub fn busy(retry_after: &str) -> Self {
        Fault::Status {
            code: 429,
            headers: vec![("Retry-After".to_owned(), retry_after.to_owned())],
            body: String::new(),
        }
    }
}

/// Which requests a fault is for.
#[derive(Clone, Debug)]
pub struct On {
    /// Any where there is none.
    method: Option<&'static str>,
    /// A part of the path; the beginning of a digest for example.
    path: String,
    /// Requests that are passed before the first one that is met.
    passed: usize,
    times: usize,
}

impl On {
    pub fn path(part: &str) -> Self {
        On {
            method: None,
            path: part.to_owned(),
            passed: 0,
            times: usize::MAX,
        }
    }

    /// GET of a blob.
    pub fn blob(digest: &str) -> Self {
        On {
            method: Some("GET"),
            ..On::path(&format!("/blobs/{digest}"))
        }
    }

    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub fn after(mut self, passed: usize) -> Self {
        self.passed = passed;
        self
    }
}

/// Holds answers until it is opened.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    is_open: bool,
    waiting: usize,
}

impl Gate {
    pub fn new() -> Self {
        Gate::default()
    }

    pub fn open(&self) {
        self.0.0.lock().unwrap().is_open = true;
        self.0.1.notify_all();
    }

    /// How many answers it holds now.
    pub fn waiting(&self) -> usize {
        self.0.0.lock().unwrap().waiting
    }

    /// Waits until it is open; false where `is_over` becomes true before that.
    fn pass(&self, is_over: impl Fn() -> bool) -> bool {
        let mut state = self.0.0.lock().unwrap();
        state.waiting += 1;
        while !state.is_open && !is_over() {
            state = self.0.1.wait_timeout(state, LOOK_EVERY).unwrap().0;
        }
        state.waiting -= 1;
        state.is_open
    }
}

/// One request, and what the client got.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    pub method: String,
    /// With its query.
    pub path: String,
    pub host: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    /// All of the request's.
    pub headers: Vec<(String, String)>,
    pub status: u16,
    /// Bytes of the body that were passed, so far.
    pub sent: u64,
    /// The client closed the connection while it was held.
    pub left: bool,
    pub is_over: bool,
}

/// The proxy; ended with this value.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<String>,
    rules: Mutex<Vec<(On, Fault)>>,
    exchanges: Mutex<Log>,
    connections: Mutex<HashMap<usize, TcpStream>>,
    ends: AtomicBool,
}

#[derive(Debug, Default)]
struct Log {
    list: Vec<Exchange>,
    /// How many were there that are not in the list any more.
    forgotten: usize,
}

impl Proxy {
    pub fn to(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream.to_owned()),
            rules: Mutex::default(),
            exchanges: Mutex::default(),
            connections: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let server = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if server.ends.load(Ordering::Relaxed) {
                    return;
                }
                let (server, Ok(stream)) = (Arc::clone(&server), stream) else {
                    continue;
                };
                // A side that breaks off is what this is for.
                std::thread::spawn(move || server.serve(number, stream).ok());
            }
        });
        Proxy {
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Adds a fault. The first that a request meets is what becomes of it.
    pub fn on(&self, on: On, fault: Fault) {
        self.shared.rules.lock().unwrap().push((on, fault));
    }

    /// No more harm.
    pub fn heal(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    pub fn exchanges(&self) -> Vec<Exchange> {
        self.log().list.clone()
    }

    /// Forgets what it passed.
    pub fn forget(&self) {
        let mut log = self.log();
        log.forgotten += log.list.len();
        log.list.clear();
    }

    /// How many requests there were with this method, any if it is empty, and
    /// this in their path.
    pub fn requests(&self, method: &str, part: &str) -> usize {
        let log = self.log();
        let met = log
            .list
            .iter()
            .filter(|one| method.is_empty() || one.method == method)
            .filter(|one| one.path.contains(part));
        met.count()
    }

    /// How many bytes of bodies it passed of paths with this in them.
    pub fn bytes(&self, part: &str) -> u64 {
        let log = self.log();
        let met = log.list.iter().filter(|one| one.path.contains(part));
        met.map(|one| one.sent).sum()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.exchanges.lock().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        // Wakes it up.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        for (_, stream) in self.shared.connections.lock().unwrap().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn serve(&self, number: usize, client: TcpStream) -> io::Result<()> {
        let copy = client.try_clone()?;
        self.connections.lock().unwrap().insert(number, copy);
        let result = self.requests(&client);
        self.connections.lock().unwrap().remove(&number);
        result
    }

    fn requests(&self, client: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        if reader.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
            // As any server of plain HTTP says.
            return http::answer(&mut &*client, 400, &[], b"this is not TLS");
        }
        while let Some(head) = Head::read(&mut reader)? {
            let mut body = vec![0; head.length().unwrap_or(0) as usize];
            reader.read_exact(&mut body)?;
            let entry = self.begin(&head);
            let fault = self.fault(&head);
            let result = self.answer(client, head, &body, fault, entry);
            self.note(entry, |one| one.is_over = true);
            if !result? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn begin(&self, head: &Head) -> usize {
        let mut log = self.exchanges.lock().unwrap();
        let text = |name: &str| head.get(name).map(str::to_owned);
        log.list.push(Exchange {
            method: head.method().to_owned(),
            path: head.path().to_owned(),
            host: text("Host").unwrap_or_default(),
            authorization: text("Authorization"),
            range: text("Range"),
            headers: head.headers.clone(),
            ..Exchange::default()
        });
        log.forgotten + log.list.len() - 1
    }

    /// Where the log was forgotten meanwhile, nothing is noted.
    fn note(&self, entry: usize, change: impl FnOnce(&mut Exchange)) {
        let mut log = self.exchanges.lock().unwrap();
        let place = entry.checked_sub(log.forgotten);
        if let Some(exchange) = place.and_then(|place| log.list.get_mut(place)) {
            change(exchange);
        }
    }

    fn fault(&self, head: &Head) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let (on, fault) = rules.iter_mut().find(|(on, _)| {
            on.times > 0
                && on.method.is_none_or(|method| method == head.method())
                && head.path().contains(&on.path)
        })?;
        if on.passed > 0 {
            on.passed -= 1;
            return None;
        }
        if on.times != usize::MAX {
            on.times -= 1;
        }
        Some(fault.clone())
    }

    /// Whether the connection may have another request.
    fn answer(
        &self,
        mut client: &TcpStream,
        mut head: Head,
        body: &[u8],
        fault: Option<Fault>,
        entry: usize,
    ) -> io::Result<bool> {
        match &fault {
            Some(Fault::Status {
                code,
                headers,
                body,
            }) => {
                self.note(entry, |one| one.status = *code);
                http::answer(&mut client, *code, headers, body.as_bytes())?;
                return Ok(false);
            }
            Some(Fault::Redirect(to)) => {
                self.note(entry, |one| one.status = 307);
                let location = ("Location".to_owned(), format!("{to}{}", head.path()));
                http::answer(&mut client, 307, &[location], b"")?;
                return Ok(false);
            }
            Some(Fault::NoRange) => head.remove("Range"),
            Some(Fault::Delay(time)) => std::thread::sleep(*time),
            _ => {}
        }
        let (method, path) = (head.method().to_owned(), head.path().to_owned());
        // So that no answer is chunked.
        head.line = format!("{method} {path} HTTP/1.0");
        head.remove("Connection");
        let upstream = self.upstream.lock().unwrap().clone();
        let mut server = TcpStream::connect(upstream)?;
        head.write(&mut server)?;
        server.write_all(body)?;
        let mut reader = BufReader::new(server);
        let Some(mut answer) = Head::read(&mut reader)? else {
            return Ok(false);
        };
        let (status, length) = (answer.status(), answer.length());
        self.note(entry, |one| one.status = status);
        answer.line = answer.line.replacen("HTTP/1.0", "HTTP/1.1", 1);
        answer.remove("Connection");
        let has_no_body = method == "HEAD" || matches!(status, 204 | 304);
        let keeps = has_no_body || length.is_some();
        if !keeps {
            answer.set("Connection", "close");
        }
        answer.write(&mut client)?;
        if has_no_body {
            return Ok(true);
        }
        let begin = match answer.get("Content-Range") {
            Some(range) => range_begin(range),
            None => 0,
        };
        let left = length.unwrap_or(u64::MAX);
        let passed = self.pass(client, &mut reader.take(left), begin, fault.as_ref(), entry)?;
        Ok(passed && keeps)
    }

    /// Passes a body on. False if it was cut.
    fn pass(
        &self,
        mut client: &TcpStream,
        body: &mut impl Read,
        begin: u64,
        fault: Option<&Fault>,
        entry: usize,
    ) -> io::Result<bool> {
        let mut buffer = vec![0; PIECE];
        let mut place = begin;
        let mut hold = match fault {
            Some(Fault::Hold(at, gate)) => Some(((*at).max(begin), gate)),
            _ => None,
        };
        loop {
            // Up to where something happens.
            let mut wanted = PIECE;
            let mut until = |at: u64| {
                wanted = wanted.min(usize::try_from(at.saturating_sub(place)).unwrap_or(PIECE));
            };
            match (fault, hold) {
                (Some(Fault::Cut(at)), _) => until(*at),
                (_, Some((at, _))) => until(at),
                _ => {}
            }
            if wanted == 0 {
                let Some((_, gate)) = hold.take() else {
                    return Ok(false);
                };
                if !gate.pass(|| self.ends.load(Ordering::Relaxed) || has_left(client)) {
                    self.note(entry, |one| one.left = true);
                    return Ok(false);
                }
                continue;
            }
            let count = body.read(&mut buffer[..wanted])?;
            if count == 0 {
                return Ok(true);
            }
            let piece = &mut buffer[..count];
            match fault {
                Some(Fault::Corrupt(at)) => {
                    let inside = at
                        .checked_sub(place)
                        .and_then(|at| usize::try_from(at).ok());
                    if let Some(byte) = inside.and_then(|at| piece.get_mut(at)) {
                        *byte ^= 1;
                    }
                }
                Some(Fault::Throttle(per_second)) => {
                    let seconds = count as f64 / (*per_second).max(1) as f64;
                    std::thread::sleep(Duration::from_secs_f64(seconds));
                }
                _ => {}
            }
            client.write_all(piece)?;
            place += count as u64;
            self.note(entry, |one| one.sent += count as u64);
        }
    }
}

/// Whether a client that has nothing more to say has gone.
fn has_left(client: &TcpStream) -> bool {
    if client.set_nonblocking(true).is_err() {
        return true;
    }
    let left = match client.peek(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    };
    client.set_nonblocking(false).is_err() || left
}

/// The first byte of `bytes 5-9/10`.
fn range_begin(range: &str) -> u64 {
    let text = range.trim_start_matches("bytes ");
    let text = text.split('-').next().unwrap_or_default();
    text.parse().unwrap_or(0)
}
