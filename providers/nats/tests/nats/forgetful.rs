//! What a nats-server that is killed forgets of a consumer, measured with the client library alone: why `marks.rs` is there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::{self, Context, stream};
use futures::StreamExt as _;
use trellis_bus::testing::NatsServer;

const MESSAGES: usize = 6_000;
const ACK_WAIT: Duration = Duration::from_secs(2);
const ROUNDS: u32 = 5;

/// Messages whose acknowledgement the server had confirmed, and when.
type Confirmed = BTreeMap<u64, Instant>;

async fn connect(server: &NatsServer) -> Context {
    jetstream::new(async_nats::ConnectOptions::new().retry_on_initial_connect().connect(&server.url).await.unwrap())
}

async fn consumer(context: &Context) -> Consumer<pull::Config> {
    let config = stream::Config { name: "ORDERS".into(), subjects: vec!["orders".into()], ..stream::Config::default() };
    let stream = context.get_or_create_stream(config).await.unwrap();
    let config = pull::Config {
        durable_name: Some("bare".into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        ..pull::Config::default()
    };
    stream.get_or_create_consumer("bare", config).await.unwrap()
}

/// Pulls and acknowledges, and waits for each to be confirmed, until the server is gone.
async fn acknowledge(consumer: Consumer<pull::Config>) -> Confirmed {
    let mut confirmed = Confirmed::new();
    let soon = Duration::from_secs(1);
    while let Ok(mut messages) = consumer.fetch().max_messages(32).messages().await {
        while let Some(next) = tokio::time::timeout(soon, messages.next()).await.unwrap_or(Some(Err("silent".into()))) {
            let Ok(message) = next else { return confirmed };
            let sequence = message.info().unwrap().stream_sequence;
            let acked = tokio::time::timeout(soon, message.double_ack()).await;
            let Ok(Ok(())) = acked else { return confirmed };
            confirmed.insert(sequence, Instant::now());
        }
    }
    confirmed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures the server, not us"]
async fn a_killed_server_forgets_what_it_confirmed() {
    for sync in ["2m", "always"] {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), format!("jetstream {{ sync_interval: {sync} }}\n")).unwrap();
        let mut server = NatsServer::start_with(true, &["--config", &config.path().display().to_string()]);
        let context = connect(&server).await;
        for round in 1..=ROUNDS {
            drop(consumer(&context).await);
            for _ in 0..MESSAGES / 200 {
                let sent = (0..200).map(|_| context.publish("orders", "x".into()));
                for stored in futures::future::join_all(sent).await {
                    stored.unwrap().await.unwrap();
                }
            }
            let acking = tokio::spawn(acknowledge(consumer(&context).await));
            tokio::time::sleep(Duration::from_millis(300 + 37 * u64::from(round))).await;
            let killed = Instant::now();
            server.kill();
            let confirmed = acking.await.unwrap();
            server.restart();
            again(&server, sync, &confirmed, killed).await;
        }
    }
}

/// Takes all that there is, and tells what of it had been confirmed.
async fn again(server: &NatsServer, sync: &str, confirmed: &Confirmed, killed: Instant) {
    let consumer = consumer(&connect(server).await).await;
    let (mut as_new, mut as_given_out, mut oldest, mut empty) = (0, 0, Duration::ZERO, 0);
    while empty < 15 {
        let mut messages = consumer.fetch().max_messages(500).messages().await.unwrap();
        let mut came = 0;
        while let Some(Ok(message)) = messages.next().await {
            came += 1;
            let info = message.info().unwrap();
            if let Some(at) = confirmed.get(&info.stream_sequence) {
                oldest = oldest.max(killed.duration_since(*at));
                if info.delivered > 1 { as_given_out += 1 } else { as_new += 1 }
            }
            message.double_ack().await.unwrap();
        }
        empty = if came == 0 { empty + 1 } else { 0 };
        if came == 0 {
            tokio::time::sleep(ACK_WAIT / 5).await;
        }
    }
    println!(
        "sync_interval {sync}: of {} confirmed acknowledgements {} were forgotten, {as_new} of them with their delivery, \
         {as_given_out} without; the oldest was confirmed {oldest:?} before the kill",
        confirmed.len(),
        as_new + as_given_out
    );
}
