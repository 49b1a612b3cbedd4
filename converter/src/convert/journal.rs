//! The journal of a conversion: which blocks are in the target, as far as that is durable.
//!
//! A chain of segments, each with a hash over its bytes and the hash before it, so that what counts
//! is the longest sound beginning: a torn or damaged tail is as if it had not been written. The
//! first segment says what the journal is of; blocks count up to the last checkpoint behind them.
//! All numbers are little endian. Memory is bounded by one segment, whatever a file claims.
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::disk::BlockHash;

/// The largest payload that is written or read, in bytes: a multiple of `RECORD_BYTES`.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024 * RECORD_BYTES;
/// One block: index u64, packed length u32 (0: it stands as it is), flags u32, its hash.
pub const RECORD_BYTES: usize = 48;
/// "h2kvm-jl" and the version of the format.
const MAGIC: [u8; 12] = *b"h2kvm-jl\x01\0\0\0";
const FRAME_BYTES: usize = 8;
const CHECKPOINT_BYTES: usize = 24;
const IS_TRANSPLANT: u32 = 1;
const IS_VERIFIED: u64 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// What the journal is of, as text.
    Identity = 1,
    /// Records of blocks.
    Blocks = 2,
    Checkpoint = 3,
    /// The disk is finished: its report, as text.
    Done = 4,
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        [Self::Identity, Self::Blocks, Self::Checkpoint, Self::Done]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// A block that was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub index: u64,
    /// The length of its stream; 0: it stands as it is.
    pub packed_bytes: u32,
    pub is_transplant: bool,
    pub hash: BlockHash,
}

/// How far a conversion was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// Everything of the guest before it is in the target.
    pub guest_bytes: u64,
    /// What had been read of the source.
    pub read_bytes: u64,
    /// The source's checksums had been verified to their end.
    pub is_verified: bool,
}

type Chain = [u8; 32];

impl Record {
    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let flags = if self.is_transplant { IS_TRANSPLANT } else { 0 };
        let mut bytes = [0; RECORD_BYTES];
        let (index, rest) = bytes.split_at_mut(8);
        let (packed_bytes, rest) = rest.split_at_mut(4);
        let (flag, hash) = rest.split_at_mut(4);
        index.copy_from_slice(&self.index.to_le_bytes());
        packed_bytes.copy_from_slice(&self.packed_bytes.to_le_bytes());
        flag.copy_from_slice(&flags.to_le_bytes());
        hash.copy_from_slice(&self.hash);
        bytes
    }

    /// `None` if the bytes are too few or say what no record says.
    fn of(bytes: &[u8]) -> Option<Self> {
        let (index, rest) = number_u64(bytes)?;
        let (packed_bytes, rest) = number_u32(rest)?;
        let (flags, rest) = number_u32(rest)?;
        (flags & !IS_TRANSPLANT == 0).then_some(Self {
            index,
            packed_bytes,
            is_transplant: flags & IS_TRANSPLANT != 0,
            hash: rest.try_into().ok()?,
        })
    }
}

impl Checkpoint {
    pub fn to_bytes(self) -> [u8; CHECKPOINT_BYTES] {
        let mut bytes = [0; CHECKPOINT_BYTES];
        let flags = if self.is_verified { IS_VERIFIED } else { 0 };
        let words = [self.guest_bytes, self.read_bytes, flags];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let (guest_bytes, rest) = number_u64(bytes)?;
        let (read_bytes, rest) = number_u64(rest)?;
        let (flags, rest) = number_u64(rest)?;
        (rest.is_empty() && flags & !IS_VERIFIED == 0).then_some(Self {
            guest_bytes,
            read_bytes,
            is_verified: flags & IS_VERIFIED != 0,
        })
    }
}

fn number_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}

fn number_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

fn link(before: &Chain, frame: &[u8], payload: &[u8]) -> Chain {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(frame).update(payload);
    hasher.finalize().into()
}

/// Where a sound beginning of a journal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    offset_bytes: u64,
    chain: Chain,
}

/// Reads segments as long as they are sound.
pub(super) struct Segments<R> {
    input: R,
    end: End,
    payload: Vec<u8>,
}

impl<R: Read> Segments<R> {
    /// `None` if it does not begin as a journal of this version.
    pub fn new(mut input: R) -> Option<Self> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic).ok()?;
        let end = End {
            offset_bytes: MAGIC.len() as u64,
            chain: Chain::default(),
        };
        (magic == MAGIC).then(|| Self {
            input,
            end,
            payload: Vec::new(),
        })
    }

    /// The next segment; `None` at the end of what is sound.
    pub fn next(&mut self) -> Option<(Kind, &[u8])> {
        let mut frame = [0; FRAME_BYTES];
        self.input.read_exact(&mut frame).ok()?;
        let (kind, rest) = number_u32(&frame)?;
        let (length_bytes, _) = number_u32(rest)?;
        let kind = Kind::of(kind)?;
        let length_bytes = usize::try_from(length_bytes).ok()?;
        if length_bytes > MAX_PAYLOAD_BYTES {
            return None;
        }
        self.payload.clear();
        // Grows with what is there, not with what is claimed.
        let mut limited = self.input.by_ref().take(length_bytes as u64);
        limited.read_to_end(&mut self.payload).ok()?;
        let mut chain = Chain::default();
        self.input.read_exact(&mut chain).ok()?;
        let is_whole = self.payload.len() == length_bytes;
        if !is_whole || chain != link(&self.end.chain, &frame, &self.payload) {
            return None;
        }
        self.end.chain = chain;
        self.end.offset_bytes += (FRAME_BYTES + length_bytes + chain.len()) as u64;
        Some((kind, &self.payload))
    }

    /// The end of the segment that was read last.
    pub fn end(&self) -> End {
        self.end
    }
}

/// What a journal comes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Survey {
    pub identity: String,
    pub last: Last,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Last {
    Nothing,
    Checkpoint(Checkpoint, End),
    /// The text of the disk's report.
    Done(String),
}

/// Reads a journal to its last checkpoint; `None` if it does not even say what it is of.
pub fn survey(input: impl Read) -> Option<Survey> {
    let mut segments = Segments::new(input)?;
    let Some((Kind::Identity, identity)) = segments.next() else {
        return None;
    };
    let identity = String::from_utf8(identity.to_vec()).ok()?;
    let mut last = Last::Nothing;
    while let Some((kind, payload)) = segments.next() {
        match kind {
            Kind::Identity => break,
            Kind::Blocks => {}
            Kind::Checkpoint => {
                let Some(checkpoint) = Checkpoint::of(payload) else {
                    break;
                };
                last = Last::Checkpoint(checkpoint, segments.end());
            }
            Kind::Done => {
                if let Ok(text) = String::from_utf8(payload.to_vec()) {
                    last = Last::Done(text);
                }
                break;
            }
        }
    }
    Some(Survey { identity, last })
}

/// Calls `each` with every block before `end`, in order; `None` if there is not all of it.
pub fn replay<E>(
    input: impl Read,
    end: End,
    mut each: impl FnMut(Record) -> Result<(), E>,
) -> Option<Result<(), E>> {
    let mut segments = Segments::new(input)?;
    while segments.end().offset_bytes < end.offset_bytes {
        let (kind, payload) = segments.next()?;
        if kind != Kind::Blocks {
            continue;
        }
        for bytes in payload.chunks(RECORD_BYTES) {
            if let Err(error) = each(Record::of(bytes)?) {
                return Some(Err(error));
            }
        }
    }
    (segments.end() == end).then_some(Ok(()))
}

/// Appends segments; what is written is durable once the file is.
pub struct Writer {
    file: File,
    chain: Chain,
}

impl Writer {
    /// Begins a journal in an empty file.
    pub fn begin(mut file: File, identity: &str) -> io::Result<Self> {
        file.write_all(&MAGIC)?;
        let chain = Chain::default();
        let mut writer = Self { file, chain };
        writer.append(Kind::Identity, identity.as_bytes())?;
        Ok(writer)
    }

    /// Goes on behind a checkpoint; what lies behind it is cut off.
    pub fn go_on(mut file: File, end: End) -> io::Result<Self> {
        file.set_len(end.offset_bytes)?;
        file.seek(SeekFrom::Start(end.offset_bytes))?;
        let chain = end.chain;
        Ok(Self { file, chain })
    }

    pub fn append(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let length_bytes = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= MAX_PAYLOAD_BYTES)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let mut frame = [0; FRAME_BYTES];
        let (first, second) = frame.split_at_mut(FRAME_BYTES / 2);
        first.copy_from_slice(&(kind as u32).to_le_bytes());
        second.copy_from_slice(&length_bytes.to_le_bytes());
        self.chain = link(&self.chain, &frame, payload);
        self.file.write_all(&frame)?;
        self.file.write_all(payload)?;
        self.file.write_all(&self.chain)
    }

    /// Appends records of blocks, as many segments as they need, and the checkpoint behind them.
    pub fn checkpoint(&mut self, records: &[u8], checkpoint: Checkpoint) -> io::Result<()> {
        for payload in records.chunks(MAX_PAYLOAD_BYTES) {
            self.append(Kind::Blocks, payload)?;
        }
        self.append(Kind::Checkpoint, &checkpoint.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    /// Three checkpoints over ten blocks each; the last one's blocks in two segments.
    fn sample(done: bool) -> Vec<u8> {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::begin(file.try_clone().unwrap(), "of a disk").unwrap();
        for number in 1..=3 {
            let first = (number - 1) * 10;
            let records = |range: std::ops::Range<u64>| -> Vec<u8> {
                range.flat_map(|index| record(index).to_bytes()).collect()
            };
            if number == 3 {
                writer
                    .append(Kind::Blocks, &records(first..first + 4))
                    .unwrap();
                let rest = records(first + 4..first + 10);
                writer.checkpoint(&rest, checkpoint(3)).unwrap();
            } else {
                let all = records(first..first + 10);
                writer.checkpoint(&all, checkpoint(number)).unwrap();
            }
        }
        if done {
            writer.append(Kind::Done, b"a report").unwrap();
        }
        let mut bytes = Vec::new();
        let mut file = file;
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// What a journal says, and the blocks that count.
    fn read(bytes: &[u8]) -> Option<(Survey, Vec<Record>)> {
        let survey = survey(bytes)?;
        let mut records = Vec::new();
        if let Last::Checkpoint(_, end) = &survey.last {
            let each = |record| {
                records.push(record);
                Ok::<(), ()>(())
            };
            replay(bytes, *end, each).unwrap().unwrap();
        }
        Some((survey, records))
    }

    /// Whatever is left of a journal: a checkpoint that was written, with exactly its blocks.
    fn check(bytes: &[u8]) {
        let Some((survey, records)) = read(bytes) else {
            return;
        };
        assert_eq!(survey.identity, "of a disk");
        match survey.last {
            Last::Nothing => assert!(records.is_empty()),
            Last::Done(text) => assert_eq!(text, "a report"),
            Last::Checkpoint(last, _) => {
                let number = last.guest_bytes >> 20;
                assert_eq!(last, checkpoint(number));
                let all: Vec<_> = (0..number * 10).map(record).collect();
                assert_eq!(records, all);
            }
        }
    }

    #[test]
    fn cut_at_every_byte_it_ends_with_a_whole_checkpoint() {
        let bytes = sample(true);
        let mut seen = Vec::new();
        for length in 0..=bytes.len() {
            check(&bytes[..length]);
            let last = survey(&bytes[..length]).map(|survey| match survey.last {
                Last::Nothing => 0,
                Last::Checkpoint(last, _) => last.guest_bytes >> 20,
                Last::Done(_) => 4,
            });
            if seen.last() != Some(&last) {
                seen.push(last);
            }
        }
        assert_eq!(seen, [None, Some(0), Some(1), Some(2), Some(3), Some(4)]);
    }

    #[test]
    fn a_flipped_bit_ends_it_there() {
        let bytes = sample(true);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            check(&damaged);
            let last = survey(&damaged[..]).map(|survey| survey.last);
            assert!(!matches!(last, Some(Last::Done(_))), "flipped at {at}");
        }
    }

    #[test]
    fn goes_on_behind_a_checkpoint() {
        let bytes = sample(false);
        let Last::Checkpoint(_, end) = survey(&bytes[..]).unwrap().last else {
            panic!("no checkpoint");
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.write_all(b"half a segment").unwrap();
        let mut writer = Writer::go_on(file.try_clone().unwrap(), end).unwrap();
        let more: Vec<u8> = (30..40)
            .flat_map(|index| record(index).to_bytes())
            .collect();
        writer.checkpoint(&more, checkpoint(4)).unwrap();
        let mut whole = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut whole).unwrap();
        check(&whole);
        assert_eq!(read(&whole).unwrap().1.len(), 40);
    }

    proptest! {
        #[test]
        fn a_claimed_length_costs_nothing(kind in 0u32..6, length in any::<u32>()) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(kind.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            let mut segments = Segments::new(&bytes[..]).unwrap();
            prop_assert!(segments.next().is_none());
            prop_assert!(segments.payload.capacity() <= 64);
        }
    }
}
