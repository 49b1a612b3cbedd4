//! SELinux: files written from outside carry no label, or the wrong one, until a relabel.
use super::edit::{decode, refusal};
use super::shell::value;

/// The kernel's policy loader looks for this file at the next boot.
pub const RELABEL: &str = "/.autorelabel";

/// Whether /etc/selinux/config says that the policy is enforced.
pub fn is_enforcing(config: &[u8]) -> bool {
    refusal(config).is_none() && value(&decode(config), "SELINUX") == Some("enforcing")
}
