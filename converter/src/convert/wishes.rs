//! What a manifest asks for beyond its disks: it overrides the configuration, within its bounds.
use std::path::Path;

use queue::instance::config::{Compress, Config, FstabMode, Guest, GuestFix, OutFormat};
use queue::job::pipeline::{FixStage, Pipeline};
use queue::job::{Manifest, VmName};
use queue::roots::is_plain;

use super::Plan;
use super::examine::Care;
use super::metadata::Origin;
use crate::error::{Error, ErrorKind, Result};

/// How a job is to be done: the configuration, and what its manifest makes of it.
#[derive(Debug)]
pub struct Wishes {
    pub plan: Plan,
    /// What is done to the guest.
    pub guest: Guest,
    /// Whether the result is read again and compared before it is published.
    pub validate: bool,
    /// The first disk's file name, if the manifest chooses one.
    pub first_file: Option<String>,
    pub origin: Origin,
    /// What was read over, for the record.
    pub notes: Vec<String>,
}

/// What the configuration asks for and this version passes over, for whoever starts or checks it.
pub fn not_heeded(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |asked: bool, key: &str, what: &str| {
        if asked {
            lines.push(format!("{key} has no effect: this version does not {what}"));
        }
    };
    let driver = config.guest.win_virtio.is_some();
    add(driver, "guest.win_virtio", "repair Windows guests");
    let webhook = config.notify.webhook_url.is_some();
    add(webhook, "notify.webhook_url", "call webhooks");
    lines
}

impl Wishes {
    /// What the configuration alone says.
    pub fn of_config(config: &Config) -> Self {
        Self {
            plan: Plan {
                format: config.out_format,
                compress: config.compress,
                compress_level: config.compress_level,
                strict_window: config.strict_window,
                digest: config.digest,
                threads: 0,
            },
            guest: config.guest.clone(),
            validate: false,
            first_file: None,
            origin: Origin::default(),
            notes: Vec::new(),
        }
    }

    /// Adds what the manifest asks for; `output` is the directory of the instance's results.
    pub fn heed(mut self, manifest: &Manifest, output: &Path) -> Result<Self> {
        if let Some(source) = &manifest.source {
            self.origin = Origin::from(source);
        }
        let unknown = manifest.unknown_fields();
        if !unknown.is_empty() {
            self.notes.push(format!(
                "unknown fields of the manifest: {}",
                unknown.join(", ")
            ));
        }
        if manifest
            .options
            .as_ref()
            .and_then(|options| options.dry_run)
            == Some(true)
        {
            return Err(
                Error::new(ErrorKind::Unsupported, "the manifest asks for a dry run").with_remedy(
                    "`hyper2kvm inspect` tells what a source is without converting it",
                ),
            );
        }
        if let Some(pipeline) = &manifest.pipeline {
            self.heed_convert(pipeline)?;
            self.heed_fix(pipeline.fix.as_ref())?;
            self.heed_inspect(pipeline);
            let validate = pipeline.validate.as_ref();
            self.validate = validate.is_some_and(|stage| stage.is_asked());
        }
        self.heed_output(manifest, output)?;
        Ok(self)
    }

    /// `care` as this job wants it.
    pub fn care(&self, care: &Care) -> Care {
        Care {
            settings: self.guest.clone(),
            validate: self.validate,
            ..care.clone()
        }
    }

    /// An instance that never repairs, or always, does so whatever a manifest says.
    fn heed_fix(&mut self, stage: Option<&FixStage>) -> Result<()> {
        let Some(stage) = stage else { return Ok(()) };
        let mut overruled = |what: &str| self.notes.push(format!("pipeline.fix.enabled {what}"));
        match (stage.enabled, self.guest.fix) {
            (Some(true), GuestFix::Off) => overruled("has no effect: guest.fix is \"off\""),
            (Some(false), GuestFix::Require) => {
                overruled("= false has no effect: guest.fix is \"require\"");
            }
            (Some(false), _) => self.guest.fix = GuestFix::Off,
            _ => {}
        }
        self.guest.fstab_mode = match stage.fstab_mode.as_deref() {
            None => self.guest.fstab_mode,
            Some("stabilize-all") => FstabMode::StabilizeAll,
            Some("bypath-only") => FstabMode::BypathOnly,
            Some("noop") => FstabMode::Noop,
            Some(other) => {
                let context = format!("pipeline.fix.fstab_mode {other:?} is not known");
                return Err(Error::invalid(context)
                    .with_remedy("fstab_mode is stabilize-all, bypath-only or noop"));
            }
        };
        let guest = &mut self.guest;
        for (wish, setting) in [
            (stage.regen_initramfs, &mut guest.regen_initramfs),
            (stage.update_grub, &mut guest.update_grub),
            (stage.remove_vmware_tools, &mut guest.remove_vmware_tools),
        ] {
            *setting = wish.unwrap_or(*setting);
        }
        Ok(())
    }

    /// A guest is inspected exactly if it is repaired.
    fn heed_inspect(&mut self, pipeline: &Pipeline) {
        let wish = pipeline.inspect.as_ref().and_then(|stage| stage.enabled);
        let note = match (wish, self.guest.fix) {
            (Some(true), GuestFix::Off) => {
                "pipeline.inspect.enabled has no effect: only a guest that is repaired is inspected"
            }
            (Some(false), GuestFix::Try | GuestFix::Require) => {
                "pipeline.inspect.enabled = false has no effect: a repair inspects first"
            }
            _ => return,
        };
        self.notes.push(note.to_owned());
    }

    fn heed_convert(&mut self, pipeline: &Pipeline) -> Result<()> {
        let Some(stage) = &pipeline.convert else {
            return Ok(());
        };
        if stage.enabled == Some(false) {
            return Err(Error::invalid("the manifest asks for no conversion")
                .with_remedy("set pipeline.convert.enabled, or keep it out of the queue"));
        }
        match stage.compress {
            Some(true) if self.plan.compress == Compress::None => {
                self.plan.compress = Compress::Zlib;
            }
            Some(false) => self.plan.compress = Compress::None,
            _ => {}
        }
        let highest = if self.plan.compress == Compress::Zstd {
            19
        } else {
            12
        };
        if let Some(level) = stage.compress_level {
            if level > highest {
                return Err(Error::invalid(format!(
                    "pipeline.convert.compress_level {level} is more than {highest}"
                )));
            }
            self.plan.compress_level = Some(level);
        }
        Ok(())
    }

    fn heed_output(&mut self, manifest: &Manifest, output: &Path) -> Result<()> {
        let Some(wanted) = &manifest.output else {
            return Ok(());
        };
        match wanted.format.as_deref() {
            None => {}
            Some("qcow2") => self.plan.format = OutFormat::Qcow2,
            Some("raw") => self.plan.format = OutFormat::Raw,
            Some(other) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the manifest asks for the format {other:?}"),
                )
                .with_remedy("output.format is qcow2 or raw"));
            }
        }
        if let Some(directory) = &wanted.directory {
            let place = Path::new(directory)
                .strip_prefix(output)
                .ok()
                .and_then(Path::to_str);
            if !place.is_some_and(|place| place.is_empty() || is_place(place)) {
                return Err(Error::invalid(format!(
                    "output.directory {directory:?} lies outside {}",
                    output.display()
                ))
                .with_remedy("leave it out, or name a directory beneath the output directory"));
            }
        }
        if let Some(file) = wanted.filename.as_deref().filter(|file| !file.is_empty()) {
            let plain = VmName::new(file).is_ok_and(|name| name.as_str() == file);
            if !plain {
                return Err(
                    Error::invalid(format!("output.filename {file:?} is no file name"))
                        .with_remedy("use letters, digits, dots, _, - and spaces"),
                );
            }
            let extension = format!(".{}", self.plan.format.as_str());
            let missing = if file.ends_with(&extension) {
                ""
            } else {
                extension.as_str()
            };
            self.first_file = Some(format!("{file}{missing}"));
        }
        Ok(())
    }
}

/// A plain path of which no part is hidden: those are the daemon's own.
fn is_place(place: &str) -> bool {
    is_plain(place) && !place.split('/').any(|part| part.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn heed(extra: Value) -> Result<Wishes> {
        heed_over(&Config::default(), extra)
    }

    fn heed_over(config: &Config, extra: Value) -> Result<Wishes> {
        let mut value = json!({"manifest_version": "1.0", "disks": [
            {"id": "a", "source_format": "vmdk", "bytes": 0, "local_path": "a.vmdk"}]});
        let object = value.as_object_mut().unwrap();
        object.extend(extra.as_object().unwrap().clone());
        let manifest = Manifest::parse(value.to_string().as_bytes()).unwrap();
        Wishes::of_config(config).heed(&manifest, Path::new("/out"))
    }

    #[test]
    fn a_manifest_chooses_the_repair_within_what_the_instance_allows() {
        let wishes = heed(json!({"pipeline": {
            "fix": {"fstab_mode": "noop", "regen_initramfs": false, "update_grub": false,
                "remove_vmware_tools": false, "x": 1},
            "validate": {"enabled": true, "check_image_integrity": true, "y": 1}}}))
        .unwrap();
        let expected = Guest {
            fstab_mode: FstabMode::Noop,
            regen_initramfs: false,
            update_grub: false,
            remove_vmware_tools: false,
            ..Guest::default()
        };
        assert_eq!(wishes.guest, expected);
        assert!(wishes.validate);
        let unknown = "unknown fields of the manifest: pipeline.fix.x, pipeline.validate.y";
        assert_eq!(wishes.notes, [unknown]);
    }

    #[test]
    fn whether_there_is_a_repair_at_all_the_instance_has_the_last_word_on() {
        for (fix, pipeline, expected, notes) in [
            (
                GuestFix::Try,
                json!({"fix": {"enabled": false}}),
                GuestFix::Off,
                0,
            ),
            (
                GuestFix::Try,
                json!({"fix": {"enabled": true}}),
                GuestFix::Try,
                0,
            ),
            (
                GuestFix::Off,
                json!({"fix": {"enabled": true}}),
                GuestFix::Off,
                1,
            ),
            (
                GuestFix::Require,
                json!({"fix": {"enabled": false}}),
                GuestFix::Require,
                1,
            ),
            (
                GuestFix::Try,
                json!({"inspect": {"enabled": false}}),
                GuestFix::Try,
                1,
            ),
            (
                GuestFix::Try,
                json!({"inspect": {"enabled": true}}),
                GuestFix::Try,
                0,
            ),
            (
                GuestFix::Try,
                json!({"inspect": {"enabled": true}, "fix": {"enabled": false}}),
                GuestFix::Off,
                1,
            ),
        ] {
            let mut config = Config::default();
            config.guest.fix = fix;
            let wishes = heed_over(&config, json!({"pipeline": pipeline})).unwrap();
            assert_eq!(wishes.guest.fix, expected, "{pipeline}");
            assert_eq!(wishes.notes.len(), notes, "{:?}", wishes.notes);
        }
    }

    #[test]
    fn a_validation_is_done_if_one_key_asks_and_none_forbids() {
        for (stage, asked) in [
            (json!({}), false),
            (json!({"enabled": true}), true),
            (json!({"check_image_integrity": true}), true),
            (
                json!({"enabled": false, "check_image_integrity": true}),
                false,
            ),
            (
                json!({"enabled": true, "check_image_integrity": false}),
                false,
            ),
        ] {
            let wishes = heed(json!({"pipeline": {"validate": stage}})).unwrap();
            assert_eq!(wishes.validate, asked, "{stage}");
        }
    }

    #[test]
    fn overrides_within_bounds() {
        let wishes = heed(json!({
            "pipeline": {"convert": {"compress": true, "compress_level": 6}},
            "output": {"directory": "/out/site", "format": "raw", "filename": "boot"}, "x": 1}))
        .unwrap();
        assert_eq!(wishes.plan.compress, Compress::Zlib);
        assert_eq!(wishes.plan.compress_level, Some(6));
        assert_eq!(wishes.first_file.as_deref(), Some("boot.raw"));
        assert_eq!(wishes.notes, ["unknown fields of the manifest: x"]);
    }

    #[test]
    fn refuses_what_leaves_them() {
        for extra in [
            json!({"output": {"directory": "/etc"}}),
            json!({"output": {"directory": "/out/../etc"}}),
            json!({"output": {"directory": "/out/.daemon"}}),
            json!({"output": {"filename": "../x"}}),
            json!({"output": {"format": "vdi"}}),
            json!({"options": {"dry_run": true}}),
            json!({"pipeline": {"convert": {"enabled": false}}}),
            json!({"pipeline": {"convert": {"compress_level": 99}}}),
            json!({"pipeline": {"fix": {"fstab_mode": "by-uuid"}}}),
        ] {
            assert!(heed(extra.clone()).is_err(), "{extra}");
        }
    }
}
