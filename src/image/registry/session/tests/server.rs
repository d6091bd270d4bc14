//! A server on loopback that answers as a test says, and notes what it was asked.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    /// With the query.
    pub(super) path: String,
    /// Names in lower case.
    pub(super) header: HashMap<String, String>,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.header.get(name).map(String::as_str)
    }

    /// `METHOD path authorization`
    pub(super) fn line(&self) -> String {
        let authorization = self.get("authorization").unwrap_or("-");
        format!("{} {} {authorization}", self.method, self.path)
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) header: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Whether the length of the body is not told.
    pub(super) without_length: bool,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Reply {
            status,
            header: Vec::new(),
            body: Vec::new(),
            without_length: false,
        }
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.header.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(super) fn without_length(mut self) -> Self {
        self.without_length = true;
        self
    }
}

type Answering = dyn Fn(&Seen) -> Reply + Send + Sync;

/// Ends with the test's process.
#[derive(Clone)]
pub(super) struct Server {
    /// Address and port.
    pub(super) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// On 127.0.0.1.
    pub(super) fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Server::start_at("127.0.0.1", answer)
    }

    pub(super) fn start_at(
        address: &str,
        answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (notes, answer): (_, Arc<Answering>) = (Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (notes, answer) = (Arc::clone(&notes), Arc::clone(&answer));
                let stream = stream.unwrap();
                std::thread::spawn(move || serve(stream, &notes, &*answer));
            }
        });
        Server { host, seen }
    }

    /// What was asked so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The same as lines, and forgets them.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut seen = self.seen.lock().unwrap();
        let seen = std::mem::take(&mut *seen);
        seen.iter().map(Seen::line).collect()
    }
}

/// One request for each connection. What begins like TLS gets what Go's servers
/// answer to that.
fn serve(mut stream: TcpStream, notes: &Mutex<Vec<Seen>>, answer: &Answering) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    if reader
        .fill_buf()
        .is_ok_and(|start| start.first() == Some(&0x16))
    {
        let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        return;
    }
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines[0].split(' ').map(str::to_owned);
    let (method, path) = (first.next().unwrap(), first.next().unwrap());
    let header: HashMap<String, String> = lines[1..]
        .iter()
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = header
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let seen = Seen {
        method,
        path,
        header,
        body: String::from_utf8(body).unwrap(),
    };
    notes.lock().unwrap().push(seen.clone());
    let reply = answer(&seen);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.header {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.without_length && !head.contains("Content-Length") {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    let _ = stream.write_all(head.as_bytes());
    if seen.method != "HEAD" {
        let _ = stream.write_all(&reply.body);
    }
}
