//! Runs a target: as many cases as PROPTEST_CASES says, each held to its bounds.
use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use converter::disk::{Extents, Image, Stored, Unobserved};
use converter::source::{self, Unpacker};
use nix::time::{ClockId, clock_gettime};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use queue::roots::Roots;

use super::memory::peak_of;

/// What every build runs; `make fuzz` runs a million.
const CASES: u32 = 1000;
/// No file of any form has more than 6 MiB; a parser never needs more than all of it and this.
const MOST_HELD_BYTES: usize = 48 << 20;
/// Processor time: ten thousand times what a case takes.
const MOST_TIME: Duration = Duration::from_secs(5);
/// Of a map; one that goes on belongs to a disk far larger than its file.
const MOST_EXTENTS: usize = 5000;
/// Units of one disk that are inflated.
const MOST_UNITS: usize = 6;

fn processor_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

/// Gives `read` cases of `strategy`; it says whether the case was read to its end.
pub fn fuzz<S: Strategy>(target: &str, strategy: S, read: impl Fn(S::Value) -> bool) {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let config = Config {
        cases: cases.and_then(|cases| cases.parse().ok()).unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 5000,
        ..Config::default()
    };
    let (done, sound) = (Cell::new(0u32), Cell::new(0u32));
    let (slowest, most) = (Cell::new(Duration::ZERO), Cell::new(0));
    let started = std::time::Instant::now();
    let result = TestRunner::new(config).run(&strategy, |case| {
        let before = processor_time();
        let (is_sound, held) = peak_of(|| read(case));
        let took = processor_time() - before;
        prop_assert!(held <= MOST_HELD_BYTES, "{} MiB were held", held >> 20);
        prop_assert!(took <= MOST_TIME, "{took:?} of processor time");
        done.set(done.get() + 1);
        sound.set(sound.get() + u32::from(is_sound));
        slowest.set(slowest.get().max(took));
        most.set(most.get().max(held));
        Ok(())
    });
    eprintln!(
        "{target}: {} cases in {:.1} s, {} % read to the end, slowest {:?}, at most {} KiB",
        done.get(),
        started.elapsed().as_secs_f64(),
        u64::from(sound.get()) * 100 / u64::from(done.get().max(1)),
        slowest.get(),
        most.get() >> 10,
    );
    match result {
        Ok(()) => assert!(sound.get() > 0, "{target}: the form itself is not read"),
        Err(TestError::Fail(why, case)) => panic!("{target}: {why}\n{case:#?}"),
        Err(error) => panic!("{target}: {error}"),
    }
}

/// A directory in memory if the machine has one: a million cases write a million times.
pub fn memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    }
}

/// Opens `owner` as a drop and walks the map of each disk, which must be one.
pub fn read(roots: &Roots, owner: &Path) -> bool {
    let unpacker = Unpacker {
        directory: memory(),
        observer: &Unobserved,
        patience: std::time::Duration::ZERO,
    };
    match source::open(roots, owner, true, &unpacker) {
        Ok(appliance) => {
            let disks = &appliance.disks;
            assert!(!disks.is_empty(), "a machine without disks");
            // Each is walked, also behind one that cannot be read.
            let walked = disks.iter().map(|disk| {
                let image = disk.image.as_ref();
                walk(image, image.extents())
            });
            let sound: Vec<bool> = walked.collect();
            !sound.contains(&false)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// Whether the map can be read: adjacent, in order, as long as the disk, each place in its file.
pub fn walk(image: &dyn Image, extents: Extents<'_>) -> bool {
    let mut end = 0u64;
    let mut units = 0;
    for extent in extents.take(MOST_EXTENTS) {
        let Ok(extent) = extent else { return false };
        assert_eq!(extent.start.0, end, "the map has a gap or an overlap");
        assert!(extent.length_bytes > 0, "the map does not move");
        end = end.checked_add(extent.length_bytes).unwrap();
        assert!(
            end <= image.capacity_bytes(),
            "the map is longer than the disk"
        );
        match extent.stored {
            Stored::Hole | Stored::Zero => {}
            Stored::Plain { file, offset } => {
                let stored = &image.files()[file];
                let last = offset.0.checked_add(extent.length_bytes).unwrap();
                // A writer's last block may be cut off where the disk ends.
                let reaches = last <= stored.length_bytes().next_multiple_of(512);
                assert!(reaches || stored.read_vec(last - 1, 1).is_err());
            }
            Stored::Packed { unit, skip_bytes } => {
                let inside = skip_bytes.checked_add(extent.length_bytes).unwrap();
                assert!(inside <= unit.unpacked_bytes, "more than the unit holds");
                assert!(unit.unpacked_bytes <= 4 << 20 && unit.limit_bytes <= 16 << 20);
                units += 1;
                if units > MOST_UNITS {
                    continue;
                }
                let stored = &image.files()[unit.file];
                let there = stored.length_bytes().saturating_sub(unit.offset.0);
                let length = unit.limit_bytes.min(there) as usize;
                let Ok(stored) = stored.read_vec(unit.offset.0, length) else {
                    return false;
                };
                let mut out = vec![0; unit.unpacked_bytes as usize];
                if image.unpack(&unit, &stored, &mut out).is_err() {
                    return false;
                }
            }
        }
    }
    true
}
