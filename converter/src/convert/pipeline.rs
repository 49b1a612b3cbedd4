//! The pipeline: each thread takes the next batch of the map, reads, inflates and hashes it, waits
//! for its turn, has its blocks placed, and writes them while the others go on.
//!
//! Placing is in guest order, so the target's bytes do not depend on the number of threads. The
//! thread with the lowest batch never waits, so there is always one that moves.
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::account::{Account, Tally};
use super::batch::{Batch, Batches};
use super::blocks::{self, Block, Packer};
use super::fill::Buffer;
use super::journal::Checkpoint;
use super::keeper::{Flight, Keeper};
use super::target::{Packing, Target};
use crate::disk::{BLOCK_BYTES, Checksum, GuestOffset, HostOffset, Image, Layout, Observer};
use crate::error::{Error, ErrorKind, Result};
use crate::source::SourceDisk;

pub(super) struct Outcome {
    pub digest: String,
    pub blocks: Tally,
    pub hole_bytes: u64,
    /// 0 without a target.
    pub output_bytes: u64,
}

/// What is done in the batches' order.
struct Turn {
    next: u64,
    layout: Option<Box<dyn Layout>>,
    account: Account,
}

struct Shared<'a> {
    image: &'a dyn Image,
    batches: Mutex<Batches<'a>>,
    turn: Mutex<Turn>,
    turned: Condvar,
    /// A thread failed: the others stop at once.
    failed: AtomicBool,
    output: Option<(&'a File, &'a Path)>,
    /// For a compressed target.
    packing: Option<Packing>,
    keeper: Option<&'a Keeper<'a>>,
    work: Work<'a>,
}

/// Where the work begins, and who keeps account of how far it is.
pub(super) struct Start<'a> {
    pub account: Account,
    pub from: Checkpoint,
    pub keeper: Option<&'a Keeper<'a>>,
}

impl Start<'_> {
    pub fn afresh(disk: &SourceDisk) -> Self {
        Self {
            account: Account::new(disk.capacity_bytes),
            from: Checkpoint::default(),
            keeper: None,
        }
    }
}

/// Reports work done, never more in total than was announced.
struct Work<'a> {
    observer: &'a dyn Observer,
    left_bytes: AtomicU64,
}

/// Reads the whole disk; writes it if there is a target. `threads` 0 is one per core.
pub(super) fn run(
    disk: &SourceDisk,
    target: Option<Target>,
    start: Start<'_>,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Outcome> {
    let packing = target.as_ref().and_then(|target| target.packing);
    let (file, layout) = match target {
        Some(target) => (Some((target.file, target.path)), Some(target.layout)),
        None => (None, None),
    };
    let shared = Shared {
        image: disk.image.as_ref(),
        batches: Mutex::new(Batches::new(
            disk.image.extents(),
            GuestOffset(start.from.guest_bytes),
        )),
        turn: Mutex::new(Turn {
            next: 0,
            layout,
            account: start.account,
        }),
        turned: Condvar::new(),
        failed: AtomicBool::new(false),
        output: file.as_ref().map(|(file, path)| (&**file, path.as_path())),
        packing,
        keeper: start.keeper,
        work: Work {
            observer,
            left_bytes: AtomicU64::new(disk.allocated_bytes),
        },
    };
    shared.work.resume(start.from.read_bytes);
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores() } else { threads };
    thread::scope(|scope| {
        let keeping = start
            .keeper
            .map(|keeper| scope.spawn(|| shared.guarded(|| keeper.run())));
        let mut workers = Vec::with_capacity(threads + 2);
        if !disk.checksums.is_empty() && !start.from.is_verified {
            workers.push(scope.spawn(|| shared.guarded(|| shared.verify(&disk.checksums))));
        }
        for _ in 0..threads {
            workers.push(scope.spawn(|| shared.guarded(|| shared.work())));
        }
        let mut results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        if let Some(keeper) = start.keeper {
            keeper.end();
        }
        results.extend(keeping.map(|keeping| keeping.join()));
        results
            .into_iter()
            .try_for_each(|result| result.unwrap_or_else(|_| Err(panicked())))
    })?;
    shared.finish()
}

impl Shared<'_> {
    /// Runs one thread's work; if it fails or panics, the others are woken and told.
    fn guarded(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        struct Alarm<'a, 'b>(&'a Shared<'b>);
        impl Drop for Alarm<'_, '_> {
            fn drop(&mut self) {
                self.0.failed.store(true, Ordering::Relaxed);
                // Taken so that no thread is between its look at `failed` and its wait.
                drop(lock(&self.0.turn));
                self.0.turned.notify_all();
            }
        }
        let alarm = Alarm(self);
        let result = work();
        if result.is_ok() {
            std::mem::forget(alarm);
        }
        result
    }

    fn work(&self) -> Result<()> {
        let mut buffer = Buffer::new(self.packing.is_some_and(Packing::takes_streams));
        let mut packer = self.packing.map(Packer::new).transpose()?;
        let mut blocks = Vec::new();
        while self.go_on()? {
            let Some(batch) = lock(&self.batches).next()? else {
                return Ok(());
            };
            let read_bytes = buffer.fill(self.image, &batch)?;
            blocks::find(&mut buffer, &batch, packer.as_mut(), &mut blocks);
            let Some(places) = self.take_turn(&batch, &blocks, read_bytes)? else {
                return Ok(());
            };
            self.write(&buffer, &batch, &blocks, &places)?;
            if let Some(keeper) = self.keeper {
                keeper.written(batch.index);
            }
            self.work.advance(read_bytes);
        }
        Ok(())
    }

    /// False: another thread failed, its error is the one to tell.
    fn go_on(&self) -> Result<bool> {
        if self.work.observer.is_cancelled() {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "the conversion was cancelled",
            ));
        }
        Ok(!self.failed.load(Ordering::Relaxed))
    }

    /// Waits until all earlier batches are placed, then places this one's blocks. `None`: another
    /// thread failed.
    fn take_turn(
        &self,
        batch: &Batch,
        blocks: &[Block],
        read_bytes: u64,
    ) -> Result<Option<Vec<HostOffset>>> {
        let failed = || self.failed.load(Ordering::Relaxed);
        let mut turn = self
            .turned
            .wait_while(lock(&self.turn), |turn| {
                turn.next != batch.index && !failed()
            })
            .unwrap_or_else(PoisonError::into_inner);
        if failed() {
            return Ok(None);
        }
        let Turn {
            layout, account, ..
        } = &mut *turn;
        let mut places = Vec::with_capacity(blocks.len());
        let mut records = Vec::new();
        for block in blocks {
            let record = block.record();
            places.extend(account.place(&record, layout.as_deref_mut())?);
            if self.keeper.is_some() {
                records.extend(record.to_bytes());
            }
        }
        if let Some(keeper) = self.keeper {
            keeper.placed(Flight {
                records,
                end_bytes: batch.end().0,
                read_bytes,
                work_bytes: batch.stored_bytes(),
                is_written: false,
            });
        }
        turn.next += 1;
        drop(turn);
        self.turned.notify_all();
        Ok(Some(places))
    }

    /// Writes blocks to their places, neighbours that stay neighbours at once.
    fn write(
        &self,
        buffer: &Buffer,
        batch: &Batch,
        blocks: &[Block],
        places: &[HostOffset],
    ) -> Result<()> {
        let Some((file, path)) = self.output else {
            return Ok(());
        };
        let piece = |block: &Block| match &block.packed {
            Some(range) => (true, range.clone()),
            None => {
                let from = (block.index * BLOCK_BYTES).saturating_sub(batch.start.0) as usize;
                (false, from..from + BLOCK_BYTES as usize)
            }
        };
        let mut placed = blocks.iter().zip(places).peekable();
        while let Some((first, place)) = placed.next() {
            let (packed, mut range) = piece(first);
            while let Some((_, next)) = placed
                .next_if(|(block, at)| {
                    piece(block).0 == packed
                        && piece(block).1.start == range.end
                        && at.0 == place.0 + range.len() as u64
                })
                .map(|(block, _)| piece(block))
            {
                range.end = next.end;
            }
            let from = if packed {
                &buffer.packed
            } else {
                &buffer.guest
            };
            let bytes = from.get(range).ok_or_else(panicked)?;
            file.write_all_at(bytes, place.0)
                .map_err(|error| Error::io("write", path, error))?;
        }
        Ok(())
    }

    fn verify(&self, checksums: &[Checksum]) -> Result<()> {
        let go_on = || {
            // Work that has no bytes of its own: the watchdog must see that it goes on.
            self.work.observer.advance(0);
            matches!(self.go_on(), Ok(true))
        };
        checksums
            .iter()
            .try_for_each(|checksum| checksum.verify(&go_on))?;
        if let Some(keeper) = self.keeper.filter(|_| go_on()) {
            keeper.verified();
        }
        Ok(())
    }

    fn finish(self) -> Result<Outcome> {
        // A cancellation that only the checksums' thread saw must not pass for success.
        self.go_on()?;
        let hole_bytes = lock(&self.batches).hole_bytes;
        let mut turn = lock(&self.turn);
        let output_bytes = match turn.layout.as_mut() {
            Some(layout) => layout.finish()?,
            None => 0,
        };
        self.work.advance(u64::MAX);
        Ok(Outcome {
            digest: turn.account.digest.finish(),
            blocks: turn.account.blocks,
            hole_bytes,
            output_bytes,
        })
    }
}

impl Work<'_> {
    /// Work of an earlier attempt.
    fn resume(&self, bytes: u64) {
        let left_bytes = self.left_bytes.load(Ordering::Relaxed);
        let bytes = bytes.min(left_bytes);
        self.left_bytes.store(left_bytes - bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.observer.resume(bytes);
        }
    }

    fn advance(&self, bytes: u64) {
        let mut done = 0;
        // The closure always returns Some, so the update cannot fail.
        let _ = self
            .left_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                done = bytes.min(left);
                Some(left - done)
            });
        if done > 0 {
            self.observer.advance(done);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "a thread of the conversion failed")
        .with_remedy("report this with the log")
}
