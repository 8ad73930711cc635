//! When to try again what loses.

/// Counts rounds in which something was not used, and says when it shall be tried. Failures make that rarer, success more
/// frequent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    first: u32,
    wait: u32,
    rounds: u32,
}

impl Probe {
    /// Rounds before the first trial of a source.
    pub const FIRST: u32 = 64;
    /// Longest rest.
    pub const MOST: u32 = 1024;
    const LEAST: u32 = 4;

    /// Of a source that has just lost.
    pub fn of_source() -> Self {
        Self::new(Self::FIRST)
    }

    /// Of a round without drafts, early: one suffices to see whether the measured cost is true.
    pub fn of_base() -> Self {
        Self::new(16)
    }

    fn new(first: u32) -> Self {
        Self { first, wait: first, rounds: 0 }
    }

    /// It was used in this round without being made to, and pays.
    pub fn used(&mut self) {
        *self = Self::new(self.first);
    }

    /// It was used in this round, which says nothing about the next.
    pub fn seen(&mut self) {
        self.rounds = 0;
    }

    /// So many rounds have passed without a look at anything.
    pub fn skip(&mut self, rounds: u32) {
        self.rounds = self.rounds.saturating_add(rounds);
    }

    /// It was not used in this round. True: it should be.
    pub fn is_due(&mut self) -> bool {
        self.rounds = self.rounds.saturating_add(1);
        self.rounds >= self.wait
    }

    /// It was tried. After failures it rests for up to `most` rounds.
    pub fn tried(&mut self, success: bool, most: u32) {
        self.rounds = 0;
        self.wait = if success { (self.wait / 4).max(Self::LEAST) } else { (self.wait * 2).min(most) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds until it is due.
    fn waited(probe: &mut Probe) -> u32 {
        (1..).find(|_| probe.is_due()).expect("some time")
    }

    #[test]
    fn failures_make_it_rare_and_success_frequent() {
        let mut probe = Probe::of_source();
        for expected in [64, 128, 256, 512, 1024, 1024] {
            assert_eq!(waited(&mut probe), expected);
            probe.tried(false, Probe::MOST);
        }
        for expected in [1024, 256, 64, 16, 4, 4] {
            assert_eq!(waited(&mut probe), expected);
            probe.tried(true, Probe::MOST);
        }
        probe.used();
        probe.skip(60);
        assert_eq!(waited(&mut probe), 4, "rounds without a look count");
        probe.used();
        assert_eq!(waited(&mut probe), 64);
        assert!(probe.is_due(), "it stays due until it is tried");
    }
}
