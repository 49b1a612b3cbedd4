#!/bin/sh
# Makes sure that a Rust toolchain is there which is new enough for this workspace, with clippy and
# rustfmt. Debian 12's own rustc is too old; its security updates bring a current one, rustc-web.
set -eu
cd "$(dirname "$0")/../.."
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

is_current() {
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2) || return 1
    [ -n "$have" ] && [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n1)" = "$wanted" ]
}

is_complete() {
    is_current && cargo --version && cargo clippy --version && cargo fmt --version && cc --version
}

is_complete >/dev/null 2>&1 && exit 0
if is_current && command -v rustup >/dev/null; then
    rustup component add clippy rustfmt
else
    as_root=$([ "$(id -u)" = 0 ] || echo sudo)
    $as_root apt-get update
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y --no-install-recommends \
        gcc libc6-dev make rustc-web cargo-web rustfmt-web rust-web-clippy ||
        echo "rust.sh: apt has no rustc-web, cargo-web, rustfmt-web and rust-web-clippy" >&2
fi
is_complete >/dev/null && exit 0
echo "rust.sh: Rust $wanted or newer with clippy, rustfmt and a C compiler is needed;" \
    "install it from https://rustup.rs and run this again" >&2
exit 1
