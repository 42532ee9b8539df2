//! Grants: a component's right to make a call. It comes only from a link; what no link grants is denied, and the
//! denial shows the link to add. The stop of the hot path between a host interface and the provider that answers.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use trellis_provider::{Provider, Want};
use trellis_sandbox::{Level, Outside};
use trellis_wire::{Answer, Call, CallError, Capability, ComponentKey, Event, EventId, Link, LinkId, Reply};

use crate::clock;
use crate::dispatch::{Dispatch, TIMEOUT_DEFAULT};

/// The grants of every component on this node: an in-memory copy of what the links say.
#[derive(Default)]
pub(crate) struct Grants {
    by_component: ArcSwap<HashMap<ComponentKey, Vec<Arc<Grant>>>>,
}

/// One grant.
pub(crate) struct Grant {
    link: Link,
    answers: Answers,
}

/// Who answers the calls of a grant.
pub(crate) enum Answers {
    /// A provider on this node.
    Provider(Arc<dyn Provider>),
    /// Another component.
    Component(ComponentKey),
}

impl Grants {
    /// Adds what a link grants, in place of what a link of the same id granted.
    pub(crate) fn add(&self, link: &Link, answers: Answers) {
        let grant = Arc::new(Grant { link: link.clone(), answers });
        self.by_component.rcu(|all| {
            let mut all = HashMap::clone(all);
            let grants = all.entry(link.component.clone()).or_default();
            grants.retain(|grant| grant.link.id != link.id);
            grants.push(grant.clone());
            all
        });
    }

    /// Takes back what a link granted.
    pub(crate) fn remove(&self, component: &ComponentKey, link: &LinkId) {
        self.by_component.rcu(|all| {
            let mut all = HashMap::clone(all);
            if let Some(grants) = all.get_mut(component) {
                grants.retain(|grant| grant.link.id != *link);
                if grants.is_empty() {
                    all.remove(component);
                }
            }
            all
        });
    }

    /// The grant for a call: the link of that name, or else the component's own link for the capability: its only
    /// one, or the one named `default`.
    fn find(
        &self,
        component: &ComponentKey,
        link_name: &str,
        capability: &Capability,
    ) -> Result<Arc<Grant>, CallError> {
        let all = self.by_component.load();
        let mut of_capability =
            all.get(component).into_iter().flatten().filter(|grant| grants(&grant.link, capability)).peekable();
        if of_capability.peek().is_none() {
            return Err(CallError::Denied(denial(component, capability)));
        }
        let candidates: Vec<_> = of_capability.collect();
        let named = |name: &str| candidates.iter().find(|grant| grant.link.name.as_str() == name);
        let found = match (named(link_name), candidates.as_slice()) {
            (Some(grant), _) => Some(*grant),
            (None, [only]) => Some(*only),
            (None, _) => named("default").copied(),
        };
        found.cloned().ok_or_else(|| {
            let names: Vec<_> = candidates.iter().map(|grant| grant.link.name.as_str()).collect();
            CallError::Denied(format!("no link of {component} is named `{link_name}`; there are {}", names.join(", ")))
        })
    }
}

/// Whether a link's interfaces cover the capability.
fn grants(link: &Link, capability: &Capability) -> bool {
    let names = |interface: &str| link.interfaces.iter().any(|named| named == interface);
    match capability {
        Capability::KeyValue => link.namespace == "wasi" && link.package == "keyvalue",
        Capability::Messaging => link.package == "messaging" && (names("consumer") || names("producer")),
        Capability::Http => {
            link.namespace == "wasi" && link.package == "http" && (names("outgoing-handler") || names("client"))
        }
        Capability::Custom(interface) => {
            interface.strip_prefix(&format!("{}:{}/", link.namespace, link.package)).is_some_and(names)
        }
    }
}

/// Says that nothing grants the capability, with the trait to add.
fn denial(component: &ComponentKey, capability: &Capability) -> String {
    let (namespace, package, interfaces) = match capability {
        Capability::KeyValue => ("wasi", "keyvalue", "store, atomics, batch"),
        Capability::Messaging => ("wasmcloud", "messaging", "consumer"),
        Capability::Http => ("wasi", "http", "outgoing-handler"),
        Capability::Custom(name) => {
            let (namespace, rest) = name.split_once(':').unwrap_or(("", name));
            let (package, interface) = rest.split_once('/').unwrap_or((rest, ""));
            (namespace, package, interface)
        }
    };
    let add = trait_to_add(namespace, package, interfaces);
    format!("no link of {component} grants {namespace}:{package}; {add}")
}

/// The trait that grants an interface, ready to paste below the component's `traits:`.
pub(crate) fn trait_to_add(namespace: &str, package: &str, interfaces: &str) -> String {
    let target = match package {
        "keyvalue" => "KEYVALUE_PROVIDER",
        "messaging" => "MESSAGING_PROVIDER",
        "http" => "HTTP_CLIENT_PROVIDER",
        _ => "COMPONENT_OR_PROVIDER_THAT_EXPORTS_IT",
    };
    format!(
        "add to its traits: {{type: link, properties: {{target: {{name: {target}}}, namespace: {namespace}, \
         package: {package}, interfaces: [{interfaces}]}}}}"
    )
}

/// The way out of one sandbox: it knows whose sandbox it is, so that no call can speak for another component.
pub(crate) struct Outward {
    dispatch: Weak<Dispatch>,
    component: ComponentKey,
    event: EventId,
}

impl Outward {
    pub(crate) fn new(dispatch: &Arc<Dispatch>, component: &ComponentKey, event: EventId) -> Self {
        Self { dispatch: Arc::downgrade(dispatch), component: component.clone(), event }
    }
}

#[async_trait]
impl Outside for Outward {
    async fn call(&self, link_name: &str, call: Call) -> Result<Answer, CallError> {
        let gone = || CallError::Unavailable("the node is shutting down".into());
        let dispatch = self.dispatch.upgrade().ok_or_else(gone)?;
        let grant = dispatch.grants().find(&self.component, link_name, &call.capability())?;
        match &grant.answers {
            Answers::Provider(provider) => provider.call(&grant.link.id, call).await,
            Answers::Component(target) => wake(&dispatch, target, call).await,
        }
    }

    fn log(&self, level: Level, context: &str, message: &str) {
        if let Some(dispatch) = self.dispatch.upgrade() {
            let line =
                clock::log_line(dispatch.node(), &self.component, self.event, word(level), context, message.into());
            dispatch.logs().push(line);
        }
    }
}

const fn word(level: Level) -> &'static str {
    match level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
        Level::Critical => "critical",
    }
}

/// A call that another component answers, in a fresh sandbox of its own.
async fn wake(dispatch: &Dispatch, target: &ComponentKey, call: Call) -> Result<Answer, CallError> {
    let Call::Invoke { interface, function, params } = call else {
        return Err(CallError::Other(format!("{target} is a component; only functions of its exports can be called")));
    };
    let unavailable = |error: trellis_wire::Error| CallError::Unavailable(error.to_string());
    let permit =
        dispatch.permit(target, Want::Answer { at_most: TIMEOUT_DEFAULT }, "".into()).await.map_err(unavailable)?;
    match permit.run(Event::Invoke { interface, function, params }).await {
        Ok(Reply::Values(results)) => Ok(Answer::Values(results)),
        Ok(other) => Err(CallError::Other(format!("{target} answered a call with {other:?}"))),
        Err(failure) => Err(CallError::Other(format!("{target}: {failure}"))),
    }
}
