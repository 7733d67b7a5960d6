use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::board::Next;
use super::*;
use crate::daemon::flows::{Direction, EndKind, FlowEnd, FlowRecord, FlowsAnswer, Missed};
use crate::daemon::status::{EdgeStatus, ServiceStatus};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_737_600 + second).unwrap()
}

fn status(packets: [u64; 3]) -> Status {
    let mut status = Status::starting();
    status.state = State::Enforcing;
    status.settled = true;
    status.engine = Some("28.5.2".to_owned());
    status.policy.revision = Some("3f9a1c72be04d1a9".to_owned());
    status.denied_packets = Some(12);
    let edge = |from: &str, to: &str, ports: &str, packets| EdgeStatus {
        from: from.to_owned(),
        to: to.to_owned(),
        ports: vec![ports.to_owned()],
        declared: String::new(),
        why: None,
        until: None,
        counter: format!("{from}{to}"),
        packets: Some(packets),
        bytes: Some(packets * 60),
        last_used: None,
    };
    status.edges = vec![
        edge("world", "shop/web", "80/tcp", packets[0]),
        edge("shop/web", "shop/api", "8000/tcp", packets[1]),
        edge("shop/worker", "shop/db", "5432/tcp", packets[2]),
    ];
    for name in ["shop/web", "shop/api", "shop/worker", "shop/db"] {
        status.services.insert(name.to_owned(), ServiceStatus::default());
    }
    status
}

fn flow(seq: u64, from: &str, to: &str, attempts: u64) -> FlowRecord {
    let end = |name: &str| FlowEnd {
        kind: EndKind::Service,
        services: [name.to_owned()].into(),
        container: Some(format!("{}-1", name.replace('/', "-"))),
        container_id: None,
        address: None,
    };
    FlowRecord {
        seq,
        verdict: FlowVerdict::Denied,
        direction: Direction::Internal,
        from: end(from),
        to: end(to),
        protocol: "tcp".to_owned(),
        port: Some(5432),
        icmp_type: None,
        many_ports: false,
        reason: format!("no edge from {from} to {to}"),
        attempts,
        packets: attempts,
        first_seen: at(0),
        last_seen: at(5),
    }
}

fn answer(last: u64, flows: Vec<FlowRecord>) -> FlowsAnswer {
    FlowsAnswer {
        since: at(0),
        last,
        flows,
        missed: Missed::default(),
    }
}

fn picture(board: &mut Board, (width, height): (u16, u16)) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, board, at(9))).unwrap();
    let text = terminal.backend().to_string();
    // Times are those of wherever this runs.
    let lines = text
        .lines()
        .map(|line| line.trim_matches('"').trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn press(board: &mut Board, keys: &str) -> Next {
    let mut next = Next::Stay;
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\u{1b}' => KeyCode::Esc,
            c => KeyCode::Char(c),
        };
        next = board.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
    next
}

fn board() -> Board {
    let mut board = Board::default();
    let start = Instant::now();
    board.observe(
        status([100, 20, 0]),
        answer(1, vec![flow(1, "shop/web", "shop/db", 3)]),
        start,
    );
    let mut later = status([104, 60, 0]);
    later.policy.revision = Some("77c0ffee".to_owned());
    let flows = vec![
        flow(2, "shop/web", "shop/db", 9),
        flow(3, "shop/db", "shop/web", 1),
    ];
    board.observe(later, answer(3, flows), start + Duration::from_secs(2));
    // Whenever this runs.
    for (moment, _) in &mut board.events {
        *moment = at(7);
    }
    board
}

fn snapshot(picture: &str) -> String {
    // The system's time zone is not the test's business.
    let digits = |text: &str| {
        text.len() == 8
            && text
                .bytes()
                .enumerate()
                .all(|(i, b)| if i % 3 == 2 { b == b':' } else { b.is_ascii_digit() })
    };
    let lines = picture.lines().map(|line| {
        let words = line
            .split(' ')
            .map(|word| if digits(word) { "hh:mm:ss" } else { word });
        words.collect::<Vec<_>>().join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn eighty_by_twenty_four() {
    insta::assert_snapshot!(snapshot(&picture(&mut board(), (80, 24))));
}

#[test]
fn what_is_wrong_stands_at_the_top() {
    let mut board = board();
    let mut bad = status([104, 60, 0]);
    bad.state = State::Degraded;
    bad.reasons = vec![
        "no subnet is free in 10.213.0.0/16".to_owned(),
        "another".to_owned(),
    ];
    board.observe(bad, answer(3, Vec::new()), Instant::now());
    let seen = picture(&mut board, (80, 24));
    assert!(
        seen.contains("no subnet is free in 10.213.0.0/16 (and 1 more)"),
        "{seen}"
    );
    board.silence(&std::io::Error::other("gone"));
    let seen = picture(&mut board, (80, 24));
    assert!(
        seen.contains("no answer from the daemon (gone): asking again"),
        "{seen}"
    );
}

#[test]
fn edges_are_sorted_and_filtered_with_keys() {
    let mut board = board();
    let names = |board: &Board| board.edges().into_iter().map(|row| row.to).collect::<Vec<_>>();
    assert_eq!(names(&board), ["shop/api", "shop/web", "shop/db"]);
    assert!((board.edges()[0].rate - 20.0).abs() < 0.01);
    press(&mut board, "s");
    assert_eq!(names(&board), ["shop/web", "shop/api", "shop/db"]);
    press(&mut board, "s");
    assert_eq!(names(&board), ["shop/api", "shop/db", "shop/web"]);
    press(&mut board, "/worker");
    assert_eq!(names(&board), ["shop/db"]);
    // While one types, letters are letters.
    assert_eq!(press(&mut board, "q"), Next::Stay);
    assert_eq!(names(&board), [""; 0]);
    press(&mut board, "\u{1b}");
    assert_eq!(names(&board).len(), 3);
    assert_eq!(press(&mut board, "\u{1b}"), Next::Quit);
    assert_eq!(press(&mut board, "q"), Next::Quit);
    let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut board, "/");
    assert_eq!(board.key(control), Next::Quit);
}

#[test]
fn flows_follow_the_log_and_a_new_one_begins_anew() {
    let mut board = board();
    let flows = board.flows();
    assert_eq!((flows.len(), flows[0].attempts, board.after()), (2, 9, 3));
    assert!((flows[0].rate - 3.0).abs() < 0.01);
    let mut other = answer(9, vec![flow(9, "shop/api", "shop/web", 1)]);
    other.since = at(1);
    board.observe(status([1, 1, 1]), other.clone(), Instant::now());
    assert_eq!((board.flows().len(), board.after()), (0, 0));
    board.observe(status([1, 1, 1]), other, Instant::now());
    assert_eq!((board.flows().len(), board.after()), (1, 9));
    // A counter that began anew has no rate.
    assert!(board.edges().iter().all(|row| row.rate < 0.01));
}

#[test]
fn any_size_and_any_name_can_be_drawn() {
    let mut board = board();
    let mut hostile = status([1, 2, 3]);
    hostile.edges[0].from = format!("\u{1b}[2J\u{202e}{}", "w".repeat(300));
    hostile.reasons = vec!["\u{1b}]0;owned\u{7}\r\n".to_owned()];
    board.observe(
        hostile,
        answer(4, vec![flow(4, "a\u{9b}31m/b", "c/\u{0}", 1)]),
        Instant::now(),
    );
    for size in [(80, 24), (1, 1), (20, 5), (40, 12), (300, 100)] {
        for scroll in [0, 1, 1000] {
            board.scroll = [scroll, scroll];
            let seen = picture(&mut board, size);
            assert!(
                !seen
                    .chars()
                    .any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'),
                "{size:?}"
            );
        }
    }
}
