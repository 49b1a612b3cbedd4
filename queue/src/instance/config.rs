//! The configuration of one instance: TOML, unknown keys refused, errors with file, line and key.
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::Result;
use crate::instance::text::Text;

/// 1 TiB.
const MAX_CHECKPOINT_MIB: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub watch_dir: Option<PathBuf>,
    pub output_dir: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    /// Directories beneath which absolute paths in manifests may lie; the queue always is one.
    pub source_roots: Vec<PathBuf>,
    pub max_concurrent_jobs: u32,
    /// Stillness that makes a file whole which was written in place; 10 on network file systems.
    pub settle_seconds: Option<u64>,
    /// Seconds without growth after which an incomplete drop fails as truncated.
    pub incomplete_timeout: u64,
    pub rescan_seconds: u64,
    /// `qcow2` or `raw`.
    pub out_format: OutFormat,
    #[serde(deserialize_with = "compress")]
    pub compress: Compress,
    pub compress_level: Option<u32>,
    /// With zlib: no stream of the source is carried over, for readers that insist on the 4 KiB
    /// window of the qcow2 specification.
    pub strict_window: bool,
    /// Whether the checksums of manifests and `.mf` files are verified.
    pub checksum: bool,
    /// Whether a content digest is computed even of data that is shared by reflink.
    pub digest: Digest,
    pub on_conflict: OnConflict,
    pub archive: Archive,
    /// Worker crashes after which a job fails, counted since one got further than all before.
    pub max_attempts: u32,
    /// MiB of work after which a conversion notes durably how far it is; 0: never.
    pub checkpoint_mib: u64,
    pub retry: Retry,
    pub guest: Guest,
    pub libvirt: Libvirt,
    pub notify: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutFormat {
    #[default]
    Qcow2,
    Raw,
}

impl OutFormat {
    /// Also the extension of the result.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    #[default]
    None,
    Zlib,
    Zstd,
}

/// When the content digest of a result is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Digest {
    /// Unless data need not be read, because it goes over by reflink.
    #[default]
    Auto,
    Always,
}

/// What happens when a result of the same VM name is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    #[default]
    Replace,
    Reject,
}

/// What happens to a source in the queue once its result is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Archive {
    #[default]
    Keep,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    pub max_retries: u32,
    /// Seconds before the first retry.
    pub retry_delay: u64,
    pub backoff_multiplier: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestFix {
    Off,
    #[default]
    Try,
    Require,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FstabMode {
    #[default]
    StabilizeAll,
    BypathOnly,
    Noop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootCheck {
    #[default]
    Off,
    Try,
    Require,
}

/// How the appliance and the boot check run: `auto` tries KVM and falls back to emulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    #[default]
    Auto,
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    pub fix: GuestFix,
    pub fstab_mode: FstabMode,
    pub regen_initramfs: bool,
    pub update_grub: bool,
    pub fix_network: bool,
    pub remove_vmware_tools: bool,
    /// A virtio-win ISO or directory.
    pub win_virtio: Option<PathBuf>,
    pub boot_check: BootCheck,
    pub accel: Accel,
    /// Seconds that one guest's repair may take; the appliance's launch has 60 to 300 of its own.
    pub repair_timeout: u64,
    /// Seconds that the boot check waits under KVM; four times as many under emulation.
    pub boot_timeout: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Libvirt {
    pub emit_domain_xml: bool,
    pub define: bool,
    pub uri: String,
    pub network: String,
    /// MiB; where the source does not say.
    pub vm_memory: Option<u64>,
    pub vm_vcpus: Option<u32>,
    pub vm_uefi: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    pub webhook_url: Option<String>,
    pub on_complete: bool,
    pub on_failure: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            watch_dir: None,
            output_dir: None,
            work_dir: None,
            source_roots: Vec::new(),
            max_concurrent_jobs: 1,
            settle_seconds: None,
            incomplete_timeout: 3600,
            rescan_seconds: 30,
            out_format: OutFormat::Qcow2,
            compress: Compress::None,
            compress_level: None,
            strict_window: false,
            checksum: true,
            digest: Digest::Auto,
            on_conflict: OnConflict::Replace,
            archive: Archive::Keep,
            max_attempts: 3,
            checkpoint_mib: 256,
            retry: Retry::default(),
            guest: Guest::default(),
            libvirt: Libvirt::default(),
            notify: Notify::default(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_retries: 3,
            retry_delay: 300,
            backoff_multiplier: 2.0,
        }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            fix: GuestFix::Try,
            fstab_mode: FstabMode::StabilizeAll,
            regen_initramfs: true,
            update_grub: true,
            fix_network: true,
            remove_vmware_tools: true,
            win_virtio: None,
            boot_check: BootCheck::Off,
            accel: Accel::Auto,
            repair_timeout: 1800,
            boot_timeout: 300,
        }
    }
}

impl Default for Libvirt {
    fn default() -> Self {
        Self {
            emit_domain_xml: true,
            define: false,
            uri: "qemu:///system".to_owned(),
            network: "default".to_owned(),
            vm_memory: None,
            vm_vcpus: None,
            vm_uefi: None,
        }
    }
}

fn compress<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Compress, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "`compress` is none, zlib, zstd, true or false")]
    enum Either {
        Flag(bool),
        Method(Compress),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Flag(true) => Compress::Zlib,
        Either::Flag(false) => Compress::None,
        Either::Method(method) => method,
    })
}

impl Retry {
    /// `text` is what it was read from.
    pub fn check(&self, text: &Text<'_>) -> Result<()> {
        if (1.0..=100.0).contains(&self.backoff_multiplier) {
            return Ok(());
        }
        Err(text.refuse("backoff_multiplier", "is not between 1 and 100"))
    }
}

impl Config {
    /// Parses the text of the file at `path`, which is named in every error.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let text = Text {
            text,
            path,
            program: "hyper2kvm",
        };
        let config: Self = text.parse()?;
        config.check(&text)?;
        Ok(config)
    }

    fn check(&self, text: &Text<'_>) -> Result<()> {
        let refuse = |key: &str, what: &str| Err(text.refuse(key, what));
        for (key, dir) in [
            ("watch_dir", &self.watch_dir),
            ("output_dir", &self.output_dir),
            ("work_dir", &self.work_dir),
        ] {
            if dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
                return refuse(key, "is not an absolute path");
            }
        }
        if self.source_roots.iter().any(|dir| !dir.is_absolute()) {
            return refuse("source_roots", "holds a path that is not absolute");
        }
        if !(1..=64).contains(&self.max_concurrent_jobs) {
            return refuse("max_concurrent_jobs", "is not between 1 and 64");
        }
        if !(1..=86_400).contains(&self.rescan_seconds) {
            return refuse("rescan_seconds", "is not between 1 and 86400");
        }
        if self.settle_seconds.is_some_and(|seconds| seconds > 3600) {
            return refuse("settle_seconds", "is more than 3600");
        }
        for (key, seconds) in [
            ("repair_timeout", self.guest.repair_timeout),
            ("boot_timeout", self.guest.boot_timeout),
        ] {
            if !(1..=86_400).contains(&seconds) {
                return refuse(key, "is not between 1 and 86400");
            }
        }
        if self.max_attempts == 0 {
            return refuse("max_attempts", "is 0");
        }
        if self.checkpoint_mib > MAX_CHECKPOINT_MIB {
            return refuse("checkpoint_mib", "is more than 1048576");
        }
        self.retry.check(text)?;
        let highest = if self.compress == Compress::Zstd {
            19
        } else {
            12
        };
        if self.compress_level.is_some_and(|level| level > highest) {
            return refuse("compress_level", &format!("is more than {highest}"));
        }
        if self.libvirt.define && !self.libvirt.emit_domain_xml {
            return refuse("define", "needs emit_domain_xml = true");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_page_lists() {
        let config = Config::parse(
            "compress = true\nmax_concurrent_jobs = 4\n[guest]\nfix = \"off\"\n",
            Path::new("x.toml"),
        )
        .unwrap();
        assert_eq!(config.compress, Compress::Zlib);
        assert_eq!(config.guest.fix, GuestFix::Off);
        assert_eq!(
            Config::parse("", Path::new("x.toml")).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn names_file_line_and_key() {
        for (text, line, key) in [
            ("a = 1\n", 1, "a"),
            ("\nrescan_seconds = \"x\"\n", 2, "rescan_seconds"),
            ("\n\n[retry]\nmax_retries = -1\n", 4, "max_retries"),
            ("compress = \"lzma\"\n", 1, "compress"),
            ("# c\nwatch_dir = \"relative\"\n", 2, "watch_dir"),
            ("max_concurrent_jobs = 0\n", 1, "max_concurrent_jobs"),
            (
                "[libvirt]\nemit_domain_xml = false\ndefine = true\n",
                3,
                "define",
            ),
        ] {
            let message = Config::parse(text, Path::new("/etc/x.toml"))
                .unwrap_err()
                .to_string();
            assert!(
                message.starts_with(&format!("/etc/x.toml, line {line}, key {key}")),
                "{message}"
            );
        }
    }
}
