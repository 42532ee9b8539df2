//! The `trellis` binary from outside: what people type, what they get, and how it exits.
//!
//! `command_line`, `validate` and `inspect` need no node; `asking` talks to a scripted one; `up` starts a real one.
//! `guests`, `http_clients`, `messages` and `old_manifests` run real guests on a real node, end to end; they need what
//! `examples/build.sh` builds.
//! `deploys`, `durability`, `nats` and `oci` are what people do with a node and what happens to it: versions, kills, full
//! disks, a NATS that goes and comes, registries.
//! `brokers` is one manifest on each broker, `torture` messages that are accounted for while nodes and brokers are killed.
//! `secrets` is what is told to guests and providers and to nobody else.
//! `lattice` is many nodes at once: they join, serve for each other, die and come back, `losses` what clients notice of that,
//! `mail` what becomes of messages, `connections` what passes by which connection;
//! `rollouts` is what new versions do on them, `home` where they keep what is embedded, `topics` what is pulled there from MQTT,
//! `leases` what runs once among them, `told` what is told of them, and who follows from outside the log, `timings` how long
//! they are waited for; `recovery` what is left when much is lost; `large_apps` what is too long for an entry of the log.
//! `frozen`, `trouble` and `load` are what happens to them: they freeze, lose their NATS,
//! their cable or their disk, and get more work than they can do; `hostile` is what strangers send them, `mixed` an older
//! version among them, `guide` the guide of `deploy/nats`.
//! `trust` is who is kept out of a lattice, `roles` the tokens and TLS of the admin API, `writes` what is written through it.
//! `tidy` holds the rules that no compiler checks.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too, which clippy sees only inside a #[test]")]

mod apps;
mod asking;
mod brokers;
mod client;
mod command_line;
mod connections;
mod deploys;
mod durability;
mod examples;
mod frozen;
mod guests;
mod guide;
mod home;
mod hostile;
mod http_clients;
mod inspect;
mod jetstream;
mod large_apps;
mod lattice;
mod leases;
mod load;
mod losses;
mod mail;
mod messages;
mod mixed;
mod nats;
mod node;
mod oci;
mod old_manifests;
mod pipeline;
mod queues;
mod recovery;
mod roles;
mod rollouts;
mod scripted;
mod secrets;
mod telemetry;
mod tidy;
mod timers;
mod timings;
mod told;
mod topics;
mod torture;
mod trellis;
mod triggers;
mod trouble;
mod trust;
mod up;
mod validate;
mod writes;
