//! Before the first byte is copied: what the beginnings of the disks and of their partitions tell
//! of the guest. What needs an appliance to be known is found later.
use queue::job::{Finding, GuestCode};

use super::batch::{BATCH_BYTES, Batches};
use super::fill::Buffer;
use crate::disk::GuestOffset;
use crate::error::Result;
use crate::guest::look::{
    HEAD_BYTES, Look, Partition, VOLUME_BYTES, Volume, look, partitions, volume,
};
use crate::source::{Appliance, SourceDisk};

#[derive(Debug, Clone, Default)]
pub struct Preflight {
    pub findings: Vec<Finding>,
    /// Why no repair can succeed, if that is certain: one of the findings.
    pub refusal: Option<Finding>,
}

/// Looks at every disk; with `has_keys`, what is encrypted may be opened. `None`: one of them
/// still arrives, and cannot be looked at yet.
pub fn preflight(appliance: &Appliance, has_keys: bool) -> Result<Option<Preflight>> {
    if appliance.disks.iter().any(SourceDisk::is_growing) {
        return Ok(None);
    }
    let mut volumes = Vec::new();
    let mut may_boot = false;
    for (disk, count) in appliance.disks.iter().zip(1..) {
        let head = read(disk, &[0], HEAD_BYTES as usize)?.concat();
        may_boot |= look(&head) == Look::MayBoot;
        let found = partitions(&head);
        let starts: Vec<u64> = found.iter().map(|it| it.start_bytes).collect();
        let sectors = read(disk, &starts, VOLUME_BYTES)?;
        let named = found.iter().map(|it| name(count, *it));
        volumes.extend(named.zip(sectors.iter().map(|sector| volume(sector))));
    }
    if !may_boot {
        let text = "no disk has partitions or a boot loader".to_owned();
        return Ok(Some(Preflight::refused(GuestCode::NoSystem, text)));
    }
    Ok(Some(judge(&volumes, has_keys)))
}

impl Preflight {
    fn refused(code: GuestCode, text: String) -> Self {
        let finding = Finding { code, text };
        Self {
            findings: vec![finding.clone()],
            refusal: Some(finding),
        }
    }
}

fn name(disk: usize, partition: Partition) -> String {
    match partition.number {
        0 => format!("disk {disk}"),
        number => format!("partition {number} of disk {disk}"),
    }
}

fn judge(volumes: &[(String, Volume)], has_keys: bool) -> Preflight {
    let mut preflight = Preflight::default();
    let mut tell = |code, text| preflight.findings.push(Finding { code, text });
    for (name, volume) in volumes {
        match volume {
            Volume::Luks if !has_keys => {
                let text = format!("{name} is encrypted (LUKS), and no key was given");
                tell(GuestCode::Locked, text);
            }
            Volume::BitLocker => {
                let text = format!("{name} is encrypted (BitLocker): suspend it in the guest");
                tell(GuestCode::Locked, text);
            }
            _ => {}
        }
    }
    let has = |wanted: Volume| volumes.iter().any(|(_, volume)| *volume == wanted);
    let may_be_linux = has(Volume::Other) || (has(Volume::Luks) && has_keys);
    if may_be_linux {
        return preflight;
    }
    if preflight.findings.is_empty() {
        let what = if has(Volume::Windows) {
            "there is no recipe for Windows"
        } else {
            "no disk has a file system for a root"
        };
        return Preflight::refused(GuestCode::UnsupportedGuest, what.to_owned());
    }
    preflight.refusal = preflight.findings.first().cloned();
    preflight
}

/// So many bytes of the guest's disk from each of the places on; past its end, and where a batch
/// ends, there are fewer.
fn read(disk: &SourceDisk, starts: &[u64], length: usize) -> Result<Vec<Vec<u8>>> {
    let mut found = vec![vec![0; length]; starts.len()];
    for (bytes, start) in found.iter_mut().zip(starts) {
        let left_bytes = disk.capacity_bytes.saturating_sub(*start);
        bytes.truncate(usize::try_from(left_bytes).unwrap_or(length));
    }
    let Some(last) = starts.iter().max() else {
        return Ok(found);
    };
    let mut buffer = Buffer::new(BATCH_BYTES, false);
    let mut batches = Batches::new(disk.image.extents(), GuestOffset(0), BATCH_BYTES);
    while let Some(batch) = batches.next()? {
        let within = batch.start.0..batch.end().0;
        if within.start > *last {
            break;
        }
        if !starts.iter().any(|start| within.contains(start)) {
            continue;
        }
        buffer.fill(disk.image.as_ref(), &batch)?;
        for (bytes, start) in found.iter_mut().zip(starts) {
            if within.contains(start) {
                let from = start.saturating_sub(within.start) as usize;
                let stored = buffer.guest.get(from..).unwrap_or_default();
                bytes.truncate(stored.len());
                bytes
                    .iter_mut()
                    .zip(stored)
                    .for_each(|(to, byte)| *to = *byte);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_refused() {
        use Volume::{BitLocker, Fat, Luks, Other, Windows};
        type Case<'a> = (&'a [Volume], bool, &'a [&'a str], Option<&'a str>);
        let cases: [Case<'_>; 9] = [
            (&[Other], false, &[], None),
            (&[Fat, Other, Luks], false, &["locked"], None),
            (&[Fat, Luks], false, &["locked"], Some("locked")),
            (&[Fat, Luks], true, &[], None),
            (
                &[Fat, BitLocker, Windows],
                true,
                &["locked"],
                Some("locked"),
            ),
            (&[Fat, BitLocker, Luks], true, &["locked"], None),
            (
                &[Windows, Fat],
                false,
                &["unsupported_guest"],
                Some("unsupported_guest"),
            ),
            (
                &[Fat],
                false,
                &["unsupported_guest"],
                Some("unsupported_guest"),
            ),
            (&[Windows, Other], false, &[], None),
        ];
        for (volumes, has_keys, findings, refusal) in cases {
            let named = volumes.iter().map(|volume| ("a disk".to_owned(), *volume));
            let preflight = judge(&named.collect::<Vec<_>>(), has_keys);
            let codes: Vec<&str> = preflight
                .findings
                .iter()
                .map(|it| it.code.as_str())
                .collect();
            assert_eq!(codes, findings, "{volumes:?}");
            let told = preflight.refusal.map(|it| it.code.as_str());
            assert_eq!(told, refusal, "{volumes:?}");
        }
    }
}
