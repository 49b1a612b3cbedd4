//! What a starting guest prints that tells how it went. Pure: a console's text in, a sign out.

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// It asks who logs in.
    Up(String),
    /// It stopped for good.
    Stuck(String),
}

/// What initramfs tools, kernels and boot loaders print when they give up.
const STUCK: [&str; 10] = [
    "ALERT!",
    "Kernel panic - not syncing",
    "VFS: Unable to mount root fs",
    "You are in emergency mode",
    "Entering emergency mode",
    "Press Enter for emergency shell",
    "(initramfs)",
    "grub rescue>",
    "No bootable device",
    "BdsDxe: No bootable option",
];

/// How the text ends: a guest that goes on after a complaint is up; of the complaints that nothing
/// followed, the first is the cause.
pub fn sign(text: &str) -> Option<Sign> {
    let mut found = None;
    for line in text.lines() {
        let line = plain(line);
        let shown = line.trim();
        if is_prompt(shown) {
            found = Some(Sign::Up(shown.to_owned()));
        } else if !matches!(found, Some(Sign::Stuck(_)))
            && STUCK.iter().any(|known| shown.contains(known))
        {
            found = Some(Sign::Stuck(shown.to_owned()));
        }
    }
    found
}

/// `host login:` as getty prints it, with nothing typed behind it.
fn is_prompt(line: &str) -> bool {
    let host = line.strip_suffix("login:").map(str::trim_end);
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    host.is_some_and(|host| !host.is_empty() && host.chars().all(is_host))
}

/// A line without control characters and terminals' escape sequences (ECMA-48).
fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            if characters.next() == Some('[') {
                let is_final = |c: &char| ('@'..='~').contains(c);
                characters.by_ref().find(is_final);
            }
        } else if !c.is_control() {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_told_from_talk() {
        let up = |line: &str| Some(Sign::Up(line.to_owned()));
        let stuck = |line: &str| Some(Sign::Stuck(line.to_owned()));
        for (text, expected) in [
            (
                "Debian GNU/Linux 12 web ttyS0\r\n\r\nweb login: ",
                up("web login:"),
            ),
            ("\u{1b}[0;1;39mweb login:\u{1b}[0m", up("web login:")),
            ("last login: never\nweb login: root", None),
            ("Failed to log in: x login:", None),
            (" login:", None),
            (
                "ALERT!  /dev/sda1 does not exist.  Dropping to a shell!\n",
                stuck("ALERT!  /dev/sda1 does not exist.  Dropping to a shell!"),
            ),
            (
                "[ 2.0] Kernel panic - not syncing: VFS",
                stuck("[ 2.0] Kernel panic - not syncing: VFS"),
            ),
            ("grub rescue> \nweb login:", up("web login:")),
            (
                "web login:\nALERT!  no root\n(initramfs) ",
                stuck("ALERT!  no root"),
            ),
            ("", None),
        ] {
            assert_eq!(sign(text), expected, "{text:?}");
        }
    }
}
