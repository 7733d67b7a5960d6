//! What needs no kernel: reading and compiling a policy, planning a change of one edge in it, and what one event costs the
//! planner on hosts of different sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

use cofferdam::inventory::Lifecycle;
use cofferdam::model::{Identity, Rights};
use cofferdam::plan::Planner;
use cofferdam::plan::compile::compile;
use cofferdam::plan::diff::transition;
use cofferdam::policy::load;

use crate::harness::{Effort, Goal, Report, Sample};
use crate::scene::{self, Host, OPTIONS, Shape};

pub(crate) fn run(report: &mut Report) {
    let services: &[usize] = report.effort.of(&[10, 30, 100], &[30, 100, 300, 1000]);
    let runs = report.effort.of(3, 9);
    for name in ["check", "compile", "change of one edge, planned"] {
        let mut points = Vec::new();
        for count in services.iter().copied() {
            let shape = Shape::ring(count);
            let files = shape.files();
            let changed = Shape {
                changed: true,
                ..shape
            };
            let (old, new) = (shape.rights(), changed.rights());
            let names = identities(&old);
            let standing = compile(&old, &names, OPTIONS).ruleset;
            let sample = match name {
                "check" => Sample::times(runs, || drop(black_box(load(&files)))),
                "compile" => Sample::times(runs, || drop(black_box(compile(&old, &names, OPTIONS)))),
                _ => Sample::times(runs, || {
                    let structure = compile(&new, &names, OPTIONS);
                    drop(black_box(transition(&standing, &structure.ruleset, Vec::new())));
                }),
            };
            let goal = match (name, count) {
                ("check", 1000) => Goal::AtMost(200.0),
                _ => Goal::None,
            };
            points.push((count, sample.median()));
            let edges = shape.edges().count();
            report.figure(
                &format!("{name}: {count} services, {edges} edges"),
                "ms",
                &sample,
                None,
                goal,
            );
        }
        report.growth(name, &points, Goal::AtMost(1.2));
    }
    one_event(report);
}

fn identities(rights: &Rights) -> BTreeSet<Identity> {
    rights.policy.services.keys().cloned().map(Identity::of).collect()
}

/// A container ends and starts again: what the planner takes for both passes.
fn one_event(report: &mut Report) {
    let sizes: &[usize] = report.effort.of(&[30, 100, 300], &[100, 1000, 10_000]);
    let mut points = Vec::new();
    for endpoints in sizes.iter().copied() {
        let host = Host {
            endpoints,
            services: 100,
        };
        let mut planner = scene::planner(Shape::ring(host.services).rights());
        host.tell(&mut planner, &BTreeMap::new(), &BTreeMap::new());
        settle(&mut planner);
        let runs = report.effort.of(2, 5);
        let sample = Sample::times(runs, || stop_and_start(&mut planner, host));
        let sample = Sample::new(vec![
            sample.quantile(0.0) / 2.0,
            sample.median() / 2.0,
            sample.quantile(1.0) / 2.0,
        ]);
        let goal = match (report.effort, points.first()) {
            (Effort::Full, Some((_, least))) if endpoints == 10_000 => Goal::AtMost(1.5 * least),
            _ => Goal::None,
        };
        let baseline = points.first().map(|(_, least)| *least);
        points.push((endpoints, sample.median()));
        report.figure(
            &format!("one event, planned: {endpoints} endpoints"),
            "ms",
            &sample,
            baseline,
            goal,
        );
    }
    report.growth("one event, planned", &points, Goal::AtMost(0.2));
}

/// As if the kernel did everything at once, and the engine were busy with the networks.
fn settle(planner: &mut Planner) {
    for _ in 0..3 {
        let plan = planner.plan();
        for step in &plan.networks {
            planner.network_step_started(step);
        }
        planner.kernel_applied();
        for step in plan.links {
            planner.link_applied(step);
        }
        if let Some(ending) = planner.start_ending(BTreeSet::new) {
            planner.flows_ended(ending.number);
        }
    }
}

fn stop_and_start(planner: &mut Planner, host: Host) {
    let container = host.container(0);
    let port = Host::port(0);
    let one = |planner: &mut Planner| {
        let _plan = black_box(planner.plan());
        planner.kernel_applied();
        if let Some(ending) = planner.start_ending(BTreeSet::new) {
            planner.flows_ended(ending.number);
        }
    };
    planner.remove_port(port.index);
    planner.set_lifecycle(&container.id, Lifecycle::Stopped);
    one(planner);
    planner.upsert_port(port);
    let now = planner.moment();
    planner.upsert_container(container, now);
    one(planner);
}
