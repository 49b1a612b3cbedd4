//! The pipeline under failure: an image that errs, panics or is cancelled, a target in the way.
mod resume;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::disk::{
    Extent, Extents, GuestOffset, HostOffset, Image, MAX_CAPACITY_BYTES, Packed, Unpacked, corrupt,
};
use crate::error::ErrorKind;

const BLOCKS: u64 = 800;

/// What an image does at its unit 100.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    MapEnds,
    UnitDamaged,
    Panics,
}

/// Every second block is a unit of its own number; nothing is read from a file.
struct Fake {
    files: [Window; 1],
    capacity_bytes: u64,
    fault: Fault,
    unpacked: Arc<AtomicU64>,
}

impl Image for Fake {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        let unit = |index: u64| {
            if index == 100 && self.fault == Fault::MapEnds {
                return Err(corrupt(Path::new("fake"), "the map ends"));
            }
            let guest = GuestOffset(index * BLOCK_BYTES);
            let unit = Packed {
                file: 0,
                offset: HostOffset(0),
                limit_bytes: 1,
                guest,
                unpacked_bytes: BLOCK_BYTES,
            };
            let stored = if index.is_multiple_of(2) {
                Stored::Packed {
                    unit,
                    skip_bytes: 0,
                }
            } else {
                Stored::Hole
            };
            Ok(Extent {
                start: guest,
                length_bytes: BLOCK_BYTES,
                stored,
            })
        };
        let last = self.capacity_bytes / BLOCK_BYTES - 1;
        let gap = Extent {
            start: GuestOffset(BLOCKS * BLOCK_BYTES),
            length_bytes: (last - BLOCKS) * BLOCK_BYTES,
            stored: Stored::Hole,
        };
        Box::new((0..BLOCKS).map(unit).chain([Ok(gap), unit(last)]))
    }

    fn unpack(&self, unit: &Packed, _stored: &[u8], out: &mut [u8]) -> Result<Unpacked> {
        let index = unit.guest.0 / BLOCK_BYTES;
        if index == 100 {
            assert!(self.fault != Fault::Panics, "as asked");
            if self.fault == Fault::UnitDamaged {
                return Err(corrupt(Path::new("fake"), "a unit is damaged"));
            }
        }
        self.unpacked.fetch_add(1, Ordering::Relaxed);
        out.fill((index % 251) as u8);
        if index % 6 == 4 {
            // Does not shrink.
            let mut noise = blake3::Hasher::new();
            noise.update(&index.to_le_bytes());
            noise.finalize_xof().fill(out);
        }
        Ok(Unpacked {
            stored_bytes: 1,
            deflate: None,
        })
    }
}

fn fake(capacity_bytes: u64, fault: Fault) -> SourceDisk {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0; 4096]).unwrap();
    let files = [Window::whole(file, Path::new("fake")).unwrap()];
    let image = Fake {
        files,
        capacity_bytes,
        fault,
        unpacked: Arc::default(),
    };
    SourceDisk::new("fake", "fake".to_owned(), Box::new(image))
}

fn small(fault: Fault) -> SourceDisk {
    fake((BLOCKS + 3) * BLOCK_BYTES, fault)
}

fn with_threads(threads: usize) -> Plan {
    Plan {
        threads,
        ..Plan::default()
    }
}

#[test]
fn faults_end_all_threads_with_their_kind() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (Fault::MapEnds, ErrorKind::Corrupt),
        (Fault::UnitDamaged, ErrorKind::Corrupt),
        (Fault::Panics, ErrorKind::Internal),
    ];
    for (fault, kind) in cases {
        for threads in [1, 2, 8] {
            let target = dir.path().join("out.qcow2");
            let error =
                copy(&small(fault), &target, &with_threads(threads), &Unobserved).unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            // The header comes last: what is left of a failed copy is no image.
            assert!(digest_of_qcow2(&target).is_err());
            std::fs::remove_file(&target).unwrap();
        }
    }
}

/// Cancels once it was asked `after` times.
struct Impatient {
    asked: AtomicU64,
    after: u64,
    done: AtomicU64,
}

impl Observer for Impatient {
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.after
    }
}

#[test]
fn cancelling_ends_it_and_progress_adds_up_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    for after in [0, 1, 5] {
        let observer = Impatient {
            asked: 0.into(),
            after,
            done: 0.into(),
        };
        let target = dir.path().join(format!("{after}.qcow2"));
        let error = copy(&small(Fault::None), &target, &with_threads(2), &observer).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
    }
    let observer = Impatient {
        asked: 0.into(),
        after: u64::MAX,
        done: 0.into(),
    };
    let disk = small(Fault::None);
    copy(
        &disk,
        &dir.path().join("all.qcow2"),
        &with_threads(2),
        &observer,
    )
    .unwrap();
    assert_eq!(observer.done.into_inner(), disk.allocated_bytes);
}

#[test]
fn a_target_in_the_way_is_never_touched() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out.qcow2");
    std::fs::write(&target, "precious").unwrap();
    let link = dir.path().join("link.qcow2");
    std::os::unix::fs::symlink("elsewhere", &link).unwrap();
    for path in [&target, &link] {
        let error = copy(&small(Fault::None), path, &Plan::default(), &Unobserved).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io);
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn every_write_that_fails_is_told() {
    // /dev/full cannot be created exclusively, so the size limit is the pipeline's own target.
    let disk = small(Fault::None);
    let file = std::sync::Arc::new(File::options().write(true).open("/dev/full").unwrap());
    let layout = qcow2::Qcow2Layout::new(
        file.clone(),
        "/dev/full".into(),
        disk.capacity_bytes,
        qcow2::Compression::Zlib,
    );
    let target = target::Target {
        file,
        path: "/dev/full".into(),
        layout: Box::new(layout),
        packing: None,
        always_digest: true,
    };
    let start = pipeline::Start::afresh(&disk);
    let error = pipeline::run(&disk, Some(target), start, 2, &Unobserved)
        .err()
        .unwrap();
    assert_eq!(error.kind, ErrorKind::NoSpace);
}

#[test]
fn the_estimate_holds_and_the_largest_disk_fits() {
    let dir = tempfile::tempdir().unwrap();
    for capacity_bytes in [(BLOCKS + 3) * BLOCK_BYTES, 62 << 40, MAX_CAPACITY_BYTES] {
        let disk = fake(capacity_bytes, Fault::None);
        let target = dir.path().join("out.qcow2");
        let report = copy(&disk, &target, &Plan::default(), &Unobserved).unwrap();
        assert_eq!(Some(digest_of_qcow2(&target).unwrap()), report.digest);
        let needed = space_needed_bytes(&disk, &Plan::default()).unwrap();
        // Block 0 is stored, but all zeros.
        assert_eq!(report.output_bytes + BLOCK_BYTES, needed);
        std::fs::remove_file(&target).unwrap();
    }
}
