//! A disk in memory, which can be full, and can lose power.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// What one database file is written to. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    surface: Arc<Mutex<Surface>>,
    full: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Surface {
    /// What a reader sees.
    now: Vec<u8>,
    /// What survives for sure.
    synced: Vec<u8>,
    /// What was written since, in order. A disk may have done any of it.
    pending: Vec<Pending>,
}

#[derive(Debug)]
enum Pending {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Pending {
    fn perform(&self, on: &mut Vec<u8>) {
        match self {
            Self::Length(length) => on.resize(*length, 0),
            Self::Bytes(offset, bytes) => {
                on.resize(on.len().max(offset + bytes.len()), 0);
                on[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

impl Disk {
    /// Whether it takes more.
    pub(super) fn fill(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// The disk after the power failed now: what was synced is there, and of what was not, what `is_done` says.
    pub(super) fn after_power_loss(&self, mut is_done: impl FnMut() -> bool) -> Self {
        let surface = self.lock();
        let mut now = surface.synced.clone();
        for pending in &surface.pending {
            // The length is a matter of the file system's own log, which is in order.
            if matches!(pending, Pending::Length(_)) || is_done() {
                pending.perform(&mut now);
            }
        }
        let surface = Surface { synced: now.clone(), now, pending: Vec::new() };
        Self { surface: Arc::new(Mutex::new(surface)), full: Arc::default() }
    }

    fn change(&self, pending: Pending) -> io::Result<()> {
        self.space()?;
        let mut surface = self.lock();
        pending.perform(&mut surface.now);
        surface.pending.push(pending);
        Ok(())
    }

    fn space(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Surface> {
        self.surface.lock().unwrap()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let surface = self.lock();
        out.copy_from_slice(surface.now.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Pending::Length(usize::try_from(len).map_err(io::Error::other)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.space()?;
        let surface = &mut *self.lock();
        surface.pending.drain(..).for_each(|pending| pending.perform(&mut surface.synced));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Pending::Bytes(usize::try_from(offset).map_err(io::Error::other)?, data.to_vec()))
    }
}
