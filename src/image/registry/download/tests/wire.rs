//! The same over real connections, with the HTTP client that is used.

use super::super::*;
use super::lab::{BOOT, noise, read, wanted};
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Serves one blob with Range, and cuts each of the first connections off after
/// so many bytes of the body.
struct Server {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Server {
    fn start(blob: Vec<u8>, cuts: Vec<usize>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        // It ends with the process: nothing connects to wake it up for less.
        thread::spawn(move || {
            let mut cuts = cuts.into_iter();
            for connection in listener.incoming() {
                // One after the other, as one download comes.
                let _ = serve(connection.unwrap(), &blob, cuts.next(), &counter);
            }
        });
        Server { address, sent }
    }
}

fn serve(
    connection: TcpStream,
    blob: &[u8],
    cut: Option<usize>,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let mut start = None;
    for line in BufReader::new(&connection).lines() {
        let line = line?.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = Some(range.trim_end_matches('-').parse::<usize>().unwrap());
        }
        if line.is_empty() {
            break;
        }
    }
    let size = blob.len();
    let body = &blob[start.unwrap_or(0)..];
    let length = body.len();
    let mut connection = connection;
    match start {
        None => write!(connection, "HTTP/1.1 200 OK\r\n")?,
        Some(start) => write!(
            connection,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}\r\n",
            size - 1
        )?,
    }
    write!(
        connection,
        "Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    let body = &body[..cut.unwrap_or(length).min(length)];
    for part in body.chunks(100_000) {
        connection.write_all(part)?;
        sent.fetch_add(part.len() as u64, Ordering::Relaxed);
    }
    connection.shutdown(Shutdown::Both)
}

/// Asks as a session does.
struct Http {
    client: reqwest::Client,
    address: SocketAddr,
}

impl Http {
    fn new(server: &Server) -> Arc<Http> {
        // Another test may have done so.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Arc::new(Http {
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            address: server.address,
        })
    }
}

impl BlobPlaces for Http {
    fn count(&self) -> usize {
        1
    }

    fn host(&self, _: usize) -> String {
        self.address.to_string()
    }

    fn begin(
        &self,
        _: usize,
        digest: &Digest,
        offset: u64,
    ) -> Pin<Box<dyn Future<Output = Result<BlobBody, BlobFault>> + Send + '_>> {
        let url = format!("http://{}/v2/image/blobs/{digest}", self.address);
        Box::pin(async move {
            let mut request = self.client.get(url);
            if offset > 0 {
                request = request.header("Range", format!("bytes={offset}-"));
            }
            let response = request.send().await.map_err(|error| BlobFault::Again {
                after: None,
                error: RegistryError::Unreachable {
                    host: self.host(0),
                    reason: error.to_string(),
                },
            })?;
            let length = response.content_length().map(|length| length + offset);
            Ok(BlobBody {
                offset,
                length,
                response,
            })
        })
    }
}

struct Setup {
    _dir: tempfile::TempDir,
    // Before the runtime, which waits for what is on its threads.
    downloads: Downloads,
    _runtime: tokio::runtime::Runtime,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let spools = Spools::open(dir.path(), BOOT).unwrap();
    let settings = DownloadSettings::default();
    let downloads = Downloads::new(settings, spools, runtime.handle().clone());
    Setup {
        _dir: dir,
        downloads,
        _runtime: runtime,
    }
}

#[test]
fn a_blob_comes_whole_through_a_hundred_cuts() {
    let blob = noise(12 << 20, 40);
    let cuts = noise(800, 41);
    // Most of them far on, for waits are long where little comes.
    let cuts = cuts.chunks(8).map(|cut| {
        let cut = u64::from_le_bytes(cut.try_into().unwrap());
        64 * 1024 + usize::try_from(cut % (100 << 10)).unwrap()
    });
    let server = Server::start(blob.clone(), cuts.collect());
    let setup = setup();
    let handle = setup.downloads.get(Http::new(&server), &wanted(&blob));
    assert!(read(handle.reader()).unwrap() == blob);
    let stats = setup.downloads.stats();
    assert!(stats.retries_total(Retry::Cut) > 60);
    let sent = server.sent.load(Ordering::Relaxed);
    assert!(sent <= blob.len() as u64 * 12 / 10, "{sent}");
    assert_eq!(stats.bytes_total(), blob.len() as u64);
}
