//! Policies in a real kernel: from nothing, and a change of one edge, each one transaction, carried out by the daemon's own
//! executor.

use std::collections::BTreeMap;
use std::time::Instant;

use cofferdam::daemon::executor::{Kernel, KernelError};
use cofferdam::model::Rights;
use cofferdam::plan::{KernelStep, Planner};
use cofferdam::policy::load;

use crate::harness::{Goal, Report, Sample, milliseconds, runtime};
use crate::scene::{self, Host, Shape};

pub(crate) fn run(report: &mut Report) {
    runtime().block_on(policies(report));
}

pub(crate) async fn carry_out(
    kernel: &mut Kernel,
    planner: &mut Planner,
) -> Result<&'static str, KernelError> {
    let plan = planner.plan();
    let kind = match &plan.kernel {
        KernelStep::Nothing => "nothing",
        KernelStep::Elements(_) => "elements",
        KernelStep::Structure(_) => "structure",
        KernelStep::Replace(_) => "replace",
    };
    kernel.carry_out(&plan, planner).await?;
    Ok(kind)
}

async fn policies(report: &mut Report) {
    let services: &[usize] = report.effort.of(&[10, 30], &[100, 300, 1000]);
    let runs = report.effort.of(1, 7);
    let (mut from_nothing, mut one_edge) = (Vec::new(), Vec::new());
    for count in services.iter().copied() {
        let shape = Shape::ring(count);
        let edges = shape.edges().count();
        let goal = |bound: f64| {
            if count == 1000 {
                Goal::AtMost(bound)
            } else {
                Goal::None
            }
        };
        for endpoints in [0, count * 10] {
            let host = Host {
                endpoints,
                services: count,
            };
            let size = format!("{count} services, {edges} edges, {endpoints} endpoints");
            let (mut whole, mut change) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                match one_run(shape, host).await {
                    Ok((all, one)) => {
                        whole.push(all);
                        change.extend(one);
                    }
                    Err(error) => {
                        println!("policy from nothing: {size}: {error}");
                        let name = format!("policy from nothing, refused: {size}");
                        report.figure(&name, "", &Sample::one(1.0), None, Goal::AtMost(0.0));
                        break;
                    }
                }
            }
            if whole.is_empty() {
                continue;
            }
            let (whole, change) = (Sample::new(whole), Sample::new(change));
            report.figure(
                &format!("policy from nothing: {size}"),
                "ms",
                &whole,
                None,
                goal(500.0),
            );
            report.figure(
                &format!("change of one edge: {size}"),
                "ms",
                &change,
                None,
                goal(15.0),
            );
            if endpoints > 0 {
                from_nothing.push((count, whole.median()));
                one_edge.push((count, change.median()));
            }
        }
    }
    report.growth("policy from nothing", &from_nothing, Goal::AtMost(1.2));
    report.growth("change of one edge", &one_edge, Goal::None);
}

/// The policy's files in, its rules in the kernel; then one edge more and less, a few times.
async fn one_run(shape: Shape, host: Host) -> Result<(f64, Vec<f64>), KernelError> {
    let mut kernel = Kernel::open().unwrap();
    let files = shape.files();
    let mut planner = scene::planner(Rights::default());
    if host.endpoints > 0 {
        host.tell(&mut planner, &BTreeMap::new(), &BTreeMap::new());
    }
    let begun = Instant::now();
    let policy = load(&files).unwrap().policy;
    planner.set_rights(Rights {
        policy,
        ..Rights::default()
    });
    assert_eq!(carry_out(&mut kernel, &mut planner).await?, "replace");
    let whole = milliseconds(begun.elapsed());
    let (old, new) = (
        shape.rights(),
        Shape {
            changed: true,
            ..shape
        }
        .rights(),
    );
    let mut changes = Vec::new();
    for rights in [&new, &old, &new, &old] {
        let rights = rights.clone();
        let begun = Instant::now();
        planner.set_rights(rights);
        assert_eq!(carry_out(&mut kernel, &mut planner).await?, "structure");
        changes.push(milliseconds(begun.elapsed()));
    }
    kernel.remove_tables().await.unwrap();
    Ok((whole, changes))
}
