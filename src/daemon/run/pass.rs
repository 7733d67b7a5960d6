//! One pass: what is planned is carried out and published; what failed comes again.

use super::*;

impl Daemon {
    pub(super) fn step_done(&mut self, done: StepDone) -> Option<Cause> {
        let StepDone { step, result } = done;
        match result {
            Ok(outcome) => {
                self.step_failures.remove(&step.subject());
                self.planner.network_step_done(&step);
                self.step_succeeded(&step, outcome);
            }
            Err(error) => {
                let entry = self.step_failures.entry(step.subject()).or_default();
                entry.0 += 1;
                entry.1 = error.to_string();
                let attempts = entry.0;
                warn!(%error, attempts, "an engine call failed");
                self.retry_later(Retry::Step(step), attempts);
            }
        }
        Some("engine call done")
    }

    pub(super) fn step_succeeded(&mut self, step: &NetworkStep, outcome: NetworkOutcome) {
        match (step, outcome) {
            (
                NetworkStep::Create {
                    name, bridge, ipv4, ..
                },
                NetworkOutcome::Created(network),
            ) => {
                info!(network = name, %bridge, subnet = %ipv4, "network created");
                self.planner.upsert_network(network);
            }
            (
                NetworkStep::Attach {
                    network,
                    container,
                    ipv4,
                    ipv6,
                    ..
                },
                _,
            ) => {
                // Attaching a container that does not run tells nothing until its start; of a running one the event may
                // have been faster.
                let known = self.planner.inventory().container(container);
                let live = known
                    .and_then(|it| it.endpoints.get(network))
                    .is_some_and(Endpoint::is_live);
                if known.is_some() && !live {
                    let endpoint = Endpoint {
                        mac: None,
                        ipv4: Some(*ipv4),
                        ipv6: *ipv6,
                    };
                    let now = self.planner.moment();
                    self.planner.set_endpoint(container, network, endpoint, now);
                }
            }
            (NetworkStep::Detach { network, container }, _) => {
                self.planner.remove_endpoint(container, network);
            }
            (NetworkStep::Remove { network, name }, _) => {
                info!(network = name, "network removed");
                self.planner.remove_network(network);
            }
            (NetworkStep::Forget { name, container }, _) => {
                info!(network = name, %container, "a stopped container no longer waits for a network that is gone");
                self.planner.network_forgotten(container, name);
            }
            (NetworkStep::Stop { container, .. }, _) => {
                // The event of its end may come later; until then it would be stopped again.
                self.planner.set_lifecycle(container, Lifecycle::Stopped);
            }
            (NetworkStep::Create { .. }, _) => {}
        }
    }

    pub(super) fn retry(&mut self, retry: &Retry) -> Option<Cause> {
        match retry {
            Retry::Kernel => {
                if !self.listed {
                    self.read(Object::Everything);
                }
            }
            Retry::Listing => {
                self.relisting = false;
                self.read(Object::Everything);
                return None;
            }
            Retry::Doubts => {
                self.look_for_doubts();
                return None;
            }
            Retry::Port(port) => {
                self.explain(*port);
                return None;
            }
            Retry::Step(step) => {
                self.planner.network_step_done(step);
                // What it worked on may have changed: read it, so that the next plan is made from what is true.
                self.read(Object::Everything);
            }
        }
        Some("retry")
    }

    pub(super) fn retry_later(&self, retry: Retry, attempts: u32) {
        let pause = pause(attempts);
        let sender = self.retries.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            let _ = sender.send(retry);
        });
    }

    /// Plans, carries out, publishes.
    pub(super) async fn pass(&mut self, cause: Cause) {
        if !self.may_touch_the_kernel() {
            self.publish();
            return;
        }
        let started = Instant::now();
        let plan = self.planner.plan();
        if !plan.is_empty() {
            self.change_kernel(cause, &plan, started).await;
            self.start_engine_calls(&plan.networks);
        } else {
            // What could not be done is not wanted any more.
            self.kernel_failure = None;
        }
        self.end_flows();
        for network in self.planner.unconfirmed() {
            self.reader
                .confirm(Object::Network(network), self.planner.moment());
        }
        self.look_later();
        let wanted = |subject: &Subject| plan.networks.iter().any(|step| step.subject() == *subject);
        self.step_failures
            .retain(|subject, _| self.planner.is_busy(subject) || wanted(subject));
        self.exhausted = plan.exhausted;
        self.passes.count += 1;
        self.passes.last_cause = cause.to_owned();
        self.passes.last_elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.measure_pass(cause, started);
        self.findings.observe(&self.planner);
        let moves = self.planner.moves();
        if !moves.is_empty() {
            self.informant.tell(Update::Moves(moves));
        }
        // The next pass does not wait for the status of this one, for a moment.
        self.unpublished = true;
        if self.published.elapsed() > UNPUBLISHED.max(self.rest) {
            self.publish();
        }
    }

    /// How long the status of the last pass is still to wait.
    pub(super) fn until_publishing(&self) -> Duration {
        self.rest.saturating_sub(self.published.elapsed())
    }

    fn measure_pass(&mut self, cause: Cause, started: Instant) {
        let now = Instant::now();
        self.measures.pass(cause, now.duration_since(started));
        // What could not be changed is not answered.
        if self.kernel_failure.is_some() {
            return;
        }
        let planner = &self.planner;
        let answered = self.awaited.pass_ended(now, |container, network| {
            match planner.standings().get(container) {
                Some(Standing::Managed(_)) | None => match status::is_bound(planner, container, network) {
                    true => Bound::Yes,
                    false => Bound::NotYet,
                },
                Some(Standing::Unmanaged | Standing::Quarantined(_) | Standing::Isolated(_)) => Bound::Never,
            }
        });
        for (event, elapsed) in answered.0 {
            self.measures.answered(event, elapsed);
        }
    }

    pub(super) async fn change_kernel(&mut self, cause: Cause, plan: &Plan, started: Instant) {
        let needs_nft = matches!(plan.kernel, KernelStep::Structure(_) | KernelStep::Replace(_));
        let waiting = |failure: &Failure| needs_nft && failure.is_fresh();
        let result = if self.kernel_failure.as_ref().is_some_and(waiting) {
            self.kernel.close(plan, &mut self.planner).map(|_| None)
        } else {
            self.kernel.change_rules(plan, &mut self.planner).await.map(Some)
        };
        match result {
            Ok(None) => {}
            Ok(Some(())) => {
                self.kernel_failure = None;
                self.repairs.pass_done();
                self.start_link_steps(&plan.links);
                self.log_pass(cause, plan, started);
            }
            Err(failure) => {
                let what = "the rules could not be changed";
                let failure = Failure::after(self.kernel_failure.as_ref(), what, &failure);
                let attempts = failure.attempts;
                error!(reason = failure.reason, cause, attempts, "what stands stays");
                self.kernel_failure = Some(failure);
                self.retry_later(Retry::Kernel, attempts);
            }
        }
    }

    /// Bridges and ports are set beside the loop: until then a frame that misses `inet forward` is dropped by `bridge sealed`.
    fn start_link_steps(&mut self, steps: &[LinkStep]) {
        if steps.is_empty() {
            return;
        }
        steps.iter().for_each(|step| self.planner.link_started(*step));
        let (links, sender, steps) = (Arc::clone(&self.links), self.link_steps.clone(), steps.to_vec());
        tokio::spawn(async move {
            for step in steps {
                let result = link_step(&links, step).await;
                let _ = sender.send(LinkDone { step, result });
            }
        });
    }

    /// Takes what became of a step on a bridge or port; one that failed comes again with the next pass.
    pub(super) fn link_done(&mut self, done: LinkDone) -> Option<Cause> {
        let LinkDone { step, result } = done;
        self.unpublished = true;
        if !link_step_done(&mut self.planner, step, result) {
            return None;
        }
        self.repairs.link_set(step);
        // Something else may be wanted of it by now.
        Some("link set")
    }

    /// Has those connections ended that can be ended now.
    pub(super) fn end_flows(&mut self) {
        if self.flows_failure.as_ref().is_some_and(Failure::is_fresh) {
            return;
        }
        if let Some(ending) = self.planner.start_ending(host_addresses) {
            self.endings.end(ending);
        }
    }

    /// Takes what became of connections that were to end.
    pub(super) fn flows_report(&mut self, report: Report) -> Option<Cause> {
        match report {
            Report::Suspects(mut flows, answer) => {
                let now = self.planner.sweep(host_addresses());
                flows.retain(|flow| !permits(&now, flow));
                let _ = answer.send(flows);
                None
            }
            Report::Over {
                through,
                result:
                    Ok(Ended {
                        flows,
                        addresses,
                        swept,
                    }),
            } => {
                info!(flows, addresses, swept, "connections ended");
                self.flows_failure = None;
                self.planner.flows_ended(through);
                if swept {
                    fault::point("flows-swept");
                }
                Some("connections ended")
            }
            Report::Over {
                through,
                result: Err(error),
            } => {
                self.planner.flows_not_ended(through);
                let what = "open connections could not be ended";
                let failure = Failure::after(self.flows_failure.as_ref(), what, &error);
                let attempts = failure.attempts;
                error!(reason = failure.reason, attempts, "their addresses stay closed");
                self.flows_failure = Some(failure);
                self.retry_later(Retry::Kernel, attempts);
                Some("connections not ended")
            }
        }
    }

    /// Before the engine and the policy are known, rules of an earlier run are better than none: they stay. Without such
    /// rules a skeleton that is closed for Docker's bridges is.
    pub(super) fn may_touch_the_kernel(&mut self) -> bool {
        let known = self.listed && self.policy.revision.is_some();
        let skeleton = self.engine_missing.is_some() && !self.kernel.has_tables().unwrap_or(true);
        known || self.planner.is_applied() || skeleton
    }

    pub(super) fn start_engine_calls(&mut self, steps: &[NetworkStep]) {
        let Some(engine) = self.reader.engine() else {
            return;
        };
        if self.policy.revision.is_none() || !self.listed {
            return;
        }
        for step in steps {
            if let NetworkStep::Stop { name, reason, .. } = step {
                warn!(
                    container = name,
                    reason, "stopping a container that cannot be held to its rights"
                );
            }
            self.planner.network_step_started(step);
            let (engine, step, sender) = (engine.clone(), step.clone(), self.steps.clone());
            tokio::spawn(async move {
                let result = network_step(&engine, &step).await;
                let _ = sender.send(StepDone { step, result });
            });
        }
    }

    pub(super) fn log_pass(&self, cause: Cause, plan: &Plan, started: Instant) {
        let (kernel, steps) = match &plan.kernel {
            KernelStep::Nothing => ("nothing", 0),
            KernelStep::Elements(changes) => ("elements", changes.len()),
            KernelStep::Structure(steps) => ("structure", steps.len()),
            KernelStep::Replace(steps) => ("replace", steps.len()),
        };
        let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        info!(
            cause,
            kernel,
            steps,
            ended = plan.ended.len(),
            links = plan.links.len(),
            engine_calls = plan.networks.len(),
            elapsed_us,
            "pass"
        );
    }

    /// Tells systemd that the loop goes round, and that the rules stand as soon as they do.
    pub(super) fn tell_manager(&mut self) {
        self.manager.beat();
        if self.manager.is_waiting() {
            // Rules of an earlier run are left alone as long as the engine cannot be asked.
            let earlier = self.engine_missing.is_some() && self.kernel.has_tables().unwrap_or(false);
            if self.planner.is_applied() || earlier {
                self.manager.ready();
            }
        }
    }

    pub(super) fn publish(&mut self) {
        fault::point("before-publish");
        let begun = Instant::now();
        self.unpublished = false;
        let mut status = Status::starting();
        status.observe(&self.planner);
        status.policy = self.policy.clone();
        status.audit = self.audit.clone();
        status.passes = self.passes.clone();
        status.passes.repairs = self.repairs.count;
        status.drift = self.repairs.last.clone();
        status.engine = self.reader.engine().map(|engine| engine.info().version.clone());
        status.reasons.extend(self.repairs.pending());
        status
            .reasons
            .extend(self.kernel_failure.iter().map(|it| it.reason.clone()));
        status
            .reasons
            .extend(self.flows_failure.iter().map(|it| it.reason.clone()));
        status
            .reasons
            .extend(self.without_bridge_netfilter.iter().cloned());
        status
            .reasons
            .extend(self.http.iter().filter_map(|it| it.borrow().clone()));
        status.reasons.extend(self.policy_reasons());
        let untold = self.flows.failure();
        status
            .reasons
            .extend(untold.map(|why| format!("denied flows are not told: {why}")));
        status
            .reasons
            .extend(self.exhausted.iter().map(ToString::to_string));
        status
            .reasons
            .extend(self.step_failures.values().map(|(_, error)| error.clone()));
        match (&self.engine_missing, &self.reading_failures) {
            (Some(reason), _) if self.reader.engine().is_none() => {
                status
                    .reasons
                    .push(format!("no connection to the engine: {reason}"));
            }
            (_, (failures, last)) if *failures > 0 => {
                status
                    .reasons
                    .push(format!("the engine could not be read: {last}"));
            }
            _ => {}
        }
        if let Some(since) = self.reader.is_late() {
            let seconds = since.as_secs();
            status
                .reasons
                .push(format!("the engine has not answered a listing for {seconds} s"));
        }
        status.settled = !self.planner.is_changing_links()
            && self.planner.busy().next().is_none()
            && !self.reader.is_busy()
            && !self.planner.is_ending();
        status.state = if self.reader.engine().is_none() {
            State::Waiting
        } else if !self.listed || self.policy.revision.is_none() && status.reasons.is_empty() {
            State::Starting
        } else if status.reasons.is_empty() && self.planner.is_applied() {
            State::Enforcing
        } else {
            State::Degraded
        };
        self.manager.status(&status);
        // Nobody may be asking.
        self.status.send_replace(Arc::new(status));
        self.published = Instant::now();
        // Reading and deciding on ten thousand containers takes half as much again as what is kept of them.
        if std::mem::take(&mut self.needs_giving_back) {
            tokio::task::spawn_blocking(cofferdam_heap::give_back);
        }
        let share = begun.elapsed().saturating_mul(STATUS_SHARE);
        self.rest = share.min(LONGEST_REST);
    }
}
