//! Writes man pages and completions from the commands' definitions: `cargo run --example papers -- DIRECTORY`.
#![allow(
    clippy::disallowed_methods,
    reason = "only the pure rooms of the library ban files and the environment"
)]

use std::io::Error;
use std::path::PathBuf;

use clap_complete::{Shell, generate_to};

fn main() -> Result<(), Error> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or_else(|| Error::other("usage: papers DIRECTORY"))?;
    let pages = directory.join("man");
    // A page of a command that is gone must not be packed again.
    if pages.exists() {
        std::fs::remove_dir_all(&pages)?;
    }
    std::fs::create_dir_all(&pages)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut cofferdam::cli::command(), "cofferdam", &directory)?;
    }
    clap_mangen::generate_to(cofferdam::cli::command().disable_help_subcommand(true), &pages)
}
