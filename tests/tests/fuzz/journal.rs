//! The journal of an interrupted conversion: what is damaged counts for nothing.
use std::fs::{self, File};
use std::ops::Range;

use converter::convert::journal::{self, Checkpoint, Last, Record, Writer};

use super::edit::{Damaged, cases};
use super::form::place;
use super::judge;
use super::vmdk::le;

const MAGIC_BYTES: usize = 12;
const FRAME_BYTES: usize = 8;
const CHAIN_BYTES: usize = 32;

struct Journal {
    bytes: Vec<u8>,
    /// Magic number, frames and checkpoints, weighted, and everything.
    hot: Vec<usize>,
}

impl Damaged for Journal {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn hot(&self, number: u32) -> usize {
        self.hot[number as usize % self.hot.len()]
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = (at + bytes.len()).min(self.bytes.len());
        if at < end {
            self.bytes[at..end].copy_from_slice(&bytes[..end - at]);
        }
    }

    fn resize(&mut self, length: usize) {
        self.bytes.resize(length, 0);
    }
}

fn record(index: u64) -> Record {
    Record {
        index,
        packed_bytes: (index % 3) as u32 * 100,
        is_transplant: index % 3 == 1,
        hash: [index as u8; 32],
    }
}

fn checkpoint(number: u64) -> Checkpoint {
    Checkpoint {
        guest_bytes: number << 20,
        read_bytes: number << 16,
        is_verified: number > 1,
    }
}

/// Three checkpoints of four blocks each.
fn golden(report: Option<&str>) -> Vec<u8> {
    let top = place();
    let path = top.path().join("journal");
    let mut writer = Writer::begin(File::create(&path).unwrap(), "of a disk").unwrap();
    for number in 1..=3 {
        let blocks = (number - 1) * 4..number * 4;
        let records: Vec<u8> = blocks.flat_map(|index| record(index).to_bytes()).collect();
        writer.checkpoint(&records, checkpoint(number)).unwrap();
    }
    if let Some(report) = report {
        writer
            .append(journal::Kind::Done, report.as_bytes())
            .unwrap();
    }
    fs::read(path).unwrap()
}

/// The segments: frame and payload; the hash is behind each.
fn segments(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = MAGIC_BYTES;
    std::iter::from_fn(move || {
        bytes.get(at..at + FRAME_BYTES)?;
        let segment = at..at + FRAME_BYTES + le(bytes, at + 4, 4);
        at = segment.end + CHAIN_BYTES;
        (at <= bytes.len()).then_some(segment)
    })
}

/// Hashes each segment again, so that what it says is looked at.
fn mend(bytes: &mut [u8]) {
    let mut chain = [0; CHAIN_BYTES];
    for segment in segments(bytes).take(64).collect::<Vec<_>>() {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&chain).update(&bytes[segment.clone()]);
        chain = hasher.finalize().into();
        bytes[segment.end..segment.end + CHAIN_BYTES].copy_from_slice(&chain);
    }
}

/// The last checkpoint and the blocks before it; whether there is one, or a report.
fn read(bytes: &[u8], is_mended: bool) -> bool {
    let Some(survey) = journal::survey(bytes) else {
        return false;
    };
    let mut records = Vec::new();
    let is_whole = match &survey.last {
        Last::Nothing | Last::Done(_) => None,
        Last::Checkpoint(_, end) => journal::replay(bytes, *end, |record| {
            records.push(record);
            Ok::<(), ()>(())
        }),
    };
    assert!(records.len() * record(0).to_bytes().len() <= bytes.len());
    if is_mended {
        return is_whole.is_some() || matches!(survey.last, Last::Done(_));
    }
    // Nothing is believed but what was written, in its order and to a checkpoint.
    assert_eq!(survey.identity, "of a disk");
    match survey.last {
        Last::Nothing => false,
        Last::Done(report) => {
            assert_eq!(report, "a report");
            true
        }
        Last::Checkpoint(last, _) => {
            let number = last.guest_bytes >> 20;
            assert_eq!(last, checkpoint(number));
            assert_eq!(is_whole, Some(Ok(())));
            let all: Vec<Record> = (0..number * 4).map(record).collect();
            assert_eq!(records, all);
            true
        }
    }
}

#[test]
fn journal_of_a_conversion() {
    let goldens = [golden(None), golden(Some("a report"))];
    let hot: [Vec<usize>; 2] = goldens.each_ref().map(|bytes| {
        let frames = segments(bytes).flat_map(|segment| {
            let end = segment.end.min(segment.start + FRAME_BYTES + 64);
            segment.start..end
        });
        let frames: Vec<usize> = frames.collect();
        let everything = 0..bytes.len();
        let magic = 0..MAGIC_BYTES;
        magic.chain(frames.repeat(2)).chain(everything).collect()
    });
    for bytes in &goldens {
        let mut mended = bytes.clone();
        mend(&mut mended);
        assert_eq!(&mended, bytes, "the chain is another");
        assert!(read(bytes, false));
    }
    judge::fuzz("journal of a conversion", cases(), |case| {
        let form = case.form % goldens.len();
        let mut journal = Journal {
            bytes: goldens[form].clone(),
            hot: hot[form].clone(),
        };
        for edit in &case.edits {
            edit.apply(&mut journal, false);
        }
        if case.mends {
            mend(&mut journal.bytes);
        }
        read(&journal.bytes, case.mends)
    });
}
