//! The `cofferdam` command.

fn main() -> std::process::ExitCode {
    cofferdam::cli::main()
}
