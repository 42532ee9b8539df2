//! What people call nodes: how one is shown to them, and which one they mean.

use trellis_wire::NodeId;

use crate::State;

/// How much of a node's id is shown beside a name that others have too: the last characters, which no two share by time.
const ID_END: usize = 8;
/// The shortest part of an id that stands for it, in digits: a word that is mistyped is seldom one.
const ID_PART_MIN: usize = 4;
/// How many nodes are named that a text may mean.
const NAMED_MAX: usize = 8;

/// Why a text is not taken for a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoNode {
    /// None is called so.
    #[error(
        "no node is `{0}`; `trellis nodes` lists them: a node is meant by its name, its id, or the first or last {ID_PART_MIN} \
         digits or more of that"
    )]
    Unknown(String),
    /// Several may be meant.
    #[error("`{text}` may be {}: say more of its id", may_be.join(" or "))]
    Several {
        /// What was said.
        text: String,
        /// Each with name and id; of very many only some.
        may_be: Vec<String>,
    },
}

impl State {
    /// A node's name, for people; where others have it too, with the end of its id.
    pub fn shown(&self, node: NodeId) -> String {
        let Some(known) = self.node(node) else { return node.to_string() };
        let (name, id) = (&known.facts.name, node.to_string());
        let same = self.nodes().values().filter(|other| other.facts.name == *name).count();
        if same == 1 { name.clone() } else { format!("{name} (..{})", &id[id.len() - ID_END..]) }
    }

    /// A node's name and id, for people.
    pub fn named(&self, node: NodeId) -> String {
        let name = self.node(node).map(|known| known.facts.name.as_str());
        name.map_or_else(|| node.to_string(), |name| format!("{name} ({node})"))
    }

    /// Which node a person means: by its id, by its name where only one has it, by a part of its id that only one has at its
    /// beginning or end, or as [`State::shown`] and [`State::named`] have it.
    ///
    /// # Errors
    /// [`NoNode`]: none is called so, or several may be.
    pub fn meant(&self, text: &str) -> Result<NodeId, NoNode> {
        let text = text.trim();
        // What is exact goes before what may be a part of another one's id.
        let by_name = |id: &NodeId| self.node(*id).is_some_and(|node| node.facts.name == text);
        let by_both = |id: &NodeId| {
            let Some((name, part)) = text.strip_suffix(')').and_then(|text| text.rsplit_once(" (")) else {
                return false;
            };
            self.node(*id).is_some_and(|node| node.facts.name == name) && is_part(part, *id)
        };
        let found = [self.those(|id| id.to_string() == text), self.those(by_name), self.those(by_both)];
        let found =
            found.into_iter().find(|found| !found.is_empty()).unwrap_or_else(|| self.those(|id| is_part(text, *id)));
        match found[..] {
            [] => Err(NoNode::Unknown(text.into())),
            [id] => Ok(id),
            _ => {
                let may_be = found.iter().take(NAMED_MAX).map(|id| self.named(*id)).collect();
                Err(NoNode::Several { text: text.into(), may_be })
            }
        }
    }

    fn those(&self, are: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        self.nodes().keys().copied().filter(are).collect()
    }
}

/// Whether a text is the beginning or the end of an id, `01890a5d-ac96`, `67b1e9fc`; or its end, `..67b1e9fc`.
fn is_part(text: &str, id: NodeId) -> bool {
    let digits = |text: &str| text.to_ascii_lowercase().replace('-', "");
    let (end, id) = (text.strip_prefix(".."), id.uuid().simple().to_string());
    let part = digits(end.unwrap_or(text));
    part.len() >= ID_PART_MIN && (id.ends_with(&part) || end.is_none() && id.starts_with(&part))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trellis_wire::{CommandId, NodeKey};

    use super::*;
    use crate::{Capacity, Command, Entry, NodeFacts};

    const NODES: [(&str, &str); 5] = [
        ("01890a5d-ac96-774b-bcce-b302099a8057", "vm"),
        ("01890a5d-ac97-774b-bcce-b30267b1e9fc", "vm"),
        ("01890a5e-0000-7000-8000-0000deadbeef", "cellar"),
        ("01890a5f-0000-7000-8000-00000000cafe", "beef"),
        ("01890a60-0000-7000-8000-00000001cafe", "loft (left)"),
    ];

    fn state() -> State {
        let mut state = State::default();
        for (n, (id, name)) in NODES.into_iter().enumerate() {
            let facts = NodeFacts {
                id: id.parse().unwrap(),
                name: name.into(),
                labels: BTreeMap::new(),
                version: "0.1.0".into(),
                capacity: Capacity { permits: 1, memory_bytes: 1 },
                edge: false,
                key: NodeKey::new([0; 32]),
            };
            let id: CommandId = format!("00000000-0000-0000-0000-{n:012x}").parse().unwrap();
            state.apply(&Entry { id, at_ms: 0, command: Command::Join(facts) });
        }
        state
    }

    /// One line for each text: which node it means, or why none.
    #[test]
    fn a_node_is_meant_by_name_id_or_a_part_of_it() {
        let state = state();
        let meant = |text: &str| match state.meant(text) {
            Ok(id) => NODES.iter().position(|(known, _)| *known == id.to_string()).unwrap().to_string(),
            Err(NoNode::Unknown(_)) => "none".into(),
            Err(NoNode::Several { may_be, .. }) => format!("one of {}", may_be.len()),
        };
        for (text, node) in [
            ("01890a5d-ac96-774b-bcce-b302099a8057", "0"),
            ("cellar", "2"),
            (" cellar ", "2"),
            ("loft (left)", "4"),
            ("vm", "one of 2"),
            // The end, as it is shown; and the beginning, as a shell has it.
            ("67b1e9fc", "1"),
            ("..67b1e9fc", "1"),
            ("..67B1E9FC", "1"),
            ("vm (..67b1e9fc)", "1"),
            ("vm (01890a5d-ac97-774b-bcce-b30267b1e9fc)", "1"),
            ("01890a5d-ac97", "1"),
            ("01890a5dac97", "1"),
            ("..01890a5d", "none"),
            ("01890a5d", "one of 2"),
            ("vm (01890a5d)", "one of 2"),
            ("cafe", "one of 2"),
            ("loft (left) (..cafe)", "4"),
            ("cellar (..67b1e9fc)", "none"),
            // A name goes before a part of another one's id.
            ("beef", "3"),
            ("..beef", "2"),
            // Too little, or nothing.
            ("9fc", "none"),
            ("..", "none"),
            ("", "none"),
            ("vm (..)", "none"),
            ("celar", "none"),
            ("01890a5d-ac96-774b-bcce-b302099a8058", "none"),
        ] {
            assert_eq!(meant(text), node, "`{text}`");
        }
        for (id, _) in NODES {
            let id: NodeId = id.parse().unwrap();
            assert_eq!((state.meant(&state.shown(id)), state.meant(&state.named(id))), (Ok(id), Ok(id)));
        }
    }

    #[test]
    fn whoever_is_not_understood_is_told_what_to_say() {
        let told = |text: &str| state().meant(text).unwrap_err().to_string();
        assert_eq!(
            told("vm"),
            "`vm` may be vm (01890a5d-ac96-774b-bcce-b302099a8057) or vm (01890a5d-ac97-774b-bcce-b30267b1e9fc): say more of \
             its id"
        );
        assert_eq!(
            told("celar"),
            "no node is `celar`; `trellis nodes` lists them: a node is meant by its name, its id, or the first or last 4 digits \
             or more of that"
        );
    }
}
