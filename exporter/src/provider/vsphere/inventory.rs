//! Which VM is meant: by name, inventory path, folder, glob, UUID or managed object id.
use std::collections::BTreeMap;

use super::properties::Found;
use super::session::{Effect, Session};
use super::soap::{self, Moref, element};
use crate::error::{Error, Result};
use crate::machine::{Power, Summary};
use crate::transfer::Monitor;

const VM: &str = "VirtualMachine";
const VM_PROPERTIES: [&str; 10] = [
    "name",
    "parent",
    "parentVApp",
    "runtime.powerState",
    "summary.config.uuid",
    "summary.config.instanceUuid",
    "summary.config.numCpu",
    "summary.config.memorySizeMB",
    "summary.config.guestFullName",
    "summary.config.template",
];
const MAX_DEPTH: usize = 64;
/// Of a list of several VMs in an error.
const SHOWN: usize = 10;

/// A VM, a folder, a datacenter or a vApp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: String,
    pub name: String,
    pub parent: Option<String>,
}

/// A VM of the inventory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub summary: Summary,
    pub uuids: Vec<String>,
    pub datacenter: Option<String>,
}

/// What the whole inventory holds, by managed object id.
#[derive(Debug, Default)]
pub struct Inventory {
    nodes: BTreeMap<String, Node>,
    vms: BTreeMap<String, Entry>,
}

impl Inventory {
    pub fn read(session: &Session, monitor: &dyn Monitor) -> Result<Self> {
        let mut inventory = Self::default();
        let wanted: [(&str, &[&str]); 4] = [
            (VM, &VM_PROPERTIES),
            ("Folder", &["name", "parent"]),
            ("Datacenter", &["name", "parent"]),
            ("VirtualApp", &["name", "parentFolder"]),
        ];
        session.list(&wanted, monitor, |found| {
            inventory.insert(found);
            Ok(())
        })?;
        Ok(inventory)
    }

    fn insert(&mut self, found: &Found<'_, '_>) {
        let id = found.object.id.clone();
        self.nodes.insert(id.clone(), node(found));
        if found.object.kind == VM {
            self.vms.insert(id, entry(found));
        }
    }

    /// The VMs that `pattern` means, in the order of their paths.
    pub fn find(&self, pattern: &str) -> Vec<Entry> {
        let mut best = Rank::Nothing;
        let mut found = Vec::new();
        for (id, entry) in &self.vms {
            let (path, datacenter) = path(&self.nodes, id);
            let mut entry = entry.clone();
            let rank = rank(pattern, &entry, &path);
            if rank < best {
                continue;
            }
            if rank > best {
                found.clear();
                best = rank;
            }
            if rank > Rank::Nothing {
                entry.summary.location = Some(path);
                entry.datacenter = datacenter;
                found.push(entry);
            }
        }
        found.sort_by(|a, b| a.summary.location.cmp(&b.summary.location));
        found
    }
}

/// How a pattern fits; of several VMs those that fit best are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Nothing,
    Pattern,
    Name,
    Path,
    Uuid,
    Id,
}

fn rank(pattern: &str, entry: &Entry, path: &str) -> Rank {
    let trimmed = pattern.trim_matches('/');
    let inside = path.trim_start_matches('/');
    let lower = pattern.to_ascii_lowercase();
    let is_path = pattern.contains('/');
    let subject = if is_path {
        inside
    } else {
        entry.summary.name.as_str()
    };
    if entry.summary.id == pattern {
        Rank::Id
    } else if entry.uuids.contains(&lower) {
        Rank::Uuid
    } else if is_path && (inside == trimmed || below_datacenter(inside) == Some(trimmed)) {
        Rank::Path
    } else if entry.summary.name == pattern {
        Rank::Name
    } else if pattern.is_empty()
        || is_glob(pattern) && (glob(trimmed, subject) || is_path && below_fits(trimmed, inside))
        || is_path && is_in_folder(trimmed, inside)
    {
        Rank::Pattern
    } else {
        Rank::Nothing
    }
}

/// `folder/vm` of `datacenter/vm/folder/vm`.
fn below_datacenter(path: &str) -> Option<&str> {
    path.split_once("/vm/").map(|(_, below)| below)
}

fn below_fits(pattern: &str, path: &str) -> bool {
    below_datacenter(path).is_some_and(|below| glob(pattern, below))
}

fn is_in_folder(folder: &str, path: &str) -> bool {
    let is_below = |path: &str| {
        path.strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    is_below(path) || below_datacenter(path).is_some_and(is_below)
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

/// `*` is any text, `?` any character.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last star does not fit.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || text.get(t) == Some(c) => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else {
                    return false;
                };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

fn node(found: &Found<'_, '_>) -> Node {
    let parent = ["parent", "parentVApp", "parentFolder"]
        .iter()
        .find_map(|name| found.reference(name));
    Node {
        kind: found.object.kind.clone(),
        name: found.text("name").unwrap_or_default().to_owned(),
        parent: parent.map(|parent| parent.id),
    }
}

fn entry(found: &Found<'_, '_>) -> Entry {
    let uuids = ["summary.config.instanceUuid", "summary.config.uuid"];
    let memory: Option<u64> = found.number("summary.config.memorySizeMB");
    Entry {
        summary: Summary {
            name: unescape(found.text("name").unwrap_or_default()),
            id: found.object.id.clone(),
            location: None,
            power: power(found.text("runtime.powerState")),
            cpus: found.number("summary.config.numCpu"),
            memory_bytes: memory.map(|mib| mib << 20),
            guest_os: found
                .text("summary.config.guestFullName")
                .map(str::to_owned),
        },
        uuids: uuids
            .iter()
            .filter_map(|path| found.text(path))
            .map(str::to_ascii_lowercase)
            .collect(),
        datacenter: None,
    }
}

pub fn power(state: Option<&str>) -> Power {
    match state {
        Some("poweredOn") => Power::On,
        Some("poweredOff") => Power::Off,
        Some("suspended") => Power::Suspended,
        _ => Power::Unknown,
    }
}

/// The API escapes these three in names, as paths are made of them.
pub fn unescape(name: &str) -> String {
    [
        ("%2f", "/"),
        ("%2F", "/"),
        ("%5c", "\\"),
        ("%5C", "\\"),
        ("%25", "%"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The path of an object, and the name of its datacenter.
fn path(nodes: &BTreeMap<String, Node>, id: &str) -> (String, Option<String>) {
    let mut names = Vec::new();
    let mut datacenter = None;
    let mut next = nodes.get(id);
    while let Some(node) = next {
        if names.len() >= MAX_DEPTH {
            break;
        }
        if node.kind == "Datacenter" {
            datacenter = Some(unescape(&node.name));
        }
        names.push(node.name.as_str());
        next = node.parent.as_ref().and_then(|parent| nodes.get(parent));
    }
    names.reverse();
    (format!("/{}", names.join("/")), datacenter)
}

/// The path and the datacenter of one VM, asked for step by step.
pub fn locate(
    session: &Session,
    vm: &Moref,
    monitor: &dyn Monitor,
) -> Result<(String, Option<String>)> {
    let mut nodes = BTreeMap::new();
    let mut next = Some(vm.clone());
    while let Some(object) = next {
        if object == session.content.root || nodes.len() >= MAX_DEPTH {
            break;
        }
        let paths: &[&str] = match object.kind.as_str() {
            VM => &["name", "parent", "parentVApp"],
            "VirtualApp" => &["name", "parentFolder"],
            _ => &["name", "parent"],
        };
        let (found, parent) = session.look(&object, paths, monitor, |found| {
            let parents = ["parent", "parentVApp", "parentFolder"];
            let parent = parents.iter().find_map(|name| found.reference(name));
            Ok((node(found), parent))
        })?;
        nodes.insert(object.id, found);
        next = parent;
    }
    Ok(path(&nodes, &vm.id))
}

/// The one VM that `vm` means. Ids, UUIDs and whole paths are asked for directly; anything else
/// is looked for in the whole inventory.
pub fn resolve(session: &Session, vm: &str, monitor: &dyn Monitor) -> Result<Moref> {
    if let Some(found) = direct(session, vm, monitor)? {
        return Ok(found);
    }
    let found = if vm.is_empty() {
        Vec::new()
    } else {
        Inventory::read(session, monitor)?.find(vm)
    };
    match found.as_slice() {
        [entry] => Ok(Moref::new(VM, &entry.summary.id)),
        [] => Err(Error::invalid(format!("there is no VM {vm:?}"))
            .with_remedy("see hyperexport --list for the VMs that this user may see")),
        several => {
            let line = |entry: &Entry| {
                let summary = &entry.summary;
                let path = summary.location.as_deref().unwrap_or(&summary.name);
                format!("{path} ({})", summary.id)
            };
            let mut lines: Vec<String> = several.iter().take(SHOWN).map(line).collect();
            if several.len() > SHOWN {
                lines.push(format!("{} more", several.len() - SHOWN));
            }
            let (count, list) = (several.len(), lines.join(", "));
            Err(Error::invalid(format!("{vm:?} means {count} VMs: {list}"))
                .with_remedy("name one of them by its path or its id"))
        }
    }
}

/// What the server finds by itself. A search that it does not have, or that the user may not use,
/// finds nothing.
fn direct(session: &Session, vm: &str, monitor: &dyn Monitor) -> Result<Option<Moref>> {
    match search(session, vm, monitor) {
        Err(error) if soap::fault(&error).is_some() => Ok(None),
        found => found,
    }
}

fn search(session: &Session, vm: &str, monitor: &dyn Monitor) -> Result<Option<Moref>> {
    if vm
        .strip_prefix("vm-")
        .is_some_and(|number| number.parse::<u32>().is_ok())
    {
        let object = Moref::new(VM, vm);
        session.look(&object, &["name"], monitor, |_| Ok(()))?;
        return Ok(Some(object));
    }
    let Some(search) = &session.content.search else {
        return Ok(None);
    };
    if is_uuid(vm) {
        for instance in ["true", "false"] {
            let arguments = format!(
                "{}<vmSearch>true</vmSearch><instanceUuid>{instance}</instanceUuid>",
                element("uuid", vm)
            );
            let several = session.call(
                search,
                "FindAllByUuid",
                &arguments,
                Effect::None,
                monitor,
                all,
            )?;
            // Of several, the inventory tells which they are.
            if let [one] = several.as_slice() {
                return Ok(Some(one.clone()));
            }
        }
        return Ok(None);
    }
    if vm.starts_with('/') && !is_glob(vm) {
        let arguments = element("inventoryPath", vm.trim_start_matches('/'));
        let method = "FindByInventoryPath";
        let found = session.call(search, method, &arguments, Effect::None, monitor, all)?;
        return Ok(found.into_iter().find(|object| object.kind == VM));
    }
    Ok(None)
}

fn all(node: roxmltree::Node<'_, '_>) -> Result<Vec<Moref>> {
    Ok(soap::children(node, "returnval")
        .filter_map(Moref::read)
        .collect())
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    let is_hex = text
        .bytes()
        .all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    is_hex && parts == [8, 4, 4, 4, 12]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory() -> Inventory {
        let mut inventory = Inventory::default();
        let mut put = |id: &str, kind: &str, name: &str, parent: &str| {
            let node = Node {
                kind: kind.to_owned(),
                name: name.to_owned(),
                parent: Some(parent.to_owned()),
            };
            inventory.nodes.insert(id.to_owned(), node);
            if kind == VM {
                let mut entry = Entry::default();
                entry.summary.id = id.to_owned();
                entry.summary.name = unescape(name);
                entry.uuids = vec![format!("4210aaaa-0000-0000-0000-{:0>12}", &id[3..])];
                inventory.vms.insert(id.to_owned(), entry);
            }
        };
        put("datacenter-2", "Datacenter", "DC", "group-d1");
        put("group-v3", "Folder", "vm", "datacenter-2");
        put("group-v4", "Folder", "prod", "group-v3");
        put("vm-10", VM, "web-01", "group-v4");
        put("vm-11", VM, "web-02", "group-v4");
        put("vm-12", VM, "web-01", "group-v3");
        put("vm-13", VM, "a%2fb", "group-v3");
        // A loop must not hold anybody up.
        put("group-v9", "Folder", "loop", "group-v9");
        put("vm-14", VM, "lost", "group-v9");
        inventory
    }

    #[test]
    fn a_pattern_means_what_fits_it_best() {
        let inventory = inventory();
        for (pattern, ids) in [
            ("web-01", &["vm-10", "vm-12"][..]),
            ("web-02", &["vm-11"]),
            ("/DC/vm/prod/web-01", &["vm-10"]),
            ("DC/vm/web-01", &["vm-12"]),
            ("prod/web-01", &["vm-10"]),
            ("prod/", &["vm-10", "vm-11"]),
            ("/DC/vm/prod", &["vm-10", "vm-11"]),
            ("web-*", &["vm-10", "vm-11", "vm-12"]),
            ("*/prod/web-0?", &["vm-10", "vm-11"]),
            ("WEB-01", &[]),
            ("vm-11", &["vm-11"]),
            ("4210AAAA-0000-0000-0000-000000000012", &["vm-12"]),
            ("a/b", &["vm-13"]),
            ("nothing", &[]),
        ] {
            let found = inventory.find(pattern);
            let found: Vec<&str> = found
                .iter()
                .map(|entry| entry.summary.id.as_str())
                .collect();
            let mut sorted = found.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, ids, "{pattern}");
        }
        assert_eq!(inventory.find("").len(), 5);
        let entry = inventory.find("web-02").remove(0);
        assert_eq!(
            entry.summary.location.as_deref(),
            Some("/DC/vm/prod/web-02")
        );
        assert_eq!(entry.datacenter.as_deref(), Some("DC"));
    }

    #[test]
    fn globs() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*b*c", "aXbYbc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a", "b", false),
            ("", "a", false),
            ("**x**", "yxy", true),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }
}
