//! What is evaluated together.
//!
//! The choices of an item begin alike, and so do the items of a subject with
//! the same examples in front. Every such beginning is evaluated once: the
//! sequences of a batch are a [`Tree`], in which each token belongs to all
//! choices that pass through it, and what whole items begin with in common is
//! kept in the context from batch to batch (a [`Group`]).

use std::ops::Range;

use headshare_runtime::Token;

use super::encode::{Encoded, common};

/// Repacked weights are multiplied with 16 tokens at a time, then 4, then one,
/// and each kernel rounds in its own way: by up to 0.2 for a sequence of a Q4_K
/// model. So there are no tokens left over, and no outputs: batches are filled
/// up with tokens of a sequence of their own, and outputs with those of tokens
/// that are not asked for.
pub(super) const STEP: usize = 16;

/// Items that begin alike by fewer tokens than this are not grouped.
const MIN_SHARED: usize = 32;

/// How large a batch may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens; a single item may have more.
    pub tokens: usize,
    /// Sequences, the one that keeps what is shared among them, but not the one
    /// that fills batches up.
    pub sequences: usize,
}

/// Items that begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Tokens at the beginning that all of them have in common.
    pub shared: usize,
    /// Items that are evaluated together.
    pub batches: Vec<Range<usize>>,
}

/// The way through all items of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// In the order of the items.
    pub groups: Vec<Group>,
    /// Tokens in the context at once, at most, with those that fill batches up.
    pub n_ctx: usize,
    /// Sequences in the context at once, at most; the last one is of tokens
    /// that fill batches up.
    pub n_sequences: usize,
    /// Tokens that are evaluated.
    pub n_tokens: usize,
}

impl Schedule {
    /// Plans the evaluation of `items` in batches.
    pub fn new(items: &[Encoded], limits: Limits) -> Self {
        let mut schedule = Self::default();
        // Items that have nothing in common make up groups of their own kind.
        let mut single = 0..0;
        let mut start = 0;
        while start < items.len() {
            let (end, shared) = group(items, start);
            if shared == 0 {
                single.end = end;
            } else {
                schedule.add_group(items, single, 0, limits);
                schedule.add_group(items, start..end, shared, limits);
                single = end..end;
            }
            start = end;
        }
        schedule.add_group(items, single, 0, limits);
        schedule
    }

    fn add_group(&mut self, items: &[Encoded], all: Range<usize>, shared: usize, limits: Limits) {
        if all.is_empty() {
            return;
        }
        let kept = usize::from(shared > 0);
        let mut group = Group {
            shared,
            batches: Vec::new(),
        };
        self.n_tokens += shared;
        let (mut start, mut tokens, mut leaves) = (all.start, 0, 0);
        for i in all.clone() {
            let tree = Tree::new(items, i..i + 1, shared);
            let full = tokens + tree.nodes.len() > limits.tokens
                || kept + leaves + tree.leaves > limits.sequences;
            if full && i > start {
                group.batches.push(start..i);
                (start, tokens, leaves) = (i, 0, 0);
            }
            tokens += tree.nodes.len();
            leaves += tree.leaves;
            self.n_tokens += tree.nodes.len();
            self.n_ctx = self.n_ctx.max(shared + tokens + STEP - 1);
            self.n_sequences = self.n_sequences.max(kept + leaves + 1);
        }
        group.batches.push(start..all.end);
        self.groups.push(group);
    }
}

/// The end of the run of items from `start` on that begin alike, and by how
/// many tokens.
fn group(items: &[Encoded], start: usize) -> (usize, usize) {
    let mut shared: Option<usize> = None;
    let mut end = start + 1;
    while end < items.len() {
        let lead = items[start].lead();
        let so_far = &lead[..shared.unwrap_or(lead.len())];
        let with_next = common(so_far, items[end].lead());
        // A newcomer that shares much less begins a group of its own.
        if with_next < MIN_SHARED || shared.is_some_and(|shared| with_next < shared / 2) {
            break;
        }
        shared = Some(with_next);
        end += 1;
    }
    (end, shared.unwrap_or(0))
}

/// A token of a [`Tree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The token.
    pub token: Token,
    /// Its position in every sequence that passes through it.
    pub position: u32,
    /// Those sequences.
    pub leaves: Range<u32>,
    /// What is asked of the probabilities after it.
    pub asks: Vec<Ask>,
}

/// A probability that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The item.
    pub item: usize,
    /// The choice.
    pub choice: usize,
    /// The token that it goes on with.
    pub token: Token,
}

/// The sequences of some items with all that they begin with in common merged,
/// in an order in which each token comes after those before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The tokens.
    pub nodes: Vec<Node>,
    /// Sequences that there are.
    pub leaves: usize,
}

impl Tree {
    /// The sequences of `items[range]`, without their first `from` tokens. Items
    /// are not merged with each other.
    pub fn new(items: &[Encoded], range: Range<usize>, from: usize) -> Self {
        let mut tree = Self::default();
        for i in range {
            let item = &items[i];
            let choices: Vec<usize> = (0..item.n_choices()).collect();
            tree.grow(item, i, &choices, from);
        }
        tree
    }

    /// Adds what `choices`, which are the same before `at`, go on with.
    fn grow(&mut self, item: &Encoded, number: usize, choices: &[usize], mut at: usize) {
        let first_node = self.nodes.len();
        let first_leaf = self.leaves;
        // A choice's last token is predicted, not evaluated.
        let goes_on = |at: usize| move |choice: &usize| at + 1 < item.len(*choice);
        let mut live: Vec<usize> = choices.iter().copied().filter(goes_on(at)).collect();
        while let Some(token) = live.first().map(|choice| item.token(*choice, at)) {
            if live.iter().any(|choice| item.token(*choice, at) != token) {
                break;
            }
            let asks = live
                .iter()
                .filter(|choice| at + 1 >= item.scored_from(**choice));
            self.nodes.push(Node {
                token,
                position: at as u32,
                leaves: 0..0,
                asks: asks
                    .map(|&choice| Ask {
                        item: number,
                        choice,
                        token: item.token(choice, at + 1),
                    })
                    .collect(),
            });
            at += 1;
            live.retain(goes_on(at));
        }
        let last_node = self.nodes.len();
        if live.is_empty() {
            self.leaves += 1;
        }
        // Those that differ from here on, by their next token.
        while let Some(token) = live.first().map(|choice| item.token(*choice, at)) {
            let (same, others): (Vec<_>, Vec<_>) = live
                .iter()
                .partition(|choice| item.token(**choice, at) == token);
            self.grow(item, number, &same, at);
            live = others;
        }
        let leaves = first_leaf as u32..self.leaves as u32;
        for node in &mut self.nodes[first_node..last_node] {
            node.leaves = leaves.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(sequences: &[(&[Token], usize)]) -> Encoded {
        Encoded::new(sequences.iter().map(|(t, n)| (t.to_vec(), *n)).collect())
    }

    fn shape(tree: &Tree) -> Vec<(Token, u32, Range<u32>, usize)> {
        (tree.nodes.iter())
            .map(|n| (n.token, n.position, n.leaves.clone(), n.asks.len()))
            .collect()
    }

    #[test]
    fn what_choices_begin_with_is_there_once() {
        // Context 1 2; the choices share the token 5.
        let item = encoded(&[(&[1, 2, 5, 6, 9], 3), (&[1, 2, 5, 7], 2), (&[1, 2, 8], 1)]);
        let tree = Tree::new(&[item], 0..1, 0);
        assert_eq!(
            shape(&tree),
            [
                (1, 0, 0..1, 0),
                (2, 1, 0..1, 3),
                (5, 2, 0..1, 2),
                (6, 3, 0..1, 1),
            ]
        );
        let asked: Vec<_> = tree.nodes[1].asks.iter().map(|ask| ask.token).collect();
        assert_eq!(asked, [5, 5, 8]);
        assert_eq!(tree.leaves, 1);
    }

    #[test]
    fn branches_are_sequences_of_their_own() {
        let item = encoded(&[(&[1, 2, 3, 9], 2), (&[1, 4, 5, 9], 2), (&[1, 2, 6, 9], 2)]);
        let tree = Tree::new(&[item.clone(), item], 0..2, 0);
        assert_eq!(
            shape(&tree)[..6],
            [
                (1, 0, 0..3, 0),
                (2, 1, 0..2, 2),
                (3, 2, 0..1, 1),
                (6, 2, 1..2, 1),
                (4, 1, 2..3, 1),
                (5, 2, 2..3, 1),
            ]
        );
        assert_eq!(tree.nodes[6].leaves, 3..6);
        assert_eq!(tree.leaves, 6);
        assert_eq!(tree.nodes[7].asks[0].item, 1);
    }

    #[test]
    fn one_letter_answers_need_one_sequence() {
        let item = encoded(&[(&[1, 2, 3], 1), (&[1, 2, 4], 1), (&[1, 2, 5], 1)]);
        let tree = Tree::new(&[item], 0..1, 1);
        assert_eq!(shape(&tree), [(2, 1, 0..1, 3)]);
    }

    #[test]
    fn every_token_is_asked_for_once_with_and_without_groups() {
        // 40 tokens that all have in common, then what the seed makes.
        let mut seed = 7u32;
        let mut next = |n: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % n
        };
        let items: Vec<Encoded> = (0..60)
            .map(|_| {
                let context: Vec<Token> = (0..40)
                    .chain((0..1 + next(4)).map(|_| next(3) as Token))
                    .collect();
                let choices = (0..2 + next(3)).map(|_| {
                    let scored = 1 + next(4) as usize;
                    let mut tokens = context.clone();
                    tokens.extend((0..scored).map(|_| next(3) as Token));
                    (tokens, scored)
                });
                Encoded::new(choices.collect())
            })
            .collect();
        let limits = Limits {
            tokens: 50,
            sequences: 12,
        };
        let schedule = Schedule::new(&items, limits);
        assert_eq!(schedule.groups.len(), 1);
        assert!((40..44).contains(&schedule.groups[0].shared));
        let mut asked = Vec::new();
        let mut tokens = schedule.groups[0].shared;
        let mut next_item = 0;
        for batch in &schedule.groups[0].batches {
            assert_eq!(batch.start, next_item);
            next_item = batch.end;
            let tree = Tree::new(&items, batch.clone(), schedule.groups[0].shared);
            assert!(tree.leaves < limits.sequences && tree.nodes.len() <= limits.tokens);
            tokens += tree.nodes.len();
            for node in &tree.nodes {
                for ask in &node.asks {
                    asked.push((ask.item, ask.choice, node.position as usize + 1, ask.token));
                }
            }
        }
        assert_eq!((next_item, tokens), (items.len(), schedule.n_tokens));
        asked.sort_unstable();
        let mut wanted = Vec::new();
        for (i, item) in items.iter().enumerate() {
            for choice in 0..item.n_choices() {
                for at in item.scored_from(choice)..item.len(choice) {
                    wanted.push((i, choice, at, item.token(choice, at)));
                }
            }
        }
        assert_eq!(asked, wanted);
    }

    #[test]
    fn items_that_have_little_in_common_are_not_grouped() {
        let item = |first: Token| {
            let mut tokens: Vec<Token> = (0..50).collect();
            tokens[0] = first;
            encoded(&[(&tokens, 1)])
        };
        let items = [item(1), item(2), item(2), item(2)];
        let limits = Limits {
            tokens: 60,
            sequences: 64,
        };
        let schedule = Schedule::new(&items, limits);
        let groups: Vec<_> = (schedule.groups.iter())
            .map(|group| (group.shared, group.batches.len()))
            .collect();
        assert_eq!(groups, [(0, 1), (48, 1)]);
        assert_eq!(
            (schedule.n_ctx, schedule.n_sequences, schedule.n_tokens),
            (51 + 15, 4 + 1, 49 + 48 + 3)
        );
    }

    #[test]
    fn an_item_larger_than_a_batch_is_alone_in_it() {
        let long: Vec<Token> = (0..30).collect();
        let items = [
            encoded(&[(&[1, 2], 1)]),
            encoded(&[(&long, 1)]),
            encoded(&[(&[1, 2], 1)]),
        ];
        let limits = Limits {
            tokens: 8,
            sequences: 4,
        };
        let batches: Vec<_> = (Schedule::new(&items, limits).groups.into_iter())
            .flat_map(|group| group.batches)
            .collect();
        assert_eq!(batches, [0..1, 1..2, 2..3]);
    }
}
