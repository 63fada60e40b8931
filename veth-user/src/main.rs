//! The `veth` binary. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    veth_user::cli::main()
}
