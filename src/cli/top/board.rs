//! What is shown, and what keys do to it. In: answers of the daemon and keys. Out: rows in their order. It is told the time.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Instant;

use jiff::Timestamp;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::daemon::flows::{FlowRecord, FlowVerdict, FlowsAnswer, Missed};
use crate::daemon::status::{State, Status};

/// Rates are those of so many answers.
const SAMPLES: usize = 5;
/// Events and flows that are kept.
const EVENTS: usize = 200;
const FLOWS: usize = 5000;

/// What is listed in the upper half and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    Rate,
    Total,
    Name,
}

/// Which list the arrows move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Pane {
    #[default]
    Edges,
    Denied,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Quit,
}

/// An edge as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EdgeRow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) ports: String,
    pub(super) total: Option<u64>,
    pub(super) rate: f64,
}

/// A flow as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FlowRow {
    pub(super) last: Timestamp,
    pub(super) verdict: FlowVerdict,
    pub(super) from: String,
    pub(super) target: String,
    pub(super) attempts: u64,
    pub(super) rate: f64,
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) status: Option<Status>,
    pub(super) missed: Missed,
    pub(super) events: VecDeque<(Timestamp, String)>,
    /// Why nothing new is known.
    pub(super) silence: Option<String>,
    pub(super) order: Order,
    pub(super) pane: Pane,
    pub(super) filter: String,
    pub(super) typing: bool,
    pub(super) paused: bool,
    /// The first row of each list that is shown.
    pub(super) scroll: [usize; 2],
    /// Of the flow log: when it began, and the last change that is known.
    log: Option<(Timestamp, u64)>,
    flows: BTreeMap<String, FlowRecord>,
    samples: VecDeque<Sample>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    edges: BTreeMap<String, u64>,
    flows: BTreeMap<String, u64>,
}

impl Board {
    /// The last change of the flow log that is known.
    pub(super) fn after(&self) -> u64 {
        self.log.map_or(0, |(_, last)| last)
    }

    /// Takes an answer over.
    pub(super) fn observe(&mut self, status: Status, answer: FlowsAnswer, now: Instant) {
        self.silence = None;
        if self.paused {
            return;
        }
        if let Some(before) = &self.status {
            let news = changes(before, &status);
            self.tell(news);
        }
        if self.log.is_some_and(|(since, _)| since != answer.since) {
            // Another daemon: it counts anew, and is asked for everything the next time.
            self.flows.clear();
            self.samples.clear();
            self.log = Some((answer.since, 0));
        } else {
            let first = self.log.is_none();
            self.log = Some((answer.since, answer.last));
            self.take_flows(answer.flows, first);
        }
        self.missed = answer.missed;
        let edges = status.edges.iter();
        self.samples.push_back(Sample {
            at: now,
            edges: edges
                .filter_map(|it| Some((it.counter.clone(), it.packets?)))
                .collect(),
            flows: self
                .flows
                .iter()
                .map(|(key, it)| (key.clone(), it.attempts))
                .collect(),
        });
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        self.status = Some(status);
    }

    fn take_flows(&mut self, flows: Vec<FlowRecord>, first: bool) {
        let mut news = Vec::new();
        for flow in flows {
            let key = key(&flow);
            if !self.flows.contains_key(&key) && !first {
                news.push((flow.last_seen, flow.to_string()));
            }
            self.flows.insert(key, flow);
        }
        self.events.extend(news);
        while self.flows.len() > FLOWS {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.seq);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            self.flows.remove(&key);
        }
        self.bound_events();
    }

    fn tell(&mut self, news: Vec<String>) {
        let now = Timestamp::now();
        self.events.extend(news.into_iter().map(|it| (now, it)));
        self.bound_events();
    }

    fn bound_events(&mut self) {
        while self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    /// No answer came.
    pub(super) fn silence(&mut self, error: &io::Error) {
        if self.silence.is_none() {
            self.tell(vec![format!("the daemon does not answer: {error}")]);
        }
        self.silence = Some(error.to_string());
    }

    /// The edges that the filter lets through, in order.
    pub(super) fn edges(&self) -> Vec<EdgeRow> {
        let Some(status) = &self.status else {
            return Vec::new();
        };
        let mut rows: Vec<EdgeRow> = status
            .edges
            .iter()
            .map(|edge| EdgeRow {
                from: edge.from.clone(),
                to: edge.to.clone(),
                ports: edge.ports.join(", "),
                total: edge.packets,
                rate: self.rate(edge.packets, |sample| sample.edges.get(&edge.counter).copied()),
            })
            .filter(|row| self.wants(&[&row.from, &row.to, &row.ports]))
            .collect();
        rows.sort_by(|a, b| {
            let names = || (&a.from, &a.to, &a.ports).cmp(&(&b.from, &b.to, &b.ports));
            match self.order {
                Order::Rate => b
                    .rate
                    .total_cmp(&a.rate)
                    .then(b.total.cmp(&a.total))
                    .then_with(names),
                Order::Total => b.total.cmp(&a.total).then_with(names),
                Order::Name => names(),
            }
        });
        rows
    }

    /// The flows that the filter lets through: by rate or total, or else the latest first.
    pub(super) fn flows(&self) -> Vec<FlowRow> {
        let mut flows: Vec<(&String, &FlowRecord)> = self.flows.iter().collect();
        flows.sort_by_key(|(_, flow)| std::cmp::Reverse(flow.seq));
        let mut rows: Vec<FlowRow> = flows
            .into_iter()
            .map(|(key, flow)| FlowRow {
                last: flow.last_seen,
                verdict: flow.verdict,
                from: flow.from.to_string(),
                target: flow.target(),
                attempts: flow.attempts,
                rate: self.rate(Some(flow.attempts), |sample| {
                    Some(sample.flows.get(key).copied().unwrap_or(0))
                }),
            })
            .filter(|row| self.wants(&[&row.from, &row.target]))
            .collect();
        match self.order {
            Order::Rate => rows.sort_by(|a, b| b.rate.total_cmp(&a.rate)),
            Order::Total => rows.sort_by_key(|row| std::cmp::Reverse(row.attempts)),
            Order::Name => rows.sort_by(|a, b| (&a.from, &a.target).cmp(&(&b.from, &b.target))),
        }
        rows
    }

    /// By the second, over the answers that are known; 0 where a counter began anew.
    fn rate(&self, now: Option<u64>, then: impl Fn(&Sample) -> Option<u64>) -> f64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return 0.0;
        };
        let elapsed = last.at.duration_since(first.at).as_secs_f64();
        let grown = now.zip(then(first)).and_then(|(now, then)| now.checked_sub(then));
        #[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
        match grown {
            Some(grown) if elapsed > 0.0 => grown as f64 / elapsed,
            _ => 0.0,
        }
    }

    fn wants(&self, names: &[&str]) -> bool {
        let filter = self.filter.to_lowercase();
        filter.is_empty() || names.iter().any(|name| name.to_lowercase().contains(&filter))
    }

    /// What a key does.
    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Stay;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Next::Quit;
        }
        if self.typing {
            match key.code {
                KeyCode::Char(c) if !c.is_control() && self.filter.chars().count() < 60 => {
                    self.filter.push(c)
                }
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Esc => {
                    self.filter.clear();
                    self.typing = false;
                }
                KeyCode::Enter => self.typing = false,
                _ => {}
            }
            self.scroll = [0, 0];
            return Next::Stay;
        }
        let scroll = &mut self.scroll[usize::from(self.pane == Pane::Denied)];
        match key.code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Esc if self.filter.is_empty() => return Next::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('s') => {
                self.order = match self.order {
                    Order::Rate => Order::Total,
                    Order::Total => Order::Name,
                    Order::Name => Order::Rate,
                }
            }
            KeyCode::Tab | KeyCode::BackTab => {
                self.pane = match self.pane {
                    Pane::Edges => Pane::Denied,
                    Pane::Denied => Pane::Edges,
                }
            }
            KeyCode::Up | KeyCode::Char('k') => *scroll = scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => *scroll = scroll.saturating_add(1),
            KeyCode::PageUp => *scroll = scroll.saturating_sub(10),
            KeyCode::PageDown => *scroll = scroll.saturating_add(10),
            KeyCode::Home => *scroll = 0,
            _ => {}
        }
        Next::Stay
    }
}

/// What makes it the same flow.
fn key(flow: &FlowRecord) -> String {
    format!("{:?} {} {}", flow.verdict, flow.from, flow.target())
}

/// What is worth a line between two answers.
fn changes(before: &Status, now: &Status) -> Vec<String> {
    let mut news = Vec::new();
    if before.state != now.state {
        news.push(format!("the daemon is {}", word(now.state)));
    }
    let new = now.reasons.iter().filter(|it| !before.reasons.contains(it));
    news.extend(new.cloned());
    if before.policy.revision != now.policy.revision {
        let revision = now.policy.revision.as_deref().unwrap_or("none");
        news.push(format!("policy {revision} is in force"));
    }
    if let Some(drift) = now
        .drift
        .as_ref()
        .filter(|_| before.passes.repairs < now.passes.repairs)
    {
        news.push(format!("put back: {drift}"));
    }
    if before.engine.is_some() != now.engine.is_some() {
        let is = if now.engine.is_some() { "is" } else { "is not" };
        news.push(format!("the engine {is} connected"));
    }
    for (name, service) in &now.services {
        let earlier = before.services.get(name).map(|it| it.containers.len());
        let containers = service.containers.len();
        if earlier.is_some_and(|earlier| earlier != containers) {
            news.push(format!("{name} has {containers} containers now"));
        }
    }
    news
}

pub(super) fn word(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Waiting => "waiting for the engine",
        State::Enforcing => "enforcing",
        State::Degraded => "degraded",
    }
}
