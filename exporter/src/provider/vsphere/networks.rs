//! The names of the networks that a VM's cards are in, where the cards tell only a key.
use super::hardware::Described;
use super::inventory::unescape;
use super::session::Session;
use crate::error::Result;
use crate::transfer::Monitor;

/// Fills the names in; a network that the user may not see keeps its key.
pub fn name(session: &Session, described: &mut Described, monitor: &dyn Monitor) -> Result<()> {
    let mut known = Vec::new();
    for network in &described.networks {
        let paths: &[&str] = match network.kind.as_str() {
            "DistributedVirtualPortgroup" => &["name", "key"],
            "OpaqueNetwork" => &["name", "summary"],
            // A card in a standard network tells its name itself.
            _ => continue,
        };
        let seen = session.look(network, paths, monitor, |found| {
            let opaque = found
                .get("summary")
                .and_then(|summary| super::soap::text(summary, "opaqueNetworkId"));
            let key = found.text("key").or(opaque).map(str::to_owned);
            Ok(key.zip(found.text("name").map(unescape)))
        });
        known.extend(seen.ok().flatten());
    }
    let nics = described.vm.machine.nics.iter_mut();
    for (nic, key) in nics.zip(&described.cards) {
        let Some(key) = key else { continue };
        let name = known.iter().find(|(known, _)| known == key);
        nic.network = Some(name.map_or(key, |(_, name)| name).clone());
    }
    Ok(())
}
