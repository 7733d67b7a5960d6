//! Deciding: the plan, and what is known of its being carried out.

use super::*;

impl Planner {
    /// What is to be done now. Until [`Self::kernel_applied`] says that it was, the next plan has it again.
    pub fn plan(&mut self) -> Plan {
        self.refresh();
        let (ended, kernel) = self.kernel_step();
        let ground = Ground {
            wanted: &self.service_networks,
            inventory: &self.inventory,
            standings: &self.standings,
            pools: &self.pools,
            routes: &self.routes,
            busy: &self.busy,
            stale: &self.stale,
        };
        let (mut networks, exhausted) = network_steps(ground, &mut self.unsettled, &mut self.allocator);
        networks.extend(self.stops());
        let links = self.link_steps();
        Plan {
            ended,
            kernel,
            released: self.endings.released.clone(),
            sweep: self.endings.sweep,
            links,
            networks,
            exhausted,
        }
    }

    /// Every container that cannot be held to its rights, or that voids others'.
    pub fn unenforceable(&self) -> &BTreeMap<ContainerId, Vec<Finding>> {
        &self.findings
    }

    /// The containers that the engine is to stop.
    pub(super) fn stops(&self) -> Vec<NetworkStep> {
        if self.rights.unenforceable != OnUnenforceable::Stop {
            return Vec::new();
        }
        let stops = self.findings.iter().filter_map(|(id, findings)| {
            let voids: Vec<String> = findings
                .iter()
                .filter(|finding| finding.is_acted_upon && finding.is_running)
                .map(|finding| finding.what.to_string())
                .collect();
            let step = NetworkStep::Stop {
                name: self.inventory.container(id)?.name.clone(),
                container: id.clone(),
                reason: voids.join("; "),
            };
            (!voids.is_empty() && !self.busy.contains_key(&step.subject())).then_some(step)
        });
        stops.collect()
    }

    pub(super) fn kernel_step(&self) -> (Vec<ElementChange>, KernelStep) {
        let withheld = self.endings.withheld();
        if self.held == Held::Anything {
            let steps = replacement(&self.structure.ruleset, &self.ledger.elements(&withheld));
            return (Vec::new(), KernelStep::Replace(steps));
        }
        let mut changes = self.ledger.changes(&withheld);
        let Held::Earlier(earlier) = &self.held else {
            let kernel = if changes.is_empty() {
                KernelStep::Nothing
            } else {
                KernelStep::Elements(changes)
            };
            return (Vec::new(), kernel);
        };
        let released = |key: &Key| {
            key.address()
                .is_some_and(|it| self.endings.released.contains(&it))
        };
        let ends =
            |change: &mut ElementChange| change.action == ElementAction::Delete && released(&change.key);
        let ended = changes.extract_if(.., ends).collect();
        let steps = transition(earlier, &self.structure.ruleset, changes);
        (ended, KernelStep::Structure(steps))
    }

    /// The kernel's tables are as the last plan wanted them.
    pub fn kernel_applied(&mut self) {
        let withheld = self.endings.withheld();
        match self.held {
            Held::Anything => self.ledger.mark_replaced(&withheld),
            Held::Wanted | Held::Earlier(_) => self.ledger.mark_applied(&withheld),
        }
        self.held = Held::Wanted;
    }

    /// Whether the kernel's tables were made by this planner.
    pub fn is_applied(&self) -> bool {
        self.held != Held::Anything
    }

    /// The kernel's tables are not as they were left: the next plan replaces them.
    pub fn kernel_lost(&mut self) {
        self.held = Held::Anything;
    }

    /// These deletions of the last plan are in the kernel, whatever becomes of the rest.
    pub fn deletions_applied(&mut self, changes: &[ElementChange]) {
        self.ledger.mark_deleted(changes);
    }

    /// The connections that can be ended now: of released addresses that have nothing left in the kernel, and, once the
    /// rules are as they are wanted, those that the policy does not permit. From here on they are under way, until
    /// [`Self::flows_ended`] or [`Self::flows_not_ended`].
    pub fn start_ending(&mut self, host: impl FnOnce() -> BTreeSet<IpAddr>) -> Option<Ending> {
        // Not known to hold what was wanted: it may be anything.
        if self.held == Held::Anything {
            return None;
        }
        let in_force =
            || self.held == Held::Wanted && self.ledger.changes(&self.endings.withheld()).is_empty();
        let sweep = self.endings.sweep && in_force();
        let closing = self.ledger.closing();
        let released: BTreeSet<IpAddr> = self.endings.released.difference(&closing).copied().collect();
        if released.is_empty() && !sweep {
            return None;
        }
        let number = self.endings.start(&released, sweep);
        let sweep = sweep.then(|| self.sweep(host()));
        Some(Ending {
            number,
            released,
            sweep,
        })
    }

    /// What open connections are held against now.
    pub fn sweep(&self, host: BTreeSet<IpAddr>) -> Sweep {
        Sweep {
            rights: self.rights.clone(),
            addresses: self.addresses(host),
        }
    }

    /// The connections of all endings up to this one are gone.
    pub fn flows_ended(&mut self, through: u64) {
        self.endings.done(through);
    }

    /// They may still be there. They come again, and their addresses stay closed.
    pub fn flows_not_ended(&mut self, through: u64) {
        self.endings.failed(through);
    }

    /// Whether connections are still to be ended.
    pub fn is_ending(&self) -> bool {
        self.endings.is_pending()
    }

    /// Open connections are to be held against the policy once more.
    pub fn request_sweep(&mut self) {
        self.endings.sweep = true;
    }

    /// A step on a bridge or port is under way: no other of the same interface is planned until it is done.
    pub fn link_started(&mut self, step: LinkStep) {
        self.changing.insert(step.interface(), Meanwhile::Silence);
        self.note_returned(step, true);
    }

    /// A step on a bridge or port failed, and is planned again.
    pub fn link_failed(&mut self, step: LinkStep) {
        self.changing.remove(&step.interface());
        self.note_returned(step, false);
    }

    /// A port that was put back is not put back again until it is seen: the kernel may tell of it before the step is over.
    fn note_returned(&mut self, step: LinkStep, returned: bool) {
        if let LinkStep::Return { port, .. } = step
            && let Some(home) = self.homes.get_mut(port)
        {
            home.returned = returned;
        }
    }

    /// Whether a step on this bridge or port is under way.
    pub fn is_changing(&self, interface: u32) -> bool {
        self.changing.contains_key(&interface)
    }

    /// Whether a step on any bridge or port is under way.
    pub fn is_changing_links(&self) -> bool {
        !self.changing.is_empty()
    }

    /// A step on a bridge or port succeeded. What the kernel told of the interface meanwhile counts for more: others may have
    /// changed it again.
    pub fn link_applied(&mut self, step: LinkStep) {
        let meanwhile = self.changing.remove(&step.interface());
        if meanwhile == Some(Meanwhile::Told) {
            return;
        }
        match step {
            LinkStep::NetfilterCalls { bridge } => drop(self.calling.insert(bridge)),
            LinkStep::Isolate { port, isolated } => drop(self.isolated.insert(port, isolated)),
            LinkStep::Return { .. } if meanwhile.is_none() => self.note_returned(step, true),
            LinkStep::Return { .. } => {}
        }
    }

    /// What a step on a bridge or port was for is gone.
    pub fn link_gone(&mut self, step: LinkStep) {
        self.changing.remove(&step.interface());
        self.homes.remove(step.interface());
    }

    /// Takes whether a bridge hands its frames to br_netfilter. Returns whether it no longer does, and must.
    pub fn observe_calls(&mut self, bridge: u32, calls: bool) -> bool {
        self.observed(bridge);
        if calls {
            self.calling.insert(bridge);
            return false;
        }
        self.calling.remove(&bridge) && self.is_guarded_bridge(bridge)
    }

    /// Takes whether a port is isolated. Returns whether it no longer is, and must be.
    pub fn observe_isolated(&mut self, port: u32, isolated: bool) -> bool {
        self.observed(port);
        let before = self.isolated.insert(port, isolated);
        before == Some(true) && !isolated && self.role(port) == Some(Role::Caller)
    }

    pub(super) fn observed(&mut self, interface: u32) {
        self.unset.insert(interface);
        if let Some(meanwhile) = self.changing.get_mut(&interface) {
            *meanwhile = Meanwhile::Told;
        }
    }

    /// Takes a full listing of these settings.
    pub fn reset_link_settings(&mut self, calling: BTreeSet<u32>, isolated: BTreeMap<u32, bool>) {
        self.changing.values_mut().for_each(|it| *it = Meanwhile::Told);
        if self.calling == calling && self.isolated == isolated {
            return;
        }
        self.calling = calling;
        self.isolated = isolated;
        let bridges = self.links.bridges().map(|(index, _)| index);
        let ports = self.links.ports().map(|port| port.index);
        self.unset.extend(bridges.chain(ports));
    }

    /// An engine call is under way: no other with the same subject is planned until it is done.
    pub fn network_step_started(&mut self, step: &NetworkStep) {
        self.busy.insert(step.subject(), step.clone());
    }

    /// An engine call is over, with success or without.
    pub fn network_step_done(&mut self, step: &NetworkStep) {
        self.busy.remove(&step.subject());
        self.unsettled.step_done(step);
    }

    /// A stopped container no longer wishes for a network that is gone.
    pub fn network_forgotten(&mut self, container: &ContainerId, name: &str) {
        if let Some(names) = self.stale.get_mut(container) {
            names.remove(name);
        }
    }

    /// Whose each address is, for judging open connections.
    pub(crate) fn addresses(&self, host: BTreeSet<IpAddr>) -> Addresses {
        let mut containers = BTreeMap::new();
        for container in self.inventory.containers().values() {
            let Some(standing) = self.standings.get(&container.id) else {
                continue;
            };
            for (network, endpoint) in &container.endpoints {
                if self.guarded.contains(network) {
                    containers.extend(endpoint.addresses().map(|address| (address, standing.clone())));
                }
            }
        }
        Addresses {
            containers,
            host,
            hairpin: self.ledger.services("hairpin"),
            proxied: self.ledger.services("proxied"),
        }
    }
}
