//! The last step of a repair: what the guest deleted before it came leaves the images, too.
//!
//! Costs nothing but time and space, so it has a limit and never fails a repair.
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::bench::Bench;
use super::model::Guest;
use super::overlay::Image;

/// Between two looks at the clock.
const PIECE_BYTES: u64 = 32 << 30;
/// What is freed comes in clusters of the images.
const LEAST_BYTES: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(120);
/// Less is not worth it.
const GAIN_BYTES: u64 = 16 << 20;

/// What the images take of the host's file system.
pub fn allocated_bytes(images: &[Image]) -> u64 {
    let found = images.iter().filter_map(|image| image.path.metadata().ok());
    found.fold(0, |sum: u64, it| {
        sum.saturating_add(it.blocks().saturating_mul(512))
    })
}

/// Trims every mounted file system, if the images hold more than their files.
pub fn trim(bench: &mut Bench<'_, '_>, guest: &Guest, images: &[Image]) {
    let begun = Instant::now();
    let points = guest
        .devices
        .iter()
        .filter_map(|it| it.mountpoint.as_deref());
    let points: BTreeSet<&str> = points.filter(|path| path.starts_with('/')).collect();
    let mut used_bytes: u64 = 0;
    let mut spaces = Vec::with_capacity(points.len());
    for path in points {
        if let Ok((free_bytes, all_bytes)) = bench.appliance.space(path) {
            used_bytes = used_bytes.saturating_add(all_bytes.saturating_sub(free_bytes));
            spaces.push((path, all_bytes));
        }
    }
    if allocated_bytes(images) < used_bytes.saturating_add(GAIN_BYTES) {
        return;
    }
    for (path, all_bytes) in spaces {
        let mut start = 0;
        while start < all_bytes {
            if begun.elapsed() >= LIMIT {
                bench.skipped.push(format!("trim: {path}: out of time"));
                return;
            }
            if let Err(error) = bench.appliance.trim(path, start, PIECE_BYTES, LEAST_BYTES) {
                bench.skipped.push(format!("trim: {}", error.to_line()));
                break;
            }
            start += PIECE_BYTES;
        }
    }
}
