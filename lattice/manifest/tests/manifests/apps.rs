//! What manifests mean: the app that comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use trellis_manifest::{
    App, Backoff, Dedupe, DedupeKey, Delivery, Image, Limits, NotBuilt, OnDeadLetter, Options, OrderBy, Rate, Scaler,
    Served, Tech, parse, parse_with,
};
use trellis_wire::Config;

use crate::corpus;

fn app(folder: &str, name: &str) -> App {
    let sample = corpus(folder).into_iter().find(|sample| sample.name == format!("{name}.yaml")).unwrap();
    parse(&sample.yaml, name).app.unwrap()
}

#[test]
fn hello_world_is_one_component_one_provider_and_one_link() {
    let app = app("accepted", "hello-world");
    assert_eq!(app.name.as_str(), "hello-world");
    assert_eq!(app.version.as_deref(), Some("v0.0.1"));
    assert_eq!(app.description.as_deref(), Some("HTTP hello world demo"));
    let component = &app.components[&"http-component".parse().unwrap()];
    assert_eq!(component.id, "hello_world-http_component");
    assert_eq!(component.image, Image::Oci("ghcr.io/wasmcloud/components/http-hello-world-rust:0.1.0".into()));
    let Some(Scaler::Spread { instances: Some(1), spreads }) = &component.scaler else { panic!("{component:?}") };
    assert_eq!((spreads.len(), spreads[0].weight, spreads[0].requirements.len()), (1, 100, 0));
    let provider = &app.providers[&"httpserver".parse().unwrap()];
    assert_eq!((provider.tech(), &provider.scaler), (Some(Tech::Http), &None));
    let [link] = &app.links[..] else { panic!("{:?}", app.links) };
    assert_eq!(
        (link.source.as_str(), link.target.as_str(), link.name.as_str()),
        ("httpserver", "http-component", "default")
    );
    assert_eq!(
        (&*link.namespace, &*link.package, &*link.interfaces),
        ("wasi", "http", &["incoming-handler".into()][..])
    );
    assert_eq!(link.source_configs, ["hello-world-default-http"]);
    assert_eq!(app.configs["hello-world-default-http"], Config::from_iter([("address", "127.0.0.1:8000")]));
    assert!(app.not_built().is_empty());
}

#[test]
fn deprecated_config_counts_only_where_the_new_one_is_not_there() {
    let app_old = app("accepted", "bare-target");
    assert_eq!(app_old.links[0].target_configs, ["bare-target-redis-url"]);
    assert_eq!(app_old.links[1].source_configs, ["bare-target-default-http"]);
    assert_eq!(app("accepted", "deprecated-both").links[0].source_configs, ["deprecated-both-new"]);
}

#[test]
fn config_without_properties_keeps_its_name() {
    let app = app("accepted", "named-config");
    let component = app.components.values().next().unwrap();
    assert_eq!(component.configs, ["company-defaults", "configured-own"]);
    assert_eq!(component.id, "configured_api");
    assert_eq!(app.configs.keys().collect::<Vec<_>>(), ["configured-own"]);
}

#[test]
fn shared_components_name_their_app() {
    let consumer = app("accepted", "shared-provider");
    let (platform, keyvalue) = ("platform".parse().unwrap(), "keyvalue".parse().unwrap());
    let provider = consumer.providers.values().next().unwrap();
    assert_eq!(provider.served, Served::Shared { app: platform, component: keyvalue });
    assert!(app("accepted", "sharing").shared && !consumer.shared);
    let source = app("accepted", "shared-link-source");
    assert!(matches!(&source.components[&"gateway".parse().unwrap()].image, Image::Shared { .. }));
}

#[test]
fn what_is_not_built_is_named() {
    let named: Vec<_> = app("accepted", "secrets").not_built().iter().map(NotBuilt::to_string).collect();
    assert_eq!(named, ["secrets backend `vault-prod` of policy `vault`"]);
    let named = app("accepted", "own-provider").not_built();
    assert_eq!(named[0].to_string(), "provider `wasmcloud.azurecr.io/ledblinky:0.0.1` of `ledblinky`");
    let aliases = BTreeMap::from([("keyvalue-redis".to_owned(), "trellis://embedded".to_owned())]);
    let sample = corpus("accepted").into_iter().find(|sample| sample.name == "http-keyvalue-counter.yaml").unwrap();
    let parsed = parse_with(&sample.yaml, "app.yaml", &Options { image_aliases: aliases, ..Options::default() });
    assert!(parsed.app.unwrap().not_built().is_empty());
}

#[test]
fn limits_and_delivery_are_read_in_full() {
    let app = app("ours", "delivery");
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        timeout: Some(Duration::from_secs(30)),
        max_in_flight: Some(50),
        strict: true,
    };
    assert_eq!(app.components.values().next().unwrap().limits, limits);
    let (initial, max) = (Duration::from_millis(500), Duration::from_secs(120));
    let delivery = Delivery {
        max_attempts: 5,
        max_faults: 2,
        backoff: Backoff { initial, factor: 1.5, max, jitter: 0.0 },
        timeout: Duration::from_secs(10),
        max_age: Some(Duration::from_secs(7_200)),
        max_in_flight: Some(20),
        rate_limit: Some(Rate { count: 100, per: Duration::from_secs(1) }),
        order_by: Some(OrderBy::Header("X-Customer".into())),
        on_dead_letter: OnDeadLetter::Continue,
        dead_letter: Some("orders.dead".into()),
        dedupe: Some(Dedupe { key: DedupeKey::Id, window: Duration::from_secs(600) }),
        dead_bytes_max: Delivery::default().dead_bytes_max,
    };
    assert_eq!(app.links[0].delivery, delivery);
}

#[test]
fn numbers_and_namespaces_are_kept_as_meant() {
    assert_eq!(app("accepted", "instances-zero").version.as_deref(), Some("1.10"));
    assert_eq!(app("accepted", "wrpc-namespace").links[0].namespace, "wasi");
    let anchors = app("accepted", "anchors");
    assert!(anchors.components.values().all(|component| component.scaler.is_some()));
}

#[test]
fn the_lattice_can_keep_every_app() {
    for sample in corpus("accepted") {
        let app = parse(&sample.yaml, &sample.name).app.unwrap();
        let bytes = postcard::to_stdvec(&app).unwrap();
        assert_eq!(postcard::from_bytes::<App>(&bytes).unwrap(), app, "{}", sample.name);
        let json = serde_json::to_string(&app).unwrap();
        assert_eq!(serde_json::from_str::<App>(&json).unwrap(), app, "{}", sample.name);
    }
}

#[test]
fn nothing_that_anybody_writes_makes_the_parser_panic() {
    // Each manifest of the corpus with each line left out, cut off there, or its value replaced.
    for sample in ["accepted", "refused", "ours"].iter().flat_map(|folder| corpus(folder)) {
        let lines: Vec<_> = sample.yaml.lines().collect();
        for cut in 0..lines.len() {
            let key = lines[cut].split_once(':').map_or("x", |(key, _)| key);
            for instead in
                ["".to_owned(), format!("{key}: ~"), format!("{key}: [[1], {{a: b}}]"), format!("{key}: \"é\"")]
            {
                let mut changed = lines.clone();
                changed[cut] = &instead;
                let parsed = parse(&changed.join("\n"), "app.yaml");
                assert!(parsed.app.is_some() || parsed.findings.iter().any(|finding| finding.is_error()));
            }
            parse(&lines[..cut].join("\n"), "app.yaml");
        }
    }
}

#[test]
fn a_flood_of_mistakes_is_read_in_bounded_time_and_said_in_bounded_length() {
    let head = "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata:\n  name: flood\nspec:\n  components:\n";
    let link = "{type: link, properties: {target: nowhere, namespace: a, package: b, interfaces: [c]}}";
    let entry = |i: usize| {
        format!("    - {{name: component{i}, type: component, properties: {{imag: x}}, traits: [{link}]}}\n")
    };
    let yaml = head.to_owned() + &(0..1_500).map(entry).collect::<String>();
    let begun = std::time::Instant::now();
    let findings = parse(&yaml, "app.yaml").findings;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(findings.len(), 1_001, "a thousand, and how many more there are");
}
