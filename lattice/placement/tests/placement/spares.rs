//! What is kept of versions that do not run.

use std::collections::{BTreeMap, BTreeSet};

use trellis_placement::{Applied, Command};
use trellis_wire::Digest;

use crate::lattice::{Lattice, component, facts, node_id, release, scaler};

#[test]
fn two_nodes_keep_what_only_a_past_version_names() {
    let mut lattice = Lattice::default();
    for n in 0..5 {
        // One is at the edge, and keeps nothing for others.
        lattice.apply(Command::Join(facts(n, "node", 10, BTreeMap::new(), n == 4)));
    }
    for version in [1, 2] {
        let mut release = release("shop", &version.to_string());
        release.manifest = Digest::new([10 + version; 32]);
        component(&mut release, "api", version, scaler("4"));
        component(&mut release, "same", 9, scaler("1"));
        assert_eq!(lattice.apply(Command::Deploy(Box::new(release))), Applied::Done);
        assert!((0..5).all(|n| lattice.state.past_spares(node_id(n)).is_empty()), "both versions run");
        lattice.settle();
    }
    let past = BTreeSet::from([1, 11].map(|code| Digest::new([code; 32])));
    let kept = |n: usize| lattice.state.past_spares(node_id(n));
    assert_eq!((0..5).flat_map(kept).collect::<BTreeSet<_>>(), past, "what runs has its holders and a spare");
    for digest in past {
        assert_eq!((0..4).filter(|n| kept(*n).contains(&digest)).count(), 2, "{digest}");
    }
}
