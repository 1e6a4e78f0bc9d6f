//! Which watches a key concerns: single keys by a map, ranges by a tree of intervals.
//!
//! The tree is a treap over (from, to), each node knowing the highest `to` below it, so that a key finds its ranges
//! without meeting those that end before it. Watches of one range share a node. Priorities come from a counter run
//! through a mixer: the shape is the same in every run.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::hub::WatcherKey;

/// Which keys a watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeySpan {
    Point(Bytes),
    Range(Bytes, Upper),
}

/// Where a range ends; the variants are in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Upper {
    /// Before this key.
    Before(Bytes),
    /// Nowhere.
    Endless,
}

impl Upper {
    fn is_above(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => key < &**end,
            Self::Endless => true,
        }
    }
}

impl KeySpan {
    /// In etcd's notation; `None` for a range that holds no key.
    pub(super) fn new(key: Bytes, end: Bytes) -> Option<Self> {
        match &*end {
            [] => Some(Self::Point(key)),
            [0] => Some(Self::Range(key, Upper::Endless)),
            _ if key < end => Some(Self::Range(key, Upper::Before(end))),
            _ => None,
        }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Point(point) => &**point == key,
            Self::Range(from, to) => &**from <= key && to.is_above(key),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct SpanIndex {
    points: BTreeMap<Bytes, BTreeSet<WatcherKey>>,
    ranges: Tree,
    drawn: u64,
}

type Tree = Option<Box<Node>>;

#[derive(Debug)]
struct Node {
    from: Bytes,
    to: Upper,
    /// Invariant: the highest `to` in this subtree.
    to_max: Upper,
    /// Invariant: no child's is higher.
    priority: u64,
    watchers: BTreeSet<WatcherKey>,
    left: Tree,
    right: Tree,
}

impl SpanIndex {
    pub(super) fn insert(&mut self, span: &KeySpan, watcher: WatcherKey) {
        match span {
            KeySpan::Point(key) => {
                self.points.entry(key.clone()).or_default().insert(watcher);
            }
            KeySpan::Range(from, to) => {
                self.drawn += 1;
                insert(&mut self.ranges, from, to, watcher, mix(self.drawn));
            }
        }
    }

    pub(super) fn remove(&mut self, span: &KeySpan, watcher: WatcherKey) {
        match span {
            KeySpan::Point(key) => {
                if let Some(watchers) = self.points.get_mut(key) {
                    watchers.remove(&watcher);
                    if watchers.is_empty() {
                        self.points.remove(key);
                    }
                }
            }
            KeySpan::Range(from, to) => remove(&mut self.ranges, from, to, watcher),
        }
    }

    /// Visits the watchers of `key`, each once.
    pub(super) fn stab(&self, key: &[u8], visit: &mut dyn FnMut(WatcherKey)) {
        if let Some(watchers) = self.points.get(key) {
            watchers.iter().copied().for_each(&mut *visit);
        }
        stab(self.ranges.as_deref(), key, visit);
    }
}

impl Node {
    fn order(&self, from: &Bytes, to: &Upper) -> Ordering {
        from.cmp(&self.from).then_with(|| to.cmp(&self.to))
    }

    fn refresh(&mut self) {
        let children = [&self.left, &self.right].into_iter().flatten().map(|child| &child.to_max);
        self.to_max = children.chain([&self.to]).max().unwrap_or(&self.to).clone();
    }
}

fn insert(tree: &mut Tree, from: &Bytes, to: &Upper, watcher: WatcherKey, priority: u64) {
    let Some(node) = tree else {
        let (from, to, to_max) = (from.clone(), to.clone(), to.clone());
        let watchers = BTreeSet::from([watcher]);
        *tree = Some(Box::new(Node { from, to, to_max, priority, watchers, left: None, right: None }));
        return;
    };
    match node.order(from, to) {
        Ordering::Equal => {
            node.watchers.insert(watcher);
            return;
        }
        Ordering::Less => insert(&mut node.left, from, to, watcher, priority),
        Ordering::Greater => insert(&mut node.right, from, to, watcher, priority),
    }
    node.refresh();
    let rises = |child: &Tree| child.as_ref().is_some_and(|child| child.priority > node.priority);
    if rises(&node.left) {
        rotate_right(tree);
    } else if rises(&node.right) {
        rotate_left(tree);
    }
}

/// The left child becomes the root.
fn rotate_right(tree: &mut Tree) {
    let Some(mut root) = tree.take() else { return };
    if let Some(mut child) = root.left.take() {
        root.left = child.right.take();
        root.refresh();
        child.right = Some(root);
        child.refresh();
        *tree = Some(child);
    } else {
        *tree = Some(root);
    }
}

/// The right child becomes the root.
fn rotate_left(tree: &mut Tree) {
    let Some(mut root) = tree.take() else { return };
    if let Some(mut child) = root.right.take() {
        root.right = child.left.take();
        root.refresh();
        child.left = Some(root);
        child.refresh();
        *tree = Some(child);
    } else {
        *tree = Some(root);
    }
}

fn remove(tree: &mut Tree, from: &Bytes, to: &Upper, watcher: WatcherKey) {
    let Some(node) = tree else { return };
    match node.order(from, to) {
        Ordering::Less => remove(&mut node.left, from, to, watcher),
        Ordering::Greater => remove(&mut node.right, from, to, watcher),
        Ordering::Equal => {
            node.watchers.remove(&watcher);
            if node.watchers.is_empty() {
                let (left, right) = (node.left.take(), node.right.take());
                *tree = merge(left, right);
                return;
            }
        }
    }
    node.refresh();
}

/// All of `left` is before all of `right`.
fn merge(left: Tree, right: Tree) -> Tree {
    match (left, right) {
        (None, tree) | (tree, None) => tree,
        (Some(mut left), Some(mut right)) => {
            if left.priority > right.priority {
                left.right = merge(left.right.take(), Some(right));
                left.refresh();
                Some(left)
            } else {
                right.left = merge(Some(left), right.left.take());
                right.refresh();
                Some(right)
            }
        }
    }
}

fn stab(tree: Option<&Node>, key: &[u8], visit: &mut dyn FnMut(WatcherKey)) {
    let Some(node) = tree.filter(|node| node.to_max.is_above(key)) else { return };
    stab(node.left.as_deref(), key, visit);
    if &*node.from <= key {
        if node.to.is_above(key) {
            node.watchers.iter().copied().for_each(&mut *visit);
        }
        stab(node.right.as_deref(), key, visit);
    }
}

const fn mix(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(tree: &Tree) -> usize {
        tree.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    fn check_invariants(tree: &Tree) {
        let Some(node) = tree else { return };
        let children = [&node.left, &node.right];
        assert!(children.iter().all(|child| child.as_ref().is_none_or(|child| child.priority <= node.priority)));
        let to_max = children.iter().filter_map(|child| child.as_ref().map(|child| &child.to_max)).max();
        assert_eq!(&node.to_max, to_max.map_or(&node.to, |to_max| to_max.max(&node.to)));
        children.into_iter().for_each(check_invariants);
    }

    #[test]
    fn a_key_finds_exactly_the_spans_that_hold_it() {
        let mut state = 7_u64;
        let mut draw = |n: u64| {
            state = mix(state + 1);
            (state >> 32) % n
        };
        let mut index = SpanIndex::default();
        let mut all: Vec<(KeySpan, WatcherKey)> = Vec::new();
        for round in 0..3000 {
            if draw(100) < 60 || all.is_empty() {
                let key = Bytes::from(vec![draw(20) as u8, draw(3) as u8]);
                let end = match draw(4) {
                    0 => Bytes::new(),
                    1 => Bytes::from_static(b"\0"),
                    _ => Bytes::from(vec![draw(20) as u8, draw(3) as u8]),
                };
                if let Some(span) = KeySpan::new(key, end) {
                    index.insert(&span, WatcherKey(round));
                    all.push((span, WatcherKey(round)));
                }
            } else {
                let at = usize::try_from(draw(all.len() as u64)).expect("small");
                let (span, watcher) = all.swap_remove(at);
                index.remove(&span, watcher);
            }
            check_invariants(&index.ranges);
            let key = [draw(20) as u8, draw(3) as u8];
            let mut found = Vec::new();
            index.stab(&key, &mut |watcher| found.push(watcher));
            found.sort();
            let mut expected: Vec<_> = all.iter().filter(|(span, _)| span.contains(&key)).map(|(_, w)| *w).collect();
            expected.sort();
            assert_eq!(found, expected, "round {round}");
        }
        for (span, watcher) in all {
            index.remove(&span, watcher);
        }
        assert!(index.ranges.is_none() && index.points.is_empty());
    }

    #[test]
    fn the_tree_stays_shallow_for_sorted_ranges() {
        let mut index = SpanIndex::default();
        for n in 0..4096_u32 {
            let key = Bytes::copy_from_slice(&n.to_be_bytes());
            let end = Bytes::copy_from_slice(&(n + 1).to_be_bytes());
            index.insert(&KeySpan::new(key, end).expect("not empty"), WatcherKey(u64::from(n)));
        }
        assert!(depth(&index.ranges) < 48, "depth {}", depth(&index.ranges));
    }
}
