//! A distribution and the draw from it.

/// A distribution over some tokens; all others have probability 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dist<'a> {
    /// Token ids, ascending.
    pub ids: &'a [u32],
    /// Their probabilities, which sum to 1 up to rounding.
    pub probs: &'a [f32],
}

impl Dist<'_> {
    /// Probability of a token.
    pub fn prob(&self, id: u32) -> f32 {
        // Where all tokens have one, each is at its own place.
        match self.ids.get(id as usize) {
            Some(&found) if found == id => self.probs[id as usize],
            _ => self.ids.binary_search(&id).map_or(0.0, |i| self.probs[i]),
        }
    }

    /// The token at `uniform`, a number in [0, 1), when probabilities are laid end to end in order of ids.
    ///
    /// Where rounding leaves their sum below `uniform`, the last token with a probability above 0.
    ///
    /// # Panics
    /// If no token has a probability above 0, which no distribution of a [`Sampler`](super::Sampler) is.
    pub fn draw(&self, uniform: f64) -> u32 {
        let mut sum = 0.0;
        for (&id, &p) in self.ids.iter().zip(self.probs) {
            sum += f64::from(p);
            if uniform < sum {
                return id;
            }
        }
        let last = self.probs.iter().rposition(|&p| p > 0.0).expect("a distribution has a token to draw");
        self.ids[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_beyond_the_sum_takes_the_last_possible_token() {
        let dist = Dist { ids: &[3, 5, 8, 9], probs: &[0.5, 0.25, 0.2499, 0.0] };
        assert_eq!(dist.draw(0.0), 3);
        assert_eq!(dist.draw(0.5), 5);
        assert_eq!(dist.draw(0.74999), 5);
        assert_eq!(dist.draw(0.999999), 8);
        assert_eq!(dist.prob(8), 0.2499);
        assert_eq!(dist.prob(4), 0.0);
        assert_eq!(Dist { ids: &[0, 1], probs: &[0.0, 1.0] }.draw(0.0), 1, "nothing of probability 0 is drawn");
    }
}
