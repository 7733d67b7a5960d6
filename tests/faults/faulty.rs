//! The product, built with its fault points.

fn main() -> std::process::ExitCode {
    cofferdam::cli::main()
}
