//! Engine events that the kernel does not hold yet what they ask for. In: events with their time, and after each pass
//! what is bound. Out: how long each waited, and how long before a container's start its endpoints were bound. Pure: it is
//! told the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::inventory::{ContainerId, NetworkId};

/// Nothing is awaited longer: what is never bound shows as a pending endpoint.
const LONGEST: Duration = Duration::from_secs(30);
/// The most that is awaited at once; beyond it nothing is measured.
const MOST: usize = 4096;

/// What is awaited.
#[derive(Debug, Default)]
pub struct Awaited {
    /// Endpoints that are to be bound, since their event.
    connects: BTreeMap<(ContainerId, NetworkId), Instant>,
    /// Events that the next pass answers.
    endings: Vec<(&'static str, Instant)>,
    /// Since when all endpoints of a container are bound that has not started yet.
    bound: BTreeMap<ContainerId, Instant>,
}

/// What a pass answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answered(pub Vec<(&'static str, Duration)>);

/// How an endpoint stands after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Yes,
    NotYet,
    /// It need not be: nothing is wanted for it.
    Never,
}

impl Awaited {
    /// An endpoint was connected.
    pub fn connected(&mut self, container: &ContainerId, network: &NetworkId, at: Instant) {
        if self.connects.len() < MOST {
            self.connects.insert((container.clone(), network.clone()), at);
        }
    }

    /// A container, or its endpoint on that network, is gone: the next pass takes its rights.
    pub fn ended(
        &mut self,
        event: &'static str,
        container: &ContainerId,
        network: Option<&NetworkId>,
        at: Instant,
    ) {
        for on in self.networks(container) {
            if network.is_none_or(|it| *it == on) {
                self.connects.remove(&(container.clone(), on));
            }
        }
        self.bound.remove(container);
        if self.endings.len() < MOST {
            self.endings.push((event, at));
        }
    }

    /// A container started. Returns how long it was bound before; `None`: nothing was to be bound for it.
    pub fn started(&mut self, container: &ContainerId, at: Instant) -> Option<Duration> {
        let bound = self.bound.remove(container);
        if !self.networks(container).is_empty() {
            return Some(Duration::ZERO);
        }
        bound.map(|bound| at.saturating_duration_since(bound))
    }

    /// The networks on which a container's endpoint is to be bound.
    fn networks(&self, container: &ContainerId) -> Vec<NetworkId> {
        let first = (container.clone(), NetworkId::default());
        let own = self.connects.range(first..);
        let own = own.take_while(|((id, _), _)| id == container);
        own.map(|((_, network), _)| network.clone()).collect()
    }

    /// A pass ended now. `bound` says how an endpoint stands.
    pub fn pass_ended(
        &mut self,
        now: Instant,
        mut bound: impl FnMut(&ContainerId, &NetworkId) -> Bound,
    ) -> Answered {
        let since = |at: Instant| now.saturating_duration_since(at);
        let endings = std::mem::take(&mut self.endings).into_iter();
        let mut answered = Answered(endings.map(|(event, at)| (event, since(at))).collect());
        self.connects.retain(|(container, network), at| {
            match bound(container, network) {
                Bound::Yes => {
                    answered.0.push(("connect", since(*at)));
                    self.bound.insert(container.clone(), now);
                    return false;
                }
                Bound::Never => return false,
                Bound::NotYet => {}
            }
            since(*at) < LONGEST
        });
        self.bound.retain(|_, at| since(*at) < LONGEST);
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (ContainerId, NetworkId) {
        (ContainerId("c".into()), NetworkId("n".into()))
    }

    #[test]
    fn a_connect_is_answered_by_the_pass_that_binds_it() {
        let (container, network) = ids();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut awaited = Awaited::default();
        awaited.connected(&container, &network, at(0));
        assert_eq!(
            awaited.pass_ended(at(3), |_, _| Bound::NotYet),
            Answered::default()
        );
        let answered = awaited.pass_ended(at(7), |_, _| Bound::Yes);
        assert_eq!(answered.0, [("connect", Duration::from_millis(7))]);
        assert_eq!(
            awaited.started(&container, at(40)),
            Some(Duration::from_millis(33))
        );
        // Once for each start.
        assert_eq!(awaited.started(&container, at(50)), None);
    }

    #[test]
    fn a_start_before_the_binding_has_no_lead() {
        let (container, network) = ids();
        let start = Instant::now();
        let mut awaited = Awaited::default();
        awaited.connected(&container, &network, start);
        assert_eq!(awaited.started(&container, start), Some(Duration::ZERO));
        let later = start + LONGEST;
        assert_eq!(
            awaited.pass_ended(later, |_, _| Bound::NotYet),
            Answered::default()
        );
        assert_eq!(awaited.started(&container, later), None, "given up");
    }

    #[test]
    fn an_end_is_answered_by_the_next_pass_and_takes_what_was_awaited_along() {
        let (container, network) = ids();
        let start = Instant::now();
        let mut awaited = Awaited::default();
        awaited.connected(&container, &network, start);
        awaited.ended("die", &container, None, start);
        let answered = awaited.pass_ended(start + Duration::from_millis(2), |_, _| Bound::Yes);
        assert_eq!(answered.0, [("die", Duration::from_millis(2))]);
        for n in 0..2 * MOST {
            awaited.connected(&ContainerId(n.to_string().into()), &network, start);
            awaited.ended("die", &container, None, start);
        }
        assert!(awaited.connects.len() <= MOST && awaited.endings.len() <= MOST);
    }
}
