//! Topics that wake components. Nodes share a subscription (`$share/<app>.<component>/<topic>`), so that each message goes to
//! one of them: a part of MQTT 5, and an extension of 3.1.1 that the common servers have.

use trellis_provider::LinkError;
use trellis_wire::ComponentKey;

/// The shared subscription to a topic: the same on every node.
pub(crate) fn shared(topic: &str, component: &ComponentKey) -> String {
    let group: String = component.to_string().replace('/', ".").replace(['+', '#'], "_");
    format!("$share/{group}/{topic}")
}

/// Whether a topic, which stands under that key, can be subscribed to.
pub(crate) fn check((key, topic): (&str, &str)) -> Result<(), LinkError> {
    let levels: Vec<_> = topic.split('/').collect();
    let last = levels.len() - 1;
    let is_level = |(at, level): (usize, &&str)| match *level {
        "+" => true,
        "#" => at == last,
        level => !level.contains(['+', '#', '\0']),
    };
    if topic.is_empty() || topic.starts_with('$') || !levels.iter().enumerate().all(is_level) {
        let problem =
            "is no topic: levels between `/`, of which one may be `+` and the last `#`; not beginning with `$`";
        return Err(LinkError::config(key, format!("`{topic}` {problem}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_shared_by_the_nodes_of_a_component() {
        let component: ComponentKey = "shop/worker".parse().unwrap();
        assert_eq!(check(("topic", "a/+/c/#")), Ok(()));
        assert_eq!(shared("a/+/c/#", &component), "$share/shop.worker/a/+/c/#");
        for wrong in ["", "$SYS/#", "a/#/b", "a+/b", "#a"] {
            assert!(check(("topic", wrong)).is_err(), "{wrong}");
        }
    }
}
