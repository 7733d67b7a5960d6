//! The picture of a board, for whatever size the terminal has.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};

use super::board::{Board, Order, Pane, word};
use crate::daemon::flows::FlowVerdict;
use crate::daemon::status::{State, Status};

const QUIET: Style = Style::new().fg(Color::DarkGray);

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, board: &mut Board, now: Timestamp) {
    let area = frame.area();
    let trouble = trouble(board);
    let [head, notice, edges, denied, events, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(u16::from(trouble.is_some())),
        Constraint::Fill(5),
        Constraint::Fill(5),
        Constraint::Length(if area.height < 20 {
            0
        } else {
            (area.height / 6).max(4)
        }),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(heading(board, now)), head);
    if let Some(trouble) = trouble {
        frame.render_widget(Paragraph::new(Line::from(plain(&trouble)).red().bold()), notice);
    }
    draw_edges(frame, edges, board);
    draw_denied(frame, denied, board);
    draw_events(frame, events, board);
    frame.render_widget(Paragraph::new(footer(board)), foot);
}

/// What keeps the picture from being the whole truth.
fn trouble(board: &Board) -> Option<String> {
    let reasons = board.status.as_ref().map_or(&[][..], |it| &it.reasons);
    match (&board.silence, reasons) {
        (Some(error), _) => Some(format!("no answer from the daemon ({error}): asking again")),
        (None, []) => None,
        (None, [reason]) => Some(reason.clone()),
        (None, [first, rest @ ..]) => Some(format!("{first} (and {} more)", rest.len())),
    }
}

fn heading(board: &Board, now: Timestamp) -> Vec<Line<'static>> {
    let Some(status) = &board.status else {
        return Vec::new();
    };
    let colour = match status.state {
        State::Enforcing => Color::Green,
        State::Degraded => Color::Red,
        State::Starting | State::Waiting => Color::Yellow,
    };
    let revision: String = status
        .policy
        .revision
        .as_deref()
        .unwrap_or("none")
        .chars()
        .take(10)
        .collect();
    let engine = status
        .engine
        .clone()
        .unwrap_or_else(|| "not connected".to_owned());
    let first = vec![
        Span::from("cofferdam").bold(),
        Span::from("  ● ").fg(colour),
        Span::from(word(status.state)).fg(colour).bold(),
        Span::styled("  policy ", QUIET),
        Span::from(plain(&revision)),
        Span::styled("  engine ", QUIET),
        Span::from(plain(&engine)),
        Span::styled("  ", QUIET),
        Span::styled(time(now), QUIET),
        Span::from(if board.paused { "  paused" } else { "" })
            .yellow()
            .bold(),
    ];
    let endpoints = || endpoints(status);
    let bound = endpoints().filter(|bound| *bound).count();
    let count = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let mut second = vec![
        Span::styled("services ", QUIET),
        Span::from(status.services.len().to_string()),
        Span::styled("  edges ", QUIET),
        Span::from(status.edges.len().to_string()),
        Span::styled("  endpoints bound ", QUIET),
        Span::from(format!("{bound}/{}", endpoints().count())),
        Span::styled("  denied packets ", QUIET),
        Span::from(count(status.denied_packets)),
    ];
    if status.audited_packets.is_some_and(|packets| packets > 0) {
        second.push(Span::styled("  audited ", QUIET));
        second.push(Span::from(count(status.audited_packets)).yellow());
    }
    if status.passes.repairs > 0 {
        second.push(Span::styled("  repairs ", QUIET));
        second.push(Span::from(status.passes.repairs.to_string()));
    }
    vec![Line::from(first), Line::from(second)]
}

/// Whether each endpoint is bound.
fn endpoints(status: &Status) -> impl Iterator<Item = bool> {
    let mut seen = std::collections::BTreeSet::new();
    let containers = status.services.values().flat_map(|it| &it.containers);
    containers
        .filter(move |it| seen.insert(&it.id))
        .flat_map(|it| &it.endpoints)
        .filter(|it| it.is_wanted())
        .map(|it| it.bound)
}

fn pane(title: String, focused: bool) -> Block<'static> {
    let style = if focused {
        Style::new().add_modifier(Modifier::BOLD)
    } else {
        QUIET
    };
    Block::new()
        .borders(Borders::TOP)
        .border_style(QUIET)
        .title(Span::styled(format!(" {title} "), style))
}

/// The first row that is shown, such that the list ends at the bottom and not above it.
fn first(scroll: &mut usize, rows: usize, area: Rect) -> usize {
    // The border and the heading are no rows.
    let room = usize::from(area.height.saturating_sub(2));
    *scroll = (*scroll).min(rows.saturating_sub(room));
    *scroll
}

fn draw_edges(frame: &mut Frame<'_>, area: Rect, board: &mut Board) {
    let rows = board.edges();
    let by = match board.order {
        Order::Rate => "by rate",
        Order::Total => "by total",
        Order::Name => "by name",
    };
    let title = format!("Edges {by} ({})", rows.len());
    let start = first(&mut board.scroll[0], rows.len(), area);
    let rows = rows.into_iter().skip(start).take(area.height.into()).map(|row| {
        let total = row.total.map_or_else(|| "-".to_owned(), |it| it.to_string());
        let style = match (row.rate > 0.0, row.total) {
            (true, _) => Style::new(),
            (false, Some(0)) => QUIET,
            (false, _) => Style::new().fg(Color::Gray),
        };
        let rate = if row.rate > 0.0 {
            Style::new().fg(Color::Cyan).bold()
        } else {
            style
        };
        Row::new([
            Cell::from(Line::from(number(row.rate)).right_aligned()).style(rate),
            Cell::from(Line::from(total).right_aligned()),
            Cell::from(plain(&row.from)),
            Cell::from(plain(&row.to)),
            Cell::from(plain(&row.ports)),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Fill(3),
        Constraint::Fill(3),
        Constraint::Fill(2),
    ];
    let heads = ["OPENS/S", "OPENED", "FROM", "TO", "PORTS"];
    let heads = heads.into_iter().enumerate().map(|(index, it)| match index {
        0 | 1 => Cell::from(Line::from(it).right_aligned()),
        _ => Cell::from(it),
    });
    let table = Table::new(rows, widths)
        .header(Row::new(heads).style(QUIET))
        .block(pane(title, board.pane == Pane::Edges));
    frame.render_widget(table, area);
}

fn draw_denied(frame: &mut Frame<'_>, area: Rect, board: &mut Board) {
    let rows = board.flows();
    let missed = board.missed.unlogged_packets + board.missed.lost_packets;
    let title = match missed {
        0 => format!("Denied attempts ({} flows)", rows.len()),
        missed => format!(
            "Denied attempts ({} flows; {missed} packets not looked at)",
            rows.len()
        ),
    };
    let start = first(&mut board.scroll[1], rows.len(), area);
    let rows = rows.into_iter().skip(start).take(area.height.into()).map(|row| {
        let colour = match row.verdict {
            FlowVerdict::Denied => Color::Red,
            FlowVerdict::Audited => Color::Yellow,
            FlowVerdict::Identity => Color::Magenta,
        };
        let rate = if row.rate > 0.0 {
            Style::new().fg(colour).bold()
        } else {
            Style::new()
        };
        Row::new([
            Cell::from(Line::from(number(row.rate)).right_aligned()).style(rate),
            Cell::from(Line::from(row.attempts.to_string()).right_aligned()),
            Cell::from(time(row.last)).style(QUIET),
            Cell::from(row.verdict.to_string()).style(Style::new().fg(colour)),
            Cell::from(format!("{} -> {}", plain(&row.from), plain(&row.target))),
        ])
    });
    let widths = [
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let heads = ["TRIES/S", "TRIED", "LAST", "VERDICT", "FLOW"];
    let heads = heads.into_iter().enumerate().map(|(index, it)| match index {
        0 | 1 => Cell::from(Line::from(it).right_aligned()),
        _ => Cell::from(it),
    });
    let table = Table::new(rows, widths)
        .header(Row::new(heads).style(QUIET))
        .block(pane(title, board.pane == Pane::Denied));
    frame.render_widget(table, area);
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, board: &Board) {
    if area.height == 0 {
        return;
    }
    let room = usize::from(area.height.saturating_sub(1));
    let lines = board.events.iter().rev().take(room).map(|(at, text)| {
        Line::from(vec![
            Span::styled(format!("{}  ", time(*at)), QUIET),
            Span::from(plain(text)),
        ])
    });
    let lines: Vec<Line<'_>> = lines.collect();
    let lines = match lines.is_empty() {
        true => vec![Line::styled("nothing happened since this was started", QUIET)],
        false => lines,
    };
    frame.render_widget(
        Paragraph::new(lines).block(pane("Latest".to_owned(), false)),
        area,
    );
}

fn footer(board: &Board) -> Line<'static> {
    if board.typing {
        let hint = Span::styled("   enter keeps it, esc drops it", QUIET);
        return Line::from(vec![
            Span::from(format!("filter: {}▏", plain(&board.filter))).bold(),
            hint,
        ]);
    }
    let mut spans = Vec::new();
    for (key, does) in [
        ("q", "quit"),
        ("s", "sort"),
        ("/", "filter"),
        ("tab", "list"),
        ("↑↓", "scroll"),
        ("space", "pause"),
    ] {
        spans.push(Span::from(key).bold());
        spans.push(Span::styled(format!(" {does}   "), QUIET));
    }
    if !board.filter.is_empty() {
        spans.push(Span::from(format!("filtered by {}", plain(&board.filter))).yellow());
    }
    Line::from(spans)
}

fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%H:%M:%S").to_string()
}

/// `0`, `0.4`, `12`.
fn number(rate: f64) -> String {
    match rate {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 9.95 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}

/// Without what would move the cursor or turn the text around: names come from others.
fn plain(text: &str) -> String {
    let unseen = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars()
        .map(|c| if unseen(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
