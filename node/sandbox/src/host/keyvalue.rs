//! `wasi:keyvalue@0.2.0-draft`: a bucket is a link with a store behind it.

use std::collections::VecDeque;

use trellis_wire::{Answer, Call, CallError, KeyValue, KeyValueAnswer};
use wasmtime::component::{HasSelf, Linker, Resource};

use self::wit::wasi::keyvalue::store::{Error, KeyResponse};
use self::wit::wasi::keyvalue::{atomics, batch, store};
use crate::outside::Outside;
use crate::state::State;

mod wit {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox;
            world host {
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:keyvalue/atomics@0.2.0-draft;
                import wasi:keyvalue/batch@0.2.0-draft;
            }",
        world: "trellis:sandbox/host",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
    });
}

const STORE: &str = "wasi:keyvalue/store";

/// The most cursors that a bucket remembers. A guest that goes through more listings at once begins the oldest again.
const CURSORS_MAX: usize = 16;

/// An open store.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Bucket {
    link: String,
    /// A cursor is a number to the guest and a text to the store.
    cursors: VecDeque<(u64, String)>,
    cursors_given: u64,
}

impl Bucket {
    const fn new(link: String) -> Self {
        Self { link, cursors: VecDeque::new(), cursors_given: 0 }
    }

    /// Numbers a cursor. Zero is no cursor, for some guests begin with it.
    fn number(&mut self, cursor: String) -> u64 {
        if self.cursors.len() == CURSORS_MAX {
            self.cursors.pop_front();
        }
        self.cursors_given += 1;
        self.cursors.push_back((self.cursors_given, cursor));
        self.cursors_given
    }

    fn cursor(&self, number: Option<u64>) -> Result<Option<String>, Error> {
        let Some(number) = number.filter(|number| *number > 0) else { return Ok(None) };
        let known = self.cursors.iter().find(|(known, _)| *known == number);
        known.map(|(_, cursor)| Some(cursor.clone())).ok_or_else(|| Error::Other(format!("cursor {number} is too old")))
    }
}

pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    atomics::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    batch::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

type Answered<T> = wasmtime::Result<Result<T, Error>>;

async fn keyvalue(outside: &dyn Outside, link: &str, operation: KeyValue) -> Result<KeyValueAnswer, CallError> {
    match outside.call(link, Call::KeyValue(operation)).await? {
        Answer::KeyValue(answer) => Ok(answer),
        other => Err(super::wrong_answer(&other)),
    }
}

impl State {
    /// An operation on an open bucket.
    async fn on(&mut self, bucket: &Resource<Bucket>, operation: KeyValue) -> Answered<KeyValueAnswer> {
        let link = &self.table.get(bucket)?.link;
        Ok(keyvalue(&*self.outside, link, operation).await.map_err(Error::from))
    }
}

impl From<CallError> for Error {
    /// A denial keeps its text, which names the link to add; the draft's own word for it has no room for one.
    fn from(why: CallError) -> Self {
        match why {
            CallError::NoSuch(_) => Self::NoSuchStore,
            why => Self::Other(why.to_string()),
        }
    }
}

fn misfit(answer: &KeyValueAnswer) -> Error {
    super::wrong_answer(answer).into()
}

/// Takes the one answer that fits the operation; any other is a mistake of the provider's.
macro_rules! expect {
    ($answer:expr, $fits:pat => $value:expr) => {
        wasmtime::Result::<_, wasmtime::Error>::Ok($answer.and_then(|answer| match answer {
            $fits => Ok($value),
            other => Err(misfit(&other)),
        }))
    };
}

impl store::Host for State {
    /// The name is a link's; what one that is no link's stands for is for [`Outside`] to say. Only a guest that chose a
    /// link by `wasmcloud:bus/lattice` has said so itself: then it is one more name for the store of that link.
    async fn open(&mut self, identifier: String) -> Answered<Resource<Bucket>> {
        let own = self.links.chosen(STORE).to_owned();
        let named = if matches!(identifier.as_str(), "" | "default") { &own } else { &identifier };
        let mut link = named.clone();
        let mut opened = keyvalue(&*self.outside, &link, KeyValue::Open).await;
        if matches!(opened, Err(CallError::Denied(_))) && !own.is_empty() && link != own {
            link = own;
            opened = keyvalue(&*self.outside, &link, KeyValue::Open).await;
        }
        match opened {
            Ok(KeyValueAnswer::Done) => Ok(Ok(self.table.push(Bucket::new(link))?)),
            Ok(other) => Ok(Err(misfit(&other))),
            Err(why) => Ok(Err(why.into())),
        }
    }
}

impl store::HostBucket for State {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answered<Option<Vec<u8>>> {
        let answer = self.on(&bucket, KeyValue::Get(key)).await?;
        expect!(answer, KeyValueAnswer::Value(value) => value.map(Vec::from))
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answered<()> {
        let answer = self.on(&bucket, KeyValue::Set(key, value.into())).await?;
        expect!(answer, KeyValueAnswer::Done => ())
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answered<()> {
        let answer = self.on(&bucket, KeyValue::Delete(key)).await?;
        expect!(answer, KeyValueAnswer::Done => ())
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answered<bool> {
        let answer = self.on(&bucket, KeyValue::Exists(key)).await?;
        expect!(answer, KeyValueAnswer::Exists(exists) => exists)
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answered<KeyResponse> {
        let cursor = match self.table.get(&bucket)?.cursor(cursor) {
            Ok(cursor) => cursor,
            Err(why) => return Ok(Err(why)),
        };
        let answer = self.on(&bucket, KeyValue::Keys { cursor }).await?;
        let bucket = self.table.get_mut(&bucket)?;
        expect!(answer, KeyValueAnswer::Keys { keys, cursor } => {
            KeyResponse { keys, cursor: cursor.map(|cursor| bucket.number(cursor)) }
        })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for State {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answered<u64> {
        let Ok(delta) = i64::try_from(delta) else {
            return Ok(Err(Error::Other(format!("{delta} is too much to add at once"))));
        };
        let answer = self.on(&bucket, KeyValue::Increment(key, delta)).await?;
        let number: Result<i64, Error> = expect!(answer, KeyValueAnswer::Number(number) => number)?;
        Ok(number.and_then(|number| {
            u64::try_from(number)
                .map_err(|_| Error::Other(format!("it is {number}, and this draft has no negative numbers")))
        }))
    }
}

impl batch::Host for State {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answered<Vec<Option<(String, Vec<u8>)>>> {
        let answer = self.on(&bucket, KeyValue::GetMany(keys)).await?;
        expect!(answer, KeyValueAnswer::Values(values) => {
            values.into_iter().map(|(key, value)| Some((key, Vec::from(value?)))).collect()
        })
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> Answered<()> {
        let pairs = pairs.into_iter().map(|(key, value)| (key, value.into())).collect();
        let answer = self.on(&bucket, KeyValue::SetMany(pairs)).await?;
        expect!(answer, KeyValueAnswer::Done => ())
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answered<()> {
        let answer = self.on(&bucket, KeyValue::DeleteMany(keys)).await?;
        expect!(answer, KeyValueAnswer::Done => ())
    }
}
