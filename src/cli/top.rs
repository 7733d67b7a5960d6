//! `cofferdam top`: a live view in the terminal, from the control socket. Exit code 2 without a terminal, 3 without a daemon.

mod board;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use ratatui::crossterm::event::{self, Event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use self::board::{Board, Next};
use super::{ControlArgs, block_on, no_daemon};
use crate::daemon::Refusal;
use crate::daemon::control::{Answer, Request, ask};
use crate::daemon::flows::FlowsAnswer;
use crate::daemon::status::Status;

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    control: ControlArgs,
    /// Seconds between two questions to the daemon
    #[arg(long, short, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
}

/// Wrong usage: nothing to draw on.
const USAGE: u8 = 2;
/// How long a key may wait until it is looked at.
const KEYS: Duration = Duration::from_millis(100);

pub(super) fn run(args: &TopArgs) -> Result<ExitCode, Refusal> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        eprintln!(
            "cofferdam: top draws on a terminal, and there is none: `cofferdam status` and `cofferdam flows`, with --json, are for scripts"
        );
        return Ok(ExitCode::from(USAGE));
    }
    block_on(watch(args))
}

async fn watch(args: &TopArgs) -> Result<ExitCode, Refusal> {
    let socket = &args.control.control_socket;
    let mut board = Board::default();
    // Before the terminal is touched, so that it can be said in peace.
    match question(args, &board).await? {
        Ok((status, flows)) => board.observe(status, flows, Instant::now()),
        Err(error) => return Ok(no_daemon(socket, &error)),
    }
    let failed = |error| Refusal::system("draw on the terminal", error);
    let listen = |kind| signal(kind).map_err(|error| Refusal::system("listen to signals", error));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminal = Restored(ratatui::try_init().map_err(failed)?);
    let mut keys = Keys::start();
    let mut tick = interval(Duration::from_secs(args.interval));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    loop {
        let draw = |frame: &mut ratatui::Frame<'_>| view::draw(frame, &mut board, Timestamp::now());
        terminal.0.draw(draw).map_err(failed)?;
        tokio::select! {
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
            _ = interrupt.recv() => break,
            event = keys.events.recv() => match event {
                Some(Event::Key(key)) if board.key(key) == Next::Quit => break,
                Some(_) => {}
                // The terminal is gone.
                None => break,
            },
            _ = tick.tick() => match question(args, &board).await? {
                Ok((status, flows)) => board.observe(status, flows, Instant::now()),
                Err(error) => board.silence(&error),
            },
        }
    }
    Ok(ExitCode::SUCCESS)
}

type Told = (Status, FlowsAnswer);

/// Asks for everything that is shown. What is no daemon's silence is a refusal.
async fn question(args: &TopArgs, board: &Board) -> Result<io::Result<Told>, Refusal> {
    let socket = &args.control.control_socket;
    let unfit = || Refusal::system("read the status", "the answer is none");
    let status = match ask(socket, Request::Status).await {
        Ok(Answer::Status(status)) => *status,
        // It says so because something is wrong, and may not be for long.
        Ok(Answer::Error(message)) => return Ok(Err(io::Error::other(message))),
        Ok(_) => return Err(unfit()),
        Err(error) => return Ok(Err(error)),
    };
    match ask(socket, Request::Flows { after: board.after() }).await {
        Ok(Answer::Flows(flows)) => Ok(Ok((status, *flows))),
        Ok(Answer::Error(message)) => Ok(Err(io::Error::other(message))),
        Ok(_) => Err(unfit()),
        Err(error) => Ok(Err(error)),
    }
}

/// The terminal, which is as it was when this is gone; a panic restores it, too.
struct Restored(ratatui::DefaultTerminal);

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Reads keys on a thread of its own, which ends with this.
struct Keys {
    events: mpsc::Receiver<Event>,
    over: Arc<AtomicBool>,
}

impl Keys {
    fn start() -> Self {
        let (sender, events) = mpsc::channel(64);
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let read = match event::poll(KEYS) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let Ok(event) = read else { break };
                if sender.blocking_send(event).is_err() {
                    break;
                }
            }
        });
        Self { events, over }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
