//! The planner: state in, the next delta out.
//!
//! What is held and still right stays where it is, whatever a better place may have come up since; only what is missing
//! is placed, by free capacity. So nothing moves when nothing changed. One thing is moved for its own sake: a spread of
//! two permits or more that only one node holds, though others could, is divided anew.
//!
//! Moves shrink first: as long as a node has not said that it gave permits up, nobody else gets them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::rc::Rc;

use trellis_wire::{ComponentKey, NodeId};

use crate::demand::{Demand, Portion};
use crate::divide::{Share, divide};
use crate::flow::Flow;
use crate::plan::{Draft, most};
use crate::rollout::Want;
use crate::{Change, Delta, Holding, Node, State};

/// The next delta, or `None` when everything is where it should be, or waits for a node to give permits up.
pub fn plan(state: &State) -> Option<Delta> {
    let mut ground = Ground::survey(state);
    let mut draft = Draft::new(state.plan().generation());
    release_the_unwanted(state, &mut draft);
    let nothing = Holding::new();
    for want in state.wants() {
        if draft.is_full() {
            break;
        }
        let holding = state.holding(&want.key).unwrap_or(&nothing);
        let owing: Vec<NodeId> = state.plan().unacked(&want.key).map(|(node, _)| node).collect();
        let mut target = None;
        if let Some(demand) = &want.demand {
            target = ground.place(demand, want.sandboxes, holding, &owing);
            if let Some(target) = &target {
                change(state, &want.key, holding, target, demand.pool(), &mut draft);
            }
        }
        if let Some(newer) = &want.newer {
            let placed = if want.demand.is_some() { target.as_ref().unwrap_or(holding) } else { &nothing };
            stage(state, &want.key, &ground.nodes(newer, want.sandboxes, placed, &owing), &mut draft);
        }
    }
    draft.finish()
}

/// Writes that nobody holds any more what nobody asks for.
fn release_the_unwanted(state: &State, draft: &mut Draft) {
    // Both are in the order of apps: one way through them is much shorter than to look each app up.
    let mut apps = state.apps().peekable();
    for (key, holding) in state.plan().holdings() {
        while apps.next_if(|(app, _)| **app < key.app).is_some() {}
        let versions = apps.peek().filter(|(app, _)| **app == key.app).map(|(_, versions)| *versions);
        if !versions.is_some_and(|versions| Want::is_for_permits(versions, &key.name)) {
            holding.keys().for_each(|&node| draft.add(key, node, Change::Release));
        }
    }
}

/// Writes who is to make the newer version ready. Who did already goes on with it, needed or not.
fn stage(state: &State, key: &ComponentKey, wanted: &BTreeSet<NodeId>, draft: &mut Draft) {
    let nobody = BTreeSet::new();
    let staged = state.plan().staged(key).unwrap_or(&nobody);
    let is_closed = |node: &&NodeId| !state.node(**node).is_some_and(Node::is_open);
    wanted.difference(staged).for_each(|&node| draft.add(key, node, Change::Stage));
    staged.iter().filter(is_closed).for_each(|&node| draft.add(key, node, Change::Unstage));
}

/// Writes the changes from `holding` to `target`: what shrinks, then what grows as far as the pool has permits that no
/// node may still use.
fn change(
    state: &State,
    key: &ComponentKey,
    holding: &Holding,
    target: &Holding,
    pool: Option<u64>,
    draft: &mut Draft,
) {
    for (&node, &permits) in holding {
        match target.get(&node) {
            None => draft.add(key, node, Change::Release),
            Some(&wanted) if is_less(wanted, permits) => draft.add(key, node, Change::Hold(wanted)),
            Some(_) => {}
        }
    }
    let ceilings = ceilings(state, key, holding);
    let used = ceilings.values().map(|&permits| u64::from(permits)).sum();
    let mut left = pool.map_or(u64::MAX, |pool| pool.saturating_sub(used));
    for (&node, &wanted) in target {
        let held = holding.get(&node).copied();
        let grown = match (pool, wanted) {
            (Some(_), Some(wanted)) => {
                let ceiling = ceilings.get(&node).copied().unwrap_or(0);
                let more = u64::from(wanted.saturating_sub(ceiling)).min(left);
                left -= more;
                Some(wanted.min(ceiling.saturating_add(u32::try_from(more).unwrap_or(u32::MAX))))
            }
            _ => wanted,
        };
        // Who has to wait for permits makes itself ready meanwhile.
        if held.is_none_or(|held| is_less(held, grown)) {
            draft.add(key, node, Change::Hold(grown));
        }
    }
}

/// What each node that is not lost may use at most until it says otherwise.
fn ceilings(state: &State, key: &ComponentKey, holding: &Holding) -> BTreeMap<NodeId, u32> {
    let held = holding.iter().map(|(&node, &permits)| (node, most(permits)));
    let mut ceilings = BTreeMap::new();
    for (node, permits) in held.chain(state.plan().unacked(key)) {
        if state.node(node).is_some_and(|node| !node.is_lost()) {
            let ceiling = ceilings.entry(node).or_insert(0);
            *ceiling = permits.max(*ceiling);
        }
    }
    ceilings
}

/// Whether `one` is fewer permits than `other`; `None` is as many as the node allows.
fn is_less(one: Option<u32>, other: Option<u32>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one < other,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// A map that is only looked up in, and the same in each run.
type HashMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// The nodes that may hold something, and what they hold by now.
pub(crate) struct Ground<'a> {
    nodes: Vec<(NodeId, &'a Node)>,
    /// Asked for everything that is held.
    index: HashMap<NodeId, usize>,
    /// Permits by node. One that has as many as it allows counts as 1.
    loads: Vec<u64>,
    /// Where spreads reach, by their requirements and whether they need sandboxes: many components ask for the same.
    known: HashMap<(Vec<Requirements<'a>>, bool), Rc<Reach>>,
}

/// The labels that one spread requires.
type Requirements<'a> = &'a BTreeMap<String, String>;

/// Where the spreads of one scaler may go.
pub(crate) struct Reach {
    /// For each spread the nodes that are eligible, in order.
    pub(crate) lists: Vec<Vec<usize>>,
    /// The same nodes, grouped. Those that are eligible for no spread are in no class.
    classes: Vec<Class>,
    /// The class of each node, if it is in any.
    class_of: Vec<Option<usize>>,
}

/// Nodes that are eligible for the same spreads.
struct Class {
    spreads: Vec<usize>,
    /// In order.
    nodes: Vec<usize>,
}

impl Reach {
    fn new(lists: Vec<Vec<usize>>, nodes: usize) -> Self {
        let classes = classes(&lists, nodes);
        let mut class_of = vec![None; nodes];
        for (c, class) in classes.iter().enumerate() {
            class.nodes.iter().for_each(|&i| class_of[i] = Some(c));
        }
        Self { lists, classes, class_of }
    }

    /// What counts for which of these spreads; nothing yet.
    fn flow(&self, portions: &[Portion<'_>]) -> Flow<'_> {
        Flow::new(self.classes.iter().map(|class| &class.spreads[..]).collect(), &wanted(portions))
    }
}

/// How much each spread wants.
fn wanted(portions: &[Portion<'_>]) -> Vec<u64> {
    portions.iter().map(|portion| u64::from(portion.wanted)).collect()
}

impl<'a> Ground<'a> {
    pub(crate) fn survey(state: &'a State) -> Self {
        let mut ground = Self::unloaded(state);
        for (node, permits) in state.plan().holdings().values().flatten() {
            if let Some(&i) = ground.index.get(node) {
                ground.loads[i] += load(*permits);
            }
        }
        ground
    }

    /// The nodes alone, to see what may go where: in time that does not depend on how much is held.
    pub(crate) fn unloaded(state: &'a State) -> Self {
        let nodes: Vec<_> =
            state.nodes().iter().filter(|(_, node)| node.is_open()).map(|(&id, node)| (id, node)).collect();
        let index = nodes.iter().enumerate().map(|(i, &(id, _))| (id, i)).collect();
        let loads = vec![0; nodes.len()];
        Self { nodes, index, loads, known: HashMap::default() }
    }

    /// Where the spreads of `demand` may go.
    pub(crate) fn reach(&mut self, demand: &Demand<'a>, sandboxes: bool) -> Rc<Reach> {
        let nodes = &self.nodes;
        let list = |requirements: &Requirements<'_>| -> Vec<usize> {
            let fits = |&i: &usize| nodes[i].1.fits(requirements, sandboxes).is_ok();
            (0..nodes.len()).filter(fits).collect()
        };
        let spreads: Vec<_> = demand.portions().iter().map(|portion| portion.requirements).collect();
        let known = self
            .known
            .entry((spreads, sandboxes))
            .or_insert_with_key(|(spreads, _)| Rc::new(Reach::new(spreads.iter().map(list).collect(), nodes.len())));
        Rc::clone(known)
    }

    /// Who should hold what is demanded, or `None` if that is who holds it.
    fn place(&mut self, demand: &Demand<'a>, sandboxes: bool, holding: &Holding, owing: &[NodeId]) -> Option<Holding> {
        let reach = self.reach(demand, sandboxes);
        if self.is_placed(demand, &reach, holding) {
            debug_assert_eq!(self.target(demand, &reach, holding, owing), *holding, "the long way comes to the same");
            return None;
        }
        self.unload(holding);
        let target = self.target(demand, &reach, holding, owing);
        self.reload(&target);
        (target != *holding).then_some(target)
    }

    /// The nodes that would hold what is demanded, from what is held now. Nothing is placed.
    fn nodes(&mut self, demand: &Demand<'a>, sandboxes: bool, holding: &Holding, owing: &[NodeId]) -> BTreeSet<NodeId> {
        let reach = self.reach(demand, sandboxes);
        self.unload(holding);
        let target = self.target(demand, &reach, holding, owing);
        self.reload(holding);
        target.into_keys().collect()
    }

    fn target(&self, demand: &Demand<'a>, reach: &Reach, holding: &Holding, owing: &[NodeId]) -> Holding {
        match demand {
            Demand::Permits(portions) => self.name(&self.place_permits(portions, reach, holding, owing), Some),
            Demand::Nodes(portions) => self.name(&self.place_nodes(portions, reach, holding), |_| None),
            Demand::Every { permits: Some(0), .. } => Holding::new(),
            Demand::Every { permits, .. } => {
                reach.lists.iter().flatten().map(|&i| (self.nodes[i].0, *permits)).collect()
            }
        }
    }

    /// Whether what is held is just what is demanded, so that nothing moves: the common case, in time that depends on the
    /// holders and not on the nodes. `false` says nothing.
    fn is_placed(&self, demand: &Demand<'_>, reach: &Reach, holding: &Holding) -> bool {
        let (portions, counts_nodes) = match demand {
            Demand::Permits(portions) => (portions, false),
            Demand::Nodes(portions) => (portions, true),
            Demand::Every { .. } => return false,
        };
        // Permits or nodes, and holders, by class.
        let (mut held, mut holders) = (vec![0; reach.classes.len()], vec![0_usize; reach.classes.len()]);
        for (node, permits) in holding {
            let permits = match permits {
                Some(permits) if *permits > 0 && !counts_nodes => u64::from(*permits),
                None if counts_nodes => 1,
                Some(_) | None => return false,
            };
            let Some(class) = self.index.get(node).and_then(|i| reach.class_of[*i]) else { return false };
            held[class] += permits;
            holders[class] += 1;
        }
        // Who stands alone though others could have some is divided anew.
        let is_lonely = |(spread, portion): (usize, &Portion<'_>)| {
            let of_it = |(class, _): &(&Class, usize)| class.spreads.contains(&spread);
            let holders = reach.classes.iter().zip(holders.iter().copied()).filter(of_it).map(|(_, holders)| holders);
            portion.wanted > 1 && reach.lists[spread].len() > 1 && holders.sum::<usize>() < 2
        };
        let all_wanted: u64 = portions.iter().map(|portion| u64::from(portion.wanted)).sum();
        if held.iter().sum::<u64>() != all_wanted || !counts_nodes && portions.iter().enumerate().any(is_lonely) {
            return false;
        }
        if let ([_], [_]) = (&reach.classes[..], &portions[..]) {
            return true;
        }
        let mut flow = reach.flow(portions);
        held.into_iter().enumerate().for_each(|(class, held)| flow.supply(class, held));
        flow.run();
        flow.missing().iter().all(|missing| *missing == 0)
    }

    fn place_permits(&self, portions: &[Portion<'_>], reach: &Reach, holding: &Holding, owing: &[NodeId]) -> Vec<u32> {
        let mut permits = vec![0; self.nodes.len()];
        for (node, held) in holding {
            if let (Some(&i), Some(held)) = (self.index.get(node), held) {
                permits[i] = *held;
            }
        }
        // What a node was just told to give up is not given back to it before it did: that would be two moves for none.
        let owing: BTreeSet<usize> = owing.iter().filter_map(|node| self.index.get(node).copied()).collect();
        let grown = |i: usize, held: u32| if owing.contains(&i) { (held, held) } else { (held, u32::MAX) };
        let missing = self.keep(portions, reach, &mut permits, &grown);
        for (list, missing) in reach.lists.iter().zip(missing) {
            let held: u64 = list.iter().map(|&i| u64::from(permits[i])).sum();
            self.share_out(held + missing, list, &mut permits, grown);
        }
        // Only now: what one spread was missing may be what keeps another from standing alone. And only when nobody waits:
        // the one move for its own sake is not begun in the middle of another.
        if owing.is_empty() {
            for (portion, list) in portions.iter().zip(&reach.lists) {
                self.divide_lonely(portion, list, &mut permits);
            }
        }
        permits
    }

    /// Takes away what counts for no spread, and says what each spread still wants. `grown` says how far a node may grow.
    fn keep(
        &self,
        portions: &[Portion<'_>],
        reach: &Reach,
        permits: &mut [u32],
        grown: &impl Fn(usize, u32) -> (u32, u32),
    ) -> Vec<u64> {
        let classes = &reach.classes;
        let mut flow = reach.flow(portions);
        let held: Vec<u64> =
            classes.iter().map(|class| class.nodes.iter().map(|&i| u64::from(permits[i])).sum()).collect();
        held.iter().enumerate().for_each(|(c, &held)| flow.supply(c, held));
        flow.run();
        // A spread none of whose nodes may grow takes what counted for another one, if that can grow elsewhere instead.
        let can_grow = |&i: &usize| grown(i, 0).1 > 0;
        let stuck = |spread: &usize| !reach.lists[*spread].iter().any(can_grow);
        flow.drop_spare();
        for (c, _) in classes.iter().enumerate().filter(|(_, class)| class.nodes.iter().any(can_grow)) {
            flow.supply(c, u64::from(u32::MAX));
        }
        (0..portions.len()).filter(stuck).for_each(|spread| flow.run_for(spread));
        let mut kept = vec![0; permits.len()];
        for ((c, class), held) in classes.iter().enumerate().zip(held) {
            class.nodes.iter().for_each(|&i| kept[i] = permits[i]);
            let counted = flow.counted_of(c);
            let bounds = |i, permits| if counted < held { (0, permits) } else { grown(i, permits) };
            self.share_out(counted, &class.nodes, &mut kept, bounds);
        }
        permits.copy_from_slice(&kept);
        flow.missing().to_vec()
    }

    /// Divides a spread anew that one node holds alone though others could. The node keeps at least one permit.
    fn divide_lonely(&self, portion: &Portion<'_>, list: &[usize], permits: &mut [u32]) {
        let mut holders = list.iter().filter(|&&i| permits[i] > 0);
        let (Some(&alone), None) = (holders.next(), holders.next()) else { return };
        if portion.wanted < 2 || list.len() < 2 || permits[alone] < portion.wanted {
            return;
        }
        let of_others = permits[alone] - portion.wanted;
        permits[alone] = 1;
        self.share_out(u64::from(portion.wanted), list, permits, |_, held| (held, u32::MAX));
        permits[alone] += of_others;
    }

    /// Nodes for a spread that counts nodes: 1 for each that is to have it.
    fn place_nodes(&self, portions: &[Portion<'_>], reach: &Reach, holding: &Holding) -> Vec<u32> {
        let mut chosen = vec![0; self.nodes.len()];
        holding.keys().filter_map(|node| self.index.get(node)).for_each(|&i| chosen[i] = 1);
        let classes = &reach.classes;
        let mut flow = reach.flow(portions);
        let held: Vec<u64> =
            classes.iter().map(|class| class.nodes.iter().map(|&i| u64::from(chosen[i])).sum()).collect();
        // First what has it already, then what could have it as well.
        held.iter().enumerate().for_each(|(c, &held)| flow.supply(c, held));
        flow.run();
        flow.drop_spare();
        for (c, class) in classes.iter().enumerate() {
            flow.supply(c, class.nodes.len() as u64 - held[c]);
        }
        flow.run();
        let mut placed = vec![0; chosen.len()];
        for (c, class) in classes.iter().enumerate() {
            class.nodes.iter().for_each(|&i| placed[i] = chosen[i]);
            let counted = flow.counted_of(c);
            let is_fewer = counted < held[c];
            self.share_out(counted, &class.nodes, &mut placed, |_, held| if is_fewer { (0, held) } else { (held, 1) });
        }
        placed
    }

    /// Divides `wanted` over the nodes of `list`; `bounds` makes the least and the most of a node from what it has.
    fn share_out(&self, wanted: u64, list: &[usize], permits: &mut [u32], bounds: impl Fn(usize, u32) -> (u32, u32)) {
        if list.iter().map(|&i| u64::from(permits[i])).sum::<u64>() == wanted {
            return;
        }
        let share = |&i: &usize| {
            let (min, max) = bounds(i, permits[i]);
            Share { min, max, capacity: self.nodes[i].1.facts.capacity.permits, load: self.loads[i] }
        };
        let shares: Vec<Share> = list.iter().map(share).collect();
        for (&i, part) in list.iter().zip(divide(wanted, &shares)) {
            permits[i] = part;
        }
    }

    /// How much of each spread is held: permits, or nodes.
    pub(crate) fn met(&mut self, demand: &Demand<'a>, sandboxes: bool, holding: &Holding) -> Vec<u64> {
        let reach = self.reach(demand, sandboxes);
        let held = |i: usize| holding.get(&self.nodes[i].0).map_or(0, |permits| load(*permits));
        if matches!(demand, Demand::Every { .. }) {
            return reach.lists.iter().map(|list| list.iter().map(|&i| held(i)).sum()).collect();
        }
        let classes = &reach.classes;
        let mut flow = reach.flow(demand.portions());
        for (c, class) in classes.iter().enumerate() {
            flow.supply(c, class.nodes.iter().map(|&i| held(i)).sum());
        }
        flow.run();
        wanted(demand.portions()).iter().zip(flow.missing()).map(|(wanted, missing)| wanted - missing).collect()
    }

    /// What is placed anew must not weigh against its own node.
    fn unload(&mut self, holding: &Holding) {
        for (node, permits) in holding {
            if let Some(&i) = self.index.get(node) {
                self.loads[i] -= load(*permits);
            }
        }
    }

    /// What is placed next sees what was placed before.
    fn reload(&mut self, target: &Holding) {
        for (node, permits) in target {
            if let Some(&i) = self.index.get(node) {
                self.loads[i] += load(*permits);
            }
        }
    }

    fn name(&self, permits: &[u32], held: impl Fn(u32) -> Option<u32>) -> Holding {
        let nodes = self.nodes.iter().zip(permits).filter(|&(_, &permits)| permits > 0);
        nodes.map(|(&(id, _), &permits)| (id, held(permits))).collect()
    }
}

/// What a holding adds to a node's load.
fn load(permits: Option<u32>) -> u64 {
    permits.map_or(1, u64::from)
}

/// Groups nodes by the spreads they are eligible for.
fn classes(lists: &[Vec<usize>], nodes: usize) -> Vec<Class> {
    let mut spreads = vec![Vec::new(); nodes];
    for (spread, list) in lists.iter().enumerate() {
        list.iter().for_each(|&i| spreads[i].push(spread));
    }
    let mut classes: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (i, spreads) in spreads.into_iter().enumerate().filter(|(_, spreads)| !spreads.is_empty()) {
        classes.entry(spreads).or_default().push(i);
    }
    classes.into_iter().map(|(spreads, nodes)| Class { spreads, nodes }).collect()
}
