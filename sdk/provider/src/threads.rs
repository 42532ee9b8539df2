//! Threads of a node that its guests cannot hold up.

use tokio::runtime::Handle;

/// Where that runs which must go on while guests hold all threads of their own: claims are extended there, and there live the
/// connections by which they are. Without such threads it runs where whoever asks for it does.
#[derive(Debug, Clone, Default)]
pub struct Threads(Option<Handle>);

impl Threads {
    /// The runtime of these threads.
    ///
    /// # Panics
    /// There are none, and who asks is on no runtime.
    pub fn handle(&self) -> Handle {
        self.0.clone().unwrap_or_else(Handle::current)
    }
}

impl From<Handle> for Threads {
    fn from(handle: Handle) -> Self {
        Self(Some(handle))
    }
}
