//! A web server of files in a directory, with or without ranges; `Proxy` before it adds TLS and
//! harm. One request per connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::images::{run, text};

const LIMIT: Duration = Duration::from_secs(60);

pub struct Web {
    /// `127.0.0.1:port`.
    pub address: String,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Also answers `/moved/<name>` with a redirection to `/<name>`, and `/away/<path>` with one
    /// to `http://<path>`.
    pub fn start(directory: &Path, ranges: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ended = Arc::new(AtomicBool::new(false));
        let (directory, over) = (directory.to_path_buf(), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (stream, directory) = (stream.unwrap(), directory.clone());
                // What a client does to its connection is not the server's failure.
                std::thread::spawn(move || serve(stream, &directory, ranges));
            }
        });
        Self {
            address,
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(mut stream: TcpStream, directory: &Path, ranges: bool) -> Option<()> {
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?.trim_start_matches('/');
    let mut answer = |status: &str, more: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"one\"\r\n{more}\
             Connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()
    };
    if let Some(name) = path.strip_prefix("moved/") {
        return answer("302 Found", &format!("Location: /{name}\r\n"), b"");
    }
    if let Some(name) = path.strip_prefix("away/") {
        return answer("302 Found", &format!("Location: http://{name}\r\n"), b"");
    }
    let Ok(body) = std::fs::read(directory.join(path)) else {
        return answer("404 Not Found", "", b"");
    };
    let lower = head.to_ascii_lowercase();
    let asked = lower.lines().find_map(|line| {
        let (start, end) = line.strip_prefix("range: bytes=")?.split_once('-')?;
        Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()))
    });
    let Some((start, end)) = asked.filter(|_| ranges) else {
        return answer("200 OK", "", &body);
    };
    let total = body.len();
    let end = end.map_or(total, |last| total.min(last + 1));
    let range = format!("Content-Range: bytes {start}-{}/{total}\r\n", end - 1);
    answer("206 Partial Content", &range, &body[start..end])
}

/// `server.pem` and `server.key` for 127.0.0.1, signed by nobody else; where they lie.
pub fn certificates(place: &Path) -> PathBuf {
    let directory = place.join("certificates");
    std::fs::create_dir(&directory).unwrap();
    let config = directory.join("openssl.cnf");
    std::fs::write(
        &config,
        "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=web\n[ext]\n\
         subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n",
    )
    .unwrap();
    let (key, pem) = (directory.join("server.key"), directory.join("server.pem"));
    let how = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    let mut arguments: Vec<&str> = how.split(' ').collect();
    arguments.extend(["-config", text(&config)]);
    arguments.extend(["-keyout", text(&key), "-out", text(&pem)]);
    run("openssl", "openssl", &arguments);
    directory
}
