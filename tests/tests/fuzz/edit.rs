//! Structured damage: fields that get interesting values, pieces that are moved and cut off.
use proptest::prelude::*;

/// One damage; what its numbers mean, the file decides that it is done to.
#[derive(Debug, Clone, Copy)]
pub struct Edit {
    kind: u8,
    at: u32,
    value: u64,
}

/// Some damages, and whether the file's checksums are made right again afterwards (mostly).
#[derive(Debug, Clone)]
pub struct Case {
    pub form: usize,
    pub edits: Vec<Edit>,
    pub mends: bool,
}

pub fn cases() -> impl Strategy<Value = Case> {
    let edit = (any::<u8>(), any::<u32>(), any::<u64>()).prop_map(|(kind, at, value)| Edit {
        kind,
        at,
        value,
    });
    let edits = prop::collection::vec(edit, 1..6);
    (any::<usize>(), edits, 0u8..8).prop_map(|(form, edits, mends)| Case {
        form,
        edits,
        mends: mends != 0,
    })
}

/// What programs get wrong about numbers: `old` is the number that was there, `at` its place.
fn interesting(choice: u64, old: u64, at: u64, file_bytes: u64) -> u64 {
    let values = [
        0,
        1,
        2,
        3,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        1 << 32,
        1 << 37,
        (1 << 37) + 1,
        1 << 46,
        1 << 62,
        (1 << 63) - 1,
        1 << 63,
        u64::MAX,
        u64::MAX - 511,
        old.wrapping_add(1),
        old.wrapping_sub(1),
        old.wrapping_mul(2),
        old / 2,
        old ^ 0x8000_0000,
        at,
        at / 512,
        at / 512 + 1,
        file_bytes,
        file_bytes / 512,
        (file_bytes / 512).wrapping_sub(1),
        (file_bytes / 512) << 9 | 1,
        512,
        4096,
        65_536,
        1 << 20,
    ];
    values[(choice % values.len() as u64) as usize]
}

/// Bytes that are damaged in place and can be had back.
pub trait Damaged {
    fn bytes(&self) -> &[u8];
    /// A place where something is that a parser looks at.
    fn hot(&self, number: u32) -> usize;
    fn write(&mut self, at: usize, bytes: &[u8]);
    fn resize(&mut self, length: usize);
}

fn number(bytes: &[u8], is_big: bool) -> u64 {
    let push = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
    if is_big {
        bytes.iter().fold(0, push)
    } else {
        bytes.iter().rev().fold(0, push)
    }
}

impl Edit {
    /// Damages binary structures; `is_big` is the byte order that they mostly have.
    pub fn apply(&self, file: &mut impl Damaged, is_big: bool) {
        let length = file.bytes().len();
        if length < 16 {
            return;
        }
        let at = file.hot(self.at).min(length - 8);
        let (low, high) = (self.value, self.value >> 16);
        let width = [1, 2, 4, 8, 4, 8, 4, 8][(low >> 8) as usize % 8];
        // A field is mostly where its width says, and mostly of the file's byte order.
        let field = if low >> 11 & 7 == 0 {
            at
        } else {
            at & !(width - 1)
        };
        let is_big = is_big != (low >> 14 & 3 == 3);
        let old = number(&file.bytes()[field..field + width], is_big);
        let put = |file: &mut dyn FnMut(usize, &[u8]), value: u64| match is_big {
            true => file(field, &value.to_be_bytes()[8 - width..]),
            false => file(field, &value.to_le_bytes()[..width]),
        };
        match self.kind % 16 {
            0 => file.write(at, &[low as u8]),
            1 => {
                let flipped = file.bytes()[at] ^ 1 << (low % 8);
                file.write(at, &[flipped]);
            }
            2..8 => {
                let value = interesting(low, old, field as u64, length as u64);
                put(&mut |at, bytes| file.write(at, bytes), value);
            }
            8 | 9 => {
                let value = old.wrapping_add(high % 9).wrapping_sub(4);
                put(&mut |at, bytes| file.write(at, bytes), value);
            }
            10..13 => {
                let from = file.hot(high as u32).min(length - 8);
                let piece = (1 << (low % 8)).min(length - from).min(length - at);
                let moved = file.bytes()[from..from + piece].to_vec();
                file.write(at, &moved);
            }
            13 => {
                let piece = (1 << (low % 8)).min(length - at);
                file.write(at, &vec![if high % 2 == 0 { 0 } else { 0xff }; piece]);
            }
            14 => put(&mut |at, bytes| file.write(at, bytes), high),
            _ if high % 4 == 0 => file.resize(length + (low % (1 << 20)) as usize),
            _ if high % 4 == 1 => file.resize(at),
            _ => file.resize((low as usize % length).next_multiple_of(512)),
        }
    }

    /// Damages text: words, numbers and lines.
    pub fn apply_to_text(&self, text: &mut Vec<u8>, words: &[&str]) {
        if text.is_empty() {
            text.extend(b"0");
        }
        let at = self.at as usize % text.len();
        let end = (at + 1 + self.value as usize % 40).min(text.len());
        let line = text[..at]
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |n| n + 1);
        let line_end = text[at..].iter().position(|b| *b == b'\n');
        let line_end = line_end.map_or(text.len(), |n| at + n + 1);
        match self.kind % 10 {
            0 => text[at] = self.value as u8,
            1 => drop(text.drain(at..end)),
            2 => drop(text.drain(line..line_end)),
            3 => {
                let again = text[line..line_end].to_vec();
                text.splice(line..line, again);
            }
            4 => {
                let again = text[at..end]
                    .to_vec()
                    .repeat(1 + (self.value >> 32) as usize % 20);
                text.splice(at..at, again);
            }
            5 => text.truncate(at),
            6 | 7 => {
                let is_digit = |byte: &u8| byte.is_ascii_digit();
                let Some(start) = text[at..].iter().position(is_digit) else {
                    return;
                };
                let start = at + start;
                let digits = text[start..].iter().take_while(|b| is_digit(b)).count();
                let old = std::str::from_utf8(&text[start..start + digits]);
                let old = old.ok().and_then(|old| old.parse().ok()).unwrap_or(7);
                let value = interesting(self.value, old, at as u64, text.len() as u64);
                text.splice(start..start + digits, value.to_string().into_bytes());
            }
            _ => {
                let word = words[(self.value % words.len() as u64) as usize];
                text.splice(at..end.min(at + word.len()), word.bytes());
            }
        }
    }
}
