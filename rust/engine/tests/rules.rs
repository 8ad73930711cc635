//! The promise of the rules that accept guesses at random: the output has the row's own distribution.
//!
//! Nothing is drawn here. A tree of all drafts, all decisions of the rule and all tokens that may follow is gone through,
//! round after round, and the distribution of the output's first tokens is compared with the product of the p of each. All
//! p and q depend on all tokens before, and so does the length of a draft. What is known to go wrong in such rules is
//! then done wrong on purpose, and must be seen.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;

use spikelet::Result;
use spikelet::decode::verify::{Chances, Leftover, Targets, Verdict, block, token};
use spikelet::draft::Drawn;
use spikelet::sampler::Dist;
use spikelet_simd::Level;

/// Tokens of the output that are compared: up to so many rounds.
const TOKENS: usize = 3;

fn hash(parts: impl IntoIterator<Item = u32>, seed: u64) -> u64 {
    parts.into_iter().fold(seed, |hash, part| {
        let z = (hash ^ u64::from(part)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// A language, and a drafter of it.
#[derive(Clone, Copy, Debug)]
struct World {
    vocab: usize,
    most: usize,
    seed: u64,
}

impl World {
    /// Whole 64ths, which f32 holds exactly; some are 0.
    fn shares(&self, what: u32, context: &[u32]) -> Vec<f32> {
        let cut = |i: usize| (hash(context.iter().copied().chain([what, i as u32]), self.seed) % 65) as f32 / 64.0;
        let mut cuts: Vec<f32> = (1..self.vocab).map(cut).collect();
        cuts.extend([0.0, 1.0]);
        cuts.sort_by(f32::total_cmp);
        cuts.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    fn p(&self, context: &[u32]) -> Vec<f32> {
        self.shares(0, context)
    }

    /// Like p or not; equal to it or certain now and then.
    fn q(&self, context: &[u32]) -> Vec<f32> {
        let (p, mut q) = (self.p(context), self.shares(1, context));
        match hash(context.iter().copied(), self.seed ^ 7) % 6 {
            0 => return p,
            1 => {
                q.fill(0.0);
                q[hash(context.iter().copied(), self.seed ^ 8) as usize % self.vocab] = 1.0;
            }
            2 | 3 => q.iter_mut().zip(&p).for_each(|(q, p)| *q = (*q + p * 3.0) / 4.0),
            _ => {}
        }
        q
    }

    /// Whether a draft goes on after these guesses.
    fn goes_on(&self, context: &[u32], guesses: &[u32]) -> bool {
        let all = context.iter().chain(guesses).copied();
        guesses.len() < self.most && (guesses.is_empty() || !hash(all, self.seed ^ 9).is_multiple_of(4))
    }
}

/// A distribution with all tokens, or only those that can be.
fn with_ids(probs: &[f32], sparse: bool) -> (Vec<u32>, Vec<f32>) {
    (0..).zip(probs.iter().copied()).filter(|(_, p)| !sparse || *p > 0.0).unzip()
}

fn drawn(probs: &[f32], sparse: bool) -> Drawn {
    if probs.contains(&1.0) {
        return Drawn::Certain;
    }
    let (ids, probs) = with_ids(probs, sparse);
    Drawn::From(ids, probs)
}

struct Draft {
    guesses: Vec<u32>,
    drawn: Vec<Drawn>,
    prob: f64,
}

/// How drafts come about: all that may, with what they say they were drawn from.
type Drafter = fn(&World, &[u32]) -> Vec<Draft>;

/// The one that does as it says. `real(q)` is what it draws from, `drop(q of the guess)` whether it drops what it has drawn.
fn drafts(world: &World, context: &[u32], real: fn(&[f32]) -> Vec<f32>, drop: fn(f32) -> bool) -> Vec<Draft> {
    let mut open = vec![Draft { guesses: vec![], drawn: vec![], prob: 1.0 }];
    let mut done = Vec::new();
    while let Some(draft) = open.pop() {
        if !world.goes_on(context, &draft.guesses) {
            done.push(draft);
            continue;
        }
        let q = world.q(&[context, &draft.guesses].concat());
        let mut dropped = 0.0;
        for (guess, &share) in (0..).zip(&real(&q)).filter(|(_, share)| **share > 0.0) {
            if drop(q[guess as usize]) {
                dropped += f64::from(share);
                continue;
            }
            let guesses = [&draft.guesses[..], &[guess]].concat();
            let drawn = [&draft.drawn[..], &[drawn(&q, guesses.len() % 2 == 0)]].concat();
            open.push(Draft { guesses, drawn, prob: draft.prob * f64::from(share) });
        }
        done.push(Draft { prob: draft.prob * dropped, ..draft });
    }
    done.retain(|draft| draft.prob > 0.0);
    done
}

fn honest(world: &World, context: &[u32]) -> Vec<Draft> {
    drafts(world, context, <[f32]>::to_vec, |_| false)
}

/// Draws from the two most probable tokens and says it was from all.
fn before_top_k(world: &World, context: &[u32]) -> Vec<Draft> {
    let top = |q: &[f32]| {
        let mut order = q.to_vec();
        order.sort_by(|a, b| b.total_cmp(a));
        let kept: Vec<f32> = q.iter().map(|&q| if q >= order[1] { q } else { 0.0 }).collect();
        let total: f32 = kept.iter().sum();
        kept.iter().map(|q| q / total).collect()
    };
    drafts(world, context, top, |_| false)
}

/// Ends the draft at a guess that turned out improbable.
fn drawn_then_dropped(world: &World, context: &[u32]) -> Vec<Draft> {
    drafts(world, context, <[f32]>::to_vec, |q| q < 0.25)
}

/// Decisions as a tree, gone through path by path.
struct Tree {
    vocab: usize,
    /// For each decision whether it was yes, and the probability of that.
    path: Vec<(bool, f64)>,
    depth: usize,
    /// The distribution of the token that comes last.
    next: Vec<f64>,
}

impl Tree {
    fn prob(&self) -> f64 {
        self.path.iter().map(|&(yes, p)| if yes { p } else { 1.0 - p }).product()
    }

    /// Goes on to the next path that can be, if there is one.
    fn advance(&mut self) -> bool {
        self.depth = 0;
        while let Some((yes, p)) = self.path.last_mut() {
            if *yes && *p < 1.0 {
                *yes = false;
                return true;
            }
            self.path.pop();
        }
        false
    }
}

impl Chances for Tree {
    fn happens(&mut self, _: usize, probability: f64) -> bool {
        assert!((0.0..=1.0).contains(&probability), "{probability}");
        if self.depth == self.path.len() {
            self.path.push((probability > 0.0, probability));
        }
        self.depth += 1;
        self.path[self.depth - 1].0
    }

    /// All of them: the caller takes `next` for what it returns.
    fn token(&mut self, left: &Leftover<'_>) -> u32 {
        self.next = (0..self.vocab as u32).map(|id| left.prob(id)).collect();
        0
    }
}

/// The p of a round.
struct Row<'a> {
    world: &'a World,
    context: &'a [u32],
    guesses: &'a [u32],
    ids: Vec<u32>,
    probs: Vec<f32>,
}

impl Row<'_> {
    fn p(&self, guesses: usize) -> Vec<f32> {
        self.world.p(&[self.context, &self.guesses[..guesses]].concat())
    }
}

impl Targets for Row<'_> {
    fn after(&mut self, guesses: usize) -> Result<Dist<'_>> {
        (self.ids, self.probs) = with_ids(&self.p(guesses), guesses % 3 == 1);
        Ok(Dist { ids: &self.ids, probs: &self.probs })
    }
}

type Rule = fn(&mut Row<'_>, &[Drawn], &mut Tree) -> Verdict;

fn by_token(row: &mut Row<'_>, drawn: &[Drawn], tree: &mut Tree) -> Verdict {
    token(row.guesses, drawn, Level::best(), row, tree)
}

fn by_block(row: &mut Row<'_>, drawn: &[Drawn], tree: &mut Tree) -> Verdict {
    block(row.guesses, drawn, Level::best(), row, tree)
}

/// What a rule makes of a round.
struct Round {
    /// Emitted tokens and their probability.
    outcomes: HashMap<Vec<u32>, f64>,
    accepted: f64,
}

fn round(world: &World, context: &[u32], drafter: Drafter, rule: Rule) -> Round {
    let mut made = Round { outcomes: HashMap::new(), accepted: 0.0 };
    for Draft { guesses, drawn, prob } in drafter(world, context) {
        let mut tree = Tree { vocab: world.vocab, path: vec![], depth: 0, next: vec![] };
        loop {
            let mut row = Row { world, context, guesses: &guesses, ids: vec![], probs: vec![] };
            let accepted = rule(&mut row, &drawn, &mut tree).accepted;
            let prob = prob * tree.prob();
            made.accepted += prob * accepted as f64;
            for (id, share) in (0..).zip(&tree.next).filter(|(_, share)| **share > 0.0) {
                *made.outcomes.entry([&guesses[..accepted], &[id]].concat()).or_default() += prob * share;
            }
            if !tree.advance() {
                break;
            }
        }
    }
    made
}

/// Adds the distribution of the first tokens of the output, of which `context` is known.
fn output(world: &World, context: &[u32], prob: f64, way: (Drafter, Rule), out: &mut HashMap<Vec<u32>, f64>) {
    if context.len() >= TOKENS {
        *out.entry(context[..TOKENS].to_vec()).or_default() += prob;
        return;
    }
    for (emitted, share) in round(world, context, way.0, way.1).outcomes {
        output(world, &[context, &emitted].concat(), prob * share, way, out);
    }
}

/// How far the distribution of the output is from p, at most.
fn error(world: &World, drafter: Drafter, rule: Rule) -> f64 {
    let mut found = HashMap::new();
    output(world, &[], 1.0, (drafter, rule), &mut found);
    let texts = (0..world.vocab.pow(TOKENS as u32)).map(|mut number| {
        let mut text = vec![0; TOKENS];
        for id in &mut text {
            *id = (number % world.vocab) as u32;
            number /= world.vocab;
        }
        text
    });
    texts
        .map(|text| {
            let wanted: f64 = (0..TOKENS).map(|i| f64::from(world.p(&text[..i])[text[i] as usize])).product();
            (found.get(&text).copied().unwrap_or(0.0) - wanted).abs()
        })
        .fold(0.0, f64::max)
}

fn worlds() -> impl Iterator<Item = World> {
    let shapes = [(2, 1), (2, 4), (3, 2), (3, 3), (4, 1), (4, 4)];
    shapes.into_iter().flat_map(|(vocab, most)| (0..3).map(move |seed| World { vocab, most, seed }))
}

#[test]
fn the_output_has_the_rows_own_distribution() {
    for world in worlds() {
        for (name, rule) in [("token", by_token as Rule), ("block", by_block)] {
            let error = error(&world, honest, rule);
            assert!(error < 1e-12, "{name}: {error:e} in {world:?}");
        }
    }
}

/// No rule can accept more than the sum over positions of the expectation of min(1, product of p / q).
fn ceiling(world: &World) -> f64 {
    let at_most = |draft: &Draft| -> f64 {
        let mut product = 1.0;
        let ratio = |i: usize| {
            let context = &draft.guesses[..i];
            let guess = draft.guesses[i] as usize;
            product *= f64::from(world.p(context)[guess]) / f64::from(world.q(context)[guess]);
            product.min(1.0)
        };
        (0..draft.guesses.len()).map(ratio).sum()
    };
    honest(world, &[]).iter().map(|draft| draft.prob * at_most(draft)).sum()
}

#[test]
fn blocks_accept_no_fewer_than_single_tokens_and_neither_more_than_is_possible() {
    let mut gained = 0;
    for world in worlds() {
        let [token, block] = [by_token as Rule, by_block].map(|rule| round(&world, &[], honest, rule).accepted);
        let most = ceiling(&world);
        assert!(token <= block + 1e-12 && block <= most + 1e-12, "{token} {block} {most} in {world:?}");
        gained += usize::from(block > token + 1e-3);
    }
    assert!(gained > 3, "{gained}");
}

/// What is done wrong on purpose.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    Lenience,
    NoClamp,
    NoResidual,
    BonusFromQ,
    FirstFailure,
    Early,
    Late,
    EndWithoutExcess,
    Uncut,
}

fn probs_of(drawn: &Drawn, guess: u32, vocab: usize) -> Vec<f64> {
    let mut probs = vec![0.0; vocab];
    match drawn {
        Drawn::Certain => probs[guess as usize] = 1.0,
        Drawn::From(ids, shares) => ids.iter().zip(shares).for_each(|(&id, &q)| probs[id as usize] = q.into()),
    }
    probs
}

fn normal(weights: Vec<f64>, otherwise: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    if total > 0.0 { weights.iter().map(|w| w / total).collect() } else { otherwise.to_vec() }
}

/// Both rules once more, simply and on full vectors, with a mistake.
fn naive(wrong: Wrong, blocks: bool, row: &mut Row<'_>, drawn: &[Drawn], tree: &mut Tree) -> Verdict {
    let (guesses, vocab, last) = (row.guesses, row.world.vocab, row.guesses.len());
    let p = |i: usize| -> Vec<f64> {
        let i = match wrong {
            Wrong::Early => i.saturating_sub(1),
            Wrong::Late => (i + 1).min(last),
            _ => i,
        };
        row.p(i).into_iter().map(f64::from).collect()
    };
    let q = |i: usize| probs_of(&drawn[i], guesses[i], vocab);
    let ratio = |i: usize| {
        let lenience = if wrong == Wrong::Lenience { 0.9 } else { 1.0 };
        p(i)[guesses[i] as usize] / (lenience * q(i)[guesses[i] as usize])
    };
    let excess = |i: usize, r: f64| -> Vec<f64> {
        let beyond = p(i).into_iter().zip(q(i)).map(|(p, q)| r * p - q);
        match wrong {
            Wrong::NoClamp => beyond.map(f64::abs).collect(),
            Wrong::NoResidual => p(i),
            _ => beyond.map(|w| w.max(0.0)).collect(),
        }
    };
    let end = |i: usize, r: f64, tree: &mut Tree| {
        tree.next = match (i < last, wrong) {
            (true, _) => normal(excess(i, r), &p(i)),
            (false, Wrong::BonusFromQ) if last > 0 => q(last - 1),
            _ => p(last),
        };
        Verdict { accepted: i, next: Ok(0) }
    };
    if !blocks {
        let refused = (0..last).find(|&i| !tree.happens(i, ratio(i).min(1.0)));
        return end(refused.unwrap_or(last), 1.0, tree);
    }
    let mut found = (0, 1.0);
    let mut r = 1.0;
    for i in 1..=last {
        r *= ratio(i - 1);
        if wrong != Wrong::Uncut {
            r = f64::min(r, 1.0);
        }
        let beyond: f64 = if i < last { excess(i, r).iter().sum() } else { 0.0 };
        let may_end = match (i < last, wrong) {
            (false, _) | (true, Wrong::EndWithoutExcess) => r.min(1.0),
            _ if r >= 1.0 => 1.0,
            _ => beyond / (beyond + 1.0 - r),
        };
        if tree.happens(i - 1, may_end) {
            found = (i, r);
        } else if wrong == Wrong::FirstFailure {
            break;
        }
    }
    end(found.0, found.1, tree)
}

macro_rules! naive {
    ($wrong:ident, $blocks:literal) => {
        (
            concat!(stringify!($wrong), ", blocks: ", stringify!($blocks)),
            (|row, drawn, tree| naive(Wrong::$wrong, $blocks, row, drawn, tree)) as Rule,
        )
    };
}

#[test]
fn the_rules_equal_their_naive_twins() {
    let twins = [(by_token as Rule, naive!(Nothing, false).1), (by_block as Rule, naive!(Nothing, true).1)];
    for (world, (rule, twin)) in worlds().flat_map(|world| twins.map(|pair| (world, pair))) {
        let [found, wanted] = [rule, twin].map(|rule| round(&world, &[1], honest, rule).outcomes);
        for text in found.keys().chain(wanted.keys()) {
            let [found, wanted] = [&found, &wanted].map(|outcomes| outcomes.get(text).copied().unwrap_or(0.0));
            assert!((found - wanted).abs() < 1e-13, "{text:?}: {found} {wanted} in {world:?}");
        }
    }
}

#[test]
fn every_known_mistake_is_seen() {
    let rules = [
        naive!(Lenience, false),
        naive!(Lenience, true),
        naive!(NoClamp, false),
        naive!(NoClamp, true),
        naive!(NoResidual, false),
        naive!(NoResidual, true),
        naive!(BonusFromQ, false),
        naive!(BonusFromQ, true),
        naive!(FirstFailure, true),
        naive!(Early, false),
        naive!(Early, true),
        naive!(Late, false),
        naive!(Late, true),
        naive!(EndWithoutExcess, true),
        naive!(Uncut, true),
    ];
    let small = || worlds().filter(|world| world.vocab == 3);
    for (name, rule) in rules {
        let error = small().map(|world| error(&world, honest, rule)).fold(0.0, f64::max);
        assert!(error > 1e-3, "{name}: not seen, {error:e}");
    }
    for (name, drafter) in [("before top-k", before_top_k as Drafter), ("drawn, then dropped", drawn_then_dropped)] {
        for rule in [by_token as Rule, by_block] {
            let error = small().map(|world| error(&world, drafter, rule)).fold(0.0, f64::max);
            assert!(error > 1e-3, "{name}: not seen, {error:e}");
        }
    }
}
