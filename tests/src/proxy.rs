//! A TLS server in front of a plain HTTP one that hands requests on and does harm to the answers,
//! by rules. One request per connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Longer than any test waits for what a held connection keeps back.
const LIMIT: Duration = Duration::from_secs(600);
const CHUNK: usize = 16 * 1024;

/// What happens to an answer; offsets count its body.
#[derive(Debug, Clone, Copy)]
pub enum Harm {
    /// The connection breaks without a word.
    Cut(usize),
    /// Nothing more is sent, and the connection stays.
    Stall(usize),
    /// Nothing more is sent until `Proxy::release`.
    Hold(usize),
    /// Another status, and no body.
    Status(u16),
    /// One byte is another.
    Flip(usize),
    /// The answer tells a length that is greater or less, and has it.
    Longer(i64),
    /// Sent in pieces of this size, one every few milliseconds.
    Slow(usize),
    /// Claims to begin at another byte than it does.
    Range,
    /// The server is told this (a query of its /control) at that offset.
    Control(usize, &'static str),
}

/// Does harm to the first `times` answers to requests that contain `text`.
pub struct Rule {
    text: &'static str,
    harm: Harm,
    left: AtomicU32,
}

pub fn rule(text: &'static str, times: u32, harm: Harm) -> Rule {
    Rule {
        text,
        harm,
        left: AtomicU32::new(times),
    }
}

pub struct Proxy {
    pub address: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    server: String,
    rules: Vec<Rule>,
    config: Arc<ServerConfig>,
    ended: AtomicBool,
    released: AtomicBool,
    /// The first line of every request, with the SOAP method.
    seen: Mutex<Vec<String>>,
}

impl Proxy {
    /// In front of the plain server at `server`, with the certificate in `certificates`.
    pub fn start(server: &str, certificates: &Path, rules: Vec<Rule>) -> Self {
        let chain = CertificateDer::pem_file_iter(certificates.join("server.pem"))
            .unwrap()
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_file(certificates.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            rules,
            config: Arc::new(config),
            ended: AtomicBool::new(false),
            released: AtomicBool::new(false),
            seen: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                let (stream, shared) = (stream.unwrap(), Arc::clone(&accepting));
                // What a client does to its connection is not the proxy's failure.
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self {
            address,
            shared,
            thread: Some(thread),
        }
    }

    pub fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap()
    }

    /// What is held goes on, and nothing is held any more.
    pub fn release(&self) {
        self.shared.released.store(true, Ordering::Relaxed);
    }

    /// How many requests contained the text.
    pub fn count(&self, text: &str) -> usize {
        let seen = self.shared.seen.lock().unwrap();
        seen.iter().filter(|request| request.contains(text)).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

impl Shared {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let connection = ServerConnection::new(Arc::clone(&self.config)).ok()?;
        let mut client = StreamOwned::new(connection, stream);
        let request = read_message(&mut client)?;
        let text = String::from_utf8_lossy(&request).into_owned();
        self.seen.lock().unwrap().push(text.clone());
        let harm = self
            .rules
            .iter()
            .find(|rule| rule.applies(&text))
            .map(|rule| rule.harm);
        if let Some(Harm::Status(status)) = harm {
            let answer = format!(
                "HTTP/1.1 {status} Harmed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            client.write_all(answer.as_bytes()).ok()?;
            return close(&mut client);
        }
        let mut server = TcpStream::connect(&self.server).ok()?;
        server.set_read_timeout(Some(LIMIT)).ok()?;
        let closing = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        server.write_all(closing.as_bytes()).ok()?;
        let head = changed(&read_head(&mut server)?, harm);
        client.write_all(head.as_bytes()).ok()?;
        self.pass(&mut server, &mut client, harm)
    }

    /// Hands the body on; `None` where the harm ends it.
    fn pass(&self, server: &mut TcpStream, client: &mut Stream, harm: Option<Harm>) -> Option<()> {
        let mut at = 0;
        let mut buffer = vec![0; CHUNK];
        loop {
            let room = match harm {
                Some(Harm::Slow(step)) => step.min(CHUNK),
                _ => CHUNK,
            };
            let length = server.read(&mut buffer[..room]).ok()?;
            let mut chunk = buffer[..length].to_vec();
            let is_here = |offset: usize| (at..at + length).contains(&offset);
            match harm {
                Some(Harm::Cut(offset)) if is_here(offset) => {
                    client.write_all(&chunk[..offset - at]).ok()?;
                    client.sock.shutdown(Shutdown::Both).ok()?;
                    return None;
                }
                Some(Harm::Stall(offset)) if is_here(offset) => {
                    client.write_all(&chunk[..offset - at]).ok()?;
                    self.wait(client, &self.ended)?;
                    return None;
                }
                Some(Harm::Hold(offset)) if is_here(offset) => {
                    let held = chunk.split_off(offset - at);
                    client.write_all(&chunk).ok()?;
                    self.wait(client, &self.released)?;
                    chunk = held;
                }
                Some(Harm::Flip(offset)) if is_here(offset) => chunk[offset - at] ^= 0x10,
                Some(Harm::Longer(by)) if length == 0 && by > 0 => {
                    client
                        .write_all(&vec![0; by.unsigned_abs() as usize])
                        .ok()?;
                }
                Some(Harm::Slow(_)) => std::thread::sleep(Duration::from_millis(5)),
                Some(Harm::Control(offset, query)) if is_here(offset) => {
                    let mut control = TcpStream::connect(&self.server).ok()?;
                    let request = format!(
                        "GET /control?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                    );
                    control.write_all(request.as_bytes()).ok()?;
                    let _ = control.read_to_end(&mut Vec::new());
                }
                _ => {}
            }
            if length == 0 {
                return close(client);
            }
            client.write_all(&chunk).ok()?;
            at += length;
        }
    }
}

impl Shared {
    /// Until it is set; `None` if the client goes or the test ends before.
    fn wait(&self, client: &mut Stream, is_set: &AtomicBool) -> Option<()> {
        let end = Instant::now() + LIMIT;
        let mut byte = [0];
        let pause = Some(Duration::from_millis(100));
        client.sock.set_read_timeout(pause).ok()?;
        while !is_set.load(Ordering::Relaxed) {
            let is_over = Instant::now() >= end || self.ended.load(Ordering::Relaxed);
            if is_over || matches!(client.sock.peek(&mut byte), Ok(0)) {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(())
    }
}

impl Rule {
    fn applies(&self, request: &str) -> bool {
        let take = |left: u32| left.checked_sub(1);
        request.contains(self.text)
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
    }
}

fn close(client: &mut Stream) -> Option<()> {
    client.conn.send_close_notify();
    client.flush().ok()
}

fn changed(head: &str, harm: Option<Harm>) -> String {
    let mut out = String::new();
    for line in head.split_inclusive("\r\n") {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        match harm {
            Some(Harm::Longer(by)) if name.eq_ignore_ascii_case("content-length") => {
                let length: i64 = value.trim().parse().unwrap();
                out.push_str(&format!("Content-Length: {}\r\n", length + by));
            }
            Some(Harm::Range) if name.eq_ignore_ascii_case("content-range") => {
                out.push_str(&line.replacen("bytes ", "bytes 1", 1));
            }
            _ => out.push_str(line),
        }
    }
    out
}

/// Up to and with the empty line.
fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn read_message(stream: &mut impl Read) -> Option<Vec<u8>> {
    let head = read_head(stream)?;
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| {
        line.strip_prefix("content-length:")?
            .trim()
            .parse::<usize>()
            .ok()
    });
    let mut message = head.into_bytes();
    let start = message.len();
    message.resize(start + length.unwrap_or(0), 0);
    stream.read_exact(&mut message[start..]).ok()?;
    Some(message)
}
