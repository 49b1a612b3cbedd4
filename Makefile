# hyper2kvm. `make demo` and `make test` set up what they need on a fresh Debian 12.
#
#   build    the programs, optimised, in target/release
#   check    format, lints, house style
#   test     installs what the tests need (as root, or by sudo), then runs all of them
#   demo     one disk through a daemon of your own, without root or systemd
#   bench    speed, latency and load, written to BENCHMARKS.md; ROWS="raw xfs": only those, printed
#   fuzz     one target per parser of what comes from outside, with CASES cases each
#   install  programs, units, documents below $(DESTDIR)$(PREFIX)
#   clean    removes what was built
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: build check test demo bench fuzz install clean rust

DESTDIR ?=
PREFIX ?= /usr
CARGO ?= cargo
CASES ?= 1000000
# Rows of the bench, else all; a directory that keeps the disks it converts.
ROWS ?=
INPUTS ?=
# The longest that all tests together may take.
TEST_LIMIT ?= 40m
# Programs that are built already: install then builds nothing.
BIN_DIR ?=

export PATH := $(PATH):$(HOME)/.cargo/bin
# A test that fails tells why, not from where, unless asked: make test RUST_BACKTRACE=1.
export RUST_BACKTRACE := 0
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS := hyper2kvm hyperctl hyperexport hypervisord
PACKAGES := -p hyper2kvm -p hyperctl -p hyper2kvm-exporter
DOCUMENTS := $(wildcard README.md ARCHITECTURE.md CHANGELOG.md LICENSE)
# nextest gives each test a process and a time limit of its own; without it cargo does.
RUNNER = $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest run || echo test)

rust:
	tests/setup/rust.sh

build: rust
	$(CARGO) build --release --locked $(PACKAGES)

check: rust
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --locked -q -p hyper2kvm-tests --test tidy

test: rust
	tests/setup/packages.sh test
	tests/setup/root.sh >/dev/null
	for guest in plain lvm btrfs; do tests/setup/guest.sh $$guest >/dev/null; done
	$(CARGO) build --workspace --locked
	timeout --kill-after=10 $(TEST_LIMIT) \
	  $(CARGO) $(RUNNER) --workspace --locked --no-fail-fast </dev/null

demo: build
	tests/setup/packages.sh demo
	examples/demo.sh $(TARGET_DIR)/release

bench: rust
	tests/setup/packages.sh bench
	$(CARGO) build --release --locked $(PACKAGES)
	$(CARGO) run --release --locked -p hyper2kvm-tests --bin bench -- \
	  $(if $(INPUTS),--inputs $(INPUTS)) $(ROWS)

# Optimised, yet with the checks of a debug build: an overflow is a finding.
fuzz: export PROPTEST_CASES = $(CASES)
fuzz: export CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS = true
fuzz: export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS = true
fuzz: rust
	$(CARGO) test --release --locked -p hyper2kvm-tests --test fuzz -- --nocapture
	$(CARGO) test --release --locked -p hyper2kvm-exporter --lib -- vmx::

install: BIN = $(or $(BIN_DIR),$(TARGET_DIR)/release)
install: SHARE = $(DESTDIR)$(PREFIX)/share/doc/hyper2kvm
install: LIB = $(DESTDIR)$(PREFIX)/lib
install: $(if $(BIN_DIR),,build)
	install -d $(DESTDIR)$(PREFIX)/bin $(LIB)/systemd/system $(LIB)/sysusers.d $(LIB)/tmpfiles.d
	install -d $(SHARE)/examples
	install -m 0755 $(PROGRAMS:%=$(BIN)/%) $(DESTDIR)$(PREFIX)/bin
	for unit in units/systemd/*; do \
	  sed 's|/usr/bin/hyper|$(PREFIX)/bin/hyper|; s|/usr/share/doc/|$(PREFIX)/share/doc/|' "$$unit" \
	    | install -m 0644 /dev/stdin "$(LIB)/systemd/system/$${unit##*/}"; \
	done
	install -m 0644 units/sysusers.d/* $(LIB)/sysusers.d
	install -m 0644 units/tmpfiles.d/* $(LIB)/tmpfiles.d
	install -m 0644 $(DOCUMENTS) $(SHARE)
	install -m 0644 examples/*.toml examples/*.json $(SHARE)/examples
ifeq ($(DESTDIR),)
	@echo 'next: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload'
	@echo 'then: systemctl enable --now hyper2kvm.service hyper2kvm.target'
endif

clean:
	$(CARGO) clean
