//! The clock that interrupts guests. While no sandbox is there it stands still: an idle node does nothing a hundred times a
//! second.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::sync::Semaphore;
use wasmtime::EngineWeak;

/// How often a guest that computes lets others go on. Also how late a deadline may strike such a guest.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without a sandbox until it stands still: long enough that what comes now and then need not wake it each time.
const IDLE_TICKS: u32 = 100;

/// A thread of its own, for busy guests may hold every async thread. It ends when the engines are gone.
pub(crate) struct Clock {
    thread: Thread,
    stands: Arc<AtomicBool>,
}

/// What the thread has.
struct Ticking {
    engines: Vec<EngineWeak>,
    sandboxes: Arc<Semaphore>,
    sandboxes_max: usize,
    stands: Arc<AtomicBool>,
}

impl Clock {
    /// Starts it for these engines, which run what these permits let in.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(engines: Vec<EngineWeak>, sandboxes: Arc<Semaphore>) -> io::Result<Self> {
        let stands = Arc::new(AtomicBool::new(false));
        let sandboxes_max = sandboxes.available_permits();
        let ticking = Ticking { engines, sandboxes, sandboxes_max, stands: stands.clone() };
        let thread = thread::Builder::new().name("trellis-epoch".into()).spawn(move || ticking.run())?;
        Ok(Self { thread: thread.thread().clone(), stands })
    }

    /// Goes on if it stands still. To be called with the permit for a sandbox in hand.
    pub(crate) fn go_on(&self) {
        // Either the thread sees the permit gone before it stands still, or this sees that it does.
        fence(Ordering::SeqCst);
        if self.stands.load(Ordering::Relaxed) {
            self.thread.unpark();
        }
    }

    /// Whether it stands still.
    pub(crate) fn stands(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}

impl Ticking {
    fn run(self) {
        let mut idle = 0;
        while self.engines.iter().all(|engine| engine.upgrade().map(|engine| engine.increment_epoch()).is_some()) {
            thread::sleep(TICK);
            idle = if self.is_idle() { idle + 1 } else { 0 };
            if idle == IDLE_TICKS {
                self.stand();
                idle = 0;
            }
        }
    }

    fn stand(&self) {
        self.stands.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.is_idle() {
            thread::park();
        }
        self.stands.store(false, Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.sandboxes.available_permits() == self.sandboxes_max
    }
}
