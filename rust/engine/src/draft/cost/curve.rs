//! Seconds as a function of a number of tokens or rows.

/// A cost that never falls as the number grows: straight lines between measured points.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    points: Vec<(usize, f64)>,
    /// Seconds of 0, 1, 2 ... up to the last point: looked up many times a round.
    dense: Vec<f64>,
    /// Seconds of one more beyond the last point.
    slope: f64,
}

impl Curve {
    /// Through points of ascending numbers above 0, levelled where they fall.
    ///
    /// # Panics
    /// If there is no point, or numbers do not ascend from 1 or more.
    pub fn through(points: &[(usize, f64)]) -> Self {
        assert!(!points.is_empty() && points[0].0 > 0 && points.is_sorted_by(|a, b| a.0 < b.0), "{points:?}");
        let points = rising(points);
        let mut dense = vec![0.0; points[0].0 + 1];
        // Fewer than the first point cost as much: that much is fixed.
        dense[1..].fill(points[0].1);
        for pair in points.windows(2) {
            let [(from, low), (to, high)] = [pair[0], pair[1]];
            let share = |n| (n - from) as f64 / (to - from) as f64;
            dense.extend((from + 1..=to).map(|n| low + (high - low) * share(n)));
        }
        let last = dense.len() - 1;
        // The end of the curve may still be flat where memory decides, and beyond it arithmetic does: no token there is
        // taken for cheaper than the average one so far.
        let half = last / 2;
        let local = (dense[last] - dense[half]) / (last - half) as f64;
        let slope = local.max(dense[last] / last as f64);
        Self { points, dense, slope }
    }

    /// Seconds of `n`, which need not be whole.
    pub fn at(&self, n: f64) -> f64 {
        let last = self.dense.len() - 1;
        if n >= last as f64 {
            return self.dense[last] + (n - last as f64) * self.slope;
        }
        // At least 0 even for NaN: a cast saturates.
        let below = n as usize;
        let share = n - below as f64;
        self.dense[below] + (self.dense[below + 1] - self.dense[below]) * share
    }

    /// The points it goes through.
    pub fn points(&self) -> &[(usize, f64)] {
        &self.points
    }
}

/// The points with no value above a later one. What disturbs a measurement only ever adds to it, so where costs fall the
/// earlier one was disturbed, however much.
fn rising(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let mut points = points.to_vec();
    let mut least = f64::INFINITY;
    for (_, value) in points.iter_mut().rev() {
        least = least.min(*value);
        *value = least;
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_go_through_the_points_and_beyond() {
        let curve = Curve::through(&[(1, 1.0), (2, 1.5), (4, 2.5)]);
        for (n, seconds) in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (1.5, 1.25), (3.0, 2.0), (4.0, 2.5), (6.0, 3.75)] {
            assert!((curve.at(n) - seconds).abs() < 1e-12, "{n}: {}", curve.at(n));
        }
    }

    #[test]
    fn a_flat_end_is_not_taken_for_flat_for_ever() {
        let curve = Curve::through(&[(1, 1.0), (8, 1.0)]);
        assert_eq!(curve.at(8.0), 1.0);
        assert_eq!(curve.at(16.0), 2.0);
        assert_eq!(Curve::through(&[(1, 3.0)]).at(2.0), 6.0, "one point says only what one costs");
    }

    #[test]
    fn what_falls_was_disturbed_before() {
        let curve = Curve::through(&[(1, 1.5), (2, 1.0), (3, 40.0), (4, 3.0), (5, 2.0), (6, 5.0)]);
        assert_eq!(curve.points(), [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 5.0)]);
    }

    proptest! {
        #[test]
        fn it_never_falls(
            values in prop::collection::vec(1e-6..1.0_f64, 1..14),
            steps in prop::collection::vec(1..9_usize, 14),
        ) {
            let numbers = steps.iter().scan(0, |n, step| { *n += step; Some(*n) });
            let points: Vec<_> = numbers.zip(values).collect();
            let curve = Curve::through(&points);
            let mut before = 0.0;
            for n in 0..300 {
                let seconds = curve.at(f64::from(n) / 2.0);
                // But for the rounding of what lies between two points.
                prop_assert!(seconds >= before * (1.0 - 1e-12) && seconds.is_finite());
                before = seconds;
            }
            let again = Curve::through(curve.points());
            prop_assert_eq!(again, curve, "levelling twice changes nothing");
        }
    }
}
