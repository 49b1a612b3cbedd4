//! A session with a vCenter or an ESXi host: logged in once, and again when the server forgets it.
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roxmltree::Node;

use super::soap::{self, Moref};
use super::{Secret, Server};
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::Monitor;
use crate::transfer::http::{Client, Request, StatusCode, Url, header};
use crate::transfer::tls::Vouched;

const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// What every version from 6.5 on understands.
const OLDEST_VERSION: &str = "6.5";
const REPEATS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);

/// The managed objects that everything else is reached from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub root: Moref,
    pub properties: Moref,
    pub views: Option<Moref>,
    pub search: Option<Moref>,
    pub sessions: Moref,
    pub ovf: Option<Moref>,
    /// `VMware vCenter Server 7.0.3 build-…`.
    pub full_name: String,
    pub version: String,
}

pub struct Session {
    pub client: Client,
    pub content: Content,
    pub vouched: Vouched,
    url: Url,
    host: String,
    username: String,
    secret: Secret,
    state: Mutex<State>,
    /// Held while somebody logs in.
    turn: Mutex<()>,
}

#[derive(Default)]
struct State {
    cookie: Option<String>,
    /// Counts logins, so that of several that find the session gone only one logs in.
    login: u64,
}

/// Whether a call may be made twice when the connection breaks in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    None,
    Once,
}

impl Session {
    pub fn open(server: &Server, secret: Secret, monitor: &dyn Monitor) -> Result<Self> {
        let vouched = Vouched::default();
        let client = Client::new(&server.host, &server.trust, &vouched, server.stall)?;
        let url = server.url("/sdk")?;
        let mut session = Self {
            client,
            vouched,
            url,
            host: server.authority(),
            username: server.username.clone(),
            secret,
            state: Mutex::default(),
            turn: Mutex::default(),
            content: Content {
                root: Moref::new("Folder", ""),
                properties: Moref::new("PropertyCollector", ""),
                views: None,
                search: None,
                sessions: Moref::new("SessionManager", ""),
                ovf: None,
                full_name: String::new(),
                version: OLDEST_VERSION.to_owned(),
            },
        };
        let service = Moref::new("ServiceInstance", "ServiceInstance");
        let method = "RetrieveServiceContent";
        session.content = session.call(&service, method, "", Effect::None, monitor, content)?;
        session.log_in(0, monitor)?;
        Ok(session)
    }

    /// Calls a method; hands the answer's element to `take`.
    pub fn call<T>(
        &self,
        this: &Moref,
        method: &str,
        arguments: &str,
        effect: Effect,
        monitor: &dyn Monitor,
        take: impl Fn(Node<'_, '_>) -> Result<T>,
    ) -> Result<T> {
        let envelope = soap::envelope(this, method, arguments);
        let mut renewed = false;
        loop {
            let login = self.state().login;
            let answer = self.post_steadily(&envelope, effect, monitor)?;
            match soap::read(&answer, method, &take) {
                Err(error)
                    if soap::is_fault(&error, &["NotAuthenticated"]) && !renewed && login > 0 =>
                {
                    renewed = true;
                    self.log_in(login, monitor)?;
                }
                read => return read,
            }
        }
    }

    /// Asks again when the connection breaks, if that does no harm.
    fn post_steadily(
        &self,
        envelope: &str,
        effect: Effect,
        monitor: &dyn Monitor,
    ) -> Result<String> {
        let mut repeats = 0;
        loop {
            match self.post(envelope, monitor) {
                Err(error)
                    if error.kind.is_transient() && effect == Effect::None && repeats < REPEATS =>
                {
                    repeats += 1;
                    std::thread::sleep(PAUSE * repeats);
                }
                posted => return posted,
            }
        }
    }

    fn post(&self, envelope: &str, monitor: &dyn Monitor) -> Result<String> {
        let mut request = Request {
            body: Some(envelope),
            ..Request::get(self.url.clone())
        };
        let action = format!("\"urn:vim25/{}\"", self.content.version);
        let cookie = self.state().cookie.clone();
        let headers = [
            (
                header::CONTENT_TYPE,
                Some("text/xml; charset=utf-8".to_owned()),
            ),
            (header::HeaderName::from_static("soapaction"), Some(action)),
            (header::COOKIE, cookie),
        ];
        for (name, value) in headers {
            let Some(value) = value else { continue };
            let value = header::HeaderValue::from_str(&value).map_err(|error| {
                Error::invalid(format!("{} sent what no header can hold", self.host))
                    .with_source(error)
            })?;
            request.headers.insert(name, value);
        }
        let answer = self.client.send(request, monitor)?;
        self.keep_cookie(answer.headers());
        let status = answer.status();
        // A fault comes with 500.
        if !status.is_success() && status.as_u16() != 500 {
            return Err(self.no_soap(status));
        }
        let text = answer.text(ANSWER_BYTES, monitor)?;
        if !status.is_success() && !text.contains("Envelope") {
            return Err(self.no_soap(status));
        }
        Ok(text)
    }

    fn no_soap(&self, status: StatusCode) -> Error {
        let kind = match status.as_u16() {
            408 | 429 | 500.. => ErrorKind::Io,
            _ => ErrorKind::Invalid,
        };
        let host = &self.host;
        Error::new(kind, format!("{host} answered {status} instead of SOAP"))
            .with_remedy("check that the address is a vCenter's or an ESXi host's")
    }

    fn keep_cookie(&self, headers: &header::HeaderMap) {
        let set = headers.get_all(header::SET_COOKIE).iter();
        let mut pairs = set.filter_map(|value| value.to_str().ok()?.split(';').next());
        if let Some(pair) = pairs.rfind(|pair| pair.starts_with("vmware_soap_session=")) {
            self.state().cookie = Some(pair.trim().to_owned());
        }
    }

    /// Unless somebody else has done so since `seen`.
    fn log_in(&self, seen: u64, monitor: &dyn Monitor) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut state = self.state();
            if state.login > seen {
                return Ok(());
            }
            state.cookie = None;
        }
        let user = soap::element("userName", &self.username);
        let password = soap::element("password", self.secret.expose());
        let envelope = soap::envelope(&self.content.sessions, "Login", &(user + &password));
        let answer = self.post(&envelope, monitor)?;
        soap::read(&answer, "Login", |_| Ok(())).map_err(|mut error| {
            error.context = format!("log in to {} as {}", self.host, self.username);
            error
        })?;
        self.state().login = seen + 1;
        Ok(())
    }

    /// Best effort: a session that stays ends by itself.
    pub fn log_out(&self, monitor: &dyn Monitor) {
        if self.state().cookie.is_none() {
            return;
        }
        let envelope = soap::envelope(&self.content.sessions, "Logout", "");
        let _ = self.post(&envelope, monitor);
        self.state().cookie = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn content(node: Node<'_, '_>) -> Result<Content> {
    let reference = |name: &str| soap::at(node, &format!("returnval/{name}")).and_then(Moref::read);
    let needed = |name: &str| {
        reference(name).ok_or_else(|| Error::invalid(format!("the server has no {name}")))
    };
    let about = |name: &str| soap::text(node, &format!("returnval/about/{name}"));
    let version = about("apiVersion").unwrap_or(OLDEST_VERSION).to_owned();
    let parts: Vec<u32> = version
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect();
    if parts.as_slice() < [6, 5].as_slice() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the server's API is {version}, older than {OLDEST_VERSION}"),
        )
        .with_remedy("export the VM's disks by hand and use --provider local"));
    }
    Ok(Content {
        root: needed("rootFolder")?,
        properties: needed("propertyCollector")?,
        views: reference("viewManager"),
        search: reference("searchIndex"),
        sessions: needed("sessionManager")?,
        ovf: reference("ovfManager"),
        full_name: about("fullName").unwrap_or_default().to_owned(),
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use roxmltree::Document;

    #[test]
    fn the_service_content_of_old_and_new_servers() {
        for (version, is_good) in [
            ("6.5", true),
            ("8.0.2.0", true),
            ("6.0", false),
            ("5.5", false),
        ] {
            let xml = format!(
                "<r><returnval><rootFolder type=\"Folder\">group-d1</rootFolder>\
                 <propertyCollector type=\"PropertyCollector\">propertyCollector\
                 </propertyCollector><viewManager type=\"ViewManager\">ViewManager</viewManager>\
                 <about><name>VMware vCenter Server</name><fullName>VMware vCenter Server 7\
                 </fullName><apiVersion>{version}</apiVersion></about>\
                 <sessionManager type=\"SessionManager\">SessionManager</sessionManager>\
                 </returnval></r>"
            );
            let document = Document::parse(&xml).unwrap();
            let found = content(document.root_element());
            assert_eq!(found.is_ok(), is_good, "{version}");
            if let Ok(found) = found {
                assert_eq!(found.root, Moref::new("Folder", "group-d1"));
                assert_eq!((found.version.as_str(), found.ovf), (version, None));
            }
        }
    }
}
