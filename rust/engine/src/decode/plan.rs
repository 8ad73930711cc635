//! Who gets how many tokens of the coming pass.

/// What a row could use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// Tokens it has to read.
    pub(super) tokens: usize,
    /// Whether it is past its prompt.
    pub(super) decoding: bool,
}

/// Most tokens of prompts in a pass that also serves decoding rows, so that a long prompt of one row does not make all
/// others wait: on a CPU a pass of some dozens of tokens takes a few times as long as one of a single token, a full pass many
/// times. The results are the same in every bit.
pub(super) const PROMPT_TOKENS_WHILE_DECODING: usize = 64;

/// Shares `budget` tokens out: `shares[i]` of them to row `i`.
///
/// Decoding rows come first; where they are too many they take turns, beginning with row `first`, and an eighth of the pass
/// stays for prompts. Prompts split the rest evenly, and what one does not need the others get. Returns where the next turn
/// begins.
pub(super) fn share_out(demands: &[Demand], budget: usize, first: usize, shares: &mut Vec<usize>) -> usize {
    shares.clear();
    shares.resize(demands.len(), 0);
    let prompts = demands.iter().filter(|d| !d.decoding && d.tokens > 0).count();
    let mut left = if prompts > 0 { budget - budget / 8 } else { budget };
    let for_decoding = left;
    let mut next = first;
    for turn in 0..demands.len() {
        let i = (first + turn) % demands.len();
        if demands[i].decoding && demands[i].tokens <= left {
            shares[i] = demands[i].tokens;
            left -= shares[i];
            next = i + 1;
        }
    }
    let used = for_decoding - left;
    let mut left = budget - used;
    if used > 0 {
        left = left.min(PROMPT_TOKENS_WHILE_DECODING);
    }
    share_prompts(demands, prompts, left, shares);
    if demands.is_empty() { 0 } else { next % demands.len() }
}

/// Splits `left` tokens over the prompts: equal parts first, then what is over to the oldest rows that want more.
fn share_prompts(demands: &[Demand], mut prompts: usize, mut left: usize, shares: &mut [usize]) {
    for equal in [true, false] {
        for (demand, share) in demands.iter().zip(shares.iter_mut()) {
            if demand.decoding || demand.tokens == 0 || left == 0 {
                continue;
            }
            let part = if equal { (left / prompts).max(1) } else { left };
            let more = part.min(demand.tokens - *share);
            *share += more;
            left -= more;
            prompts = prompts.saturating_sub(1).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prompt(tokens: usize) -> Demand {
        Demand { tokens, decoding: false }
    }

    const DECODING: Demand = Demand { tokens: 1, decoding: true };

    fn shares(demands: &[Demand], budget: usize) -> Vec<usize> {
        let mut shares = Vec::new();
        share_out(demands, budget, 0, &mut shares);
        shares
    }

    #[test]
    fn prompts_split_a_pass_and_pass_on_what_they_do_not_need() {
        assert_eq!(shares(&[prompt(1000)], 512), [512]);
        assert_eq!(shares(&[prompt(1000), prompt(1000)], 512), [256, 256]);
        assert_eq!(shares(&[prompt(1000), prompt(10)], 512), [502, 10]);
        assert_eq!(shares(&[prompt(10), prompt(1000), prompt(1000)], 512), [10, 251, 251]);
        assert_eq!(shares(&[prompt(9), prompt(9), prompt(9)], 2), [1, 1, 0]);
    }

    #[test]
    fn decoding_rows_come_first_and_prompts_stay_short_beside_them() {
        assert_eq!(shares(&[prompt(1000), DECODING, DECODING], 512), [64, 1, 1]);
        assert_eq!(shares(&[DECODING, prompt(1000), DECODING], 8), [1, 6, 1]);
    }

    #[test]
    fn too_many_decoding_rows_take_turns() {
        let demands = [DECODING; 5];
        let (mut first, mut total, mut shares) = (0, [0; 5], Vec::new());
        for _ in 0..10 {
            first = share_out(&demands, 2, first, &mut shares);
            assert_eq!(shares.iter().sum::<usize>(), 2);
            total.iter_mut().zip(&shares).for_each(|(total, share)| *total += share);
        }
        assert_eq!(total, [4; 5]);
    }

    proptest! {
        #[test]
        fn passes_are_never_too_big_and_never_idle(
            rows in prop::collection::vec((0..200_usize, any::<bool>()), 0..20),
            budget in 1..64_usize,
            first in 0..20_usize,
        ) {
            let demands: Vec<Demand> = rows
                .iter()
                .map(|&(tokens, decoding)| if decoding { DECODING } else { prompt(tokens) })
                .collect();
            let mut shares = Vec::new();
            share_out(&demands, budget, first % demands.len().max(1), &mut shares);
            let sum: usize = shares.iter().sum();
            let wanted: usize = demands.iter().map(|d| d.tokens).sum();
            prop_assert!(sum <= budget);
            prop_assert!(wanted == 0 || sum > 0);
            for (demand, &share) in demands.iter().zip(&shares) {
                prop_assert!(share <= demand.tokens);
            }
            let decoding = demands.iter().filter(|d| d.decoding).count();
            let served = demands.iter().zip(&shares).filter(|(d, s)| d.decoding && **s > 0).count();
            prop_assert!(served >= decoding.min(budget - budget / 8));
        }
    }
}
