//! Sets of numbers: addresses, ports, types of messages.

/// Numbers as sorted, inclusive ranges that neither overlap nor touch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    /// The union of ranges in any order; each is `(first, last)` with `first <= last`.
    pub fn new(ranges: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.0.iter().copied()
    }

    /// The least number.
    pub fn first(&self) -> Option<u128> {
        self.0.first().map(|(first, _)| *first)
    }

    /// Whether it holds no number.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The numbers of either.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self::new(self.iter().chain(other.iter()))
    }

    /// The numbers that are not in `holes`.
    #[must_use]
    pub fn without(&self, holes: &Self) -> Self {
        let mut left = Vec::new();
        for (start, last) in self.iter() {
            let mut first = start;
            let mut used_up = false;
            for (hole_first, hole_last) in holes.iter().filter(|hole| hole.1 >= start && hole.0 <= last) {
                if hole_first > first {
                    left.push((first, hole_first - 1));
                }
                if hole_last >= last {
                    used_up = true;
                    break;
                }
                first = hole_last + 1;
            }
            if !used_up {
                left.push((first, last));
            }
        }
        Self(left)
    }

    /// The numbers of both.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_numbers_are_added_subtracted_and_shared() {
        let set = |ranges: &[(u128, u128)]| Ranges::new(ranges.iter().copied());
        let ports = set(&[(80, 89), (20, 29), (30, 31), (85, 95)]);
        assert_eq!(ports, set(&[(20, 31), (80, 95)]));
        assert_eq!(
            ports.without(&set(&[(0, 20), (25, 25), (90, 200)])),
            set(&[(21, 24), (26, 31), (80, 89)])
        );
        assert_eq!(ports.common(&set(&[(31, 80)])), set(&[(31, 31), (80, 80)]));
        assert_eq!(ports.with(&set(&[(32, 79)])), set(&[(20, 95)]));
        let all = set(&[(0, u128::MAX)]);
        assert!(all.without(&all).is_empty());
        assert_eq!(
            all.without(&set(&[(u128::MAX, u128::MAX)])),
            set(&[(0, u128::MAX - 1)])
        );
        assert_eq!(all.common(&ports), ports);
        assert_eq!((ports.first(), set(&[]).first()), (Some(20), None));
    }
}
