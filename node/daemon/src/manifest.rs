//! Manifests as a node reads them: also what its providers would refuse of their links is found before the deploy.

use std::collections::BTreeMap;

use trellis_manifest::{Options, Parsed, Tech, Unfit};
use trellis_provider::LinkError;
use trellis_wire::Link;

/// Reads a manifest. `origin` is the file's name, for messages; aliases of images are as in [`Options`].
pub fn parse(yaml: &str, origin: &str, image_aliases: BTreeMap<String, String>) -> Parsed {
    trellis_manifest::parse_with(yaml, origin, &Options { image_aliases, check: Some(check) })
}

/// Whether a provider would take a link. Most look only when they bind it, and `trellis status` says what is wrong.
fn check(tech: Tech, link: &Link) -> Result<(), Unfit> {
    let looked = match tech {
        Tech::Timer => trellis_timer::check(link),
        Tech::Http | Tech::Nats | Tech::Embedded | Tech::Redis | Tech::Rabbitmq | Tech::Mqtt => Ok(()),
    };
    looked.map_err(|why| Unfit {
        problem: why.to_string(),
        key: match why {
            LinkError::Config { key, .. } => Some(key),
            LinkError::Taken(_) | LinkError::Unsupported(_) | LinkError::Failed(_) => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest whose timer is configured so.
    fn timer(config: &str) -> String {
        let link = format!(
            "{{target: worker, namespace: trellis, package: messaging, interfaces: [handler],
            source: {{config: [{config}]}}}}"
        );
        format!(
            "apiVersion: core.oam.dev/v1beta1
kind: Application
metadata: {{name: shop}}
spec:
  components:
    - {{name: worker, type: component, properties: {{image: worker.wasm}}}}
    - name: timer
      type: capability
      properties: {{image: 'trellis://timer'}}
      traits:
        - type: link
          properties: {link}
"
        )
    }

    fn found(config: &str) -> String {
        let parsed = parse(&timer(config), "shop.yaml", BTreeMap::new());
        parsed.findings.iter().map(|found| format!("{}:{} {}\n", found.line, found.column, found.message)).collect()
    }

    #[test]
    fn a_wrong_timer_is_found_where_it_stands() {
        // What is said of these properties, and whether it is said of the place where this text is.
        let said_at = |properties: &str, text: &str| {
            let config = format!("{{name: each, properties: {{{properties}}}}}");
            let manifest = timer(&config);
            let before = manifest.split(text).next().unwrap();
            let (line, column) = (before.lines().count(), before.lines().last().unwrap().chars().count() + 1);
            let said = found(&config);
            let message = said.strip_prefix(&format!("{line}:{column} "));
            message.unwrap_or_else(|| panic!("not at {line}:{column}: {said}")).to_owned()
        };
        let cron = said_at("cron: '61 * * * *'", "cron: ");
        assert!(cron.starts_with("config `cron`: `61 * * * *`: "), "{cron}");
        let zone = said_at("cron: '@daily', timezone: Mars", "timezone: ");
        assert_eq!(zone, "config `timezone`: `Mars` is no time zone; write one such as `Europe/Berlin`\n");
        let missing = said_at("missed: once", "worker, namespace");
        assert_eq!(missing, "config `cron`: is missing; write `cron: \"0 9 * * *\"` or `every: 10s`\n");
        assert_eq!(found("{name: each, properties: {every: 10s}}"), "");
        let ordered = said_at("every: 10s, delivery.order_by: subject", "delivery.order_by: ");
        assert!(ordered.starts_with("config `delivery.order_by`: a timer"), "{ordered}");
    }

    #[test]
    fn what_the_lattice_keeps_is_not_judged_before_it_is_known() {
        assert_eq!(found("{name: shop-hours}"), "");
        let both = found("{name: a, properties: {every: 10s}}, {name: b, properties: {every: never}}");
        assert!(both.contains("config `every`: `never` is no time"), "the last one counts: {both}");
        assert_eq!(found("{name: a, properties: {every: never}}, {name: b, properties: {every: 10s}}"), "");
    }
}
