//! A stream that still arrives: its markers are followed, then held against its tables.
use std::fs;
use std::path::Path;

use converter::disk::{Extent, Observer, Stored, Waiter};
use converter::error::Result;
use converter::source::{self, Completed, Unpacker};
use queue::roots::Roots;

use super::form::{Form, fuzz};
use super::judge;
use super::vmdk::{converted, hosted, with_footer};

const MANIFEST: &str = r#"{"manifest_version": "1.0", "disks": [{"id": "a", "source_format": "vmdk",
    "bytes": 0, "local_path": "vm.vmdk", "growing": true}]}"#;

/// Declares the end as soon as somebody waits for more.
struct Declares<'a>(&'a Path);

impl Declares<'_> {
    fn declare(&self) {
        let bytes = fs::metadata(self.0.join("vm.vmdk")).unwrap().len();
        let end = format!("{{\"bytes\": {bytes}}}");
        fs::write(self.0.join("vm.vmdk.end"), end).unwrap();
    }
}

impl Observer for Declares<'_> {
    fn advance(&self, _bytes: u64) {
        self.declare();
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Waiter for Declares<'_> {
    fn go_on(&self, _arrived_bytes: u64) -> Result<bool> {
        self.declare();
        Ok(true)
    }
}

fn grains<'a>(extents: impl Iterator<Item = Result<Extent>> + 'a) -> Vec<(u64, u64)> {
    let place = |extent: Extent| match extent.stored {
        Stored::Packed { unit, .. } => Some((extent.start.0, unit.offset.0)),
        _ => None,
    };
    extents.map_while(Result::ok).filter_map(place).collect()
}

/// Follows the disk to its end. What is said to be as streamed is what the tables say.
fn read(roots: &Roots, owner: &Path) -> bool {
    let top = owner.parent().unwrap();
    // Of the case before.
    let _ = fs::remove_file(top.join("vm.vmdk.end"));
    let declares = Declares(top);
    let unpacker = Unpacker {
        directory: judge::memory(),
        observer: &declares,
        patience: std::time::Duration::from_secs(3600),
    };
    let Ok(mut appliance) = source::open(roots, owner, true, &unpacker) else {
        return false;
    };
    let Some(disk) = appliance.disks.first_mut() else {
        panic!("a machine without disks");
    };
    let image = disk.image.as_ref();
    if !disk.is_growing() {
        // Its beginning is that of no stream: it was waited for.
        return judge::walk(image, image.extents());
    }
    let is_map = judge::walk(image, image.follow(&declares));
    let followed = grains(image.follow(&declares));
    match disk.complete(&declares) {
        Ok(Completed::AsStreamed) => {
            assert_eq!(grains(disk.image.extents()), followed);
            is_map
        }
        Ok(Completed::Otherwise(why)) => {
            assert!(!why.is_empty());
            false
        }
        Err(_) => false,
    }
}

#[test]
fn stream_optimized() {
    let forms = [false, true].map(|has_footer| {
        let (top, mut bytes) = converted("streamOptimized");
        if has_footer {
            bytes = with_footer(bytes);
            fs::write(top.path().join("vm.vmdk"), bytes).unwrap();
        }
        fs::write(top.path().join("manifest.json"), MANIFEST).unwrap();
        Form::read_by(read, top, "manifest.json", "vm.vmdk", hosted)
    });
    fuzz("vmdk: a stream that still arrives", &forms);
}
