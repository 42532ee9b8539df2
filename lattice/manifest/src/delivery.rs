//! `delivery:`: reads how a message link treats what the guest says of a message, from a block or from dotted keys.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use trellis_wire::{Config, Dedupe, DedupeKey, Delivery, OnDeadLetter, OrderBy, subject};

use crate::quantity;

/// Lays the keys `delivery.*` of a link's config on top of a policy, such as `delivery.backoff.initial: 1s`.
///
/// # Errors
/// The first key that is unknown or whose value does not fit.
pub fn overlaid(delivery: Delivery, config: &Config) -> Result<Delivery, DeliveryError> {
    let mut draft = Draft::new(delivery);
    let dotted = config.iter().filter_map(|(key, value)| Some((key.strip_prefix("delivery.")?, value.trim())));
    for (key, value) in dotted.filter(|(_, value)| !value.is_empty()) {
        draft.set(key, value)?;
    }
    draft.finish()
}

/// Why a delivery policy is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("`delivery.{key}: {value}` does not fit: {wanted} is expected")]
pub struct DeliveryError {
    /// The dotted key below `delivery`.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What would fit.
    pub wanted: String,
}

/// Every key by its dotted name.
pub(crate) const KEYS: &[&str] = &[
    "max_attempts",
    "max_faults",
    "backoff.initial",
    "backoff.factor",
    "backoff.max",
    "backoff.jitter",
    "timeout",
    "max_age",
    "max_in_flight",
    "rate_limit",
    "order_by",
    "on_dead_letter",
    "dead_letter",
    "dedupe.key",
    "dedupe.window",
];

/// A policy while its keys come in, in any order.
pub(crate) struct Draft {
    delivery: Delivery,
    dedupe_key: Option<DedupeKey>,
    dedupe_window: Option<Duration>,
}

impl Draft {
    pub(crate) fn new(delivery: Delivery) -> Self {
        let (dedupe_key, dedupe_window) = match &delivery.dedupe {
            Some(dedupe) => (Some(dedupe.key.clone()), Some(dedupe.window)),
            None => (None, None),
        };
        Self { delivery, dedupe_key, dedupe_window }
    }

    /// Sets one key, by its dotted name.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), DeliveryError> {
        self.take(key, value).map_err(|wanted| DeliveryError {
            key: key.into(),
            value: value.into(),
            wanted: wanted.into(),
        })
    }

    /// The policy, once all keys are there.
    pub(crate) fn finish(mut self) -> Result<Delivery, DeliveryError> {
        let error = |key: &str, value: &str, wanted: &str| {
            Err(DeliveryError { key: key.into(), value: value.into(), wanted: wanted.into() })
        };
        self.delivery.dedupe = match (self.dedupe_key, self.dedupe_window) {
            (Some(key), Some(window)) => Some(Dedupe { key, window }),
            (None, None) => None,
            (Some(_), None) => return error("dedupe.window", "", "a duration such as `10m`"),
            (None, Some(_)) => return error("dedupe.key", "", "`id` or `header:<name>`"),
        };
        let backoff = &self.delivery.backoff;
        if backoff.initial > backoff.max {
            let value = format!("{:?}", backoff.initial);
            return error("backoff.initial", &value, &format!("at most `backoff.max`, {:?}", backoff.max));
        }
        Ok(self.delivery)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        let delivery = &mut self.delivery;
        match key {
            "max_attempts" => delivery.max_attempts = at_least_one(value)?,
            "max_faults" => delivery.max_faults = at_least_one(value)?,
            "backoff.initial" => delivery.backoff.initial = duration(value)?,
            "backoff.factor" => delivery.backoff.factor = decimal(value, 1.0, 100.0).ok_or("a number from 1 to 100")?,
            "backoff.max" => delivery.backoff.max = duration(value)?,
            "backoff.jitter" => delivery.backoff.jitter = decimal(value, 0.0, 1.0).ok_or("a number from 0 to 1")?,
            "timeout" => delivery.timeout = duration(value)?,
            "max_age" => delivery.max_age = Some(duration(value)?),
            "max_in_flight" => delivery.max_in_flight = Some(at_least_one(value)?),
            "rate_limit" => delivery.rate_limit = Some(quantity::rate(value).ok_or(quantity::RATE)?),
            "order_by" => delivery.order_by = Some(order_by(value)?),
            "on_dead_letter" => delivery.on_dead_letter = on_dead_letter(value)?,
            "dead_letter" => delivery.dead_letter = Some(dead_letter(value)?),
            "dedupe.key" => self.dedupe_key = Some(dedupe_key(value)?),
            "dedupe.window" => self.dedupe_window = Some(duration(value)?),
            _ => return Err("a known key"),
        }
        Ok(())
    }
}

fn duration(value: &str) -> Result<Duration, &'static str> {
    quantity::duration(value).filter(|duration| !duration.is_zero()).ok_or(quantity::DURATION)
}

fn at_least_one(value: &str) -> Result<u32, &'static str> {
    value.parse().ok().filter(|number| *number > 0).ok_or("a whole number from 1")
}

fn decimal(value: &str, min: f64, max: f64) -> Option<f64> {
    value.parse().ok().filter(|number| (min..=max).contains(number))
}

fn order_by(value: &str) -> Result<OrderBy, &'static str> {
    match value {
        "subject" => Ok(OrderBy::Subject),
        _ => header(value).map(OrderBy::Header).ok_or("`subject` or `header:<name>`"),
    }
}

fn on_dead_letter(value: &str) -> Result<OnDeadLetter, &'static str> {
    match value {
        "park" => Ok(OnDeadLetter::Park),
        "continue" => Ok(OnDeadLetter::Continue),
        _ => Err("`park` or `continue`"),
    }
}

fn dedupe_key(value: &str) -> Result<DedupeKey, &'static str> {
    match value {
        "id" => Ok(DedupeKey::Id),
        _ => header(value).map(DedupeKey::Header).ok_or("`id` or `header:<name>`"),
    }
}

fn header(value: &str) -> Option<String> {
    let name = value.strip_prefix("header:")?.trim();
    (!name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && c != ':')).then(|| name.to_owned())
}

/// A dead letter is published: its subject may have no wildcard and must not be the lattice's or the server's.
fn dead_letter(value: &str) -> Result<String, &'static str> {
    let literal = value.chars().all(|c| c.is_ascii_graphic() && c != '*' && c != '>');
    let whole = value.split('.').all(|token| !token.is_empty());
    if literal && whole && subject::is_free(value) {
        Ok(value.to_owned())
    } else {
        Err("a subject or stream of your own without wildcards")
    }
}

#[cfg(test)]
mod tests {
    use trellis_wire::{Backoff, Rate};

    use super::*;

    fn policy(pairs: &[(&str, &str)]) -> Result<Delivery, DeliveryError> {
        overlaid(Delivery::default(), &Config::from_iter(pairs.iter().copied()))
    }

    #[test]
    fn dotted_keys_say_the_same_as_the_block() {
        let delivery = policy(&[
            ("delivery.max_attempts", " 5 "),
            ("delivery.backoff.initial", "500ms"),
            ("delivery.backoff.factor", "1.5"),
            ("delivery.rate_limit", "100/s"),
            ("delivery.order_by", "header:X-Key"),
            ("delivery.on_dead_letter", "continue"),
            ("delivery.dead_letter", "orders.dead"),
            ("delivery.dedupe.window", "10m"),
            ("delivery.dedupe.key", "id"),
            ("delivery.max_age", ""),
            ("stream", "orders"),
        ])
        .unwrap();
        assert_eq!(delivery.max_attempts, 5);
        assert_eq!(delivery.backoff.initial, Duration::from_millis(500));
        assert_eq!(delivery.rate_limit, Some(Rate { count: 100, per: Duration::from_secs(1) }));
        assert_eq!(delivery.order_by, Some(OrderBy::Header("X-Key".into())));
        assert_eq!(delivery.on_dead_letter, OnDeadLetter::Continue);
        assert_eq!(delivery.dedupe, Some(Dedupe { key: DedupeKey::Id, window: Duration::from_secs(600) }));
        assert_eq!(delivery.max_age, None, "an empty value is an absent one");
    }

    /// Every key with a value that is not its default.
    const ALL: &[(&str, &str)] = &[
        ("max_attempts", "5"),
        ("max_faults", "7"),
        ("backoff.initial", "500ms"),
        ("backoff.factor", "1.5"),
        ("backoff.max", "1m"),
        ("backoff.jitter", "0.5"),
        ("timeout", "45s"),
        ("max_age", "1h"),
        ("max_in_flight", "9"),
        ("rate_limit", "100/s"),
        ("order_by", "header:X-Key"),
        ("on_dead_letter", "continue"),
        ("dead_letter", "orders.dead"),
        ("dedupe.key", "header:X-Id"),
        ("dedupe.window", "10m"),
    ];

    #[test]
    fn every_key_can_be_said_in_a_block_and_by_its_dotted_name() {
        assert!(ALL.iter().map(|(key, _)| key).eq(KEYS), "each key has its line");
        let dotted: Vec<_> = ALL.iter().map(|(key, value)| (format!("delivery.{key}"), *value)).collect();
        let dotted: Vec<_> = dotted.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        let expected = Delivery {
            max_attempts: 5,
            max_faults: 7,
            backoff: Backoff {
                initial: Duration::from_millis(500),
                factor: 1.5,
                max: Duration::from_secs(60),
                jitter: 0.5,
            },
            timeout: Duration::from_secs(45),
            max_age: Some(Duration::from_secs(3_600)),
            max_in_flight: Some(9),
            rate_limit: Some(Rate { count: 100, per: Duration::from_secs(1) }),
            order_by: Some(OrderBy::Header("X-Key".into())),
            on_dead_letter: OnDeadLetter::Continue,
            dead_letter: Some("orders.dead".into()),
            dedupe: Some(Dedupe { key: DedupeKey::Header("X-Id".into()), window: Duration::from_secs(600) }),
            dead_bytes_max: Delivery::default().dead_bytes_max,
        };
        assert_eq!(policy(&dotted).unwrap(), expected);

        let (backoff, rest): (Vec<_>, Vec<_>) = ALL.iter().partition(|(key, _)| key.starts_with("backoff."));
        let (dedupe, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(key, _)| key.starts_with("dedupe."));
        let pairs = |pairs: &[(&str, &str)], below: &str| {
            let pairs: Vec<_> =
                pairs.iter().map(|(key, value)| format!("{}: '{value}'", key.trim_start_matches(below))).collect();
            pairs.join(", ")
        };
        let block = format!(
            "{{{}, backoff: {{{}}}, dedupe: {{{}}}}}",
            pairs(&rest, ""),
            pairs(&backoff, "backoff."),
            pairs(&dedupe, "dedupe.")
        );
        assert_eq!(of_block(&block), expected);
    }

    /// The policy of a link with this `delivery:`.
    fn of_block(block: &str) -> Delivery {
        let manifest = format!(
            "apiVersion: core.oam.dev/v1beta1
kind: Application
metadata: {{name: shop}}
spec:
  components:
    - {{name: worker, type: component, properties: {{image: 'file://worker.wasm'}}}}
    - name: queue
      type: capability
      properties: {{image: 'trellis://nats'}}
      traits:
        - type: link
          properties:
            target: worker
            namespace: trellis
            package: messaging
            interfaces: [handler]
            source: {{config: [{{name: orders, properties: {{stream: ORDERS}}}}]}}
            delivery: {block}
"
        );
        let parsed = crate::parse(&manifest, "shop.yaml");
        parsed.app.unwrap_or_else(|| panic!("{:?}", parsed.findings)).links[0].delivery.clone()
    }

    #[test]
    fn what_does_not_fit_is_named_with_what_would() {
        for (key, value) in [
            ("max_attempts", "0"),
            ("max_faults", "-1"),
            ("backoff.factor", "NaN"),
            ("backoff.factor", "0.5"),
            ("backoff.jitter", "1.1"),
            ("timeout", "30"),
            ("timeout", "0s"),
            ("rate_limit", "100"),
            ("order_by", "header:"),
            ("on_dead_letter", "stop"),
            ("dead_letter", "$JS.API"),
            ("dead_letter", "trellis.v1.x"),
            ("dead_letter", "a.*"),
            ("dead_letter", "a..b"),
            ("dedupe.key", "body"),
            ("dedupe.key", "id"),
            ("dedupe.window", "1m"),
            ("backoff.initial", "10m"),
            ("retries", "1"),
        ] {
            let error = policy(&[(&format!("delivery.{key}"), value)]).unwrap_err();
            assert!(error.to_string().ends_with("is expected"), "{error}");
        }
    }
}
