//! A drop on disk that is damaged in place, case after case, and made whole again.
use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use queue::roots::Roots;
use tempfile::TempDir;

use super::edit::{Case, Damaged};
use super::judge;

/// Makes the checksums right again; told which bytes were written.
pub type Mend = fn(&mut Image);
/// Reads a drop; whether it was read to its end.
pub type Reader = fn(&Roots, &Path) -> bool;

pub struct Form {
    roots: Roots,
    owner: PathBuf,
    image: RefCell<Image>,
    is_big: bool,
    mend: Mend,
    reader: Reader,
    /// Keeps the drop's directory.
    _top: TempDir,
}

/// The file that is damaged, in memory and on disk.
pub struct Image {
    file: File,
    golden: Vec<u8>,
    bytes: Vec<u8>,
    hot: Vec<Range<usize>>,
    hot_bytes: usize,
    written: Vec<Range<usize>>,
    /// Of the golden bytes, what is not zeros.
    data: Vec<Range<usize>>,
    /// What was cut off begins here.
    cut_at: usize,
}

/// What is told apart as data or zeros.
const CHUNK_BYTES: usize = 4096;
/// No file grows by more.
const MOST_GROWTH_BYTES: usize = 1 << 20;

pub fn place() -> TempDir {
    tempfile::tempdir_in(judge::memory()).unwrap()
}

impl Form {
    /// The drop `owner` in `top`, of which `damaged` is damaged, mostly in its `hot` places.
    pub fn new(
        top: TempDir,
        owner: &str,
        damaged: &str,
        hot: impl Fn(&[u8]) -> Vec<Range<usize>>,
    ) -> Self {
        Self::read_by(judge::read, top, owner, damaged, hot)
    }

    /// The same, read in another way.
    pub fn read_by(
        reader: Reader,
        top: TempDir,
        owner: &str,
        damaged: &str,
        hot: impl Fn(&[u8]) -> Vec<Range<usize>>,
    ) -> Self {
        let path = top.path().join(damaged);
        let golden = std::fs::read(&path).unwrap();
        let mut hot = hot(&golden);
        hot.retain(|range| range.end <= golden.len() && !range.is_empty());
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let chunk = |start: usize| start..golden.len().min(start + CHUNK_BYTES);
        let chunks = (0..golden.len()).step_by(CHUNK_BYTES).map(chunk);
        let data = chunks.filter(|chunk| golden[chunk.clone()].iter().any(|byte| *byte != 0));
        // Else growing would copy all of it.
        let mut bytes = Vec::with_capacity(golden.len() + MOST_GROWTH_BYTES);
        bytes.extend(&golden);
        let form = Self {
            roots: Roots::open(top.path(), &[]).unwrap(),
            owner: top.path().join(owner),
            image: RefCell::new(Image {
                file,
                data: data.collect(),
                cut_at: golden.len(),
                bytes,
                golden,
                hot_bytes: hot.iter().map(Range::len).sum(),
                hot,
                written: Vec::new(),
            }),
            is_big: false,
            mend: |_| (),
            reader,
            _top: top,
        };
        assert!(reader(&form.roots, &form.owner), "{owner} is not sound");
        form
    }

    pub fn mended_by(self, mend: Mend) -> Self {
        Self { mend, ..self }
    }

    pub fn big_endian(self) -> Self {
        Self {
            is_big: true,
            ..self
        }
    }

    /// Damages it, reads it, and makes it whole again. Whether it was read to its end.
    pub fn survives(&self, case: &Case) -> bool {
        let mut image = self.image.borrow_mut();
        // The case before may have ended in a panic.
        image.restore();
        for edit in &case.edits {
            edit.apply(&mut *image, self.is_big);
        }
        if case.mends {
            (self.mend)(&mut image);
        }
        image.flush();
        drop(image);
        (self.reader)(&self.roots, &self.owner)
    }
}

/// A target: one of its forms is damaged in each case.
pub fn fuzz(target: &str, forms: &[Form]) {
    judge::fuzz(target, super::edit::cases(), |case| {
        forms[case.form % forms.len()].survives(&case)
    });
}

impl Image {
    fn restore(&mut self) {
        let end = self.golden.len();
        if self.cut_at < end {
            // Zeros come back by themselves.
            self.bytes.truncate(self.cut_at);
            self.file.set_len(self.cut_at as u64).unwrap();
            let lost = self.data.iter().filter(|data| data.end > self.cut_at);
            self.written.extend(lost.cloned());
            self.cut_at = end;
        }
        self.bytes.resize(end, 0);
        self.file.set_len(end as u64).unwrap();
        for range in self.written.drain(..) {
            let range = range.start.min(end)..range.end.min(end);
            self.bytes[range.clone()].copy_from_slice(&self.golden[range.clone()]);
            self.file
                .write_all_at(&self.golden[range.clone()], range.start as u64)
                .unwrap();
        }
    }

    fn flush(&mut self) {
        if self.cut_at < self.golden.len() {
            // It may have grown again, by zeros.
            self.file.set_len(self.cut_at as u64).unwrap();
        }
        for range in &self.written {
            let bytes =
                &self.bytes[range.start.min(self.bytes.len())..range.end.min(self.bytes.len())];
            self.file.write_all_at(bytes, range.start as u64).unwrap();
        }
        if self.bytes.len() != self.golden.len() {
            self.file.set_len(self.bytes.len() as u64).unwrap();
        }
    }

    pub fn was_written(&self, range: &Range<usize>) -> bool {
        let overlaps =
            |written: &Range<usize>| written.start < range.end && written.end > range.start;
        self.written.iter().any(overlaps)
    }

    pub fn golden(&self) -> &[u8] {
        &self.golden
    }
}

impl Damaged for Image {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn hot(&self, number: u32) -> usize {
        let mut rest = number as usize % self.hot_bytes;
        for range in &self.hot {
            if rest < range.len() {
                return range.start + rest;
            }
            rest -= range.len();
        }
        unreachable!("the hot places are as long as their sum")
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = (at + bytes.len()).min(self.bytes.len());
        if at < end {
            self.bytes[at..end].copy_from_slice(&bytes[..end - at]);
            self.written.push(at..end);
        }
    }

    /// A file at most doubles.
    fn resize(&mut self, length: usize) {
        let golden = self.golden.len();
        let length = length.min(golden + golden.min(MOST_GROWTH_BYTES));
        self.cut_at = self.cut_at.min(length);
        self.bytes.resize(length, 0);
    }
}
