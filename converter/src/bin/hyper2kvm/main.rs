//! `hyper2kvm`: the converter's program.
mod daemon;
mod journal;

fn main() -> std::process::ExitCode {
    daemon::main()
}
