//! The pipeline: each thread takes the next batch of the map, reads, inflates and hashes it, waits
//! for its turn, has its blocks placed, and writes them while the others go on.
//!
//! Placing is in guest order, so the target's bytes do not depend on the number of threads. The
//! thread with the lowest batch never waits, so there is always one that moves.
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::account::{Account, Tally};
use super::batch::{BATCH_BYTES, Batch, Batches, PACKED_BATCH_BYTES};
use super::blocks::{self, Block, Packer};
use super::fill::Buffer;
use super::journal::Checkpoint;
use super::keeper::{Flight, Keeper};
use super::output::Output;
use super::progress::Work;
use super::sharing::Sharing;
use super::target::{Packing, Target};
use crate::disk::{
    BLOCK_BYTES, Checksum, GuestOffset, HostOffset, Image, Layout, Observer, PAGE_BYTES,
};
use crate::error::{Error, ErrorKind, Result};
use crate::source::SourceDisk;

pub(super) struct Outcome {
    /// `None`: not everything was read.
    pub digest: Option<String>,
    pub shared_bytes: u64,
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
    span_bytes: u64,
    batches: Mutex<Batches<'a>>,
    turn: Mutex<Turn>,
    turned: Condvar,
    output: Option<Output<'a>>,
    sharing: Option<Sharing>,
    /// For a compressed target.
    packing: Option<Packing>,
    keeper: Option<&'a Keeper<'a>>,
    work: &'a Work<'a>,
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

/// Reads the whole disk; writes it if there is a target. `threads` 0 is one per core.
pub(super) fn run(
    disk: &SourceDisk,
    target: Option<Target>,
    start: Start<'_>,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Outcome> {
    let packing = target.as_ref().and_then(|target| target.packing);
    let image = disk.image.as_ref();
    let sharing = find_sharing(disk, target.as_ref())?;
    let (file, layout) = match target {
        Some(target) => (Some((target.file, target.path)), Some(target.layout)),
        None => (None, None),
    };
    let is_dense = layout.as_ref().is_some_and(|layout| layout.is_dense());
    let output = file.as_ref().map(|(file, path)| {
        // Room that is asked for would have to be given back for what is shared.
        Output::new(file, path, is_dense && sharing.is_none())
    });
    let threads = match threads {
        0 => default_threads(output.as_ref()),
        threads => threads,
    };
    let unshared_bytes = packing.map_or(BATCH_BYTES, |_| PACKED_BATCH_BYTES);
    let span_bytes = sharing.as_ref().map_or(unshared_bytes, Sharing::span_bytes);
    let from = GuestOffset(start.from.guest_bytes);
    let work = Work::new(observer, disk.allocated_bytes);
    work.resume(start.from.read_bytes);
    let batches = Batches::new(image.follow(&work), from, span_bytes);
    let shared = Shared {
        image,
        span_bytes,
        batches: Mutex::new(batches),
        turn: Mutex::new(Turn {
            next: 0,
            layout,
            account: start.account,
        }),
        turned: Condvar::new(),
        output,
        sharing,
        packing,
        keeper: start.keeper,
        work: &work,
    };
    thread::scope(|scope| {
        let keeping = start
            .keeper
            .map(|keeper| scope.spawn(|| shared.guarded(|| keeper.run())));
        let mut workers = Vec::with_capacity(threads + 2);
        if !disk.checksums.is_empty() && !start.from.is_verified {
            workers.push(scope.spawn(|| shared.guarded(|| shared.verify(&disk.checksums))));
        }
        if disk.is_growing() {
            workers.push(scope.spawn(|| shared.guarded(|| disk.read_hash(shared.work))));
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

/// A compressed target shares nothing, nor does a stream, whose map is not known yet.
fn find_sharing(disk: &SourceDisk, target: Option<&Target>) -> Result<Option<Sharing>> {
    match target {
        Some(target) if target.packing.is_none() && !disk.is_growing() => {
            let image = disk.image.as_ref();
            Sharing::find(image, &target.file, &target.path, target.always_digest)
        }
        _ => Ok(None),
    }
}

/// One per core; two if some of them wait for the disk.
fn default_threads(output: Option<&Output<'_>>) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    match output {
        Some(output) if output.waits() => 2 * cores,
        _ => cores,
    }
}

impl Shared<'_> {
    /// Runs one thread's work; if it fails or panics, the others are woken and told.
    fn guarded(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        struct Alarm<'a, 'b>(&'a Shared<'b>);
        impl Drop for Alarm<'_, '_> {
            fn drop(&mut self) {
                self.0.work.failed.store(true, Ordering::Relaxed);
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
        let keeps_streams = self.packing.is_some_and(Packing::takes_streams);
        let mut buffer = Buffer::new(self.span_bytes, keeps_streams);
        let mut packer = self.packing.map(Packer::new).transpose()?;
        let mut blocks = Vec::new();
        while self.work.go_on()? {
            let Some(batch) = lock(&self.batches).next()? else {
                return Ok(());
            };
            let is_unread = self.leaves_unread(&batch);
            let read_bytes = if is_unread {
                blocks::touch(&batch, &mut blocks);
                let pieces = batch.pieces.iter();
                pieces.map(|piece| piece.length_bytes).sum()
            } else {
                let read_bytes = buffer.fill(self.image, &batch)?;
                blocks::find(&mut buffer, &batch, packer.as_mut(), &mut blocks);
                read_bytes
            };
            let Some(places) = self.take_turn(&batch, &blocks, read_bytes)? else {
                return Ok(());
            };
            if !self.share(&batch, &blocks, &places)? {
                if is_unread {
                    buffer.fill(self.image, &batch)?;
                }
                self.write(&mut buffer, &batch, &blocks, &places)?;
            }
            if let Some(keeper) = self.keeper {
                keeper.written(batch.index);
            }
            self.work.advance(read_bytes);
        }
        Ok(())
    }

    /// Waits until all earlier batches are placed, then places this one's blocks. `None`: another
    /// thread failed.
    fn take_turn(
        &self,
        batch: &Batch,
        blocks: &[Block],
        read_bytes: u64,
    ) -> Result<Option<Vec<HostOffset>>> {
        let failed = || self.work.failed.load(Ordering::Relaxed);
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

    fn leaves_unread(&self, batch: &Batch) -> bool {
        let sharing = self.sharing.as_ref();
        sharing.is_some_and(|sharing| sharing.leaves_unread() && sharing.takes(self.image, batch))
    }

    /// False: the blocks have to be written.
    fn share(&self, batch: &Batch, blocks: &[Block], places: &[HostOffset]) -> Result<bool> {
        let (Some(sharing), Some(output)) = (&self.sharing, &self.output) else {
            return Ok(false);
        };
        if !sharing.takes(self.image, batch) {
            return Ok(false);
        }
        let mut placed = blocks.iter().zip(places).peekable();
        while let Some((first, place)) = placed.next() {
            let mut end = first.index + 1;
            while placed
                .next_if(|(block, at)| {
                    block.index == end && at.0 == place.0 + (end - first.index) * BLOCK_BYTES
                })
                .is_some()
            {
                end += 1;
            }
            let range = first.index * BLOCK_BYTES..end * BLOCK_BYTES;
            if !sharing.share(self.image, batch, range, output.file, *place)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes blocks to their places, neighbours that stay neighbours at once.
    fn write(
        &self,
        buffer: &mut Buffer,
        batch: &Batch,
        blocks: &[Block],
        places: &[HostOffset],
    ) -> Result<()> {
        let Some(output) = &self.output else {
            return Ok(());
        };
        let piece = |block: &Block| match &block.packed {
            Some(range) => (true, range.clone()),
            None => {
                let from = (block.index * BLOCK_BYTES).saturating_sub(batch.start.0) as usize;
                (false, from..from + BLOCK_BYTES as usize)
            }
        };
        let has_pages = self
            .packing
            .is_some_and(|packing| packing.compression.begins_at_pages());
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
            if packed && has_pages && placed.peek().is_none() {
                // The rest of its last page is nobody else's.
                let end_bytes = place.0 + range.len() as u64;
                let more_bytes = end_bytes.next_multiple_of(PAGE_BYTES) - end_bytes;
                range.end = buffer.packed.pad(range.end, more_bytes as usize);
            }
            let from = if packed {
                buffer.packed.as_slice()
            } else {
                &buffer.guest
            };
            let bytes = from.get(range).ok_or_else(panicked)?;
            output.write(bytes, place.0, &mut buffer.spare)?;
        }
        Ok(())
    }

    fn verify(&self, checksums: &[Checksum]) -> Result<()> {
        let go_on = || {
            // Work that has no bytes of its own: the watchdog must see that it goes on.
            self.work.observer.advance(0);
            matches!(self.work.go_on(), Ok(true))
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
        self.work.go_on()?;
        let hole_bytes = lock(&self.batches).hole_bytes;
        let mut turn = lock(&self.turn);
        let output_bytes = match turn.layout.as_mut() {
            Some(layout) => layout.finish()?,
            None => 0,
        };
        self.work.advance(u64::MAX);
        Ok(Outcome {
            digest: turn.account.digest(),
            shared_bytes: self.sharing.as_ref().map_or(0, Sharing::shared_bytes),
            blocks: turn.account.blocks,
            hole_bytes,
            output_bytes,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "a thread of the conversion failed")
        .with_remedy("report this with the log")
}
