//! Streams, whole and damaged, and the guest that they hold.
use flate2::Compression;
use hyper2kvm_tests::images;
use hyper2kvm_tests::stream::{GRAIN_BYTES, StreamWriter, of_raw, packed};

/// Text, noise, grains of zeros, whole tables without a grain, and a short last grain.
pub fn guest() -> Vec<u8> {
    let mut guest = vec![0; 80 * 1024 * 1024 + 3 * 512];
    let noise = images::noise(11, 12_000_000);
    let text = b"a stream of grains ".repeat(60_000);
    let length = guest.len();
    guest[..512].copy_from_slice(&images::noise(1, 512));
    guest[500_000..500_000 + text.len()].copy_from_slice(&text);
    guest[9_000_001..21_000_001].copy_from_slice(&noise);
    guest[70_000_000..70_000_000 + text.len()].copy_from_slice(&text);
    guest[length - 512..].copy_from_slice(&images::noise(2, 512));
    guest
}

pub fn stream() -> Vec<u8> {
    of_raw(&guest())
}

const SMALL_BYTES: u64 = 20 * GRAIN_BYTES as u64;

fn grain(index: usize) -> Vec<u8> {
    let mut bytes = images::noise(index as u64 + 40, 30_000);
    bytes.resize(GRAIN_BYTES, index as u8 + 1);
    bytes
}

fn small() -> StreamWriter<Vec<u8>> {
    let mut writer = StreamWriter::new(Vec::new(), SMALL_BYTES);
    for index in [0, 1, 2, 5, 6] {
        writer.grain(index, &grain(index));
    }
    writer
}

/// Whole streams that are not simply grains in their order; the tables know better.
pub fn irregular() -> Vec<(&'static str, Vec<u8>)> {
    let with = |change: &dyn Fn(&mut StreamWriter<Vec<u8>>)| {
        let mut writer = small();
        change(&mut writer);
        writer.grain(12, &grain(12));
        writer.finish()
    };
    let stray = |sector: u64| packed(sector, &grain(9), Compression::fast());
    vec![
        (
            "a grain after a later one",
            with(&|w| w.grain(3, &grain(3))),
        ),
        ("a grain twice", with(&|w| w.grain(6, &grain(7)))),
        (
            "a grain that no table names",
            with(&|w| w.stray(&stray(9 * 128))),
        ),
        ("a grain that is forgotten", with(&|w| w.rename(5, 0))),
        (
            "a grain behind the disk",
            with(&|w| w.stray(&stray(1 << 40))),
        ),
        (
            "a grain between two",
            with(&|w| w.stray(&stray(9 * 128 + 8))),
        ),
        ("what is no marker", with(&|w| w.stray(&[0xaa; 1024]))),
        ("an early end of stream", with(&|w| w.stray(&[0; 512]))),
        (
            "a claim of much",
            with(&|w| {
                let mut huge = 1152_u64.to_le_bytes().to_vec();
                huge.extend(u32::MAX.to_le_bytes());
                huge.resize(512, 1);
                w.stray(&huge);
            }),
        ),
        (
            "structure without end",
            with(&|w| {
                let mut huge = u64::MAX.to_le_bytes().to_vec();
                huge.extend([0, 0, 0, 0, 1, 0, 0, 0]);
                huge.resize(512, 0);
                w.stray(&huge);
            }),
        ),
    ]
}

/// Streams that no reader takes.
pub fn corrupt() -> Vec<(&'static str, Vec<u8>)> {
    let elsewhere = {
        let mut writer = small();
        let place = writer.place_of(2);
        writer.rename(5, place);
        writer.finish()
    };
    let flipped = {
        let mut writer = small();
        let at = writer.place_of(2) as usize * 512 + 5_000;
        writer.grain(7, &grain(7));
        let mut bytes = writer.finish();
        bytes[at] ^= 0x10;
        bytes
    };
    let footless = {
        let mut bytes = small().finish();
        bytes.truncate(bytes.len() - 1536);
        bytes
    };
    vec![
        ("a table that names another grain", elsewhere),
        ("a flipped bit", flipped),
        ("no footer", footless),
    ]
}
