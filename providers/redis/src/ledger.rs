//! What is known of messages, kept in Redis beside the stream: claims, waits, attempts, faults, kills, dead letters.
//!
//! Each step is one script of `ledger/`, which Redis runs whole, so a crash between two steps loses nothing and enters
//! nothing twice. Times are the server's own: the clocks of nodes do not matter.
//!
//! | key | holds |
//! | --- | --- |
//! | `trellis:<stream>:<group>:claims`, `:due`, `:known`, `:kept` | see `ledger/common.lua` |
//! | `trellis:<stream>:<group>:entries`, `:ends` | small entries of the engine, and when they end |
//! | `<stream>:dead`, or what `delivery.dead_letter` names | dead letters, as entries that anybody can read |

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Script, ScriptInvocation};
use trellis_provider::delivery::{CLAIM, Fate, Ledger as Entries, Trouble};

use crate::connection::{Connection, Unanswered};
use crate::fields::{DEAD, Fields};

/// How long dead letters are kept: 14 days.
const DEAD_KEPT: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Faults of one message whose text is kept, the newest, and how long each may be, in bytes.
const FAULTS_KEPT_MAX: usize = 5;
const FAULT_BYTES_MAX: usize = 4 * 1_024;
/// Keys of small entries in one answer.
const KEYS_MAX: usize = 10_000;
/// The one consumer of the group: who holds what, the claims say.
const CONSUMER: &str = "trellis";

/// The ledger of one group of one stream.
#[derive(Debug)]
pub(crate) struct Ledger {
    connection: Arc<Connection>,
    pub(crate) stream: String,
    pub(crate) group: String,
    /// The stream of dead letters.
    pub(crate) letters: String,
    /// Bytes that those may hold.
    dead_bytes_max: u64,
    /// What was handled is deleted from the stream.
    delete: bool,
    scripts: Scripts,
}

#[derive(Debug)]
struct Scripts {
    group: Script,
    look: Script,
    claim: Script,
    extend: Script,
    note: Script,
    settle: Script,
    off: Script,
    bury: Script,
    decide: Script,
    standing: Script,
    out: Script,
    adopt: Script,
    swap: Script,
    entry: Script,
    keys: Script,
}

/// What there is to give out.
#[derive(Debug)]
pub(crate) struct Looked {
    /// How many can be given out now, about.
    pub(crate) ready: usize,
    /// When the next one may, if none can.
    pub(crate) next: Option<Duration>,
    /// The last id that was given out.
    pub(crate) last: String,
}

/// Messages that were given out, and the server's time in ms.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub(crate) now_ms: u64,
    pub(crate) given: Vec<Given>,
    /// Ids of messages that somebody deleted from the stream before they were handled.
    pub(crate) gone: Vec<String>,
    /// About how many there are besides, where these are as many as were asked for.
    pub(crate) left: usize,
}

/// A message that was given out: id, fields, number of its claim, attempts, faults, kills.
pub(crate) type Given = (String, Fields, u64, u32, u32, u32);

/// Which giving out of which message.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) id: String,
    pub(crate) number: u64,
}

/// How the queue stands: the server's time in ms, claimed, waiting for another try, new (negative: not counted), the
/// oldest new one's id, dead letters, ids of those that wait.
pub(crate) type Stood = (u64, u64, u64, i64, String, u64, Vec<String>);

/// How a message comes to wait for another try.
#[derive(Debug)]
pub(crate) enum End<'a> {
    Back { after: Duration },
    Retry { after: Duration, fault: Option<&'a str> },
}

impl Scripts {
    fn new() -> Self {
        let common = include_str!("ledger/common.lua");
        let script = |text: &str| Script::new(&format!("{common}{text}"));
        Self {
            group: script(include_str!("ledger/group.lua")),
            look: script(include_str!("ledger/look.lua")),
            claim: script(include_str!("ledger/claim.lua")),
            extend: script(include_str!("ledger/extend.lua")),
            note: script(include_str!("ledger/note.lua")),
            settle: script(include_str!("ledger/settle.lua")),
            off: script(include_str!("ledger/off.lua")),
            bury: script(include_str!("ledger/bury.lua")),
            decide: script(include_str!("ledger/decide.lua")),
            standing: script(include_str!("ledger/standing.lua")),
            out: script(include_str!("ledger/out.lua")),
            adopt: script(include_str!("ledger/adopt.lua")),
            swap: Script::new(include_str!("ledger/swap.lua")),
            entry: Script::new(include_str!("ledger/entry.lua")),
            keys: Script::new(include_str!("ledger/keys.lua")),
        }
    }
}

impl Ledger {
    pub(crate) fn new(
        connection: Arc<Connection>,
        stream: &str,
        group: &str,
        (letters, dead_bytes_max): (&str, u64),
        delete: bool,
    ) -> Self {
        let (stream, group, letters) = (stream.into(), group.into(), letters.into());
        Self { connection, stream, group, letters, dead_bytes_max, delete, scripts: Scripts::new() }
    }

    fn key(&self, of: &str) -> String {
        format!("trellis:{}:{}:{of}", self.stream, self.group)
    }

    /// A run of a script that begins with `common.lua`.
    fn on<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut on = script.key(&self.stream);
        for of in ["claims", "due", "known", "kept"] {
            on.key(self.key(of));
        }
        on
    }

    /// Makes the group, and with `create` the stream. With `go_on` it begins behind what was given out of the stream before,
    /// if anything was: whether it does.
    pub(crate) async fn make_group(&self, create: bool, go_on: bool) -> Result<bool, Unanswered> {
        let mut group = self.on(&self.scripts.group);
        group.arg(&self.group).arg(if create { "make" } else { "" }).arg(if go_on { "on" } else { "" });
        self.connection.run(&group).await
    }

    pub(crate) async fn look(&self, most: usize) -> Result<Looked, Unanswered> {
        let mut look = self.on(&self.scripts.look);
        let (due, next_ms, fresh, last): (usize, i64, usize, String) =
            self.connection.run(look.arg(&self.group).arg(most)).await?;
        let next = u64::try_from(next_ms).ok().map(Duration::from_millis);
        Ok(Looked { ready: due.saturating_add(fresh), next, last })
    }

    pub(crate) async fn claim(&self, most: usize) -> Result<Pulled, Unanswered> {
        let mut claim = self.on(&self.scripts.claim);
        claim.arg(&self.group).arg(CONSUMER).arg(most).arg(ms(CLAIM));
        let (now_ms, given, gone, left) = self.connection.run(&claim).await?;
        Ok(Pulled { now_ms, given, gone, left })
    }

    pub(crate) async fn extend(&self, claim: &Claim) -> Result<(), Unanswered> {
        let mut extend = self.on(&self.scripts.extend);
        self.connection.run(extend.arg(&claim.id).arg(claim.number).arg(ms(CLAIM))).await
    }

    pub(crate) async fn note(&self, claim: &Claim, fault: Option<&str>) -> Result<(), Unanswered> {
        let mut note = self.on(&self.scripts.note);
        note.arg(&claim.id).arg(claim.number);
        self.connection.run(with_fault(&mut note, fault)).await
    }

    /// Has a message wait for another try.
    pub(crate) async fn settle(&self, claim: &Claim, end: End<'_>) -> Result<(), Unanswered> {
        let mut settle = self.on(&self.scripts.settle);
        settle.arg(&claim.id).arg(claim.number);
        match end {
            End::Back { after } => settle.arg("back").arg(ms(after)),
            End::Retry { after, fault } => with_fault(settle.arg("retry").arg(ms(after)), fault),
        };
        self.connection.run(&settle).await
    }

    /// Takes messages off.
    pub(crate) async fn take_off(&self, all: impl Iterator<Item = &Claim>) -> Result<(), Unanswered> {
        let mut off = self.on(&self.scripts.off);
        off.arg(&self.group).arg(self.delete());
        for claim in all {
            off.arg(&claim.id).arg(claim.number);
        }
        self.connection.run(&off).await
    }

    /// Makes a dead letter of a message, with these names and values beside it.
    pub(crate) async fn bury(
        &self,
        claim: &Claim,
        fault: Option<&str>,
        beside: &[(&str, String)],
    ) -> Result<(), Trouble> {
        let mut bury = self.on(&self.scripts.bury);
        bury.key(&self.letters).arg(&self.group).arg(&claim.id).arg(claim.number).arg(self.delete());
        with_fault(&mut bury, fault).arg(ms(DEAD_KEPT)).arg(self.dead_bytes_max);
        for (name, value) in beside {
            bury.arg(format!("{DEAD}{name}")).arg(value);
        }
        match self.connection.run(&bury).await? {
            -1 => Err(format!(
                "the dead letters in stream `{}` have {} bytes, their part of what those of its app may hold, and no more \
                 fit: look at them with `trellis dead-letters list`, then replay or drop them",
                self.letters, self.dead_bytes_max
            )),
            _ => Ok(()),
        }
    }

    /// Decides on a dead letter of a component. Returns what it was.
    pub(crate) async fn decide(&self, id: &str, component: &str, fate: Fate) -> Result<Option<Fields>, Unanswered> {
        let mut decide = self.on(&self.scripts.decide);
        let fate = match fate {
            Fate::Replay => "replay",
            Fate::Drop => "drop",
        };
        self.connection.run(decide.key(&self.letters).arg(id).arg(component).arg(fate)).await
    }

    /// Up to `max` dead letters after this one, whosever they are.
    pub(crate) async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<(String, Fields)>, Unanswered> {
        let from = after.map_or_else(|| "-".into(), |after| format!("({after}"));
        let mut range = redis::cmd("XRANGE");
        self.connection.send(range.arg(&self.letters).arg(from).arg("+").arg("COUNT").arg(max)).await
    }

    pub(crate) async fn standing(&self) -> Result<Stood, Unanswered> {
        let mut standing = self.on(&self.scripts.standing);
        self.connection.run(standing.key(&self.letters).arg(&self.group)).await
    }

    /// How many were given out and are not settled, and how many of them cannot be given out yet.
    pub(crate) async fn out(&self) -> Result<(u64, u64), Unanswered> {
        self.connection.run(&self.on(&self.scripts.out)).await
    }

    /// Takes over what nobody settles. Returns where to go on, and how many it was.
    pub(crate) async fn adopt(&self, from: &str) -> Result<(String, usize), Unanswered> {
        let mut adopt = self.on(&self.scripts.adopt);
        self.connection.run(adopt.arg(&self.group).arg(CONSUMER).arg(ms(CLAIM)).arg(from)).await
    }

    const fn delete(&self) -> &'static str {
        if self.delete { "delete" } else { "" }
    }
}

#[async_trait]
impl Entries for Ledger {
    async fn read(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        let mut entry = self.scripts.entry.key(self.key("entries"));
        let read: Option<Vec<u8>> = self.connection.run(entry.key(self.key("ends")).arg(key)).await?;
        Ok(read.map(Into::into))
    }

    async fn swap(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> Result<bool, Trouble> {
        let mut swap = self.scripts.swap.key(self.key("entries"));
        swap.key(self.key("ends")).arg(key);
        swap.arg(if old.is_some() { "is" } else { "none" }).arg(old.unwrap_or_default());
        swap.arg(if new.is_some() { "set" } else { "none" }).arg(new.unwrap_or_default()).arg(ms(keep));
        Ok(self.connection.run(&swap).await?)
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        let mut keys = self.scripts.keys.key(self.key("ends"));
        Ok(self.connection.run(keys.arg(prefix).arg(KEYS_MAX)).await?)
    }
}

fn with_fault<'a, 'b>(script: &'b mut ScriptInvocation<'a>, fault: Option<&str>) -> &'b mut ScriptInvocation<'a> {
    script.arg(fault.unwrap_or_default()).arg(FAULT_BYTES_MAX).arg(FAULTS_KEPT_MAX)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
