//! What the daemon tells, on the control socket and over HTTP: the status as it was published, with what the kernel says at the
//! moment of the question.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::debug;

use super::control::{Answer, InForce, Request};
use super::flows::{FlowLog, FlowsAnswer};
use super::metrics::{self, Measures, Sources};
use super::posture::Audited;
use super::status::Status;
use super::usage::Usage;
use crate::kernel::elements::{Elements, ElementsError};
use crate::plan::names::UNLOGGED;

/// Where all of it comes from.
#[derive(Debug, Clone)]
pub struct Told {
    pub status: watch::Receiver<Arc<Status>>,
    pub policy: watch::Receiver<Arc<InForce>>,
    pub flows: FlowLog,
    pub usage: Usage,
    pub measures: Measures,
    pub audited: Audited,
}

impl Told {
    /// Answers a request.
    pub async fn answer(self, request: Request) -> Answer {
        match request {
            Request::Status => match self.completed().await {
                Ok(status) => Answer::Status(Box::new(status)),
                Err(message) => Answer::Error(message),
            },
            Request::Policy => {
                let policy = Arc::clone(&self.policy.borrow());
                policy.answer()
            }
            Request::Flows { after } => Answer::Flows(Box::new(self.flows_after(after).await)),
            Request::Metrics => match self.completed().await {
                Ok(status) => Answer::Metrics(metrics::text(&self.sources(Arc::new(status)))),
                Err(message) => Answer::Error(message),
            },
        }
    }

    /// The flows that have changed after this `seq`.
    pub async fn flows_after(&self, seq: u64) -> FlowsAnswer {
        let mut answer = self.flows.after(seq);
        answer.missed.unlogged_packets = unlogged().await;
        answer
    }

    /// The status with what the kernel says now.
    ///
    /// # Errors
    /// Why the kernel cannot be asked.
    pub async fn completed(&self) -> Result<Status, String> {
        let status = Arc::clone(&self.status.borrow());
        completed(status, self.usage.clone()).await
    }

    /// What metrics are made from, with this status.
    pub fn sources(&self, status: Arc<Status>) -> Sources {
        let (totals, mut missed) = self.flows.totals();
        missed.unlogged_packets = status.unlogged_packets.unwrap_or_default();
        Sources {
            status,
            totals,
            missed,
            measures: self.measures.clone(),
            audit: self.audited.report(),
        }
    }
}

async fn completed(status: Arc<Status>, usage: Usage) -> Result<Status, String> {
    let result = tokio::task::spawn_blocking(move || {
        let mut status = Arc::unwrap_or_clone(status);
        let mut elements = Elements::open()?;
        status.complete(&mut elements, &usage)?;
        Ok::<_, ElementsError>(status)
    });
    match result.await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(error)) => Err(format!("cannot read the kernel's rules: {error}")),
        Err(error) => Err(format!("the request failed: {error}")),
    }
}

/// Packets that the rules counted and did not log; 0 where the kernel cannot be asked, or there are no rules.
async fn unlogged() -> u64 {
    let read = || {
        let mut elements = Elements::open()?;
        let mut packets = 0;
        for (table, name) in UNLOGGED {
            packets += elements.counter(table, &name.into())?.map_or(0, |it| it.packets);
        }
        Ok::<_, ElementsError>(packets)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(packets)) => packets,
        Ok(Err(error)) => {
            debug!(%error, "what was not logged is not known");
            0
        }
        Err(_) => 0,
    }
}
