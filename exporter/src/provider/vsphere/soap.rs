//! SOAP 1.1 of the vSphere API (urn:vim25): envelopes written, answers and faults read.
//!
//! Pure: text in, values out. Answers are hostile: no DTD, a limit of nodes.
use std::fmt;

use roxmltree::{Document, Node, ParsingOptions};

use crate::error::{Error, ErrorKind, Result};

const NODES: u32 = 4_000_000;
const INSTANCE: &str = "http://www.w3.org/2001/XMLSchema-instance";

/// A managed object's reference: its type and its id on this server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moref {
    pub kind: String,
    pub id: String,
}

impl Moref {
    pub fn new(kind: &str, id: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            id: id.to_owned(),
        }
    }

    /// `<name type="kind">id</name>`.
    pub fn to_xml(&self, name: &str) -> String {
        let (kind, id) = (escape(&self.kind), escape(&self.id));
        format!("<{name} type=\"{kind}\">{id}</{name}>")
    }

    pub fn read(node: Node<'_, '_>) -> Option<Self> {
        // `xsi:type` may stand beside it.
        let mut plain = node.attributes().filter(|one| one.namespace().is_none());
        let kind = plain.find(|one| one.name() == "type")?.value();
        let id = node.text()?.trim();
        Some(Self::new(kind, id))
    }
}

pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // What XML cannot hold at all.
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// `<name>text</name>`.
pub fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

/// The call of `method` of the object `this`.
pub fn envelope(this: &Moref, method: &str, arguments: &str) -> String {
    let this = this.to_xml("_this");
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<soapenv:Envelope \
         xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" xmlns:xsi=\"{INSTANCE}\">\
         <soapenv:Body><{method} xmlns=\"urn:vim25\">{this}{arguments}</{method}>\
         </soapenv:Body></soapenv:Envelope>"
    )
}

/// What the server refused to do, in its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The fault's type, without the `Fault` that its element's name ends in.
    pub kind: String,
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.text.is_empty() {
            "no further text"
        } else {
            &self.text
        };
        write!(f, "{} ({text})", self.kind)
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// A `soapenv:Fault`.
    fn of_answer(node: Node<'_, '_>) -> Self {
        let detail = child(node, "detail").and_then(|detail| detail.first_element_child());
        let named = detail.map(|detail| {
            let name = detail.tag_name().name();
            name.strip_suffix("Fault").unwrap_or(name)
        });
        let typed = detail.and_then(|detail| kind(detail));
        Self {
            kind: typed.or(named).unwrap_or("Fault").to_owned(),
            text: text(node, "faultstring").unwrap_or_default().to_owned(),
        }
    }

    /// A `LocalizedMethodFault`, as tasks and leases have it.
    pub fn localized(node: Node<'_, '_>) -> Self {
        let kind = child(node, "fault").and_then(kind);
        Self {
            kind: kind.unwrap_or("Fault").to_owned(),
            text: text(node, "localizedMessage")
                .unwrap_or_default()
                .to_owned(),
        }
    }

    /// `doing` is what was refused.
    pub fn into_error(self, doing: &str) -> Error {
        let remedy = match self.kind.as_str() {
            "InvalidLogin" => "check the user name and the password",
            "NoPermission" => "give the user the privilege that the server's log names",
            "ManagedObjectNotFound" => "it was removed meanwhile; look for it again",
            "InvalidPowerState" | "InvalidState" | "TaskInProgress" => {
                "wait until the VM's tasks are over, and try again"
            }
            "RestrictedVersion" => "the host's licence has no API; use its vCenter, or license it",
            _ => "see the server's log of tasks and events",
        };
        let kind = match self.kind.as_str() {
            "InvalidLogin"
            | "NoPermission"
            | "ManagedObjectNotFound"
            | "InvalidArgument"
            | "InvalidName"
            | "InvalidType" => ErrorKind::Invalid,
            "NotSupported"
            | "MethodNotFound"
            | "RestrictedVersion"
            | "NotImplemented"
            | "DisallowedOperationOnFailoverHost" => ErrorKind::Unsupported,
            "Timedout" => ErrorKind::Timeout,
            "NoDiskSpace" => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error::new(kind, doing)
            .with_remedy(remedy)
            .with_source(self)
    }
}

/// The fault that an error comes from, if it is one.
pub fn fault(error: &Error) -> Option<&Fault> {
    error.source.as_ref()?.downcast_ref()
}

pub fn is_fault(error: &Error, kinds: &[&str]) -> bool {
    fault(error).is_some_and(|fault| kinds.contains(&fault.kind.as_str()))
}

/// Reads the answer to `method`: hands its element to `take`, or gives the fault as an error.
pub fn read<T>(
    answer: &str,
    method: &str,
    take: impl FnOnce(Node<'_, '_>) -> Result<T>,
) -> Result<T> {
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: NODES,
        ..ParsingOptions::default()
    };
    let strange = |cause: String| {
        // Not a refusal: a proxy's page, a server that starts up.
        Error::new(ErrorKind::Io, format!("{method}: the answer is no SOAP"))
            .with_remedy("check that the address is a vCenter's or an ESXi host's")
            .with_source(cause)
    };
    let document = Document::parse_with_options(answer, options)
        .map_err(|error| strange(error.to_string()))?;
    let body = child(document.root_element(), "Body")
        .and_then(|body| body.first_element_child())
        .ok_or_else(|| strange("it has no body".to_owned()))?;
    if body.tag_name().name() == "Fault" {
        return Err(Fault::of_answer(body).into_error(method));
    }
    if body.tag_name().name() != format!("{method}Response") {
        return Err(strange(format!("it answers {}", body.tag_name().name())));
    }
    take(body)
}

pub fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

pub fn children<'a, 'input, 'n>(
    node: Node<'a, 'input>,
    name: &'n str,
) -> impl Iterator<Item = Node<'a, 'input>> + use<'a, 'input, 'n> {
    node.children()
        .filter(move |node| node.is_element() && node.tag_name().name() == name)
}

/// The element at `a/b/c` below the node.
pub fn at<'a, 'input>(node: Node<'a, 'input>, path: &str) -> Option<Node<'a, 'input>> {
    path.split('/').try_fold(node, child)
}

/// The text at `a/b/c` below the node.
pub fn text<'a>(node: Node<'a, '_>, path: &str) -> Option<&'a str> {
    at(node, path)?.text().map(str::trim)
}

pub fn number<T: std::str::FromStr>(node: Node<'_, '_>, path: &str) -> Option<T> {
    text(node, path)?.parse().ok()
}

pub fn flag(node: Node<'_, '_>, path: &str) -> Option<bool> {
    match text(node, path)? {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// The `xsi:type` of an element, without its prefix.
pub fn kind<'a>(node: Node<'a, '_>) -> Option<&'a str> {
    let kind = node.attribute((INSTANCE, "type"))?;
    Some(kind.rsplit(':').next().unwrap_or(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<soapenv:Envelope \
             xmlns:soapenc=\"http://schemas.xmlsoap.org/soap/encoding/\" \
             xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\n\
             <soapenv:Body>\n{body}\n</soapenv:Body>\n</soapenv:Envelope>"
        )
    }

    #[test]
    fn answers_faults_and_what_is_neither() {
        let found = read(
            &answer(
                "<ExportVmResponse xmlns=\"urn:vim25\"><returnval type=\"HttpNfcLease\">\
                 session[52ab]52cd</returnval></ExportVmResponse>",
            ),
            "ExportVm",
            |node| Ok(child(node, "returnval").and_then(Moref::read)),
        );
        assert_eq!(
            found.unwrap(),
            Some(Moref::new("HttpNfcLease", "session[52ab]52cd"))
        );
        let cases = [
            // As vCenter 7 refuses a login.
            (
                "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>Cannot complete \
                 login due to an incorrect user name or password.</faultstring><detail>\
                 <InvalidLoginFault xmlns=\"urn:vim25\" xsi:type=\"InvalidLogin\"/></detail>\
                 </soapenv:Fault>",
                "InvalidLogin",
                ErrorKind::Invalid,
            ),
            // As ESXi 6.5 does: no xsi:type.
            (
                "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>The session is \
                 not authenticated.</faultstring><detail><NotAuthenticatedFault \
                 xmlns=\"urn:vim25\"><object type=\"Folder\">ha-folder-root</object>\
                 <privilegeId>System.View</privilegeId></NotAuthenticatedFault></detail>\
                 </soapenv:Fault>",
                "NotAuthenticated",
                ErrorKind::Io,
            ),
            ("<soapenv:Fault/>", "Fault", ErrorKind::Io),
        ];
        for (body, kind, fate) in cases {
            let error = read(&answer(body), "X", |_| Ok(())).unwrap_err();
            assert!(is_fault(&error, &[kind]), "{error:?}");
            assert_eq!(error.kind, fate);
        }
        let bomb = "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>";
        for strange in [
            "",
            "<html><p>503</html>",
            bomb,
            &answer("<YResponse/>"),
            &answer(""),
        ] {
            let error = read(strange, "X", |_| Ok(())).unwrap_err();
            assert!(
                fault(&error).is_none() && error.kind == ErrorKind::Io,
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_reference_beside_its_xsi_type() {
        for attributes in [
            "x:type=\"ManagedObjectReference\" type=\"Folder\"",
            "type=\"Folder\" x:type=\"ManagedObjectReference\"",
        ] {
            let xml = format!("<val xmlns:x=\"{INSTANCE}\" {attributes}>group-v3</val>");
            let document = Document::parse(&xml).unwrap();
            let read = Moref::read(document.root_element());
            assert_eq!(read, Some(Moref::new("Folder", "group-v3")));
            assert_eq!(
                kind(document.root_element()),
                Some("ManagedObjectReference")
            );
        }
    }

    #[test]
    fn a_tasks_fault() {
        let xml = "<error xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><fault \
                   xsi:type=\"ApplicationQuiesceFault\"/><localizedMessage>An error occurred while \
                   quiescing the virtual machine.</localizedMessage></error>";
        let document = Document::parse(xml).unwrap();
        let fault = Fault::localized(document.root_element());
        assert_eq!(fault.kind, "ApplicationQuiesceFault");
        assert!(fault.text.starts_with("An error"));
    }

    #[test]
    fn nothing_breaks_out_of_an_element() {
        let text = "a<b>&\"c\u{0}";
        let written = element("userName", text);
        let document = Document::parse(&written).unwrap();
        assert_eq!(document.root_element().text(), Some("a<b>&\"c?"));
        let envelope = envelope(&Moref::new("A\"><x>", "1</_this>"), "Login", &written);
        assert!(Document::parse(&envelope).is_ok());
    }
}
