//! Streams of every kind: whole, several in a row, cut at many places, damaged, and bombs.
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::disk::Unobserved;
use crate::error::ErrorKind;

const ALL: [Wrapper; 3] = [Wrapper::Gzip, Wrapper::Xz, Wrapper::Zstd];

fn pack(wrapper: Wrapper, bytes: &[u8]) -> Vec<u8> {
    match wrapper {
        Wrapper::Gzip => {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Wrapper::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Wrapper::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
    }
}

fn window(bytes: &[u8]) -> Window {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Window::whole(file, Path::new("x.raw.z")).unwrap()
}

fn unpack(wrapper: Wrapper, files: &[&[u8]]) -> Result<Window> {
    let top = tempfile::tempdir().unwrap();
    let unpacker = Unpacker {
        directory: top.path(),
        observer: &Unobserved,
        patience: std::time::Duration::ZERO,
    };
    let stored: Vec<Window> = files.iter().map(|bytes| window(bytes)).collect();
    let unpacked = unpacker.unpack(&stored, "x.raw", Some(wrapper));
    assert_eq!(top.path().read_dir().unwrap().count(), 0, "a file is left");
    unpacked
}

fn content(window: &Window) -> Vec<u8> {
    window.read_vec(0, window.length_bytes() as usize).unwrap()
}

/// Text, a hole of zeros, and noise.
fn disk() -> Vec<u8> {
    let mut state = 1u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let mut disk = b"once upon a time ".repeat(9000);
    disk.resize(3_000_000, 0);
    disk.extend(noise.take(300_001));
    disk
}

#[test]
fn whole_streams_and_several_of_them() {
    let disk = disk();
    let (first, second) = disk.split_at(70_001);
    for wrapper in ALL {
        let one = unpack(wrapper, &[&pack(wrapper, &disk)]).unwrap();
        assert!(content(&one) == disk, "{wrapper}");
        assert!(one.allocated_bytes() < 700_000, "zeros are no holes");
        let two = [pack(wrapper, first), pack(wrapper, second)].concat();
        assert!(content(&unpack(wrapper, &[&two]).unwrap()) == disk);
        // The same, cut into files at any place.
        let (head, tail) = two.split_at(two.len() / 3);
        assert!(content(&unpack(wrapper, &[head, tail]).unwrap()) == disk);
        let empty = [pack(wrapper, b""), two].concat();
        assert!(content(&unpack(wrapper, &[&empty]).unwrap()) == disk);
    }
}

#[test]
fn what_follows_the_last_stream() {
    for wrapper in ALL {
        let packed = pack(wrapper, b"disk");
        let with = |rest: &[u8]| unpack(wrapper, &[&[packed.as_slice(), rest].concat()]);
        let may_be_padded = wrapper != Wrapper::Zstd;
        assert_eq!(with(&[0; 512]).is_ok(), may_be_padded, "{wrapper}");
        for rest in [&b"garbage"[..], &[0, 0, 0, 1], &packed[..4]] {
            let error = with(rest).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{wrapper}");
            assert!(error.to_string().contains("offset"), "{error}");
        }
    }
    // Padding of an xz stream comes in fours.
    let packed = pack(Wrapper::Xz, b"disk");
    assert!(unpack(Wrapper::Xz, &[&packed, &[0; 3]]).is_err());
    // pzstd's frames of its own.
    let skippable = [
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
        &*pack(Wrapper::Zstd, b"disk"),
    ]
    .concat();
    assert_eq!(
        content(&unpack(Wrapper::Zstd, &[&skippable]).unwrap()),
        b"disk"
    );
}

#[test]
fn every_cut_and_every_damage_is_noticed() {
    let disk = disk();
    for wrapper in ALL {
        let packed = pack(wrapper, &disk);
        let cuts = (8..packed.len()).step_by(packed.len() / 60);
        for cut in cuts.chain(packed.len() - 20..packed.len()) {
            let error = unpack(wrapper, &[&packed[..cut]]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{wrapper} at {cut}");
            let text = error.to_string();
            assert!(
                text.contains("truncated") && text.contains("x.raw.z"),
                "{text}"
            );
        }
        for at in (20..packed.len()).step_by(packed.len() / 60) {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x40;
            let Err(error) = unpack(wrapper, &[&damaged]) else {
                panic!("{wrapper}: damage at {at} was not seen");
            };
            assert_eq!(error.kind, ErrorKind::Corrupt, "{wrapper} at {at}: {error}");
        }
    }
}

#[test]
fn what_claims_too_much_memory_is_refused() {
    // A dictionary of 1.5 GiB, which the stream would never need.
    let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
    options.dict_size(1536 << 20);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&options);
    let check = liblzma::stream::Check::Crc32;
    let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(b"disk").unwrap();
    let error = unpack(Wrapper::Xz, &[&encoder.finish().unwrap()]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    // RFC 8878, 3.1.1.1.2: a window of 2^31 bytes.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
    let error = unpack(Wrapper::Zstd, &[&frame]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
}

/// Zeros that unpack to much more than they are.
fn bomb(wrapper: Wrapper, mebibytes: usize) -> Vec<u8> {
    pack(wrapper, &vec![0; 16 << 20]).repeat(mebibytes / 16)
}

#[test]
fn a_bomb_of_zeros_is_a_hole() {
    for wrapper in ALL {
        let unpacked = unpack(wrapper, &[&bomb(wrapper, 512)]).unwrap();
        assert_eq!(unpacked.length_bytes(), 512 << 20);
        assert!(unpacked.allocated_bytes() < 1 << 20, "{wrapper}");
    }
}

#[test]
fn what_has_no_room_is_refused_before_the_first_byte() {
    let top = tempfile::tempdir().unwrap();
    let unpacker = Unpacker {
        directory: top.path(),
        observer: &Unobserved,
        patience: std::time::Duration::ZERO,
    };
    // The stored bytes alone are more than any file system here has.
    let huge = tempfile::tempfile().unwrap();
    huge.set_len(1 << 43).unwrap();
    let huge = Window::whole(huge, Path::new("x.gz")).unwrap();
    let error = unpacker
        .unpack(&[huge], "x", Some(Wrapper::Gzip))
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    assert!(error.remedy.is_some());
}

/// Counts, and cancels when it has seen enough.
#[derive(Default)]
struct Watch {
    expected: AtomicU64,
    seen: AtomicU64,
    calls: AtomicU64,
    most_calls: u64,
}

impl Observer for Watch {
    fn expect(&self, bytes: u64) {
        self.expected.fetch_add(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.seen.fetch_add(bytes, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > self.most_calls
    }
}

#[test]
fn the_work_is_told_and_can_be_ended() {
    let top = tempfile::tempdir().unwrap();
    for wrapper in ALL {
        let packed = window(&pack(wrapper, &disk()));
        let watch = Watch {
            most_calls: u64::MAX,
            ..Watch::default()
        };
        let unpacker = Unpacker {
            directory: top.path(),
            observer: &watch,
            patience: std::time::Duration::ZERO,
        };
        let stored = [packed.clone()];
        unpacker.unpack(&stored, "x", Some(wrapper)).unwrap();
        let expected = watch.expected.into_inner();
        assert_eq!(expected, packed.length_bytes());
        assert_eq!(watch.seen.into_inner(), expected);

        let watch = Watch {
            most_calls: 5,
            ..Watch::default()
        };
        let bomb = window(&bomb(wrapper, 512));
        let unpacker = Unpacker {
            directory: top.path(),
            observer: &watch,
            patience: std::time::Duration::ZERO,
        };
        let error = unpacker.unpack(&[bomb], "x", Some(wrapper)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
    }
}

#[test]
fn only_the_stated_pieces_of_a_sparse_file_are_data() {
    let top = tempfile::tempdir().unwrap();
    let unpacker = Unpacker {
        directory: top.path(),
        observer: &Unobserved,
        patience: std::time::Duration::ZERO,
    };
    let pieces = [(1 << 20, window(b"one")), (5 << 30, window(b"two"))];
    let file = unpacker
        .spread(&window(b"onetwo"), (5 << 30) + 100, &pieces)
        .unwrap();
    assert_eq!(file.length_bytes(), (5 << 30) + 100);
    assert_eq!(file.read_vec(1 << 20, 4).unwrap(), b"one\0");
    assert_eq!(file.read_vec(5 << 30, 4).unwrap(), b"two\0");
    assert!(file.allocated_bytes() <= 1 << 20);
    assert!(
        file.stamp().unwrap().contains("x.raw.z"),
        "known by its source"
    );
    let error = unpacker.spread(&window(b""), 1 << 50, &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[test]
fn a_wrapper_within_a_wrapper_is_refused() {
    let top = tempfile::tempdir().unwrap();
    let unpacker = Unpacker {
        directory: top.path(),
        observer: &Unobserved,
        patience: std::time::Duration::ZERO,
    };
    let twice = window(&pack(Wrapper::Gzip, &pack(Wrapper::Xz, b"disk")));
    let error = unpacker.open(twice, "x.raw.gz").err().unwrap();
    assert_eq!(error.kind, ErrorKind::Invalid);
}
