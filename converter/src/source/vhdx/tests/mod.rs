//! Sound, damaged and hostile VHDXs, built here: no tool writes the differencing ones, and none
//! leaves a log to be replayed.
mod sample;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use self::sample::{
    BAT, BITMAP, BLOCK, CAPACITY, Entry, LOCATOR, LOG, LOG_GUID, METADATA, PARAMETERS, PAYLOAD,
    SECTOR, SIZE, Sample, put, put32, put64,
};
use super::header::MIB;
use super::*;
use crate::error::{Error, ErrorKind};
use crate::source::seen::guest_bytes;

type Files = BTreeMap<&'static str, Window>;

fn read_with(window: Window, files: &Files) -> Result<(Vec<u8>, &'static str)> {
    let lookup = |name: &str| {
        let file = files.get(name).cloned();
        file.ok_or_else(|| Error::invalid(format!("{name} was asked for")))
    };
    let (image, kind) = open(window, &lookup)?;
    Ok((guest_bytes(image.as_ref())?, kind))
}

fn read(sample: &Sample) -> Result<(Vec<u8>, &'static str)> {
    read_with(sample.build(), &Files::new())
}

/// Four blocks and a sector, of which block 2 is `block`.
fn guest(block: &[u8]) -> Vec<u8> {
    let mut guest = vec![0; CAPACITY as usize];
    put(&mut guest, 2 * BLOCK, block);
    guest
}

fn refused(sample: &Sample, kind: ErrorKind, what: &str) {
    match read(sample) {
        Ok(_) => panic!("{what} was read"),
        Err(error) => {
            assert_eq!(error.kind, kind, "{what}: {error}");
            assert!(error.to_string().contains("x.vhdx"), "{what}: {error}");
        }
    }
}

#[test]
fn tells_its_sectors_and_headers() {
    let open = |sample: &Sample| {
        let none = |name: &str| Err(Error::invalid(format!("{name} was asked for")));
        open(sample.build(), &none).unwrap().0
    };
    let mut sample = Sample::dynamic(1, 7);
    assert_eq!(open(&sample).sector_bytes(), 512);
    put32(&mut sample.metadata, SECTOR, 4096);
    put64(&mut sample.metadata, SIZE, CAPACITY.next_multiple_of(4096));
    let image = open(&sample);
    assert_eq!(image.sector_bytes(), 4096);
    let layers = image.layers();
    let fields = &layers[0].fields;
    assert_eq!(fields["logical_sector_bytes"], 4096);
    assert_eq!(fields["kind"], "dynamic");
    let id = "{01010101-0101-0101-0101-010101010101}";
    assert_eq!(fields["data_write_id"], id);
    assert_eq!(fields["log"]["replayed"], false);
}

#[test]
fn reads_what_is_sound() {
    let block = vec![7; BLOCK];
    assert!(read(&Sample::dynamic(1, 7)).unwrap() == (guest(&block), "dynamic"));
    assert!(read(&Sample::fixed(7)).unwrap() == (guest(&block), "fixed"));
    for state in [0, 1, 2, 3] {
        let mut sample = Sample::dynamic(1, 7);
        put64(&mut sample.bat, 16, PAYLOAD | state);
        assert!(read(&sample).unwrap().0 == guest(&[]), "{state}");
    }
    // A newer header that was torn counts for nothing.
    let sample = Sample::dynamic(1, 7);
    let window = sample.build();
    let mut torn = sample.header.clone();
    put64(&mut torn, 8, 99);
    put64(&mut torn, 72, 0);
    let file = tempfile::tempfile().unwrap();
    let whole = window.read_vec(0, window.length_bytes() as usize).unwrap();
    file.write_all_at(&whole, 0).unwrap();
    file.write_all_at(&torn, 64 << 10).unwrap();
    let torn = Window::whole(file, Path::new("x.vhdx")).unwrap();
    assert!(read_with(torn, &Files::new()).unwrap().0 == guest(&block));
}

#[test]
fn children_show_their_parents() {
    let mut block = vec![7; BLOCK];
    block[512..1024].fill(8);
    block[BLOCK - 512..].fill(8);
    let child = Sample::differencing(2, 8, 1, "..\\base\\p.vhdx");
    let files = Files::from([("p.vhdx", Sample::dynamic(1, 7).build())]);
    let seen = read_with(child.build(), &files).unwrap();
    assert!(seen == (guest(&block), "differencing"));
    // Zeros and whole blocks of its own hide the parent's.
    for (state, shown) in [(2, 0), (3, 0), (6, 8), (0, 7)] {
        let mut child = Sample::differencing(2, 8, 1, "p.vhdx");
        put64(&mut child.bat, 16, PAYLOAD | state);
        let seen = read_with(child.build(), &files).unwrap().0;
        assert!(seen == guest(&vec![shown; BLOCK]), "{state}");
    }
}

#[test]
fn parents_that_are_not_the_parent_are_refused() {
    let child = |parent: u8, path: &str| Sample::differencing(2, 8, parent, path).build();
    let lost = read_with(child(1, "p.vhdx"), &Files::new()).unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Invalid);
    let files = Files::from([("p.vhdx", Sample::dynamic(9, 7).build())]);
    let other = read_with(child(1, "p.vhdx"), &files).unwrap_err();
    assert_eq!(other.kind, ErrorKind::Corrupt);
    let files = Files::from([("x.vhdx", child(2, "x.vhdx"))]);
    let own = read_with(child(2, "x.vhdx"), &files).unwrap_err();
    assert!(own.to_string().contains("itself"), "{own}");
    let other = Sample::differencing(3, 8, 2, "b.vhdx").build();
    let files = Files::from([("a.vhdx", other), ("b.vhdx", child(3, "a.vhdx"))]);
    let circle = read_with(child(3, "a.vhdx"), &files).unwrap_err();
    assert!(circle.to_string().contains("itself"), "{circle}");
}

#[test]
fn the_log_is_replayed() {
    let bat = |state: u64| [[0; 16].as_slice(), &(PAYLOAD | state).to_le_bytes()].concat();
    let seven = guest(&vec![7; BLOCK]);
    let mut lost = Sample::dynamic(1, 7);
    lost.bat.fill(0);
    let with = |entries: &[Entry]| {
        let mut sample = Sample { ..lost.copy() };
        entries.iter().for_each(|entry| sample.log(entry));
        read(&sample).map(|(guest, _)| guest)
    };
    let sets = |number, tail, state| Entry::new(number, tail).sector(BAT, &bat(state));
    assert!(with(&[sets(5, 0, 6)]).unwrap() == seven);
    // In order: the last one counts, and the tail says where to begin.
    assert!(with(&[sets(5, 0, 2), sets(6, 0, 6)]).unwrap() == seven);
    assert!(with(&[sets(5, 0, 6), sets(6, 0, 2)]).unwrap() == guest(&[]));
    let mut zeros = Entry::new(6, 8192);
    zeros.zeros.push((BAT + 4096, 4096));
    assert!(with(&[sets(5, 0, 6), zeros.clone()]).unwrap() == guest(&[]));
    zeros.zeros = vec![(BAT, 4096)];
    zeros.tail = 0;
    assert!(with(&[sets(5, 0, 6), zeros.clone()]).unwrap() == guest(&[]));
    let wide = [zeros, Entry::new(7, 0).sector(BAT, &bat(6))];
    assert!(with(&[&[sets(5, 0, 2)], &wide[..]].concat()).unwrap() == seven);
    // Another log's entries, older ones, and one that was torn are not of the sequence.
    let mut foreign = sets(6, 0, 2);
    foreign.guid = Some([8; 16]);
    assert!(with(&[sets(5, 0, 6), foreign]).unwrap() == seven);
    assert!(with(&[sets(5, 0, 6), sets(2, 8192, 2)]).unwrap() == seven);
    let mut torn = lost.copy();
    torn.log(&sets(5, 0, 6));
    torn.log(&sets(6, 0, 2));
    *torn.log.last_mut().unwrap() ^= 1;
    assert!(read(&torn).unwrap().0 == seven);
    // Around the end of the ring.
    let mut ring = lost.copy();
    ring.log(&sets(7, (MIB - 4096) as u32, 6));
    ring.log.resize(BLOCK - 4096, 0);
    ring.log.extend(Entry::new(6, (MIB - 4096) as u32).build());
    assert!(read(&ring).unwrap().0 == seven);
    // The file is shorter than what it was to become: the rest is zeros.
    let mut short = lost.copy();
    short.length_bytes = PAYLOAD + 4096;
    let mut grows = sets(5, 0, 6);
    (grows.flushed, grows.last) = (PAYLOAD, 6 * MIB);
    short.log(&grows);
    assert!(read(&short).unwrap().0 == guest(&[7; 4096]));
}

/// The judge of maps and bitmaps is a reader that nobody of us wrote. Of a log it is none: it takes
/// a descriptor's sequence number for its file offset. There the golden tests ask QEMU.
#[test]
fn an_independent_reader_sees_the_same() {
    use std::io::Read;
    let bytes = |sample: &Sample| {
        let window = sample.build();
        let length_bytes = window.length_bytes() as usize;
        window.read_vec(0, length_bytes).unwrap()
    };
    let agrees = |seen: Vec<u8>, mut other: ::vhdx::VhdxReader, what: &str| {
        let mut guest = Vec::new();
        other.read_to_end(&mut guest).unwrap();
        assert!(guest == seen, "{what}");
    };
    for (sample, what) in [
        (Sample::dynamic(1, 7), "dynamic"),
        (Sample::fixed(7), "fixed"),
    ] {
        let other = ::vhdx::VhdxReader::from_bytes(bytes(&sample)).unwrap();
        agrees(read(&sample).unwrap().0, other, what);
    }
    let parent = Sample::dynamic(1, 7);
    let files = Files::from([("p.vhdx", parent.build())]);
    for state in [0, 2, 3, 6, 7] {
        let mut child = Sample::differencing(2, 8, 1, "p.vhdx");
        put64(&mut child.bat, 16, PAYLOAD | state);
        let other = ::vhdx::VhdxReader::from_bytes(bytes(&parent)).unwrap();
        let other = ::vhdx::VhdxReader::from_bytes_with_parent(bytes(&child), other).unwrap();
        let seen = read_with(child.build(), &files).unwrap().0;
        agrees(seen, other, &format!("a child in state {state}"));
    }
}

#[test]
fn a_sector_of_the_log_is_whole_again_wherever_it_is_read() {
    let sector: Vec<u8> = (0..4096u32).map(|at| (at % 251) as u8 + 1).collect();
    let mut sample = Sample::dynamic(1, 7);
    let mut entry = Entry::new(1 << 40 | 5, 0).sector(PAYLOAD, &sector);
    entry.zeros.push((PAYLOAD - 4096, 3 * 4096));
    sample.log(&entry);
    let window = sample.build();
    let file = Replayed::new(window.clone(), &Header::read(&window).unwrap()).unwrap();
    let mut expected = vec![0; 4096];
    expected.extend(&sector);
    expected.extend([0; 4096]);
    expected.extend([7; 4096]);
    for (from, to) in [
        (0, 16384),
        (4095, 4097),
        (4096, 8192),
        (5000, 8200),
        (8191, 16384),
    ] {
        let read = file.read_vec(PAYLOAD - 4096 + from, (to - from) as usize);
        assert!(
            read.unwrap() == expected[from as usize..to as usize],
            "{from}..{to}"
        );
    }
    for (from, to, touched) in [(0, 4096, true), (12288 - 4096, 12288, false)] {
        assert_eq!(file.touches(PAYLOAD + from, PAYLOAD + to), touched);
    }
    assert!(!file.touches(0, PAYLOAD - 4096) && file.touches(0, PAYLOAD - 4095));
}

#[test]
fn logs_that_cannot_be_replayed_are_refused() {
    let refuses = |entry: Entry, kind, what: &str| {
        let mut sample = Sample::dynamic(1, 7);
        sample.log(&entry);
        refused(&sample, kind, what);
    };
    let mut truncated = Entry::new(5, 0);
    truncated.flushed = 1 << 40;
    refuses(truncated, ErrorKind::Corrupt, "the file was longer");
    refuses(Entry::new(5, 4096), ErrorKind::Corrupt, "a tail elsewhere");
    refuses(Entry::new(5, 1 << 30), ErrorKind::Corrupt, "a tail outside");
    refuses(Entry::new(0, 0), ErrorKind::Corrupt, "sequence number 0");
    let unaligned = Entry::new(5, 0).sector(BAT + 8, &[]);
    refuses(unaligned, ErrorKind::Corrupt, "a descriptor off its border");
    let outside = Entry::new(5, 0).sector(!4095, &[]);
    refuses(outside, ErrorKind::Corrupt, "a descriptor beyond 2^64");
    let payload = Entry::new(5, 0).sector(PAYLOAD + 8192, &[]);
    refuses(payload, ErrorKind::Unsupported, "a payload block");
    let mut everything = Entry::new(5, 0);
    everything.zeros.push((0, 1 << 63));
    refuses(everything, ErrorKind::Corrupt, "zeros over everything");
    let mut empty = Sample::dynamic(1, 7);
    put(&mut empty.header, 48, &LOG_GUID);
    refused(&empty, ErrorKind::Corrupt, "an empty log");
    put(&mut empty.header, 64, &[1]);
    refused(&empty, ErrorKind::Unsupported, "a log version");
    // Each entry claims all the rest of the log, and none is sound.
    let mut busy = Sample::dynamic(1, 7);
    for at in (0..BLOCK).step_by(4096) {
        busy.log(&Entry::new(5, 0));
        put32(&mut busy.log, at + 8, MIB as u32);
    }
    refused(&busy, ErrorKind::Corrupt, "entries upon each other");
}

#[test]
fn damage_is_refused() {
    type Damage = fn(&mut Sample);
    let cases: [(&str, Damage); 27] = [
        ("header signature", |s| put(&mut s.header, 0, b"x")),
        ("log past the end", |s| put64(&mut s.header, 72, 6 * MIB)),
        ("log offset 2^63", |s| put64(&mut s.header, 72, 1 << 63)),
        ("log in the header", |s| put64(&mut s.header, 72, 0)),
        ("log off its border", |s| put64(&mut s.header, 72, MIB + 1)),
        ("log on a region", |s| put64(&mut s.header, 72, BAT)),
        ("region signature", |s| put(&mut s.region, 0, b"x")),
        ("2048 regions", |s| put32(&mut s.region, 8, 2048)),
        ("no regions", |s| put32(&mut s.region, 8, 0)),
        ("BAT offset 2^63", |s| put64(&mut s.region, 32, 1 << 63)),
        ("BAT past the end", |s| put64(&mut s.region, 32, 6 * MIB)),
        ("BAT in the header", |s| put64(&mut s.region, 32, 0)),
        ("BAT on the metadata", |s| {
            put64(&mut s.region, 32, METADATA)
        }),
        ("BAT of no bytes", |s| put32(&mut s.region, 40, 0)),
        ("metadata signature", |s| put(&mut s.metadata, 0, b"x")),
        ("2048 items", |s| put(&mut s.metadata, 10, &[0, 8])),
        ("no items", |s| put(&mut s.metadata, 10, &[0])),
        ("item outside", |s| put32(&mut s.metadata, 48, u32::MAX)),
        ("item in the table", |s| put32(&mut s.metadata, 48, 64)),
        ("items on each other", |s| {
            put32(&mut s.metadata, 48, SIZE as u32);
        }),
        ("block size", |s| put32(&mut s.metadata, PARAMETERS, 4096)),
        ("sector size", |s| put32(&mut s.metadata, SECTOR, 520)),
        ("capacity 0", |s| put64(&mut s.metadata, SIZE, 0)),
        ("capacity 2^63", |s| put64(&mut s.metadata, SIZE, 1 << 63)),
        ("capacity beyond the BAT", |s| {
            put64(&mut s.metadata, SIZE, 1 << 44);
        }),
        ("block state 5", |s| put64(&mut s.bat, 8, PAYLOAD | 5)),
        ("partly present", |s| put64(&mut s.bat, 8, PAYLOAD | 7)),
    ];
    for (what, damage) in cases {
        let mut sample = Sample::dynamic(1, 7);
        damage(&mut sample);
        refused(&sample, ErrorKind::Corrupt, what);
    }
}

#[test]
fn what_is_not_known_and_required_is_named() {
    type Damage = fn(&mut Sample);
    let unsupported: [(&str, Damage); 3] = [
        ("version", |s| put(&mut s.header, 66, &[2])),
        ("region", |s| s.add_region(&[5; 16], BITMAP, MIB as u32, 1)),
        ("item", |s| s.add_item(&[5; 16], LOCATOR, 8, 4)),
    ];
    for (what, damage) in unsupported {
        let mut sample = Sample::dynamic(1, 7);
        damage(&mut sample);
        refused(&sample, ErrorKind::Unsupported, what);
    }
}

#[test]
fn blocks_and_bitmaps_lie_where_they_may() {
    for place in [0, LOG, METADATA, BAT, 6 * MIB, 1 << 62, u64::MAX << 20] {
        let mut sample = Sample::dynamic(1, 7);
        put64(&mut sample.bat, 0, place | 6);
        refused(&sample, ErrorKind::Corrupt, &format!("a block at {place}"));
    }
    let mut heap = Sample::dynamic(1, 7);
    heap.length_bytes = PAYLOAD + MIB;
    put64(&mut heap.metadata, SIZE, 100 * MIB);
    heap.bat = (PAYLOAD | 6).to_le_bytes().repeat(100);
    refused(&heap, ErrorKind::Corrupt, "blocks upon each other");
    type Damage = fn(&mut Sample);
    let cases: [(&str, Damage); 4] = [
        ("no bitmap", |s| put64(&mut s.bat, 4096 * 8, BITMAP)),
        ("bitmap outside", |s| {
            put64(&mut s.bat, 4096 * 8, 1 << 50 | 6)
        }),
        ("bitmap on the BAT", |s| {
            put64(&mut s.bat, 4096 * 8, BAT | 6)
        }),
        ("path outside", |s| {
            put32(&mut s.metadata, LOCATOR + 36, 1 << 30)
        }),
    ];
    let files = Files::from([("p.vhdx", Sample::dynamic(1, 7).build())]);
    for (what, damage) in cases {
        let mut sample = Sample::differencing(2, 8, 1, "p.vhdx");
        damage(&mut sample);
        let error = read_with(sample.build(), &files).expect_err(what);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let mut sample = Sample::dynamic(1, 7);
    for length_bytes in (0..6 * MIB).step_by(4096) {
        sample.length_bytes = length_bytes;
        refused(&sample, ErrorKind::Corrupt, &length_bytes.to_string());
    }
}
