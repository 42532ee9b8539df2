//! A call from one component to another: on the same node, and on another node, beside a bare NATS request whose responder
//! makes one sandbox.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;

use crate::Scale;
use crate::apps::{app, component, http, link};
use crate::bare::Callee;
use crate::client::get;
use crate::node::{DataDir, Node};
use crate::table::{Figures, Table, Times, times};

pub(crate) fn bench(scale: Scale) -> String {
    let (calls, rounds) = (scale.or(2_000, 20), scale.rounds(5));
    let runtime = Runtime::new().unwrap();
    let nats = NatsServer::start(false);
    let callee = Arc::new(Callee::load("test_ping"));
    let nodes = [1, 2].map(|n| {
        let label = format!("n={n}");
        let first: &[&str] = if n == 1 { &["--bootstrap"] } else { &[] };
        Node::start_in(&DataDir::new(), &[&["--nats", &nats.url, "--label", &label], first].concat())
    });
    nodes[0].deploy(&calling("far", "2"));
    nodes[0].deploy(&calling("near", "1"));
    let mut all: [(&str, Figures); 6] = [
        ("a sandbox alone, in one process", Figures::default()),
        ("NATS request/reply alone", Figures::default()),
        ("NATS request/reply + one sandbox", Figures::default()),
        ("the same, asked by a task of the runtime, as guests are", Figures::default()),
        ("Trellis, same node", Figures::default()),
        ("Trellis, another node", Figures::default()),
    ];
    for _ in 0..rounds {
        let round = [
            runtime.block_on(alone(&callee, calls)),
            runtime.block_on(asked(nats.url.clone(), None, calls)),
            runtime.block_on(asked(nats.url.clone(), Some(callee.clone()), calls)),
            runtime.block_on(runtime.spawn(asked(nats.url.clone(), Some(callee.clone()), calls))).unwrap(),
            guests(&nodes[0], "near", calls),
            guests(&nodes[0], "far", calls),
        ];
        all.iter_mut().zip(round).for_each(|((_, figures), times)| figures.push(times.quantile_ms(0.5)));
    }
    let [sandbox, _, peer, leanest, near, far] = all.each_ref().map(|(_, figures)| figures.median());
    let mut table = Table::new(&["what", "p50", "beside its peer", "goal"]);
    for ((name, figures), (beside, goal)) in all.iter().zip([
        (None, ""),
        (None, ""),
        (None, ""),
        (None, ""),
        (Some(near / sandbox), "close to one sandbox"),
        (Some(far / peer), "1.30x of NATS request/reply + one sandbox"),
    ]) {
        let shown = figures.shown(|ms| format!("{:.0} us", ms * 1e3));
        table.row(&[(*name).into(), shown, beside.map_or_else(String::new, times), goal.into()]);
    }
    format!(
        "{calls} calls one after another in each of {rounds} rounds, in turn; for Trellis they are timed within the guest that \
         calls. Beside the leanest that NATS and a sandbox can be, another node is at {}.\n\n{}",
        times(far / leanest),
        table.finish()
    )
}

/// `caller` on node 1, behind HTTP; what it calls on the node with this label.
fn calling(name: &str, callee: &str) -> String {
    let on = |label: &str| {
        format!(
            "{{type: spreadscaler, properties: {{instances: 20, spread: [{{name: here, requirements: {{n: '{label}'}}}}]}}}}"
        )
    };
    let calls = link("ping", "test:calls/pinging");
    let entries = [
        component("caller", "test_caller", "limits: {timeout: 60s}", &[on("1"), calls]),
        component("ping", "test_ping", "", &[on(callee)]),
        http("caller", "timeout_ms: '60000'"),
    ];
    app(name, &entries)
}

/// What the guest says of its calls.
fn guests(node: &Node, app: &str, calls: usize) -> Times {
    let said = get(node.at(app), &format!("/?n={calls}")).unwrap().ok();
    let mut times = Times::default();
    said.lines().for_each(|line| times.push(Duration::from_nanos(line.parse().unwrap())));
    assert_eq!(times.len(), calls);
    times
}

async fn alone(callee: &Callee, calls: usize) -> Times {
    let mut times = Times::default();
    for number in 0..calls {
        let began = Instant::now();
        assert_eq!(callee.ping(number as u32).await, number as u32 + 1);
        times.push(began.elapsed());
    }
    times
}

/// Requests over NATS, answered at once or by a sandbox each.
async fn asked(url: String, callee: Option<Arc<Callee>>, calls: usize) -> Times {
    let responder = async_nats::connect(&url).await.unwrap();
    let client = async_nats::connect(&url).await.unwrap();
    // Of this round alone: what answered the one before may still be on its way out.
    let subject = responder.new_inbox();
    let mut questions = responder.subscribe(subject.clone()).await.unwrap();
    responder.flush().await.unwrap();
    let serving = tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let number = u32::from_le_bytes(question.payload[..4].try_into().unwrap());
            let answer = match &callee {
                Some(callee) => callee.ping(number).await,
                None => number + 1,
            };
            responder.publish(question.reply.unwrap(), answer.to_le_bytes().to_vec().into()).await.unwrap();
        }
    });
    // A flush says that the server was told of the subscription, not that it knows it.
    while client.request(subject.clone(), vec![0; 4].into()).await.is_err() {}
    let mut times = Times::default();
    for number in 0..calls as u32 {
        let began = Instant::now();
        client.request(subject.clone(), number.to_le_bytes().to_vec().into()).await.unwrap();
        times.push(began.elapsed());
    }
    serving.abort();
    times
}
