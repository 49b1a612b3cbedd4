//! `hyperctl daemon -op status -instance N`: long flags with one dash, as users type them.
use std::ffi::{OsStr, OsString};

/// The long flags of `daemon` that are accepted with one dash too.
const DAEMON_FLAGS: [&str; 6] = ["op", "instance", "watch-dir", "output-dir", "json", "help"];

/// Gives the known long flags of the `daemon` command their second dash; nothing else changes.
pub fn normalise(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut argv: Vec<OsString> = argv.into_iter().collect();
    if argv.get(1).is_none_or(|command| command != "daemon") {
        return argv;
    }
    for argument in argv.iter_mut().skip(2) {
        if argument == "--" {
            break;
        }
        if has_one_dash(argument) {
            let mut doubled = OsString::from("-");
            doubled.push(&argument);
            *argument = doubled;
        }
    }
    argv
}

fn has_one_dash(argument: &OsStr) -> bool {
    argument
        .to_str()
        .and_then(|text| text.strip_prefix('-'))
        .map(|flag| flag.split_once('=').map_or(flag, |(name, _)| name))
        .is_some_and(|name| DAEMON_FLAGS.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_flags_of_daemon_get_a_dash() {
        for (typed, meant) in [
            ("daemon -op status", "daemon --op status"),
            ("daemon --op status", "daemon --op status"),
            ("daemon -op=list", "daemon --op=list"),
            ("daemon status", "daemon status"),
            (
                "daemon -op status -instance vsphere-prod",
                "daemon --op status --instance vsphere-prod",
            ),
            (
                "daemon -instance=a -op list",
                "daemon --instance=a --op list",
            ),
            ("daemon list -json", "daemon list --json"),
            ("daemon -h", "daemon -h"),
            ("daemon -help", "daemon --help"),
            ("daemon -opx status", "daemon -opx status"),
            ("daemon -o status", "daemon -o status"),
            ("daemon - op", "daemon - op"),
            ("daemon -- -op", "daemon -- -op"),
            ("list -instance a", "list -instance a"),
            ("status --vm daemon -op", "status --vm daemon -op"),
            ("", ""),
        ] {
            let argv = std::iter::once("hyperctl")
                .chain(typed.split_whitespace())
                .map(OsString::from);
            let expected: Vec<OsString> = std::iter::once("hyperctl")
                .chain(meant.split_whitespace())
                .map(OsString::from)
                .collect();
            assert_eq!(normalise(argv), expected, "{typed}");
        }
    }
}
