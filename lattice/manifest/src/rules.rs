//! Rules between the entries of a manifest, once all of them are read.

use std::collections::BTreeMap;

use trellis_wire::credentials::{self, Held};
use trellis_wire::{AppName, ComponentKey, ComponentName, Config, Link, LinkId, Part, Secret, Secrets};

use crate::finding::At;
use crate::links::Linked;
use crate::nearest::{did_you_mean, nearest};
use crate::reading::{Kind, Reading};
use crate::{App, AppLink, Delivery, Tech, Way, delivery, keys, settings};

/// Applies all of them.
pub(crate) fn check(reading: &mut Reading<'_, '_>) {
    ids(reading);
    targets(reading);
    duplicate_links(reading);
    directions(reading);
    timeouts(reading);
    orders(reading);
    named_configs(reading);
    config_keys(reading);
    plain_credentials(reading);
    secret_names(reading);
    built_in_links(reading);
}

/// Two entries of one id would share a queue group.
fn ids(reading: &mut Reading<'_, '_>) {
    let mut first: BTreeMap<&str, At> = BTreeMap::new();
    for (id, at) in reading.entries.iter().filter_map(|entry| entry.id.as_ref()) {
        match first.get(id.as_str()) {
            Some(other) => {
                let help = format!("line {} has this id already: give one of them an `id` of its own", other.line);
                reading.report.error(*at, format!("the id `{id}` comes twice"), help);
            }
            None => {
                first.insert(id, *at);
            }
        }
    }
}

/// wadm-types 0.8 has it twice, as a warning and as an error; the error counts.
fn targets(reading: &mut Reading<'_, '_>) {
    for linked in &reading.links {
        let target = linked.link.target.as_str();
        if reading.entries.iter().any(|entry| entry.name == target) {
            continue;
        }
        let names = reading.entries.iter().map(|entry| entry.name.as_str());
        let candidates = if reading.report.is_full() { 0 } else { reading.entries.len() };
        let help = match nearest(target, names.take(candidates)) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => {
                "add it below `components`; one of another app is added with `application: {name, component}`".into()
            }
        };
        reading.report.error(linked.target_at, format!("the link's target `{target}` is not in this manifest"), help);
    }
}

/// A guest chooses a link by interface and name, so both together lead to one target only.
fn duplicate_links(reading: &mut Reading<'_, '_>) {
    let mut first: BTreeMap<(&ComponentName, &str, &str, &str, &str), At> = BTreeMap::new();
    for Linked { link, interfaces_at, .. } in &reading.links {
        for (interface, at) in link.interfaces.iter().zip(interfaces_at) {
            let key =
                (&link.source, link.name.as_str(), link.namespace.as_str(), link.package.as_str(), interface.as_str());
            if let Some(other) = first.insert(key, *at) {
                let message = format!(
                    "`{}` has two links `{}` for `{}:{}/{interface}`",
                    link.source, link.name, link.namespace, link.package
                );
                let help = format!("line {} has the other one: give one of them another `name`", other.line);
                reading.report.error(*at, message, help);
            }
        }
    }
}

/// Which end wakes which: most links that do nothing are the wrong way round.
fn directions(reading: &mut Reading<'_, '_>) {
    let kind_of = |name: &ComponentName| {
        reading.entries.iter().find(|entry| entry.name == name.as_str()).and_then(|entry| entry.kind)
    };
    for Linked { link, target_at, interfaces_at, delivery, .. } in &reading.links {
        let ends = (kind_of(&link.source), kind_of(&link.target));
        let (source, target) = (&link.source, &link.target);
        if ends == (Some(Kind::Provider), Some(Kind::Provider)) {
            let help = "a link has a component at one end at least";
            reading.report.warn(
                *target_at,
                format!("`{source}` and `{target}` are both providers: nothing is linked"),
                help,
            );
        }
        let wakes = |interface: &String| match link.package.as_str() {
            "http" => interface == "incoming-handler",
            "messaging" => interface == "handler",
            "cli" => interface == "run",
            _ => false,
        };
        if let Some(at) = link.interfaces.iter().position(wakes).and_then(|index| interfaces_at.get(index))
            && ends == (Some(Kind::Component), Some(Kind::Provider))
        {
            let message = format!("this link is the wrong way round: here `{target}` wakes `{source}`");
            reading.report.warn(
                *at,
                message,
                format!("give the trait to `{target}`, with `target: {{name: {source}}}`"),
            );
        }
        let trigger = ends.0 != Some(Kind::Component) && link.package != "http" && link.interfaces.iter().any(wakes);
        // Calls have no rate, and requests that wake a component have neither bound.
        let is_call = ends.0 != Some(Kind::Provider);
        if let Some((at, more)) = delivery
            && !trigger
            && (*more || !is_call || link.delivery.rate_limit.is_some())
        {
            let aside = if is_call { ", `max_in_flight` aside" } else { "" };
            let message = format!("`delivery` means nothing here{aside}");
            reading.report.warn(*at, message, "it belongs to a link by which a provider hands messages to a component");
        }
    }
}

/// A handler that is given longer by its link than by its component.
fn timeouts(reading: &mut Reading<'_, '_>) {
    for Linked { link, target_at, delivery, .. } in &reading.links {
        let limit = reading.app.components.get(&link.target).and_then(|component| component.limits.timeout);
        let (asked, target) = (policy(reading, link).timeout, &link.target);
        if let Some(limit) = limit.filter(|limit| *limit < asked && asked != Delivery::default().timeout) {
            let message = format!("`delivery.timeout` is {asked:?}, but `limits.timeout` of `{target}` is {limit:?}");
            let at = delivery.map_or(*target_at, |(at, _)| at);
            reading.report.warn(at, message, "the smaller counts: raise `limits.timeout`, or take it out");
        }
    }
}

/// The policy of a link, as far as this manifest says it.
fn policy(reading: &Reading<'_, '_>, link: &AppLink) -> Delivery {
    let given = link.source_configs.iter().filter_map(|name| reading.given.get(name));
    let config = given.fold(Config::default(), |config, given| config.overlaid_with(&given.values));
    delivery::overlaid(link.delivery.clone(), &config).unwrap_or_else(|_| link.delivery.clone())
}

/// An order of MQTT, which the home of the lattice keeps, by a provider that is to run somewhere else.
fn orders(reading: &mut Reading<'_, '_>) {
    for Linked { link, target_at, delivery, .. } in &reading.links {
        let provider = reading.app.providers.get(&link.source).filter(|provider| provider.tech() == Some(Tech::Mqtt));
        let has_scaler = provider.is_some_and(|provider| provider.scaler.is_some());
        if has_scaler && policy(reading, link).order_by.is_some() {
            let message = format!("`{}` has a scaler, so that no order of its topics can be kept", link.source);
            let help = "take the scaler out: the home of the lattice pulls a topic whose order is kept; or take out `order_by`";
            let at = delivery.map_or(*target_at, |(at, _)| at);
            reading.report.error(at, message, help);
        }
    }
}

/// A name without properties is the lattice's, never the one that this manifest gives.
fn named_configs(reading: &mut Reading<'_, '_>) {
    for (name, at) in &reading.named {
        let stored = format!("{}-{name}", reading.app.name);
        if reading.given.contains_key(&stored) && !reading.given.contains_key(name) {
            let message =
                format!("`{name}` without properties is config of the lattice, not the one that this manifest gives");
            reading.report.warn(*at, message, format!("write `name: {stored}` if that one is meant"));
        }
    }
}

/// The technology of a provider that is built in.
fn tech(app: &App, name: &ComponentName) -> Option<Tech> {
    app.providers.get(name).and_then(|provider| provider.tech())
}

/// The config that built-in providers get, by name, each with a technology that gets it.
fn config_of_providers<'r>(app: &'r App, links: &'r [Linked]) -> BTreeMap<&'r str, Tech> {
    let mut of_tech: BTreeMap<&str, Tech> = BTreeMap::new();
    for provider in app.providers.values() {
        let tech = provider.tech();
        of_tech.extend(provider.configs.iter().filter_map(|name| Some((name.as_str(), tech?))));
    }
    for Linked { link, .. } in links {
        let (end, tech) = match tech(app, &link.source) {
            Some(tech) => (&link.source_configs, Some(tech)),
            None => (&link.target_configs, tech(app, &link.target)),
        };
        of_tech.extend(end.iter().filter_map(|name| Some((name.as_str(), tech?))));
    }
    of_tech
}

/// A credential that a built-in provider would find in its config: the lattice would keep and show it.
fn plain_credentials(reading: &mut Reading<'_, '_>) {
    let names = config_of_providers(&reading.app, &reading.links).into_keys();
    let given = names.filter_map(|name| reading.given.get(name));
    let keys = given.flat_map(|given| given.keys.iter().map(|(key, at)| (key, *at, given.values.get(key))));
    let found: Vec<_> = keys
        .filter_map(|(key, at, value)| Some((key.clone(), at, credentials::held(key, value.unwrap_or_default())?)))
        .collect();
    for (key, at, held) in found {
        let help = settings::to_secrets(&key);
        match held {
            // That was said where it was read.
            Held::InAddress => {}
            Held::Plain => {
                let message = format!("`{key}` is a credential, which the lattice would keep and show");
                reading.report.error(at, message, help);
            }
            Held::AsWasmcloud => {
                let message = format!("`{key}` is a credential, which the lattice keeps and shows");
                reading.report.warn(at, message, help);
            }
        }
    }
}

/// Secrets that a built-in provider gets are checked for names that it does not know.
fn secret_names(reading: &mut Reading<'_, '_>) {
    let own = reading.entries.iter().filter_map(|entry| {
        let provider = reading.app.providers.get(&ComponentName::new(&entry.name).ok()?)?;
        Some((provider.tech()?, &provider.secrets, &entry.secrets_at))
    });
    let of_links =
        reading.links.iter().filter_map(|Linked { link, secrets_at, .. }| match tech(&reading.app, &link.source) {
            Some(tech) => Some((tech, &link.source_secrets, &secrets_at.0)),
            None => Some((tech(&reading.app, &link.target)?, &link.target_secrets, &secrets_at.1)),
        });
    let named = own.chain(of_links).flat_map(|(tech, secrets, places)| {
        secrets.iter().zip(places).map(move |(secret, at)| (tech, secret.name.clone(), *at))
    });
    let unknown: Vec<_> = named.filter(|(tech, name, _)| !keys::secrets_of(*tech).contains(&name.as_str())).collect();
    for (tech, name, at) in unknown {
        let known = match keys::secrets_of(tech) {
            [] => "it takes none".to_owned(),
            names => format!("known: {}", names.join(", ")),
        };
        let help = did_you_mean(&name, keys::secrets_of(tech).iter().copied(), &known);
        reading.report.warn(at, format!("the {tech} provider does not know the secret `{name}`"), help);
    }
}

/// Config that a built-in provider gets is checked for keys that it does not know.
fn config_keys(reading: &mut Reading<'_, '_>) {
    for (name, tech) in config_of_providers(&reading.app, &reading.links) {
        let places = reading.given.get(name).map(|given| &given.keys);
        for (key, at) in places.into_iter().flatten().filter(|(key, _)| !keys::is_known(tech, key)) {
            let dotted = key.strip_prefix("delivery.");
            let meant = match dotted {
                Some(key) => nearest(key, delivery::KEYS.iter().copied()).map(|meant| format!("delivery.{meant}")),
                None => nearest(key, keys::of(tech).chain(keys::secrets_alone_of(tech))).map(str::to_owned),
            };
            let help = match meant {
                None => format!("known: {}", keys::of(tech).collect::<Vec<_>>().join(", ")),
                Some(meant) if keys::secrets_alone_of(tech).any(|secret| secret == meant) => {
                    format!("did you mean `{meant}`? Then {}", settings::to_secrets(&meant))
                }
                Some(meant) => format!("did you mean `{meant}`?"),
            };
            let message = format!("the {tech} provider does not know the key `{key}`");
            // Of a policy nothing is left out.
            match dotted {
                Some(_) => reading.report.error(*at, message, help),
                None => reading.report.warn(*at, message, help),
            }
        }
    }
}

/// Has built-in providers look at their links. What names config of the lattice is looked at when it is applied.
fn built_in_links(reading: &mut Reading<'_, '_>) {
    let Some(check) = reading.options.check else { return };
    for Linked { link, target_at, delivery, .. } in &reading.links {
        let providers = &reading.app.providers;
        let (provider, way, configs, secrets) = match (providers.get(&link.source), providers.get(&link.target)) {
            (Some(provider), _) => (provider, Way::Wakes, &link.source_configs, &link.source_secrets),
            (None, Some(provider)) => (provider, Way::Grants, &link.target_configs, &link.target_secrets),
            (None, None) => continue,
        };
        let names = provider.configs.iter().chain(configs);
        let given = names.map(|name| reading.given.get(name)).collect::<Option<Vec<_>>>();
        let (Some(tech), Some(given)) = (provider.tech(), given) else { continue };
        let config = given.iter().fold(Config::default(), |config, given| config.overlaid_with(&given.values));
        // Where a password stands was said already.
        if config.iter().any(|(key, value)| credentials::held(key, value) == Some(Held::InAddress)) {
            continue;
        }
        let place = |key: &str| given.iter().rev().find_map(|given| given.keys.get(key)).copied();
        if let Err(why) = delivery::overlaid(link.delivery.clone(), &config) {
            let at = place(&format!("delivery.{}", why.key));
            // A key that nobody knows was said already.
            if delivery::KEYS.contains(&why.key.as_str()) {
                reading.report.error(at.unwrap_or(*target_at), why.to_string(), "");
            }
            continue;
        }
        let named = provider.secrets.iter().chain(secrets).map(|secret| (secret.name.as_str(), Secret::new("given")));
        let looked_at = as_given((link, way), &reading.app.name, config, named.collect());
        if let Err(unfit) = check(tech, way, &looked_at) {
            let key = unfit.key.as_deref();
            let block = delivery.filter(|_| key.is_some_and(|key| key.starts_with("delivery.")));
            let at = key.and_then(place).or(block.map(|(at, _)| at)).unwrap_or(*target_at);
            reading.report.error(at, unfit.problem, "");
        }
    }
}

/// A link as its provider is given it.
fn as_given((link, way): (&AppLink, Way), app: &AppName, config: Config, secrets: Secrets) -> Link {
    let AppLink { name, namespace, package, interfaces, delivery, .. } = link.clone();
    let key = |entry: &ComponentName| ComponentKey { app: app.clone(), name: entry.clone() };
    let (source, target) = (key(&link.source), key(&link.target));
    let id = LinkId::new(&source, &target, &name, &namespace, &package, &interfaces);
    let component = if way == Way::Wakes { target } else { source };
    // What does not fit was refused.
    let delivery = delivery::overlaid(delivery.clone(), &config).unwrap_or(delivery);
    Link { id, component, name, namespace, package, interfaces, config, delivery, secrets, part: Part::default() }
}
