//! HTTP requests that can be given up: watched by a monitor, ended when the other side stalls.
//!
//! One connection pool per server; no redirects, no proxies of the environment, no decompression.
use std::future::Future;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use tokio::runtime::Runtime;

use super::ahead::Connector;
use super::tls::{self, Trust, Vouched};
use super::{Monitor, cancelled};
use crate::error::{Error, ErrorKind, Result};

pub use hyper::{StatusCode, header};
pub use url::Url;

const PRODUCT: &str = concat!("hyperexport/", env!("CARGO_PKG_VERSION"));

const CONNECT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(100);
/// Decrypting goes on beside hashing and writing.
const WORKERS: usize = 2;

pub struct Client {
    client: legacy::Client<HttpsConnector<Connector>, Full<Bytes>>,
    runtime: Runtime,
    /// How long the other side may send nothing.
    stall: Duration,
}

pub struct Request<'a> {
    pub url: Url,
    pub headers: HeaderMap,
    /// POST of this text, or else GET.
    pub body: Option<&'a str>,
}

impl Request<'_> {
    pub fn get(url: Url) -> Self {
        Self {
            url,
            headers: HeaderMap::new(),
            body: None,
        }
    }
}

pub struct Answer<'a> {
    client: &'a Client,
    host: String,
    response: hyper::Response<Incoming>,
}

impl Client {
    /// `host` is the server that a thumbprint in `trust` is of.
    pub fn new(host: &str, trust: &Trust, vouched: &Vouched, stall: Duration) -> Result<Self> {
        Self::build(host, trust, vouched, stall, true)
    }

    /// For what lies at `url`; if that is `https`, nothing is ever asked for without encryption.
    pub fn of(url: &Url, trust: &Trust, stall: Duration) -> Result<Self> {
        let host = url.host_str().unwrap_or_default();
        let is_encrypted = url.scheme() == "https";
        Self::build(host, trust, &Vouched::default(), stall, is_encrypted)
    }

    fn build(
        host: &str,
        trust: &Trust,
        vouched: &Vouched,
        stall: Duration,
        https_only: bool,
    ) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Internal, "set an HTTP client up").with_source(error)
        };
        let schemes = HttpsConnectorBuilder::new().with_tls_config(trust.config(host, vouched)?);
        let schemes = if https_only {
            schemes.https_only()
        } else {
            schemes.https_or_http()
        };
        let connector = Connector::new(CONNECT.min(stall));
        let connector = schemes.enable_http1().wrap_connector(connector);
        let client = legacy::Client::builder(TokioExecutor::new()).build(connector);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .map_err(failed)?;
        Ok(Self {
            client,
            runtime,
            stall,
        })
    }

    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// The answer's head, whatever its status; its body is still to be read.
    pub fn send(&self, request: Request<'_>, monitor: &dyn Monitor) -> Result<Answer<'_>> {
        let host = request.url.host_str().unwrap_or_default().to_owned();
        let (method, body) = match request.body {
            Some(body) => (Method::POST, Bytes::copy_from_slice(body.as_bytes())),
            None => (Method::GET, Bytes::new()),
        };
        let mut asked = hyper::Request::new(Full::new(body));
        *asked.method_mut() = method;
        *asked.uri_mut() = uri(&request.url)?;
        *asked.headers_mut() = request.headers;
        let standing = [(header::USER_AGENT, PRODUCT), (header::ACCEPT, "*/*")];
        for (name, value) in standing {
            let value = HeaderValue::from_static(value);
            asked.headers_mut().entry(name).or_insert(value);
        }
        let sent = self.wait(&host, monitor, self.client.request(asked))?;
        Ok(Answer {
            client: self,
            response: sent.map_err(|error| failed(&host, error.is_connect(), error))?,
            host,
        })
    }

    /// What the future gives, unless the monitor cancels or nothing comes for too long.
    fn wait<T>(
        &self,
        host: &str,
        monitor: &dyn Monitor,
        future: impl Future<Output = T>,
    ) -> Result<T> {
        let end = Instant::now() + self.stall;
        self.runtime.block_on(async {
            let mut future = std::pin::pin!(future);
            loop {
                if let Ok(done) = tokio::time::timeout(TICK, &mut future).await {
                    return Ok(done);
                }
                if monitor.is_cancelled() {
                    return Err(cancelled());
                }
                if Instant::now() >= end {
                    let seconds = self.stall.as_secs();
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        format!("{host} sent nothing for {seconds} s"),
                    )
                    .with_remedy("check the server and the network to it"));
                }
            }
        })
    }
}

impl Answer<'_> {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next bytes of the body; `None` at its proper end.
    pub fn chunk(&mut self, monitor: &dyn Monitor) -> Result<Option<impl AsRef<[u8]> + use<>>> {
        loop {
            let next = self.response.body_mut().frame();
            let Some(frame) = self.client.wait(&self.host, monitor, next)? else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| failed(&self.host, false, error))?;
            // What is no data are trailers, which nobody asked for.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body, if it is text of at most so many bytes.
    pub fn text(mut self, limit_bytes: usize, monitor: &dyn Monitor) -> Result<String> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(monitor)? {
            let chunk = chunk.as_ref();
            if bytes.len().saturating_add(chunk.len()) > limit_bytes {
                let host = &self.host;
                return Err(Error::invalid(format!(
                    "{host} answered with more than {limit_bytes} bytes"
                )));
            }
            bytes.extend_from_slice(chunk);
        }
        String::from_utf8(bytes).map_err(|error| {
            Error::invalid(format!("{} answered with what is not text", self.host))
                .with_source(error)
        })
    }
}

fn uri(url: &Url) -> Result<Uri> {
    url.as_str()
        .parse()
        .map_err(|error: hyper::http::uri::InvalidUri| {
            Error::invalid("an address that HTTP cannot ask for").with_source(error)
        })
}

/// A URL never shows in an error: it may carry a ticket.
fn failed(
    host: &str,
    is_connect: bool,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    if let Some(distrust) = tls::distrust(&error) {
        return Error::invalid(format!("the certificate of {host} is not trusted"))
            .with_remedy(
                "give its authority with --ca-file, or compare the thumbprint with the server's \
                 own and give it with --thumbprint",
            )
            .with_source(distrust.to_string());
    }
    let doing = if is_connect { "connect to" } else { "talk to" };
    Error::new(ErrorKind::Io, format!("{doing} {host}"))
        .with_remedy("check the server's name, its port and the network to it")
        .with_source(error)
}
