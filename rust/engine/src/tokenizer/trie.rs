//! A compact trie over bytes: the longest token at the beginning of a text.
//!
//! Nodes are numbered breadth first, so the children of a node are consecutive and a node needs but its own byte, its
//! token and the number of its first child. The first two levels, where nodes have many children, are tables.

use std::collections::VecDeque;

/// The root's number. Nothing leads to the root, so it also says "no such node".
const NONE: u32 = 0;

/// Byte strings with ids that are not 0.
#[derive(Debug)]
pub(super) struct Trie {
    /// The byte that leads to a node.
    bytes: Vec<u8>,
    /// The id of the token that ends at a node, or 0.
    ids: Vec<u32>,
    /// The children of node `n` are `first_child[n]..first_child[n + 1]`.
    first_child: Vec<u32>,
    /// The node of one byte.
    one: Vec<u32>,
    /// The node of two bytes, big end first.
    two: Vec<u32>,
}

impl Trie {
    /// Builds the trie of tokens that are sorted by their bytes, differ, and are not empty. Ids are not 0.
    pub(super) fn new(sorted: &[(&[u8], u32)]) -> Self {
        let mut trie = Self {
            bytes: vec![0],
            ids: vec![0],
            first_child: Vec::new(),
            one: vec![NONE; 1 << 8],
            two: vec![NONE; 1 << 16],
        };
        // A node in the queue: its tokens, which share the first `depth` bytes.
        let mut queue = VecDeque::from([(sorted, 0usize)]);
        while let Some((mut tokens, depth)) = queue.pop_front() {
            let node = trie.first_child.len();
            trie.first_child.push(trie.number_of_nodes());
            if let Some(&(bytes, id)) = tokens.first()
                && bytes.len() == depth
            {
                trie.ids[node] = id;
                tokens = &tokens[1..];
            }
            for group in tokens.chunk_by(|a, b| a.0[depth] == b.0[depth]) {
                let path = &group[0].0[..=depth];
                trie.add_node(path);
                queue.push_back((group, depth + 1));
            }
        }
        trie.first_child.push(trie.number_of_nodes());
        trie
    }

    fn number_of_nodes(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn add_node(&mut self, path: &[u8]) {
        let node = self.number_of_nodes();
        match *path {
            [a] => self.one[usize::from(a)] = node,
            [a, b] => self.two[usize::from(a) << 8 | usize::from(b)] = node,
            _ => {}
        }
        self.bytes.push(path[path.len() - 1]);
        self.ids.push(0);
    }

    /// Number of the node below `node` that `byte` leads to.
    fn child(&self, node: u32, byte: u8) -> u32 {
        let node = node as usize;
        let (start, end) = (self.first_child[node], self.first_child[node + 1]);
        let children = &self.bytes[start as usize..end as usize];
        let place = if children.len() <= 8 {
            children.iter().position(|&child| child == byte)
        } else {
            children.binary_search(&byte).ok()
        };
        place.map_or(NONE, |place| start + place as u32)
    }

    /// Id and length of the longest token that `text` begins with; id 0 if none does.
    pub(super) fn longest(&self, text: &[u8]) -> (u32, usize) {
        let Some(&first) = text.first() else {
            return (0, 0);
        };
        let mut best = (self.ids[self.one[usize::from(first)] as usize], 1);
        let Some(&second) = text.get(1) else {
            return best;
        };
        let mut node = self.two[usize::from(first) << 8 | usize::from(second)];
        let mut depth = 2;
        while node != NONE {
            let id = self.ids[node as usize];
            if id != 0 {
                best = (id, depth);
            }
            let Some(&byte) = text.get(depth) else {
                break;
            };
            node = self.child(node, byte);
            depth += 1;
        }
        best
    }

    /// The id of exactly these bytes.
    pub(super) fn get(&self, bytes: &[u8]) -> Option<u32> {
        let (id, length) = self.longest(bytes);
        (id != 0 && length == bytes.len()).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The longest token by trying all of them.
    fn naive_longest(tokens: &BTreeMap<Vec<u8>, u32>, text: &[u8]) -> (u32, usize) {
        let fitting = tokens.iter().filter(|(token, _)| text.starts_with(token));
        fitting.map(|(token, &id)| (id, token.len())).max_by_key(|&(_, length)| length).unwrap_or((0, 0))
    }

    proptest! {
        #[test]
        fn finds_what_trying_all_finds(
            tokens in prop::collection::btree_set(prop::collection::vec(0u8..4, 1..6), 0..60),
            wide in prop::collection::btree_set(any::<u8>(), 0..40),
            texts in prop::collection::vec(prop::collection::vec(0u8..5, 0..9), 8),
        ) {
            let mut tokens: BTreeMap<Vec<u8>, u32> = tokens.into_iter().zip(1..).collect();
            // One node with many children, deep enough not to be a table.
            tokens.extend(wide.into_iter().map(|byte| vec![1, 2, 3, byte]).zip(1000..));
            let sorted: Vec<(&[u8], u32)> = tokens.iter().map(|(token, &id)| (&token[..], id)).collect();
            let trie = Trie::new(&sorted);
            for text in &texts {
                let (id, length) = naive_longest(&tokens, text);
                let found = trie.longest(text);
                prop_assert_eq!(found.0, id);
                if id != 0 {
                    prop_assert_eq!(found.1, length);
                }
            }
            for (token, id) in &tokens {
                prop_assert_eq!(trie.get(token), Some(*id));
            }
        }
    }
}
