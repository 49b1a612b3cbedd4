//! Properties of managed objects, fetched page by page by the PropertyCollector.
use std::cell::RefCell;

use roxmltree::Node;

use super::session::{Effect, Session};
use super::soap::{self, Moref, element};
use crate::error::{Error, Result};
use crate::transfer::Monitor;

const PAGE: u32 = 500;
/// A server that never comes to an end.
const PAGES: usize = 10_000;

/// One object with those of its wanted properties that it has.
pub struct Found<'a, 'input> {
    pub object: Moref,
    node: Node<'a, 'input>,
}

impl<'a, 'input> Found<'a, 'input> {
    /// From an `ObjectContent`.
    pub fn read(node: Node<'a, 'input>) -> Option<Self> {
        let object = soap::child(node, "obj").and_then(Moref::read)?;
        Some(Self { object, node })
    }

    /// The value of a property.
    pub fn get(&self, path: &str) -> Option<Node<'a, 'input>> {
        soap::children(self.node, "propSet")
            .find(|set| soap::text(*set, "name") == Some(path))
            .and_then(|set| soap::child(set, "val"))
    }

    pub fn text(&self, path: &str) -> Option<&'a str> {
        self.get(path)?.text().map(str::trim)
    }

    pub fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    pub fn reference(&self, path: &str) -> Option<Moref> {
        self.get(path).and_then(Moref::read)
    }
}

/// Which properties of which type.
pub type Wanted<'a> = (&'a str, &'a [&'a str]);

impl Session {
    /// Hands the objects with their wanted properties to `each`.
    pub fn retrieve(
        &self,
        objects: &[Moref],
        wanted: &[Wanted<'_>],
        monitor: &dyn Monitor,
        mut each: impl FnMut(&Found<'_, '_>) -> Result<()>,
    ) -> Result<()> {
        let set = |object: &Moref| format!("<objectSet>{}</objectSet>", object.to_xml("obj"));
        let sets: String = objects.iter().map(set).collect();
        self.pages(&(types(wanted) + &sets), monitor, &mut each)
    }

    /// One object's wanted properties; an object that is gone is an error.
    pub fn look<T>(
        &self,
        object: &Moref,
        paths: &[&str],
        monitor: &dyn Monitor,
        take: impl Fn(&Found<'_, '_>) -> Result<T>,
    ) -> Result<T> {
        let mut taken = None;
        let objects = std::slice::from_ref(object);
        self.retrieve(objects, &[(&object.kind, paths)], monitor, |found| {
            taken = Some(take(found)?);
            Ok(())
        })
        .map_err(|mut error| {
            if soap::fault(&error).is_some_and(|fault| fault.kind == "ManagedObjectNotFound") {
                error.context = format!("look at {} {}", object.kind, object.id);
            }
            error
        })?;
        taken.ok_or_else(|| {
            Error::invalid(format!("the server tells nothing of {}", object.id))
                .with_remedy("give the user read access to it")
        })
    }

    /// Hands every object of the wanted types, wherever in the inventory, to `each`.
    pub fn list(
        &self,
        wanted: &[Wanted<'_>],
        monitor: &dyn Monitor,
        mut each: impl FnMut(&Found<'_, '_>) -> Result<()>,
    ) -> Result<()> {
        let views =
            self.content.views.as_ref().ok_or_else(|| {
                Error::invalid("the server has no views, and so no list of its VMs")
            })?;
        let kinds: String = wanted
            .iter()
            .map(|(kind, _)| element("type", kind))
            .collect();
        let arguments = format!(
            "{}{kinds}<recursive>true</recursive>",
            self.content.root.to_xml("container")
        );
        let method = "CreateContainerView";
        let view = self.call(views, method, &arguments, Effect::None, monitor, returned)?;
        let set = format!(
            "<objectSet>{}<skip>true</skip><selectSet xsi:type=\"TraversalSpec\"><name>view</name>\
             <type>ContainerView</type><path>view</path><skip>false</skip></selectSet></objectSet>",
            view.to_xml("obj")
        );
        let listed = self.pages(&(types(wanted) + &set), monitor, &mut each);
        // It ends with the session anyway.
        let _ = self.call(&view, "DestroyView", "", Effect::Once, monitor, |_| Ok(()));
        listed
    }

    fn pages(
        &self,
        specification: &str,
        monitor: &dyn Monitor,
        each: &mut dyn FnMut(&Found<'_, '_>) -> Result<()>,
    ) -> Result<()> {
        let each = RefCell::new(each);
        let page = |node: Node<'_, '_>| -> Result<Option<String>> {
            let Some(returned) = soap::child(node, "returnval") else {
                return Ok(None);
            };
            for node in soap::children(returned, "objects") {
                if let Some(found) = Found::read(node) {
                    (each.borrow_mut())(&found)?;
                }
            }
            Ok(soap::text(returned, "token").map(str::to_owned))
        };
        let collector = &self.content.properties;
        let options = format!("<options><maxObjects>{PAGE}</maxObjects></options>");
        let arguments = format!("<specSet>{specification}</specSet>{options}");
        let method = "RetrievePropertiesEx";
        let mut token = self.call(collector, method, &arguments, Effect::None, monitor, page)?;
        for _ in 0..PAGES {
            let Some(next) = token else {
                return Ok(());
            };
            let method = "ContinueRetrievePropertiesEx";
            let arguments = element("token", &next);
            token = self.call(collector, method, &arguments, Effect::None, monitor, page)?;
        }
        Err(Error::invalid("the server's list of objects has no end"))
    }
}

/// The reference that a method returns.
pub fn returned(node: Node<'_, '_>) -> Result<Moref> {
    soap::child(node, "returnval")
        .and_then(Moref::read)
        .ok_or_else(|| Error::invalid("the server returned nothing"))
}

fn types(wanted: &[Wanted<'_>]) -> String {
    let set = |(kind, paths): &Wanted<'_>| {
        let paths: String = paths.iter().map(|path| element("pathSet", path)).collect();
        format!("<propSet>{}{paths}</propSet>", element("type", kind))
    };
    wanted.iter().map(set).collect()
}
