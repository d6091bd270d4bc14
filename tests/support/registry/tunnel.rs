//! A proxy as companies have it: for TLS it makes a tunnel (`CONNECT`) for whoever
//! shows the right name and password, and sees nothing of what goes through.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// The proxy. All names lead to one upstream.
#[derive(Debug)]
pub struct Tunnel {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tunnel {
    /// To `upstream`, for `login` (`user:password`). It ends with the test's
    /// process.
    pub fn to(upstream: &str, login: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let tunnel = Tunnel {
            address: listener.local_addr().unwrap(),
            asked: Arc::clone(&asked),
        };
        let upstream = upstream.to_owned();
        let authorization = format!("Basic {}", STANDARD.encode(login));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (upstream, authorization) = (upstream.clone(), authorization.clone());
                let asked = Arc::clone(&asked);
                thread::spawn(move || {
                    // A client that goes away is no fault of the proxy.
                    let _ = serve(client.unwrap(), &upstream, &authorization, &asked);
                });
            }
        });
        tunnel
    }

    /// As `HTTPS_PROXY` has it, with what is to be shown.
    pub fn url(&self, login: &str) -> String {
        format!("http://{login}@{}", self.address)
    }

    /// The hosts that tunnels were made to.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    client: TcpStream,
    upstream: &str,
    authorization: &str,
    asked: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let mut client = client;
    let target = head
        .first()
        .and_then(|line| line.strip_prefix("CONNECT ")?.split(' ').next());
    let Some(target) = target else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n");
    };
    let is_known = head.iter().any(|line| {
        line.split_once(": ").is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("proxy-authorization") && value == authorization
        })
    });
    if !is_known {
        return client
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    }
    asked.lock().unwrap().push(target.to_owned());
    let server = TcpStream::connect(upstream)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut up, mut down) = (server.try_clone()?, client.try_clone()?);
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = io::copy(&mut reader, &mut up);
            let _ = up.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut { server }, &mut down);
        let _ = down.shutdown(Shutdown::Both);
    });
    Ok(())
}
