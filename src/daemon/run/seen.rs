//! What was seen: link events, engine events, readings, changes of nftables by others, and what does not fit together.

use std::collections::btree_map::Entry;

use super::*;

impl Daemon {
    pub(super) async fn link_event(&mut self, event: LinkEvent) -> Option<Cause> {
        debug!(?event, "link event");
        match event {
            LinkEvent::Bridge(bridge) => self.planner.upsert_bridge(bridge.index, bridge.name),
            LinkEvent::BridgeGone(index) => {
                self.planner.remove_bridge(index);
                self.repairs.link_gone(index);
            }
            LinkEvent::Port(port) => {
                let index = port.index;
                self.planner.upsert_port(port);
                // One that keeps changing is waited for no more often than any other.
                if let Entry::Vacant(unexplained) = self.unexplained.entry(index) {
                    unexplained.insert(Instant::now());
                    self.explain(index);
                }
            }
            LinkEvent::PortGone(index) => {
                self.planner.remove_port(index);
                self.repairs.link_gone(index);
            }
            LinkEvent::Calls { bridge, calls } => {
                let lost = self.planner.observe_calls(bridge, calls);
                self.link_observed(bridge, "bridge netfilter's call", lost);
            }
            LinkEvent::Isolated { port, isolated } => {
                let lost = self.planner.observe_isolated(port, isolated);
                self.link_observed(port, "isolation", lost);
            }
            LinkEvent::Resync => self.list_links().await,
        }
        Some("link event")
    }

    /// Others took away what a bridge or port must have, or gave it back. What we set ourselves counts when that is over: the kernel
    /// may tell of it earlier.
    fn link_observed(&mut self, interface: u32, setting: &str, lost: bool) {
        if lost || !self.planner.is_changing(interface) {
            self.repairs.link_observed(interface, setting, lost);
        }
    }

    /// Reads the networks of a port that nobody explained yet, for a while.
    pub(super) fn explain(&mut self, port: u32) {
        let networks = self.planner.unexplained(port);
        let (pause, longest) = UNEXPLAINED;
        let is_over = self
            .unexplained
            .get(&port)
            .is_none_or(|it| it.elapsed() > longest);
        if networks.is_empty() || is_over {
            self.unexplained.remove(&port);
            return;
        }
        for network in networks {
            self.reader
                .confirm(Object::Network(network), self.planner.moment());
        }
        let sender = self.retries.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            let _ = sender.send(Retry::Port(port));
        });
    }

    pub(super) fn engine_event(&mut self, arrived: Arrived) -> Option<Cause> {
        let Arrived { event, at } = arrived;
        debug!(?event, "engine event");
        match event {
            EngineEvent::Connected(engine) => {
                info!(version = engine.info().version, "connected to the engine");
                self.reader.connect(Some(engine));
                self.read(if self.waits_for_powers() {
                    Object::Everything
                } else {
                    Object::Outline
                });
                Some("engine found")
            }
            EngineEvent::Disconnected { reason, retry_in } => {
                let retry_ms = u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX);
                // Each attempt ends here: only news is worth a line and a pass.
                if self.reader.engine().is_none() && self.engine_missing.as_ref() == Some(&reason) {
                    debug!(reason, retry_ms, "still no connection to the engine");
                    return None;
                }
                warn!(
                    reason,
                    retry_ms, "no connection to the engine: the rules stand, nothing new opens"
                );
                if self.reader.engine().is_some() {
                    self.measures.engine_lost();
                }
                self.reader.connect(None);
                self.engine_missing = Some(reason);
                Some("engine lost")
            }
            EngineEvent::Resync => {
                self.read_after_loss();
                None
            }
            event => {
                self.await_kernel(&event, at);
                if self.reader.is_listing() {
                    self.meanwhile.push(event.clone());
                }
                self.object_event(event)
            }
        }
    }

    /// Measures from here how long the kernel takes to hold what the event asks for.
    fn await_kernel(&mut self, event: &EngineEvent, at: Instant) {
        match event {
            EngineEvent::EndpointConnected { network, container } => {
                self.awaited.connected(container, network, at);
            }
            EngineEvent::EndpointDisconnected { network, container } => {
                self.awaited.ended("disconnect", container, Some(network), at);
            }
            EngineEvent::ContainerStopped(id) => self.awaited.ended("die", id, None, at),
            EngineEvent::ContainerDestroyed(id) => self.awaited.ended("destroy", id, None, at),
            EngineEvent::ContainerStarted(id) => {
                if let Some(lead) = self.awaited.started(id, at) {
                    self.measures.lead(lead);
                }
            }
            _ => {}
        }
    }

    /// An event of one object: what it says for certain is taken over, the rest is read.
    pub(super) fn object_event(&mut self, event: EngineEvent) -> Option<Cause> {
        match event {
            EngineEvent::ContainerCreated(id) => {
                self.meet(id);
                None
            }
            EngineEvent::ContainerStarted(id) | EngineEvent::ContainerRenamed(id) => {
                self.read(Object::Container(id));
                None
            }
            EngineEvent::ContainerStopped(id) => {
                self.planner.set_lifecycle(&id, Lifecycle::Stopped);
                self.read(Object::Container(id));
                Some("container stopped")
            }
            EngineEvent::ContainerDestroyed(id) => {
                self.reader
                    .forget(&[Object::Container(id.clone()), Object::Glance(id.clone())]);
                self.planner.remove_container(&id);
                Some("container removed")
            }
            EngineEvent::NetworkCreated(id) => {
                self.read(Object::Network(id));
                None
            }
            EngineEvent::NetworkDestroyed(id) => {
                let ours = self
                    .planner
                    .inventory()
                    .network(&id)
                    .is_some_and(Network::is_ours);
                self.reader.forget(&[Object::Network(id.clone())]);
                self.planner.remove_network(&id);
                if ours {
                    // Stopped containers may still wish for it, and then they cannot start: only a listing shows that.
                    self.read(Object::Everything);
                }
                Some("network removed")
            }
            EngineEvent::EndpointConnected { network, container } => {
                if self.planner.inventory().container(&container).is_none() {
                    self.meet(container);
                }
                self.read(Object::Network(network));
                None
            }
            EngineEvent::EndpointDisconnected { network, container } => {
                // The address may be another's already; whether the attachment stays, the container tells.
                self.planner
                    .set_endpoint(&container, &network, Endpoint::default(), self.planner.moment());
                self.read(Object::Container(container));
                Some("endpoint gone")
            }
            EngineEvent::Connected(_) | EngineEvent::Disconnected { .. } | EngineEvent::Resync => None,
        }
    }

    /// Whether containers whose powers are not known are to be cut: then the first listing must tell them, so that none that runs
    /// is cut for a moment.
    fn waits_for_powers(&self) -> bool {
        self.planner.rights().unenforceable != OnUnenforceable::Report
    }

    fn take_listing(&mut self, listing: Listing, began: Moment) -> Cause {
        let (mut newer, mut unknown) = (Changes::default(), Vec::new());
        for event in &self.meanwhile {
            let touched = event.touches();
            if !self.planner.inventory().knows(&touched) {
                unknown.push(event.clone());
            }
            newer.merge(touched);
        }
        self.planner.reset_except(listing, began, newer);
        // What they told of was not known, or is gone: the listing brought it, as it was before them.
        for event in unknown {
            self.object_event(event);
        }
        self.listed = true;
        self.needs_giving_back = true;
        fault::point("listed");
        self.engine_missing = None;
        self.reading_failures = (0, String::new());
        "listing"
    }

    /// Reads an object; what it says counts for the ports that are there now.
    pub(super) fn read(&mut self, object: Object) {
        if object.is_listing() && !self.reader.is_listing() {
            self.meanwhile.clear();
        }
        self.reader.read(object, self.planner.moment());
    }

    /// Reads everything, since an event was lost: what the others told of may have changed again.
    fn read_after_loss(&mut self) {
        self.meanwhile.clear();
        self.read(Object::Everything);
    }

    /// Reads a container that is not known yet. Its inspection waits until it has started: what the list says of it comes
    /// before.
    fn meet(&mut self, id: ContainerId) {
        self.read(Object::Glance(id.clone()));
        self.read(Object::Container(id));
    }

    pub(super) fn reading(&mut self, finished: Finished) -> Option<Cause> {
        let (reading, began) = self.reader.finish(finished, self.planner.moment())?;
        match reading {
            Reading::Everything(listing) => {
                self.knows_powers = true;
                // What one listing had no time to ask is asked soon, however many containers there are.
                if listing.containers.iter().any(|it| it.facts.powers.is_none()) {
                    self.resync_at = self.resync_at.min(tokio::time::Instant::now() + RESYNC);
                }
                Some(self.take_listing(listing, began))
            }
            Reading::Outline(listing) => {
                let cause = self.take_listing(listing, began);
                self.read(Object::Everything);
                Some(cause)
            }
            Reading::Container(_, Some(container)) => {
                self.planner.upsert_container(container, began);
                Some("container read")
            }
            Reading::Container(id, None) => {
                self.planner.remove_container(&id);
                Some("container gone")
            }
            Reading::Glance(Some(container))
                if self.planner.inventory().container(&container.id).is_none() =>
            {
                self.planner.upsert_container(container, began);
                Some("container seen")
            }
            Reading::Glance(_) => None,
            Reading::Network(_, Some(snapshot)) => {
                let id = snapshot.network.id.clone();
                self.planner.upsert_network(snapshot.network);
                // Of those whose proof waited for this, the ones that are no longer on it. Where a newer reading is under way,
                // it may be that they were not on it yet.
                let is_last = !self.reader.is_reading(&Object::Network(id.clone()));
                for container in self.planner.unconfirmed_on(&id) {
                    if is_last && !snapshot.endpoints.contains_key(&container) {
                        self.planner
                            .set_endpoint(&container, &id, Endpoint::default(), began);
                        self.read(Object::Container(container));
                    }
                }
                for (container, endpoint) in snapshot.endpoints {
                    self.planner.set_endpoint(&container, &id, endpoint, began);
                }
                let unknown: Vec<_> = self.planner.inventory().unknown_containers().cloned().collect();
                for container in unknown {
                    self.meet(container);
                }
                Some("network read")
            }
            Reading::Network(id, None) => {
                self.planner.remove_network(&id);
                Some("network gone")
            }
            Reading::Failed(object, error) => {
                let (failures, last) = &mut self.reading_failures;
                *failures = failures.saturating_add(1);
                *last = chain(&error);
                warn!(
                    error = last,
                    ?object,
                    "the engine did not answer: everything will be listed"
                );
                let failures = *failures;
                // Whatever failed, a listing makes up for it. One at a time, with growing pauses.
                if !self.relisting {
                    self.relisting = true;
                    self.retry_later(Retry::Listing, failures);
                }
                Some("reading failed")
            }
        }
    }

    /// Looks, some time after a pass, whether what the kernel shows fits what the engine said. Where it does not and nothing
    /// happens any more, an event was lost: everything is listed again.
    pub(super) fn look_for_doubts(&mut self) {
        let doubts = &mut self.doubts;
        doubts.due = false;
        let found = self.planner.doubts();
        let lasting = found
            .intersection(&doubts.found)
            .any(|it| !doubts.accepted.contains(it));
        doubts.accepted.retain(|it| found.contains(it));
        doubts.looks = if found.is_subset(&doubts.accepted) {
            0
        } else {
            doubts.looks + 1
        };
        doubts.found = found;
        if lasting && self.reader.engine().is_some() {
            debug!(doubts = ?self.doubts.found, "kernel and engine do not fit: an event was lost");
            // If it is still so after this, then it is so.
            self.doubts.accepted.clone_from(&self.doubts.found);
            self.read_after_loss();
        }
        if self.doubts.looks > 0 {
            self.look_later();
        }
    }

    pub(super) fn look_later(&mut self) {
        if self.doubts.due || !self.listed {
            return;
        }
        self.doubts.due = true;
        let (first, last) = DOUBT;
        let pause = first
            .saturating_mul(1 << self.doubts.looks.saturating_sub(2).min(5))
            .min(last);
        let sender = self.retries.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            let _ = sender.send(Retry::Doubts);
        });
    }

    /// Others changed nftables: what they did to our tables is undone by replacing all of it, in one transaction.
    pub(super) fn generation(&mut self, event: &GenerationEvent) -> Option<Cause> {
        let GenerationEvent::Made(generation) = event else {
            warn!("changes of nftables were lost: reading our tables");
            return self.verify();
        };
        let ours = self.kernel.made(generation);
        let touched = generation.touched?;
        // Before the tables are made, and while they wait to be replaced, nothing of theirs is worth a repair.
        if ours || !self.planner.is_applied() || self.kernel.undid(generation) {
            return None;
        }
        self.drift(touched.as_str(), Some((&generation.process, generation.pid)))
    }

    /// Reads our tables and has them replaced where they are not as they were left.
    pub(super) fn verify(&mut self) -> Option<Cause> {
        if !self.planner.is_applied() {
            return None;
        }
        match self.kernel.difference(&self.planner) {
            Ok(None) => None,
            Ok(Some(what)) => self.drift(what, None),
            Err(error) => {
                warn!(error = %chain(&error), "our tables could not be read; the slow timer tries again");
                None
            }
        }
    }

    pub(super) fn drift(&mut self, what: &str, culprit: Option<(&str, u32)>) -> Option<Cause> {
        let pause = self.repairs.tables_changed(what, culprit);
        self.planner.kernel_lost();
        // What was opened while the rules were others' must not live on as established.
        self.planner.request_sweep();
        // Whoever asks meanwhile is not told that all is well.
        self.publish();
        if pause.is_zero() {
            return Some("drift");
        }
        let sender = self.retries.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            let _ = sender.send(Retry::Kernel);
        });
        None
    }
}
